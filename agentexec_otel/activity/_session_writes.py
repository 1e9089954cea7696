"""The life-cycle calls that are given a session: written in it, and followed once it is committed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection
from sqlalchemy.orm import Session

from agentexec_otel._config import CONF
from agentexec_otel._errors import ActivityNotFoundError
from agentexec_otel._model.event import ActivityEvent, Outcome, Status
from agentexec_otel._model.ids import parse_agent_id
from agentexec_otel._model.results import Ack, EndedActivity, Ending, ExportResult, Reject, StoredActivity
from agentexec_otel._runtime import process
from agentexec_otel._runtime.event_loop import on_event_loop
from agentexec_otel._runtime.reader import RowUnavailableError
from agentexec_otel.activity._sessions import (
    AnySession,
    commits_itself,
    connection_of,
    finish,
    may_hold_locks,
    synchronous,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession


def create_in(session: Session, event: ActivityEvent) -> ExportResult:
    """Create an activity in the session."""
    runtime = process.active_in_session()
    commits = commits_itself(session)
    (result,) = runtime.session_store.write_in(connection_of(session), [event])
    if isinstance(result, Ack):
        finish(session, lambda: runtime.committed_creation(event), commits=commits)
    return result


def record_in(
    session: Session,
    agent_id: UUID,
    status: Status,
    message: str,
    percentage: float | None,
    outcome: Outcome | None,
    criteria: Sequence[ColumnElement[bool]] = (),
) -> bool:
    """Add a log in the session to an activity that meets the criteria.

    False if it was to end an attempt that had ended already.
    """
    runtime = process.active_in_session()
    if not on_event_loop() and _comes_after_pending(session, agent_id):
        runtime.flush_first(CONF.lookup_timeout)
    commits = commits_itself(session)
    store, connection = runtime.session_store, connection_of(session)
    stored = store.load_in(connection, agent_id)
    if stored is None or (criteria and not store.find_where(connection, criteria, 1)):
        raise ActivityNotFoundError(agent_id)
    reopens = status is Status.QUEUED and stored.status.terminal
    event = runtime.event(agent_id, status, message, percentage, outcome=outcome)
    event = event._replace(expects_row=True, reopens=reopens, attempt=_attempt(agent_id, stored, status, reopens))
    (result,) = store.write_in(connection, [event])
    if isinstance(result, Reject):
        raise ActivityNotFoundError(agent_id)  # deleted meanwhile
    finish(session, lambda: runtime.committed(event, stored, result), commits=commits)
    return isinstance(result, Ack) and not (status.terminal and result.late)


def _attempt(agent_id: UUID, stored: StoredActivity, status: Status, reopens: bool) -> int | None:
    """The attempt that this process reports on; `cancel` and what re-opens an activity concern the current one."""
    if reopens or status is Status.CANCELED:
        return None
    live = process.active_in_session().known(agent_id)
    return stored.attempt if live is None or live.attempt is None else live.attempt


async def store_pending(session: AsyncSession, agent_id: Any) -> None:
    """Have the writer store what was reported of this activity before, as `record_in` does off an event loop."""
    with suppress(ValueError, RowUnavailableError):
        parsed = parse_agent_id(agent_id)
        if await session.run_sync(_comes_after_pending, parsed):
            await process.active_in_session().read_async(parsed, CONF.lookup_timeout, history=False)


def _comes_after_pending(session: Session, agent_id: UUID) -> bool:
    """Whether events of this activity wait, and the session cannot hold a lock that the writer waits for."""
    return process.active_in_session().has_pending(agent_id) and not may_hold_locks(session)


def retry_in(
    session: AnySession, criteria: Sequence[ColumnElement[bool]], message: str, most: int
) -> tuple[Sequence[UUID], dict[UUID, int]]:
    """As `Runtime.retry_where`, in the session."""
    runtime, session = process.active_in_session(), synchronous(session)
    commits = commits_itself(session)
    store, connection = runtime.session_store, connection_of(session)
    found = store.find_where(connection, criteria, most)
    events = [runtime.retrying(agent_id, message) for agent_id in found]
    results = store.write_in(connection, events)
    finish(session, lambda: runtime.retried(events, results), commits=commits)
    acks = [(event, result) for event, result in zip(events, results, strict=True) if isinstance(result, Ack)]
    return found, {event.agent_id: ack.attempt for event, ack in acks}


def end_in(session: AnySession, ending: Ending, end: Callable[[Connection], Sequence[EndedActivity]]) -> int:
    """End activities together in the session, by `end`; how many changed."""
    runtime, session = process.active_in_session(), synchronous(session)
    commits = commits_itself(session)
    ended = end(connection_of(session))
    finish(session, lambda: runtime.ended_together(ended, ending), commits=commits)
    return len(ended)
