"""Writing: create, update, complete, error, cancel, retry, cancel_pending."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from uuid import UUID, uuid4

from opentelemetry import propagate
from sqlalchemy import ColumnElement
from sqlalchemy.orm import Session

from agentexec_otel._config import CONF
from agentexec_otel._errors import (
    ActivityNotFoundError,
    ActivityNotStoredError,
    ActivityStateError,
    guarded,
)
from agentexec_otel._model.event import QUEUED, RUNNING, ActivityEvent, Opening, Outcome, Status
from agentexec_otel._model.ids import parse_agent_id
from agentexec_otel._model.outcome import outcome_of, text_of
from agentexec_otel._model.text import NAME_LIMIT, prepare_message, prepare_metadata
from agentexec_otel._runtime import process as _runtime
from agentexec_otel._runtime.live import LiveActivity
from agentexec_otel._runtime.liveness import lost_ending
from agentexec_otel._runtime.process import Runtime
from agentexec_otel.activity._filter import metadata_criteria, named, without_news_since
from agentexec_otel.activity._in_session import create_in, end_many, raise_rejected, record_in
from agentexec_otel.activity._joined import synchronous
from agentexec_otel.activity.models import Activity
from agentexec_otel.export import Ack, Ending, ExportResult, Reject, StoredActivity

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    AnySession: TypeAlias = Session | AsyncSession

_T = TypeVar("_T")


def create(
    task_name: str,
    message: str | None = None,
    agent_id: UUID | str | None = None,
    session: AnySession | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> UUID:
    """Create an activity with the status QUEUED, and return its ``agent_id`` once the row is committed.

    The one call that waits for the database: another process may look for the row at once. On an event loop use
    `ax.activity.aio.create`. The creator's trace context is stored with it; the span starts with the first RUNNING.

    Args:
        task_name: Becomes ``agent_type`` and the span's name.
        message: First line. Default: ``AGENTEXEC_ACTIVITY_MESSAGE_CREATE``.
        agent_id: Default: a new random UUID.
        session: Write in this session instead: committed where its transaction was begun implicitly, only joined
            where the caller began it.
        metadata: JSON-serialisable values, at most 64 keys and 16 KiB; for `metadata_filter`.

    Raises:
        ValueError: a bad argument, or an ``agent_id`` that exists already.
        ActivityNotStoredError: the row could not be committed within ``AGENTEXEC_CREATE_TIMEOUT`` seconds.
    """
    runtime = _runtime.active()
    event = _opening_event(runtime, task_name, message, agent_id, metadata)
    if session is not None:
        return create_in(synchronous(session), runtime, event)
    raise_rejected(runtime.primary.store(event, CONF.create_timeout))
    runtime.emit_to_others(event)
    runtime.spans.opened(event)
    return event.agent_id


async def create_async(
    task_name: str,
    message: str | None = None,
    agent_id: UUID | str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> UUID:
    """As `create`, on an event loop: many that wait at once share a transaction."""
    runtime = _runtime.active()
    event = _opening_event(runtime, task_name, message, agent_id, metadata)
    raise_rejected(await runtime.primary.store_async(event, CONF.create_timeout))
    runtime.emit_to_others(event)
    runtime.spans.opened(event)
    return event.agent_id


def create_soon(
    task_name: str,
    message: str | None = None,
    agent_id: UUID | str | None = None,
    metadata: Mapping[str, Any] | None = None,
    *,
    may_exist: bool = False,
) -> UUID:
    """As `create`, without waiting: the row is committed when the database answers, and nothing is raised where not.

    For instrumentation, which must not hold a run up, or make it fail.

    Args:
        may_exist: An activity with this ``agent_id`` may be there already; lines then belong to its current attempt.
    """
    new_id = uuid4() if agent_id is None else parse_agent_id(agent_id)
    create_later(task_name, message, new_id, metadata, may_exist=may_exist)
    return new_id


def create_later(
    task_name: str, message: str | None = None, agent_id: UUID | str | None = None,
    metadata: Mapping[str, Any] | None = None, *, may_exist: bool = False,
) -> Future[ExportResult]:  # fmt: skip
    """As `create_soon`; the future tells when the row is committed."""
    runtime = _runtime.active()
    event = _opening_event(runtime, task_name, message, agent_id, metadata)
    live = runtime.spans.opened(event)
    live.opening_pending = True
    if may_exist:
        live.attempt = None
    runtime.emit_to_others(event)
    return runtime.primary.submit(event, refusable=may_exist)


def update(
    agent_id: UUID | str,
    message: str,
    percentage: float | None = None,
    status: Status | str | None = None,
    session: AnySession | None = None,
) -> bool:
    """Add a line to an activity's history: committed within milliseconds, and an event on its span. Never waits.

    Args:
        percentage: 0 to 100, rounded down and clamped; None leaves the latest one as it is.
        status: Default RUNNING. A terminal one ends the activity as `complete`, `error` and `cancel` do; QUEUED after
            a terminal one is a `retry`.
        session: As for `create`.

    Returns:
        True where the line was accepted; False where it was dropped because the queue is full, or (for a terminal
        status) where the activity had ended already.

    Raises:
        ValueError: a bad ``agent_id`` or status.
        ActivityNotFoundError: no such activity.
    """
    wanted = RUNNING if status is None else _status(status)
    runtime = _runtime.active()
    parsed = parse_agent_id(agent_id)
    if session is not None:
        return record_in(synchronous(session), runtime, parsed, wanted, message, percentage, None)
    if wanted is QUEUED and not _runtime.on_event_loop() and _has_ended(runtime, parsed):
        return retry(parsed, message) > 0
    live = runtime.find(parsed, waits=wanted is not RUNNING)
    if wanted.terminal:
        return _end(runtime, live, wanted, message, percentage, None)
    # On an event loop nobody waits to learn whether it has ended: the row knows when this line comes to it.
    return report(live, message, percentage, wanted, reopens=wanted is QUEUED and _runtime.on_event_loop())


def report(
    live: LiveActivity, message: str, percentage: float | None, status: Status = RUNNING, *, reopens: bool = False
) -> bool:
    """Add a line to the attempt that is known here; to the current one where that has ended and nobody runs it."""
    runtime = _runtime.active()
    live.reported = True
    event = runtime.event(live.agent_id, status, message, percentage, live=live, reopens=reopens)
    if live.ended:
        event = event._replace(attempt=None)
    return runtime.emit(runtime.spans.observe(live, event))


def complete(
    agent_id: UUID | str, message: str | None = None, percentage: float | None = 100, session: AnySession | None = None
) -> bool:
    """End an activity as COMPLETE. Off an event loop it waits for the commit, ``AGENTEXEC_TERMINAL_TIMEOUT`` at most.

    Returns:
        False where the activity had ended already: the line is kept as late, and the first ending stays.

    Raises:
        ValueError, ActivityNotFoundError: as `update`.
    """
    text = CONF.activity_message_complete if message is None else message
    return _terminal(agent_id, Status.COMPLETE, text, percentage, None, session)


def error(
    agent_id: UUID | str, message: str | None = None, percentage: float | None = None, session: AnySession | None = None
) -> bool:
    """End an activity as ERROR. Inside an ``except`` block, ``error_type`` and ``reason`` are the exception's.

    The last percentage stays unless one is given. Waits, returns and raises as `complete`.
    """
    exc = sys.exc_info()[1]
    outcome = outcome_of(exc)[1] if exc is not None else None
    text = message if message is not None else error_message(exc)
    return _terminal(agent_id, Status.ERROR, text, percentage, outcome, session)


def cancel(agent_id: UUID | str, message: str | None = None, session: AnySession | None = None) -> bool:
    """End an activity as CANCELED, at once; the worker that runs it is told. Waits, returns, raises as `complete`."""
    text = CONF.activity_message_cancel if message is None else message
    return _terminal(agent_id, Status.CANCELED, text, None, Outcome(reason="cancelled"), session)


def retry(agent_id: UUID | str, message: str | None = None) -> int:
    """Re-open an activity that has ended, as its next attempt, QUEUED. Waits for the commit as `create` does.

    Returns:
        The number of the new attempt: 2, 3, …

    Raises:
        ActivityStateError: it has not ended.
        ActivityNotFoundError, ActivityNotStoredError, ValueError: as `create` and `update`.
    """
    runtime = _runtime.active()
    parsed = parse_agent_id(agent_id)
    stored = _stored(runtime, parsed)
    if not stored.status.terminal:
        raise ActivityStateError(f"activity {parsed} is {stored.status}: only an activity that has ended is retried")
    text = CONF.activity_message_create if message is None else message
    event = runtime.event(parsed, Status.QUEUED, text, reopens=True)._replace(expects_row=True)
    result = runtime.primary.store(event, CONF.create_timeout)
    if isinstance(result, Reject):
        if not runtime.primary.closed:
            _stored(runtime, parsed)  # It may have been deleted meanwhile.
        raise ActivityNotStoredError(f"the activity {parsed} could not be retried: {result.reason}")
    attempt = result.attempt if isinstance(result, Ack) else stored.attempt
    runtime.emit_to_others(event)
    runtime.spans.reopened(event, attempt)
    return attempt


def _stored(runtime: Runtime, agent_id: UUID) -> StoredActivity:
    stored = runtime.ask(lambda: runtime.needed_store.lookup(agent_id))
    if stored is None:
        raise ActivityNotFoundError(agent_id)
    return stored


def cancel_pending(
    session: AnySession | None = None,
    *,
    agent_type: str | None = None,
    worker_id: str | None = None,
    older_than: timedelta | datetime | None = None,
    metadata_filter: Mapping[str, Any] | None = None,
) -> int:
    """CANCEL every activity that is QUEUED or RUNNING and meets all the given criteria.

    Args:
        session: As for `create`. None: in a transaction of its own.
        worker_id: Only those that this worker runs.
        older_than: Only those without news for that long, or since then.

    Returns:
        How many were really changed.

    Raises:
        ValueError: a malformed criterion.
    """
    runtime = _runtime.active()
    criteria = _pending_criteria(agent_type, worker_id, older_than, metadata_filter)
    ending = Ending(Status.CANCELED, CONF.activity_message_cancel, Outcome(reason="cancelled"))
    return end_many(
        runtime, session, ending, lambda on: [one[:2] for one in runtime.needed_store.end_where(on, criteria, ending)]
    )


def reap(session: AnySession | None = None) -> int:
    """End every activity whose worker is lost as ERROR with the reason ``lost``: RUNNING, and its lease has expired.

    Every process that stores activities does this by itself every ``AGENTEXEC_SWEEP_INTERVAL`` seconds; call it where
    none is left to do it. QUEUED activities have no worker and are never reaped.

    Args:
        session: As for `create`. None: in a transaction of its own.

    Returns:
        How many were really changed.
    """
    runtime = _runtime.active()
    ending = lost_ending()
    return end_many(runtime, session, ending, lambda on: runtime.needed_store.reap(on, ending))


# -- what the runner, tasks and `run()` use ---------------------------------------------------------------------


def error_message(exc: BaseException | None) -> str:
    """The configured text of a failure. Replaced, not formatted: an error's text may hold braces."""
    return CONF.activity_message_error.replace("{error}", describe_error(exc))


def describe_error(exc: BaseException | None) -> str:
    """An exception's text; its type's name where it has none or cannot tell it."""
    return "unknown error" if exc is None else text_of(exc)


def submit_end(
    runtime: Runtime,
    live: LiveActivity,
    status: Status,
    message: str,
    percentage: float | None,
    outcome: Outcome | None,
    *,
    of_current: bool = False,
) -> Future[ExportResult]:
    """End an activity without waiting; the future tells whether it was the first to.

    Args:
        of_current: End whichever attempt is the current one, not the one that this process knows.
    """
    event = runtime.event(live.agent_id, status, message, percentage, live=live, outcome=outcome)
    if of_current:
        event = event._replace(attempt=None)
    event = runtime.spans.observe(live, event)
    runtime.emit_to_others(event)
    future = runtime.primary.submit(event)
    if status is Status.CANCELED and live.ending is event:
        live.cancel()  # Not sooner: what the block says in going comes second.
    if runtime.primary.closed:
        runtime.spans.close()  # Nobody will tell how the row decided: our word is the last.
    return future


def _terminal(
    agent_id: UUID | str,
    status: Status,
    message: str,
    percentage: float | None,
    outcome: Outcome | None,
    session: AnySession | None,
) -> bool:
    runtime = _runtime.active()
    parsed = parse_agent_id(agent_id)
    if session is not None:
        return record_in(synchronous(session), runtime, parsed, status, message, percentage, outcome)
    return _end(runtime, runtime.find(parsed), status, message, percentage, outcome)


def _end(
    runtime: Runtime,
    live: LiveActivity,
    status: Status,
    message: str,
    percentage: float | None,
    outcome: Outcome | None,
) -> bool:
    # It may have been tried again meanwhile, by another process or by a line that is on its way.
    outside = live.ended or (status is Status.CANCELED and not live.runs_here)
    future = submit_end(runtime, live, status, message, percentage, outcome, of_current=outside)
    if _runtime.on_event_loop():
        return True
    with suppress(TimeoutError):
        result = future.result(CONF.terminal_timeout)
        return isinstance(result, Ack) and not result.late
    return True


# -- small parts ------------------------------------------------------------------------------------------------


def _opening_event(
    runtime: Runtime,
    task_name: str,
    message: str | None,
    agent_id: UUID | str | None,
    metadata: Mapping[str, Any] | None,
) -> ActivityEvent:
    if not isinstance(task_name, str) or not task_name.strip():  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"task_name must be a non-empty string, got {task_name!r:.80}")
    new_id = uuid4() if agent_id is None else parse_agent_id(agent_id)
    name = prepare_message(task_name, NAME_LIMIT, runtime.redact)
    kept = None if metadata is None else prepare_metadata(metadata, runtime.redact)
    text = CONF.activity_message_create if message is None else message
    return runtime.event(new_id, Status.QUEUED, text, opening=Opening(name, kept, _carrier()))


def _carrier() -> dict[str, str]:
    """The caller's trace context, without baggage: what strangers send us does not belong in rows."""
    carrier: dict[str, str] = {}
    with guarded("reading the caller's trace context"):
        propagate.inject(carrier)
    carrier.pop("baggage", None)
    return carrier


def _status(value: Status | str) -> Status:
    try:
        return Status(value)
    except ValueError:
        raise ValueError(f"{value!r:.80} is no status: use one of {', '.join(Status)}") from None


def _has_ended(runtime: Runtime, agent_id: UUID) -> bool:
    if runtime.store is None:
        return runtime.find(agent_id).status.terminal
    return _stored(runtime, agent_id).status.terminal


def _pending_criteria(
    agent_type: str | None,
    worker_id: str | None,
    older_than: timedelta | datetime | None,
    metadata_filter: Mapping[str, Any] | None,
) -> list[ColumnElement[bool]]:
    criteria = metadata_criteria(metadata_filter)
    if agent_type is not None:
        criteria.append(named("agent_type", Activity.agent_type, agent_type))
    if worker_id is not None:
        criteria.append(named("worker_id", Activity.worker_id, worker_id))
    if older_than is not None:
        criteria.append(Activity.updated_at < without_news_since(older_than))
    return criteria
