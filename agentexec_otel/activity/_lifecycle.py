"""Writing: create, update, complete, error, cancel, retry, cancel_pending, retry_many, reap."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Unpack
from uuid import UUID, uuid4

from opentelemetry import propagate
from sqlalchemy import ColumnElement, Connection
from sqlalchemy.orm import Session

from agentexec_otel._config import CONF
from agentexec_otel._errors import ActivityNotFoundError, ActivityNotStoredError, ActivityStateError, guarded
from agentexec_otel._model.event import (
    ACTIVE,
    QUEUED,
    RUNNING,
    ActivityEvent,
    Opening,
    Outcome,
    Status,
    parse_status,
)
from agentexec_otel._model.ids import parse_agent_id
from agentexec_otel._model.outcome import outcome_of, text_of
from agentexec_otel._model.results import Ack, EndedActivity, Ending, ExportResult, Refusal, Reject, StoredActivity
from agentexec_otel._model.text import NAME_LIMIT, describe, plain_str, prepare_message, prepare_metadata
from agentexec_otel._runtime import process
from agentexec_otel._runtime.event_loop import on_event_loop
from agentexec_otel._runtime.live import LiveActivity
from agentexec_otel._runtime.liveness import lost_ending
from agentexec_otel._runtime.reader import RowUnavailableError
from agentexec_otel._runtime.runtime import Runtime
from agentexec_otel.activity._criteria import ActivityFilters, criteria_of, without_news_since
from agentexec_otel.activity._filters import metadata_criteria
from agentexec_otel.activity._sessions import (
    AnySession,
    commits_itself,
    connection_of,
    finish,
    may_hold_locks,
    synchronous,
)
from agentexec_otel.activity.models import Activity

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from agentexec_otel.activity._run import ActivityRun


_CHUNK: Final = 500  # most activities that one transaction re-opens, so that no lock is held for long

current_block: ContextVar[ActivityRun | None] = ContextVar("agentexec_otel.current_activity", default=None)


def create(
    task_name: str,
    message: str | None = None,
    agent_id: UUID | str | None = None,
    session: AnySession | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> UUID:
    """Create an activity with the status QUEUED, and return its ``agent_id`` once the row is committed.

    This call waits for the database, because another process may look for the row at once. On an event loop use
    `ax.activity.aio.create`. The caller's trace context is stored with it; the span starts with the first RUNNING log.

    Args:
        task_name: Becomes ``agent_type`` and the span's name.
        message: The first log. Default: ``AGENTEXEC_ACTIVITY_MESSAGE_CREATE``.
        agent_id: Default: a new random UUID.
        session: Write in this session instead. The call commits a transaction that was begun implicitly, and joins one
            that the caller began.
        metadata: JSON-serialisable values, at most 64 keys and 16 KiB; for `metadata_filter`.

    Raises:
        ValueError: a bad argument, or an ``agent_id`` that exists already.
        ActivityNotStoredError: the row could not be committed within ``AGENTEXEC_CREATE_TIMEOUT`` seconds. If it is
            committed later, it is removed.
    """
    runtime = _runtime_for(session)
    event = _opening_event(runtime, task_name, message, agent_id, metadata)
    _raise_refused(runtime.create(event) if session is None else _create_in(synchronous(session), event))
    return event.agent_id


async def create_async(
    task_name: str,
    message: str | None = None,
    agent_id: UUID | str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> UUID:
    """As `create`, on an event loop: many that wait at once share a transaction."""
    runtime = process.active()
    event = _opening_event(runtime, task_name, message, agent_id, metadata)
    _raise_refused(await runtime.create_async(event))
    return event.agent_id


def create_soon(
    task_name: str,
    agent_id: UUID | str | None = None,
    metadata: Mapping[str, Any] | None = None,
    *,
    may_exist: bool = False,
) -> tuple[UUID, Future[ExportResult]]:
    """As `create`, without waiting: the future resolves when the row is committed, and nothing is raised if it is not.

    For instrumentation, which must not hold a run up, or make it fail.

    Args:
        may_exist: There may be an activity with this ``agent_id`` already; logs then belong to its current attempt.
    """
    runtime = process.active()
    event = _opening_event(runtime, task_name, None, agent_id, metadata)
    return event.agent_id, runtime.create_soon(event, may_exist=may_exist)


def update(
    agent_id: UUID | str,
    message: str,
    percentage: float | None = None,
    status: Status | str | None = None,
    session: AnySession | None = None,
) -> bool:
    """Add a log to an activity: committed within milliseconds, and an event on its span.

    The log belongs to the attempt that this process has seen: another process may have retried the activity meanwhile,
    and its attempt is left alone. Nothing waits for the commit of a RUNNING log.

    Args:
        percentage: 0 to 100, rounded down and clamped; None leaves the latest one as it is.
        status: Default RUNNING. A terminal one ends the activity as `complete`, `error` and `cancel` do; QUEUED after
            a terminal one retries it. Off an event loop these wait for the commit, ``AGENTEXEC_TERMINAL_TIMEOUT``
            seconds at most.
        session: As for `create`.

    Returns:
        True if the log was accepted. False if it may be dropped because queue and spool are full. With a terminal
        status as `complete` and `cancel`.

    Raises:
        ValueError: a bad ``agent_id`` or status.
        ActivityNotFoundError: no such activity.
    """
    wanted = RUNNING if status is None else parse_status(status)
    parsed = parse_agent_id(agent_id)
    if session is not None:
        return _record_in(synchronous(session), parsed, wanted, message, percentage, None)
    runtime = process.active()
    live = _view(runtime, parsed)
    if wanted.terminal:
        return _end(runtime, live, wanted, message, percentage, None)
    if wanted is QUEUED:
        return _requeue(runtime, live, message, percentage)
    return runtime.record(live, wanted, message, percentage, reported=True)


def _requeue(runtime: Runtime, live: LiveActivity, message: str, percentage: float | None) -> bool:
    """The row decides whether this is a retry: another process may have ended the activity."""
    future = runtime.requeue(live.agent_id, message, percentage)
    result = None if on_event_loop() else _within(future, CONF.terminal_timeout)
    return not isinstance(result, Reject)


def complete(
    agent_id: UUID | str, message: str | None = None, percentage: float | None = 100, session: AnySession | None = None
) -> bool:
    """End an activity as COMPLETE: the attempt that this process has seen.

    Off an event loop it waits for the commit, ``AGENTEXEC_TERMINAL_TIMEOUT`` seconds at most. On an event loop it does
    not wait: use `ax.activity.aio.complete` for what the database has decided.

    Returns:
        False if the attempt had ended already: the log is kept as late, and the first ending stays. True if this is
        the first ending, or if that is not known yet: after the timeout, and on an event loop unless this process has
        seen the attempt's end.

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


def cancel(
    agent_id: UUID | str,
    message: str | None = None,
    session: AnySession | None = None,
    metadata_filter: Mapping[str, Any] | None = None,
) -> bool:
    """End the current attempt of an activity as CANCELED; the worker that runs it is notified.

    Waits, returns and raises as `complete`, but that it always returns True on an event loop: another process may have
    opened an attempt that this one has not seen.

    Args:
        metadata_filter: If the activity's metadata does not match, it counts as one that does not exist. Without a
            session, the call then waits for the database first, ``AGENTEXEC_CREATE_TIMEOUT`` seconds at most, also on
            an event loop, and raises `ActivityNotStoredError` if there is no answer.
    """
    text = CONF.activity_message_cancel if message is None else message
    return _terminal(agent_id, Status.CANCELED, text, None, Outcome(reason="canceled"), session, metadata_filter)


def retry(agent_id: UUID | str, message: str | None = None, metadata_filter: Mapping[str, Any] | None = None) -> int:
    """Re-open an activity that has ended, as its next attempt, QUEUED, which this process joins.

    Waits for the commit as `create` does. The database decides: of several callers at once, one opens the attempt.

    Args:
        metadata_filter: As for `cancel`.

    Returns:
        The number of the new attempt: 2, 3, …

    Raises:
        ActivityStateError: it has not ended, or another caller has just retried it.
        ActivityNotFoundError, ActivityNotStoredError, ValueError: as `create` and `update`.
    """
    runtime = process.active()
    parsed = parse_agent_id(agent_id)
    _check_match(runtime, parsed, _match(parsed, metadata_filter))
    result = runtime.retry(parsed, CONF.activity_message_create if message is None else message)
    if isinstance(result, Ack):
        return result.attempt
    refusal = result.refusal if isinstance(result, Reject) else None
    reason = result.reason if isinstance(result, Reject) else "the exporter did not take it"
    if refusal is Refusal.UNKNOWN:
        raise ActivityNotFoundError(parsed)
    if refusal is Refusal.NOT_ENDED:
        raise ActivityStateError(reason)
    raise ActivityNotStoredError(f"the activity {parsed} could not be retried: {reason}")


def cancel_pending(
    session: AnySession | None = None,
    *,
    older_than: timedelta | datetime | None = None,
    **filters: Unpack[ActivityFilters],
) -> int:
    """Cancel every activity that is QUEUED or RUNNING and meets all the given criteria.

    Args:
        session: As for `create`. None uses a transaction of its own.
        older_than: Only activities without a log for that long, or since then. Those that wait, such as for an
            approval, are spared unless the filter `waiting` is given.
        filters: See `ActivityFilters`.

    Returns:
        How many were changed.

    Raises:
        ValueError: a malformed criterion.
    """
    criteria = criteria_of(filters)
    if older_than is not None:
        criteria.append(Activity.updated_at < without_news_since(older_than))
        if filters.get("waiting") is None:
            criteria += criteria_of({"waiting": False})
    ending = Ending(Status.CANCELED, CONF.activity_message_cancel, Outcome(reason="canceled"))
    runtime = _runtime_for(session)
    store = runtime.session_store
    if session is None:
        return runtime.end_together(ending, lambda: store.end_where(None, criteria, ending))
    return _end_in(session, ending, lambda connection: store.end_where(connection, criteria, ending))


def retry_many(
    session: AnySession | None = None, *, message: str | None = None, **filters: Unpack[ActivityFilters]
) -> dict[UUID, int]:
    """Re-open every activity that has ended and meets all the given criteria, as `retry` does.

    It runs nothing: hand each ``agent_id`` that it returns to a worker.

    Args:
        session: As for `create`. None uses a transaction of its own for each 500 activities.
        filters: See `ActivityFilters`. `status` is ERROR unless given.

    Returns:
        The number of the new attempt by ``agent_id``, of each that this call has re-opened.

    Raises:
        ValueError: a malformed criterion.
        ActivityNotStoredError: the database does not answer, or refuses; what was committed before stays re-opened.
    """
    if filters.get("status") is None:
        filters["status"] = Status.ERROR
    criteria = [*criteria_of(filters), Activity.status.not_in(ACTIVE)]
    text = CONF.activity_message_create if message is None else message
    reopen = process.active().retry_where if session is None else partial(_retry_in, session)
    opened: dict[UUID, int] = {}
    behind: list[ColumnElement[bool]] = []
    while True:
        found, chunk = reopen([*criteria, *behind], text, _CHUNK)
        opened |= chunk
        if len(found) < _CHUNK:
            return opened
        behind = [Activity.agent_id > found[-1]]


def reap(session: AnySession | None = None) -> int:
    """End every activity whose worker is lost as ERROR with the reason ``lost``: RUNNING, and its lease has expired.

    Every process that stores activities does this every ``AGENTEXEC_SWEEP_INTERVAL`` seconds; call it if no such
    process is left. QUEUED activities have no worker, and runs that wait have no lease: they are never reaped.

    Args:
        session: As for `create`. None uses a transaction of its own.

    Returns:
        How many were changed.
    """
    runtime = _runtime_for(session)
    ending = lost_ending()
    if session is None:
        return runtime.end_lost(ending)
    return _end_in(session, ending, lambda connection: runtime.session_store.end_lost_in(connection, ending))


# -- what the runner, tasks and `run()` use ---------------------------------------------------------------------


def error_message(exc: BaseException | None) -> str:
    """The configured text of a failure. Replaced, not formatted: an error's text may hold braces."""
    return CONF.activity_message_error.replace("{error}", describe_error(exc))


def describe_error(exc: BaseException | None) -> str:
    """An exception's text; the name of its type if it has none."""
    return "unknown error" if exc is None else text_of(exc)


def _terminal(
    agent_id: UUID | str,
    status: Status,
    message: str,
    percentage: float | None,
    outcome: Outcome | None,
    session: AnySession | None,
    metadata_filter: Mapping[str, Any] | None = None,
) -> bool:
    parsed = parse_agent_id(agent_id)
    match = _match(parsed, metadata_filter)
    if session is not None:
        return _record_in(synchronous(session), parsed, status, message, percentage, outcome, match)
    runtime = process.active()
    _check_match(runtime, parsed, match)
    return _end(runtime, _view(runtime, parsed), status, message, percentage, outcome)


def _match(agent_id: UUID, metadata_filter: Mapping[str, Any] | None) -> list[ColumnElement[bool]]:
    """The criteria of this activity if its metadata matches; none without a filter."""
    criteria = metadata_criteria(metadata_filter)
    return [Activity.agent_id == agent_id, *criteria] if criteria else []


def _check_match(runtime: Runtime, agent_id: UUID, match: Sequence[ColumnElement[bool]]) -> None:
    if match and not runtime.exists(match):
        raise ActivityNotFoundError(agent_id)


def _end(
    runtime: Runtime,
    live: LiveActivity,
    status: Status,
    message: str,
    percentage: float | None,
    outcome: Outcome | None,
) -> bool:
    had_ended = live.status.terminal
    # What a process reports concerns the attempt that it has seen; canceling concerns the current one.
    canceled = status is Status.CANCELED
    future = runtime.end(live, status, message, percentage, outcome, of_current=canceled)
    if on_event_loop():
        return canceled or not had_ended
    result = _within(future, CONF.terminal_timeout)
    return result is None or (isinstance(result, Ack) and not result.late)


def _within(future: Future[ExportResult], seconds: float) -> ExportResult | None:
    """The result; None if it is not there in time."""
    with suppress(TimeoutError):
        return future.result(seconds)
    return None


def _view(runtime: Runtime, agent_id: UUID) -> LiveActivity:
    """The attempt that a call is about: that of the block around it, else the one that this process has seen."""
    block = current_block.get()
    view = None if block is None else block.view
    return view if view is not None and view.agent_id == agent_id else runtime.find(agent_id)


def _runtime_for(session: AnySession | None) -> Runtime:
    return process.active() if session is None else process.active_in_session()


# -- in a session: written in it, and followed once it is committed -----------------------------------------------


def _create_in(session: Session, event: ActivityEvent) -> ExportResult:
    """Create an activity in the session."""
    runtime = process.active_in_session()
    commits = commits_itself(session)
    (result,) = runtime.session_store.write_in(connection_of(session), [event])
    if isinstance(result, Ack):
        finish(session, lambda: runtime.committed_creation(event), commits=commits)
    return result


def _record_in(
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
    event = event._replace(
        expects_row=True, reopens=reopens, attempt=_reported_attempt(agent_id, stored, status, reopens)
    )
    (result,) = store.write_in(connection, [event])
    if isinstance(result, Reject):
        raise ActivityNotFoundError(agent_id)  # deleted meanwhile
    finish(session, lambda: runtime.committed(event, stored, result), commits=commits)
    return isinstance(result, Ack) and not (status.terminal and result.late)


def _reported_attempt(agent_id: UUID, stored: StoredActivity, status: Status, reopens: bool) -> int | None:
    """The attempt that this process reports on; `cancel` and what re-opens an activity concern the current one."""
    if reopens or status is Status.CANCELED:
        return None
    live = process.active_in_session().known(agent_id)
    return stored.attempt if live is None or live.attempt is None else live.attempt


async def store_pending(session: AsyncSession, agent_id: Any) -> None:
    """Have the writer store what was reported of this activity before, as `_record_in` does off an event loop."""
    with suppress(ValueError, RowUnavailableError):
        parsed = parse_agent_id(agent_id)
        if await session.run_sync(_comes_after_pending, parsed):
            await process.active_in_session().read_async(parsed, CONF.lookup_timeout, history=False)


def _comes_after_pending(session: Session, agent_id: UUID) -> bool:
    """Whether events of this activity wait, and the session cannot hold a lock that the writer waits for."""
    return process.active_in_session().has_pending(agent_id) and not may_hold_locks(session)


def _retry_in(
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


def _end_in(session: AnySession, ending: Ending, end: Callable[[Connection], Sequence[EndedActivity]]) -> int:
    """End activities together in the session, by `end`; how many changed."""
    runtime, session = process.active_in_session(), synchronous(session)
    commits = commits_itself(session)
    ended = end(connection_of(session))
    finish(session, lambda: runtime.ended_together(ended, ending), commits=commits)
    return len(ended)


# -- small parts ------------------------------------------------------------------------------------------------


def _raise_refused(result: ExportResult) -> None:
    """A ValueError if an opening was refused: its ``agent_id`` exists."""
    if isinstance(result, Reject):
        raise ValueError(result.reason)


def _opening_event(
    runtime: Runtime,
    task_name: str,
    message: str | None,
    agent_id: UUID | str | None,
    metadata: Mapping[str, Any] | None,
) -> ActivityEvent:
    if not (plain_str(task_name) or "").strip():
        raise ValueError(f"task_name must be a non-empty string, got {describe(task_name)}")
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
