"""The feed beside many writers: each committed log once, whatever the order of the commits."""

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from threading import Event
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel._model.event import Outcome
from agentexec_otel.activity import ActivityFeedLogSchema
from agentexec_otel.activity.models import Activity, ActivityLog, Status
from agentexec_otel.export import Ending, TransientExportError
from agentexec_otel_exporters.sql import SQLExporter
from tests.databases import Database
from tests.sql.rows import event, opening

pytestmark = pytest.mark.one_python

SECONDS = 3.0
ENDING = Ending(Status.CANCELED, "canceled", Outcome(reason="canceled"))

Write = Callable[[Engine, random.Random, Event], None]


def write_in_transactions(engine: Engine, chance: random.Random, done: Event) -> None:
    """As an application that passes its sessions: transactions of any length, a third of them rolled back."""
    exporter = SQLExporter(engine.url)
    mine: list[UUID] = []
    while not done.is_set():
        made: list[UUID] = []
        with engine.connect() as connection:
            try:
                for _ in range(chance.randint(1, 5)):
                    if not mine or chance.random() < 0.4:
                        made.append(uuid4())
                        exporter.write_in(connection, [opening(made[-1])])
                    else:
                        exporter.write_in(connection, [event(chance.choice(mine))])
                    time.sleep(chance.choice([0, 0, 0.002, 0.05]))
            except OperationalError:  # a deadlock of MariaDB's gap locks
                continue
            if chance.random() < 0.67:
                connection.commit()
                mine += made
    exporter.shutdown(1.0)


def write_batches(engine: Engine, chance: random.Random, done: Event) -> None:
    """As the writer of a process: batches, some of them stored before, and the end of many at once."""
    exporter = SQLExporter(engine.url)
    mine: list[UUID] = []
    while not done.is_set():
        batch = [opening() for _ in range(chance.randint(1, 5))]
        batch += [event(agent_id) for agent_id in mine[-20:] for _ in range(chance.randint(0, 3))]
        with suppress(TransientExportError):  # a deadlock of MariaDB's gap locks
            exporter.export(batch)
            mine += [one.agent_id for one in batch if one.opening is not None]
            if chance.random() < 0.2:
                exporter.export(batch)
            if chance.random() < 0.1:
                exporter.end_where(None, [Activity.agent_id.in_(chance.choices(mine, k=10))], ENDING)
    exporter.shutdown(1.0)


def read_all(engine: Engine, chance: random.Random, done: Event) -> list[ActivityFeedLogSchema]:
    """All logs, in pages of any size; after some pages the reader is restarted behind any of their logs."""
    seen: list[ActivityFeedLogSchema] = []
    cursor = ""
    while True:
        writers_are_done = done.is_set()
        with Session(engine) as session:
            page = ax.activity.feed(session, cursor, limit=chance.choice([1, 10, 100, 1000]))
        kept = page.logs
        cursor = page.next_cursor
        if kept and chance.random() < 0.3:
            kept = kept[: chance.randint(1, len(kept))]
            cursor = kept[-1].cursor
        seen += kept
        if writers_are_done and not page.logs and not page.has_more:
            return seen
        time.sleep(chance.choice([0, 0.001, 0.03]))


@pytest.mark.one_python
@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
@pytest.mark.parametrize("database", ["postgres", "mariadb"], indirect=True)
def test_each_committed_log_arrives_once(database: Database, isolation: str) -> None:
    """Transactions of random length, rolled back or not, beside batches: no log is missed, repeated or out of order."""
    engine = create_engine(database.url, isolation_level=isolation, pool_size=20)
    chance = random.Random(isolation)
    done, written = Event(), Event()
    found: list[list[ActivityFeedLogSchema]] = []
    writers: list[Write] = [*(write_in_transactions for _ in range(6)), write_batches, write_batches]
    with ThreadPoolExecutor(10) as pool:
        readings = [pool.submit(read_all, engine, random.Random(chance.random()), written) for _ in range(2)]
        writings = [pool.submit(write, engine, random.Random(chance.random()), done) for write in writers]
        time.sleep(SECONDS)
        done.set()
        wait(writings)
        written.set()
        found = [reading.result() for reading in readings]
    for writing in writings:
        writing.result()
    with Session(engine) as session:
        committed = session.execute(select(ActivityLog.id, Activity.agent_id, ActivityLog.seq).join(Activity)).all()
    engine.dispose()
    for seen in found:
        assert sorted((log.id, log.agent_id, log.seq) for log in seen) == sorted(map(tuple, committed))
        assert [(log.agent_id, log.seq) for log in seen if log.seq > 1] == in_order(seen)
    assert any([log.id for log in seen] != sorted(log.id for log in seen) for seen in found), "the writers did not race"


def in_order(seen: list[ActivityFeedLogSchema]) -> list[tuple[UUID, int]]:
    """Those logs behind whose predecessors they stand."""
    reached: dict[UUID, int] = {}
    found: list[tuple[UUID, int]] = []
    for log in seen:
        if reached.get(log.agent_id, 0) == log.seq - 1 > 0:
            found.append((log.agent_id, log.seq))
        reached[log.agent_id] = log.seq
    return found
