"""Reading the tables beside the API, and making events by hand."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Engine, func, select
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.orm import Session

from agentexec_otel._model.ids import uuid7
from agentexec_otel.activity.models import Activity, ActivityLog, Status
from agentexec_otel.export import ActivityEvent, ExportResult, Opening, StoredActivity
from agentexec_otel_exporters.sql import SQLExporter


def row(engine: Engine, agent_id: UUID) -> Activity:
    """The activity's row as it is now."""
    with Session(engine, expire_on_commit=False) as session:
        return session.scalars(select(Activity).where(Activity.agent_id == agent_id)).one()


def lines(engine: Engine, agent_id: UUID) -> list[ActivityLog]:
    """The activity's log rows in order."""
    with Session(engine, expire_on_commit=False) as session:
        statement = select(ActivityLog).join(Activity).where(Activity.agent_id == agent_id).order_by(ActivityLog.seq)
        return list(session.scalars(statement))


def count_rows(engine: Engine) -> tuple[int, int]:
    """How many activities and how many lines there are."""
    with Session(engine) as session:
        activities = session.scalar(select(func.count()).select_from(Activity))
        logs = session.scalar(select(func.count()).select_from(ActivityLog))
    return activities or 0, logs or 0


def event(
    agent_id: UUID, status: Status = Status.RUNNING, message: str = "line", at_ns: int | None = None, **more: Any
) -> ActivityEvent:
    """An event as a producer makes it; `at_ns` is its clock."""
    more.setdefault("percentage", None)
    return ActivityEvent(
        event_id=uuid7(),
        agent_id=agent_id,
        status=status,
        message=message,
        occurred_at_ns=time.time_ns() if at_ns is None else at_ns,
        **more,
    )


def opening(agent_id: UUID | None = None, task: str = "task", **more: Any) -> ActivityEvent:
    """The QUEUED event that creates an activity."""
    return event(uuid4() if agent_id is None else agent_id, Status.QUEUED, "queued", opening=Opening(task), **more)


def store(url: str, *batches: Sequence[ActivityEvent]) -> None:
    """Deliver batches as another process would: beside the runtime of the test."""
    exporter = SQLExporter(url)
    for batch in batches:
        exporter.export(batch)
    exporter.shutdown(1.0)


class BusyExporter(SQLExporter):
    """An exporter whose next batch takes `busy` seconds longer."""

    busy = 0.0

    def export(self, events: Sequence[ActivityEvent], *, replay: bool = False) -> Sequence[ExportResult]:
        """See `ActivityExporter.export`."""
        pause, self.busy = self.busy, 0.0
        time.sleep(pause)
        return super().export(events, replay=replay)


def stored_activity(url: str, agent_id: UUID) -> StoredActivity | None:
    """The activity as a store has it, read beside the runtime of the test."""
    exporter = SQLExporter(url)
    try:
        return exporter.load([agent_id]).get(agent_id)
    finally:
        exporter.shutdown(1.0)


def gap_free(logs: Sequence[ActivityLog]) -> bool:
    """Whether `seq` is 1, 2, … without a hole."""
    return [log.seq for log in logs] == list(range(1, len(logs) + 1))


def eventually(condition: Callable[[], object], timeout: float = 10.0) -> bool:
    """Whether the condition came true in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


@contextmanager
def statements(engine: Engine) -> Generator[list[str]]:
    """The statements that are sent meanwhile."""
    found: list[str] = []

    def note(connection: object, cursor: object, statement: str, *_: object) -> None:
        found.append(statement)

    sqlalchemy_event.listen(engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        sqlalchemy_event.remove(engine, "before_cursor_execute", note)
