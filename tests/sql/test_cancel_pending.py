"""`cancel_pending`: every criterion, in any transaction, by several callers at once."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity.models import Status
from tests.databases import Database
from tests.sql.processes import Peer
from tests.sql.remote import cancel_pending_together, configure, stop
from tests.sql.rows import event, eventually, gap_free, lines, opening, row, store

pytestmark = pytest.mark.one_python


def statuses(database: Database) -> dict[str, str]:
    with Session(database.engine) as session:
        return {item.agent_type: str(item.status) for item in ax.activity.list(session, page_size=1000).items}


def fill(database: Database, count: int) -> list[UUID]:
    """So many activities, every third of them running, one in ten complete."""
    ids = [uuid4() for _ in range(count)]
    store(
        database.url,
        [opening(agent_id, f"task {number}") for number, agent_id in enumerate(ids)],
        [event(agent_id, percentage=30) for agent_id in ids[::3]],
        [event(agent_id, Status.COMPLETE) for agent_id in ids[::10]],
    )
    return ids


def check_canceled(database: Database, ids: Sequence[UUID], complete: Sequence[UUID]) -> None:
    for agent_id in ids:
        stored, logs = row(database.engine, agent_id), lines(database.engine, agent_id)
        assert gap_free(logs)
        assert stored.last_seq == len(logs)
        ends = [log for log in logs if log.status.terminal]
        if agent_id in complete:
            assert [str(log.status) for log in ends] == ["COMPLETE"]
            continue
        assert (stored.status, stored.reason) == (Status.CANCELED, "canceled")
        assert [(str(log.status), log.message, log.late) for log in ends] == [("CANCELED", "Task canceled.", False)]
        assert stored.latest_percentage == max([log.percentage for log in logs if log.percentage], default=None)


@pytest.mark.parametrize("in_session", [False, True])
def test_all_that_is_pending(database: Database, in_session: bool) -> None:
    """QUEUED and RUNNING ones end as CANCELED with one line each, ended ones are left alone; the number is exact."""
    ids = fill(database, 20)
    ax.configure(database.url)
    if in_session:
        with Session(database.engine) as session:
            assert ax.activity.cancel_pending(session) == 18
            assert ax.activity.cancel_pending(session) == 0
            assert ax.activity.count_active(session) == 0
    else:
        assert ax.activity.cancel_pending() == 18
        assert ax.activity.cancel_pending() == 0
    check_canceled(database, ids, ids[::10])


def test_criteria(database: Database) -> None:
    """Each criterion narrows it down, and several have to be met together."""
    ax.configure(database.url)
    past_ns = time.time_ns() - 7200 * 10**9
    store(database.url, [opening(task="old", at_ns=past_ns)])
    with database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE agentexec_activity SET updated_at = created_at")
    for name in ("mine", "theirs"):
        ax.activity.create(name, metadata={"tenant": name, "n": 1})
    running = ax.activity.create("running")
    ax.activity.update(running, "Working.")
    assert ax.flush()
    worker_id = row(database.engine, running).worker_id
    hour = timedelta(hours=1)
    criteria: list[tuple[dict[str, Any], str | None]] = [
        ({"agent_type": "nothing"}, None),
        ({"worker_id": "nobody"}, None),
        ({"metadata_filter": {"tenant": "nobody"}}, None),
        ({"older_than": timedelta(hours=3)}, None),
        ({"older_than": datetime.now(UTC) - timedelta(hours=3)}, None),
        ({"agent_type": "mine", "metadata_filter": {"tenant": "theirs"}}, None),
        ({"agent_type": "mine", "older_than": hour}, None),
        ({"status": "RUNNING", "text": "waiting"}, None),
        ({"status": "QUEUED", "agent_type": ["running", "nothing"]}, None),
        ({"created_after": datetime.now(UTC) + hour}, None),
        ({"agent_type": "mine", "metadata_filter": {"tenant": "mine", "n": 1}}, "mine"),
        ({"metadata_filter": {"tenant": "theirs"}}, "theirs"),
        ({"older_than": hour}, "old"),
        ({"worker_id": worker_id, "older_than": datetime.now(UTC) + hour}, "running"),
    ]
    for given, canceled in criteria:
        before = statuses(database)
        with Session(database.engine) as session:
            assert ax.activity.cancel_pending(session, **given) == (canceled is not None)
        if canceled is not None:
            before[canceled] = "CANCELED"
        assert statuses(database) == before, given
    assert set(statuses(database).values()) == {"CANCELED"}


def test_naive_times_mean_utc(database: Database) -> None:
    """A naive `older_than` is taken as UTC, whatever the machine's zone."""
    ax.configure(database.url)
    ax.activity.create("task")
    now = datetime.now(UTC).replace(tzinfo=None)
    assert ax.activity.cancel_pending(older_than=now - timedelta(minutes=1)) == 0
    assert ax.activity.cancel_pending(older_than=now + timedelta(minutes=1)) == 1


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        ({"older_than": timedelta(hours=-1)}, "older_than is -3600 seconds"),
        ({"older_than": 3600}, "older_than is 3600: pass a timedelta"),
        ({"agent_type": [5]}, "agent_type is <list>: pass one name"),
        ({"worker_id": 7}, "worker_id is 7: pass one name"),
        ({"metadata_filter": ""}, "metadata_filter is '': pass a dict"),
        ({"metadata_filter": {}}, "metadata_filter is empty: pass a dict"),
    ],
)
def test_bad_criteria_cancel_nothing(database: Database, criterion: dict[str, Any], expected: str) -> None:
    """A criterion that makes no sense is a ValueError that names it; it is never taken for none at all."""
    ax.configure(database.url)
    agent_id = ax.activity.create("task")
    with pytest.raises(ValueError, match=expected):
        ax.activity.cancel_pending(**criterion)
    assert row(database.engine, agent_id).status is Status.QUEUED


def test_joined_in_a_transaction(database: Database, spans: InMemorySpanExporter) -> None:
    """Rolled back with the caller's transaction nothing has happened; committed with it, all of it, spans included."""
    ids = fill(database, 5)
    with Session(database.engine) as session:
        session.begin()
        assert ax.activity.cancel_pending(session) == 4
        session.rollback()
        assert ax.activity.count_active(session) == 4
        session.rollback()
        assert not spans.get_finished_spans()
        with session.begin():
            assert ax.activity.cancel_pending(session) == 4
    check_canceled(database, ids, ids[::10])
    assert eventually(lambda: len(spans.get_finished_spans()) == 4)


@pytest.mark.parametrize("in_session", [False, True])
def test_two_callers_at_once(database: Database, peers: tuple[Peer, Peer], in_session: bool) -> None:
    """Two processes share the work: the numbers they return add up to the rows that changed, each once."""
    ids = fill(database, 100)
    for peer in peers:
        peer.call(configure, database.url)
    both = [peer.submit(cancel_pending_together, database.url, in_session) for peer in peers]
    assert sum(one.result(60) for one in both) == 90
    for peer in peers:
        assert peer.call(stop)
    check_canceled(database, ids[:30], ids[::10])
    assert statuses(database) == {
        f"task {number}": "COMPLETE" if number % 10 == 0 else "CANCELED" for number in range(100)
    }


def test_more_than_one_chunk(database: Database) -> None:
    """More pending ones than fit into one transaction are all canceled, and counted."""
    store(database.url, [opening(task=f"task {number}") for number in range(600)])
    ax.configure(database.url)
    assert ax.activity.cancel_pending() == 600
    with Session(database.engine) as session:
        assert ax.activity.count_active(session) == 0
        assert ax.activity.list(session, status="CANCELED", page_size=1).total == 600


def test_a_running_block_is_told(database: Database, spans: InMemorySpanExporter) -> None:
    """A block of this process that a bulk call cancels knows it, and its span ends as CANCELED."""
    with ax.activity.run("task") as run:
        assert ax.flush()
        assert ax.activity.cancel_pending() == 1
        assert eventually(lambda: run.canceled)
    assert ax.flush()
    (span,) = spans.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes["agentexec.status"] == "CANCELED"
    assert row(database.engine, run.agent_id).status is Status.CANCELED
