"""The life-cycle calls that are handed a session: written in it, and followed once it is committed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from agentexec_otel._config import CONF
from agentexec_otel._errors import ActivityNotFoundError, ExportError
from agentexec_otel._model.event import ActivityEvent, Outcome, Status
from agentexec_otel._model.ids import parse_agent_id
from agentexec_otel._runtime.process import Runtime, active, on_event_loop
from agentexec_otel.activity._joined import after_commit, commits_itself, connection_of, may_hold_locks, synchronous
from agentexec_otel.export import Ack, Ending, ExportResult, Reject, StoredActivity

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession


def create_in(session: Session, runtime: Runtime, event: ActivityEvent) -> UUID:
    """Create an activity in the session."""
    commits = commits_itself(session)
    (result,) = runtime.needed_store.write(connection_of(session), [event])
    raise_rejected(result)
    if commits:
        session.commit()

    def committed() -> None:
        runtime.emit_to_others(event)
        runtime.spans.opened(event)

    after_commit(session, committed, now=commits)
    return event.agent_id


def raise_rejected(result: ExportResult) -> None:
    """A ValueError where an opening was refused: its ``agent_id`` exists."""
    if isinstance(result, Reject):
        raise ValueError(result.reason)


def record_in(
    session: Session,
    runtime: Runtime,
    agent_id: UUID,
    status: Status,
    message: str,
    percentage: float | None,
    outcome: Outcome | None,
) -> bool:
    """Add a line in the session. False where it was to end the activity, which had ended already."""
    if not on_event_loop() and _comes_behind(session, agent_id):
        runtime.primary.force_flush(CONF.lookup_timeout)
    commits = commits_itself(session)
    store, connection = runtime.needed_store, connection_of(session)
    stored = store.read(connection, agent_id)
    if stored is None:
        raise ActivityNotFoundError(agent_id)
    reopens = status is Status.QUEUED and stored.status.terminal
    event = runtime.event(agent_id, status, message, percentage, outcome=outcome, reopens=reopens)
    (result,) = store.write(connection, [event._replace(expects_row=True)])
    if isinstance(result, Reject):
        raise ActivityNotFoundError(agent_id)  # deleted meanwhile
    if commits:
        session.commit()
    after_commit(session, lambda: _recorded(runtime, stored, event, result), now=commits)
    return isinstance(result, Ack) and not (status.terminal and result.late)


async def after_what_is_queued(session: AsyncSession, agent_id: Any) -> None:
    """As `record_in` does off an event loop: have the writer store what was said of this activity before."""
    with suppress(ValueError, TimeoutError, ExportError):
        parsed, lookups = parse_agent_id(agent_id), active().lookups
        if lookups is not None and await session.run_sync(_comes_behind, parsed):
            await asyncio.wait_for(asyncio.wrap_future(lookups.soon(parsed)), CONF.lookup_timeout)


def _comes_behind(session: Session, agent_id: UUID) -> bool:
    """Whether lines of this activity are queued, and the session cannot hold a lock that the writer waits for."""
    runtime = active()
    live = runtime.spans.known(agent_id)
    queued = live.waits if live is not None else runtime.primary.pending > 0  # It may have been forgotten just now.
    return queued and not may_hold_locks(session)


def _recorded(runtime: Runtime, stored: StoredActivity, event: ActivityEvent, result: ExportResult) -> None:
    """Mirror what a session has committed; a span opened by it is named on the row by the writer."""
    runtime.emit_to_others(event)
    if event.reopens:
        runtime.spans.reopened(event, result.attempt if isinstance(result, Ack) else stored.attempt)
        return
    live = runtime.spans.adopt(stored)
    live.reported = True
    observed = runtime.spans.observe(live, event)
    if event.status is Status.CANCELED and live.ending is observed:
        live.cancel()
    if observed.span is not None:
        runtime.primary.call_soon(lambda: runtime.spans.name_on_row(live))
    runtime.spans.settled(observed, result)


def end_many(
    runtime: Runtime,
    session: Session | AsyncSession | None,
    ending: Ending,
    end: Callable[[Connection | None], Sequence[tuple[UUID, int]]],
) -> int:
    """End activities in bulk, in the session or in transactions of our own; how many were really changed."""
    if session is None:
        ended = runtime.ask(lambda: end(None))
        runtime.ended(ended, ending)
        return len(ended)
    session = synchronous(session)
    commits = commits_itself(session)
    changed = end(connection_of(session))
    if commits:
        session.commit()
    after_commit(session, lambda: runtime.ended(changed, ending), now=commits)
    return len(changed)
