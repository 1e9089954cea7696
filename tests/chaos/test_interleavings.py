"""Three producers of one activity, in every order in which their events can meet."""

import time
from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from agentexec_otel._model.ids import uuid7
from agentexec_otel.activity.models import Activity, ActivityLog, Status
from agentexec_otel.export import ActivityEvent, Opening
from agentexec_otel_exporters.sql import SQLExporter
from tests.databases import Database

pytestmark = pytest.mark.one_python

# The web process creates and may cancel, the worker runs and completes, a tool reports and fails.
PRODUCERS = (
    (Status.QUEUED, Status.CANCELED),
    (Status.RUNNING, Status.COMPLETE),
    (Status.RUNNING, Status.ERROR),
)
Order = tuple[int, ...]


def orders(left: Order = (2, 2, 2)) -> Iterator[Order]:
    """Whose turn it is: every way to merge the three, each keeping its own order."""
    if not any(left):
        yield ()
    for number, more in enumerate(left):
        if more:
            for rest in orders((*left[:number], more - 1, *left[number + 1 :])):
                yield (number, *rest)


def events(agent_id: UUID, order: Order) -> list[ActivityEvent]:
    taken = [0, 0, 0]
    made: list[ActivityEvent] = []
    for number in order:
        status = PRODUCERS[number][taken[number]]
        taken[number] += 1
        opening = Opening("task") if status is Status.QUEUED else None
        text = f"{number} says {status}"
        made.append(ActivityEvent(uuid7(), agent_id, status, text, None, time.time_ns(), 1, opening))
    return made


def test_every_interleaving_of_three_producers_ends_the_same_way(database: Database) -> None:
    """All 90: one ending that counts, the first one; what comes behind it is late and carries its status; no holes."""
    lives = {uuid4(): order for order in orders()}
    assert len(lives) == 90
    made = {agent_id: events(agent_id, order) for agent_id, order in lives.items()}
    exporter = SQLExporter(database.url)
    for turn in range(6):
        exporter.export([life[turn] for life in made.values()])
    exporter.shutdown(1)
    for agent_id, life in made.items():
        first = next(number for number, event in enumerate(life) if event.status.terminal)
        row, logs = stored(database, agent_id)
        assert (row.status, row.agent_type, row.last_seq) == (life[first].status, "task", 6)
        assert [log.seq for log in logs] == [1, 2, 3, 4, 5, 6]
        assert [log.message for log in logs] == [event.message for event in life]
        assert [log.late for log in logs] == [number > first for number in range(6)]
        assert {log.status for log in logs[first:]} == {row.status}


def stored(database: Database, agent_id: UUID) -> tuple[Activity, list[ActivityLog]]:
    with Session(database.engine, expire_on_commit=False) as session:
        row = session.scalars(select(Activity).where(Activity.agent_id == agent_id)).one()
        found = select(ActivityLog).where(ActivityLog.activity_id == row.id).order_by(ActivityLog.seq)
        return row, list(session.scalars(found))
