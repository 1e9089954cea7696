"""Each further exporter gets every event that SQL gets: as recorded, in the same order, with the activity's span."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID

import pytest
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity.models import Activity, ActivityLog
from agentexec_otel.export import ActivityEvent
from tests.databases import Database
from tests.sql.recorder import Recorder
from tests.sql.rows import eventually, lines, row

pytestmark = [pytest.mark.one_python, pytest.mark.parametrize("database", ["sqlite"], indirect=True)]

Log: TypeAlias = tuple[UUID, str, str, int | None, int | None]
"""Event id, status, message, percentage and attempt."""


@dataclass
class Both:
    """SQL, and an exporter beside it."""

    database: Database
    beside: Recorder

    def in_sql(self) -> dict[UUID, list[Log]]:
        """What the log table has, by activity, in its order. The status of a late log is SQL's verdict: empty here."""
        found: dict[UUID, list[Log]] = {}
        with Session(self.database.engine) as session:
            logs = select(Activity.agent_id, ActivityLog).join(ActivityLog).order_by(ActivityLog.id)
            for agent_id, log in session.execute(logs):
                status = "" if log.late else str(log.status)
                one = (log.event_id, status, log.message, log.percentage, log.attempt)
                found.setdefault(agent_id, []).append(one)
        return found

    def in_the_other(self) -> dict[UUID, list[Log]]:
        """What the exporter beside it was given, by activity, in its order. The attempt is None where that is open."""
        found: dict[UUID, list[Log]] = {}
        for event in self.beside.events:
            attempt = None if event.reopens else event.attempt
            one = (event.event_id, str(event.status), event.message, event.percentage, attempt)
            found.setdefault(event.agent_id, []).append(one)
        return found

    def differences(self) -> list[str]:
        """What one of them has and the other has not, or has at another place. Nothing, if all is well."""
        eventually(lambda: not self._differences(), 0.5)  # What a sweep has ended is passed on a moment later.
        return self._differences()

    def _differences(self) -> list[str]:
        assert ax.flush()
        sql, other = self.in_sql(), self.in_the_other()
        return [
            f"SQL has {_shown(sql.get(agent_id, []))}, the other has {_shown(other.get(agent_id, []))}"
            for agent_id in sorted({*sql, *other})
            if not _same(sql.get(agent_id, []), other.get(agent_id, []))
        ]

    def events_of(self, agent_id: UUID) -> list[ActivityEvent]:
        """What the exporter was given of one activity."""
        assert ax.flush()
        return [event for event in self.beside.events if event.agent_id == agent_id]


def _same(stored: list[Log], given: list[Log]) -> bool:
    return len(stored) == len(given) and all(
        event_id == other_id
        and (message, percentage) == (other_message, other_percentage)
        and status in ("", other_status)
        and other_attempt in (None, attempt)
        for (event_id, status, message, percentage, attempt), (
            other_id, other_status, other_message, other_percentage, other_attempt,
        ) in zip(stored, given, strict=True)
    )  # fmt: skip


def _shown(some: list[Log]) -> str:
    return (
        "; ".join(f"{status or 'late'} {message!r} {str(key)[-4:]}" for key, status, message, *_ in some) or "nothing"
    )


@pytest.fixture
def both(database: Database, tracer_provider: TracerProvider) -> Iterator[Both]:
    """SQL, and an exporter beside it. Activities are traced."""
    beside = Recorder()
    ax.configure(database.url, exporters=[beside], tracer_provider=tracer_provider)
    yield Both(database, beside)
    ax.shutdown()


# -- every call -----------------------------------------------------------------------------------------------------


def run(_: Both) -> None:
    with ax.activity.run("task") as block:
        block.update("Half.", 50)


def run_that_fails(_: Both) -> None:
    with pytest.raises(LookupError), ax.activity.run("task"):
        raise LookupError("nothing there")


def run_on_event_loop(_: Both) -> None:
    async def work() -> None:
        async with ax.activity.run("task") as block:
            block.update("Half.", 50)

    asyncio.run(work())


def complete_error_cancel(_: Both) -> None:
    for end in (ax.activity.complete, ax.activity.error, ax.activity.cancel):
        agent_id = _running()
        assert end(agent_id)
        assert not ax.activity.complete(agent_id, "Late.")


def never_ran(_: Both) -> None:
    assert ax.activity.cancel(ax.activity.create("task"))


def retry(_: Both) -> None:
    agent_id = _running()
    ax.activity.complete(agent_id)
    assert ax.activity.retry(agent_id) == 2
    ax.activity.update(agent_id, "Again.")
    ax.activity.error(agent_id)
    ax.activity.update(agent_id, "And again.", status="QUEUED")
    ax.activity.complete(agent_id)


def cancel_pending(_: Both) -> None:
    _running()
    ax.activity.create("task")
    assert ax.activity.cancel_pending() == 2


def cancel_pending_in_session(both: Both) -> None:
    _running()
    ax.activity.create("task")
    with Session(both.database.engine) as session:
        assert ax.activity.cancel_pending(session) == 2


def cancel_pending_in_transaction(both: Both) -> None:
    _running()
    ax.activity.create("task")
    with Session(both.database.engine) as session, session.begin():
        assert ax.activity.cancel_pending(session) == 2


def reap(both: Both) -> None:
    _lost(both)
    assert ax.activity.reap() == 1


def reap_in_session(both: Both) -> None:
    _lost(both)
    with Session(both.database.engine) as session:
        assert ax.activity.reap(session) == 1


def swept(both: Both) -> None:
    ax.CONF.lease_seconds, ax.CONF.sweep_interval = 0.5, 0.05
    ax.configure(both.database.url, exporters=[both.beside])
    agent_id = _lost(both)
    assert eventually(lambda: row(both.database.engine, agent_id).status is ax.activity.Status.ERROR)


def calls_in_session(both: Both) -> None:
    with Session(both.database.engine) as session:
        agent_id = ax.activity.create("task", session=session)
        ax.activity.update(agent_id, "Half.", 50, session=session)
        ax.activity.complete(agent_id, session=session)
        ax.activity.update(agent_id, "Again.", status="QUEUED", session=session)
        ax.activity.error(agent_id, session=session)


def calls_in_transaction(both: Both) -> None:
    with Session(both.database.engine) as session, session.begin():
        agent_id = ax.activity.create("task", session=session)
        ax.activity.update(agent_id, "Half.", 50, session=session)
        with session.begin_nested():
            ax.activity.cancel(agent_id, session=session)
        assert both.events_of(agent_id) == []
    assert len(both.events_of(agent_id)) == 3


def calls_in_async_session(both: Both) -> None:
    async def work() -> None:
        engine = create_async_engine(both.database.async_url)
        async with AsyncSession(engine) as session:
            agent_id = await ax.activity.aio.create("task", session=session)
            await ax.activity.aio.update(agent_id, "Half.", 50, session=session)
            await ax.activity.aio.complete(agent_id, session=session)
            await ax.activity.aio.create("task", session=session)
            assert await ax.activity.aio.cancel_pending(session=session) == 1
        await engine.dispose()

    asyncio.run(work())


def session_between_calls(both: Both) -> None:
    agent_id = _running()
    with Session(both.database.engine) as session:
        ax.activity.update(agent_id, "In the session.", session=session)
    ax.activity.update(agent_id, "After the session.")
    with Session(both.database.engine) as session:
        ax.activity.complete(agent_id, session=session)
    ax.activity.update(agent_id, "Late.")


def refused(both: Both) -> None:
    agent_id = _running()
    with pytest.raises(ValueError, match=str(agent_id)):
        ax.activity.create("task", agent_id=agent_id)
    with pytest.raises(ax.ActivityStateError):
        ax.activity.retry(agent_id)


CALLS: tuple[Callable[[Both], None], ...] = (
    run, run_that_fails, run_on_event_loop, complete_error_cancel, never_ran, retry, cancel_pending,
    cancel_pending_in_session, cancel_pending_in_transaction, reap, reap_in_session, calls_in_session,
    calls_in_transaction, calls_in_async_session, session_between_calls, refused, swept,
)  # fmt: skip


def test_every_event_arrives(both: Both) -> None:
    """Whatever is called, the exporter beside SQL gets the events that the log table has: same ids, order, content."""
    wrong: list[str] = []
    for call in CALLS:
        call(both)
        wrong += [f"{call.__name__}: {one}" for one in both.differences()]
        both.beside.batches.clear()
        _empty(both)
    assert not wrong, "\n".join(wrong)


def test_span_of_every_event(both: Both) -> None:
    """Each event names the activity's span, from the event that starts it on: the span that the row names."""
    wrong: list[str] = []
    for call in CALLS:
        if call is swept:
            continue  # It configures anew, without a tracer provider.
        call(both)
        assert ax.flush()
        # A span that a session's commit has opened is named on the row a moment later.
        eventually(lambda: not _without_span(both), 0.5)
        wrong += [f"{call.__name__}: {one}" for one in _without_span(both)]
        both.beside.batches.clear()
        _empty(both)
    assert not wrong, "\n".join(wrong)


def _without_span(both: Both) -> list[str]:
    """What is wrong with the spans that are named in the events, of the last attempt of each activity."""
    wrong: list[str] = []
    for agent_id in both.in_sql():
        stored = row(both.database.engine, agent_id)
        of_attempt = {log.event_id for log in lines(both.database.engine, agent_id) if log.attempt == stored.attempt}
        events = [event for event in both.events_of(agent_id) if event.event_id in of_attempt]
        named = [(str(event.status), None if event.span is None else event.span.span_id) for event in events]
        expected = [(status, None if status == "QUEUED" else stored.span_id) for status, _ in named]
        if named != expected or len(events) != len(of_attempt):
            wrong.append(f"{named} of {len(of_attempt)} events; the row names {stored.span_id}")
    return wrong


def test_nothing_of_what_is_rolled_back(both: Both) -> None:
    """What a session rolls back, or a savepoint of it, no exporter gets. The order of the rest is that of the table."""
    running = _running()
    with Session(both.database.engine) as session:
        session.begin()
        gone = ax.activity.create("gone", session=session)
        ax.activity.complete(running, session=session)
        assert ax.activity.cancel_pending(session) == 1
        session.rollback()
    with Session(both.database.engine) as session, session.begin():
        kept = ax.activity.create("kept", session=session)
        savepoint = session.begin_nested()
        ax.activity.complete(kept, session=session)
        assert ax.activity.cancel_pending(session, agent_type="task") == 1
        savepoint.rollback()
        ax.activity.update(kept, "Half.", 50, session=session)
        assert ax.activity.cancel_pending(session, agent_type="kept") == 1
    assert both.events_of(gone) == []
    assert [str(event.status) for event in both.events_of(running)] == ["QUEUED", "RUNNING"]
    assert [str(event.status) for event in both.events_of(kept)] == ["QUEUED", "RUNNING", "CANCELED"]
    assert not both.differences()


def test_order_of_several_threads(both: Both) -> None:
    """Of one activity that several threads report on, every exporter has the events in the order of the table."""
    agent_id = ax.activity.create("task")
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # Else a thread is seldom stopped between one exporter and the next one.
    try:

        def report(thread: int) -> None:
            for number in range(1500):
                ax.activity.update(agent_id, f"{thread} {number}")

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(report, range(4)))
    finally:
        sys.setswitchinterval(interval)
    assert ax.flush(30.0)
    stored = [log.message for log in lines(both.database.engine, agent_id)]
    assert len(stored) == 6001
    differ = [place for place, one in enumerate(both.events_of(agent_id)) if one.message != stored[place]]
    assert not differ


def test_as_recorded(both: Both) -> None:
    """An event is what was reported, not what SQL made of it: a late COMPLETE stays a COMPLETE, with its outcome."""
    agent_id = _running()
    ax.activity.cancel_pending()
    assert not ax.activity.complete(agent_id, "Late.")
    assert not ax.activity.error(agent_id, "Later.")
    reported = [(str(event.status), event.message) for event in both.events_of(agent_id)]
    assert reported[2:] == [("CANCELED", "Task canceled."), ("COMPLETE", "Late."), ("ERROR", "Later.")]
    canceled = both.events_of(agent_id)[2]
    assert canceled.outcome is not None
    assert canceled.outcome.reason == row(both.database.engine, agent_id).reason


# -- small parts ----------------------------------------------------------------------------------------------------


def _running() -> UUID:
    agent_id = ax.activity.create("task")
    assert ax.activity.update(agent_id, "Working.")
    assert ax.flush()
    return agent_id


def _lost(both: Both) -> UUID:
    """An activity that a worker ran which is lost."""
    agent_id = ax.activity.create("task")
    values: dict[str, Any] = {"status": ax.activity.Status.RUNNING, "worker_id": "lost"}
    values["lease_expires_at"] = datetime.now(UTC) - timedelta(minutes=1)
    with both.database.engine.begin() as connection:
        connection.execute(update(Activity).where(Activity.agent_id == agent_id).values(values))
    return agent_id


def _empty(both: Both) -> None:
    """Take away what a call has left, for the next one."""
    with both.database.engine.begin() as connection:
        connection.execute(delete(ActivityLog))
        connection.execute(delete(Activity))
