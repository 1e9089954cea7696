"""The activities of tasks: created, started by one worker only, and ended as the task engine decides.

No other module of this package imports the runtime. Engines with asynchronous hooks use `claim`, those whose hooks are
plain functions use `start`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from uuid import UUID

from opentelemetry import context

from agentexec_otel._config import CONF
from agentexec_otel._model.event import ActivityEvent, Outcome, Status
from agentexec_otel._model.ids import parse_agent_id
from agentexec_otel._model.outcome import qualified_name
from agentexec_otel._model.reasons import Reason
from agentexec_otel._model.text import prepare_message
from agentexec_otel._runtime.event_loop import on_event_loop
from agentexec_otel._runtime.live import LiveActivity
from agentexec_otel._runtime.process import active, configure, is_configured, shutdown
from agentexec_otel._runtime.runtime import Runtime
from agentexec_otel.activity import ActivityRun, aio
from agentexec_otel.activity._lifecycle import create_async, create_soon, describe_error, error_message
from agentexec_otel.export import Ack, ExportResult, Refusal, Reject, StoredActivity

__all__ = ["active", "configure", "create_async", "is_configured", "shutdown"]

_T = TypeVar("_T")

AGENT_ID: Final = "agentexec_agent_id"
ATTEMPT: Final = "agentexec_attempt"
"""Names in a task's message for the id of its activity, and for the attempt that the message starts."""

PATIENCE: Final = 2.0
"""Seconds that the hooks of the application's own task engine wait for the database."""

HANDED_BACK: Final = "handed back"
"""Message of the cancellation with which a stopping worker returns a task that has not started."""

_FIRST_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 1.0
_TRACEBACK_LIMIT: Final = 65_536
_SHUT_DOWN: Final = "the writer has been shut down: the task was not started"


class RefusedMessageError(Exception):
    """No worker can run this message. The text is the reason, without content of the message."""


# -- the runtime ------------------------------------------------------------------------------------------------


def patience() -> float:
    """Seconds that a hook may wait for the database: 0 if storing fails already."""
    return PATIENCE if active().in_trouble is None else 0.0


async def stored_within(seconds: float, answer: Future[ExportResult]) -> None:
    """Wait for at most `seconds` until an event is stored. After that it stays in the queue."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.wrap_future(answer)  # Canceling the wait does not cancel the event.


def redacted(text: str) -> str:
    """A text as it may be logged, bounded like a traceback."""
    return prepare_message(text, _TRACEBACK_LIMIT, active().redact)


# -- create and end ---------------------------------------------------------------------------------------------


def create(task_name: str, agent_id: UUID, metadata: Mapping[str, Any] | None = None) -> Future[ExportResult]:
    """Create an activity; the future resolves when its row is committed."""
    return create_soon(task_name, agent_id=agent_id, metadata=metadata)[1]


def end_elsewhere(
    agent_id: UUID, reason: Reason, exc: BaseException | None = None, *, of_current: bool = True
) -> Future[ExportResult]:
    """End an activity that does not run in this process: as ERROR if there is an exception, else as CANCELED.

    Args:
        of_current: End whichever attempt is current, not only the one that this process has seen.
    """
    runtime = active()
    live = runtime.known(agent_id) or runtime.assume(agent_id)
    if exc is None:
        status, text, outcome = Status.CANCELED, CONF.activity_message_cancel, Outcome(reason=reason)
    else:
        status, text, outcome = Status.ERROR, error_message(exc), Outcome(qualified_name(type(exc)), reason)
    return runtime.end(live, status, text, outcome=outcome, of_current=of_current)


def open_attempt(agent_id: UUID, attempt: int) -> Future[ExportResult]:
    """Open the next attempt of an activity, QUEUED, if its run was lost."""
    return active().announce(agent_id, attempt, CONF.activity_message_create)


async def reopen_failed(agent_id: UUID, attempt: int, seconds: float) -> None:
    """Reopen an activity for an attempt, if the one before has ended as ERROR.

    Raises:
        TimeoutError: The database did not answer in time. The worker that receives the message reopens it later.
    """
    async with asyncio.timeout(seconds):
        stored = await active().read_async(agent_id, seconds, history=False)
        if stored is not None and stored.status is Status.ERROR and stored.attempt < attempt:
            await aio.retry(agent_id)


async def _reopen(runtime: Runtime, stored: StoredActivity) -> None:
    """Open the attempt after the stored one, QUEUED, and wait for the commit."""
    if stored.status.terminal:
        answer = runtime.requeue(stored.agent_id, CONF.activity_message_create)
    else:
        answer = open_attempt(stored.agent_id, stored.attempt + 1)
    await asyncio.wrap_future(answer)


def agent_id_of(task_id: str) -> UUID | None:
    """The agent id in an engine's task id; None if the task id is not a UUID."""
    try:
        return parse_agent_id(task_id)
    except ValueError:
        return None


# -- a run ------------------------------------------------------------------------------------------------------


class TaskRun(ActivityRun):
    """A block that was started by `claim`. Entering and leaving it sets the context; `end` ends the activity.

    Attributes:
        is_late: The activity had ended before. Logs of this run are stored as late, and its end changes nothing.
    """

    def __init__(self, live: LiveActivity, *, is_late: bool = False) -> None:
        super().__init__(agent_id=live.agent_id, waits=False)
        self.is_late: Final = is_late
        self._view = live
        self._owner = live.own(self) and not is_late
        self._ended_before = live.ending
        self._inside: context.Context | None = None

    @property
    def attempt(self) -> int:
        """Which attempt of the activity this is: 1, 2, …"""
        return self._entered().attempt or 1

    @property
    def failed(self) -> bool:
        """Whether the activity has ended as ERROR already, such as by `error()`."""
        return self._entered().status is Status.ERROR

    def __enter__(self) -> Self:
        self._attach(self._entered())
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.detach()

    def _attach(self, live: LiveActivity) -> None:
        super()._attach(live)
        self._inside = context.get_current()

    def detach(self) -> None:
        if self._tokens is not None and context.get_current() is not self._inside:
            self._tokens = (self._tokens[0], None)  # Another library's hook has restored the context before us.
        super().detach()

    def end(self, exc: BaseException | None) -> Future[ExportResult] | None:
        """End the activity like a block that is left by `exc`, or normally (None). A second call does nothing."""
        live = self._entered()
        if self.is_late or (self.canceled and live.usage_total() is None and not live.expects_usage):
            self._disown(live)
            if self.is_late:
                active().forget(live)
            return None  # It has ended; there are no tokens to add.
        return self._finish(exc)

    def _disown(self, live: LiveActivity) -> None:
        self._owner = False
        live.disown(self)

    def end_attempt(self, exc: BaseException | None) -> None:
        """The attempt has failed, and the engine tries again: queue the next attempt instead of ending the activity."""
        live = self._entered()
        if self.is_late:
            self.end(exc)
        if not self._owner:
            return
        self._disown(live)
        _, outcome = self._outcome(live, exc)
        text = CONF.activity_message_retry.replace("{error}", describe_error(exc))
        # The announcement is refused if the activity was canceled meanwhile.
        active().end_attempt(live, text, outcome, CONF.activity_message_create)

    async def call(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Await `work` in this block, and cancel it, but not the caller, as soon as the activity is canceled."""
        with self:
            loop, task = asyncio.get_running_loop(), asyncio.create_task(work)
            self._entered().when_canceled(lambda: loop.call_soon_threadsafe(task.cancel))
            if self.canceled:
                task.cancel()
            return await task


# -- start ------------------------------------------------------------------------------------------------------


async def claim(
    agent_id: UUID, attempt: int, patience: float | None = None, opened: ActivityEvent | None = None
) -> TaskRun | None:
    """Start an attempt of an activity, unless another worker has started it.

    Args:
        patience: Seconds. If the database does not answer within them, start although another worker may have, too.
            None waits until it answers.
        opened: The event that created the activity, if the message carries it. Saves reading the row.

    Returns:
        The block to run in; None if another worker has started the attempt, or if it has ended.

    Raises:
        RefusedMessageError: Only without `patience`: the activity does not exist, or cannot have come to this attempt.
        TimeoutError: The writer was shut down.
    """
    runtime = active()
    deadline = None if patience is None else time.monotonic() + patience
    try:
        if opened is not None and attempt == 1 and runtime.known(agent_id) is None:
            runtime.created_elsewhere(opened)
        live = await _find_attempt(runtime, agent_id, attempt, deadline)
        if live.owner is not None or live.status is not Status.QUEUED:
            return None
        return await _claimed(runtime, live, deadline)
    except TimeoutError:
        if runtime.is_closed:
            raise
    except RefusedMessageError:
        if patience is None:
            raise
    return _start_unguarded(runtime, agent_id)


async def _claimed(runtime: Runtime, live: LiveActivity, deadline: float | None) -> TaskRun | None:
    run = TaskRun(live)
    answer = runtime.claim(live, CONF.activity_message_started)
    try:
        async with asyncio.timeout(_left(deadline)):
            result = await asyncio.wrap_future(answer)  # Canceling the wait does not cancel the event.
    except TimeoutError:
        return run  # The claim stays in the queue: start although another worker may have, too.
    except asyncio.CancelledError as exc:
        handed_back = HANDED_BACK in exc.args
        answer.add_done_callback(lambda done: _release(run, done.result(), handed_back))
        raise
    if isinstance(result, Ack):
        return run
    if runtime.is_closed:
        raise TimeoutError(_SHUT_DOWN)
    if isinstance(result, Reject) and result.refusal in (Refusal.UNKNOWN, Refusal.AHEAD):
        runtime.forget(live)
        raise RefusedMessageError(result.reason)
    return None


def _release(run: TaskRun, result: ExportResult, handed_back: bool) -> None:
    """End a run if its claim was stored after its worker had stopped waiting."""
    if not isinstance(result, Ack):
        return
    if handed_back:
        run.end_attempt(TimeoutError("its worker has stopped"))  # Another worker receives its message.
    else:
        run.end(asyncio.CancelledError())


async def _find_attempt(runtime: Runtime, agent_id: UUID, attempt: int, deadline: float | None) -> LiveActivity:
    """The view of this attempt or a later one, from its row if this process has not seen it.

    Raises:
        RefusedMessageError: The activity does not exist, or cannot have come to this attempt.
    """
    known = runtime.known(agent_id)
    if known is not None and known.is_resolved and (known.attempt or 0) >= attempt and not known.is_over:
        return known
    if not runtime.has_store:
        return known or runtime.assume(agent_id)
    given_up = time.monotonic() + CONF.lookup_timeout
    pause = _FIRST_PAUSE
    while True:
        with suppress(TimeoutError):  # The writer logs what is wrong.
            stored = await runtime.read_async(agent_id, _left(deadline))
            if stored is not None and stored.attempt >= attempt:
                return runtime.adopt(stored)
            if time.monotonic() >= given_up:
                return await _adopt_next(runtime, _expected(stored, agent_id, attempt), attempt, deadline)
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError
        if runtime.is_closed:
            raise TimeoutError(_SHUT_DOWN)
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _expected(stored: StoredActivity | None, agent_id: UUID, attempt: int) -> StoredActivity:
    """The row, if the attempt may be the next one. A worker stores its claim before its attempt can fail."""
    if stored is None:
        raise RefusedMessageError(f"no activity has the agent_id {agent_id}")
    if attempt > stored.attempt + 1:
        raise RefusedMessageError(f"it is of a later attempt than the activity {agent_id} can have come to")
    return stored


async def _adopt_next(runtime: Runtime, stored: StoredActivity, attempt: int, deadline: float | None) -> LiveActivity:
    """The view of an attempt that is not stored: the process that opened it may have died, or had no database."""
    if stored.status is Status.ERROR:
        async with asyncio.timeout(_left(deadline)):
            await _reopen(runtime, stored)
    status = stored.status if stored.status in (Status.CANCELED, Status.COMPLETE) else Status.QUEUED
    return runtime.adopt(
        replace(stored, attempt=attempt, status=status, span=None, history=(), created_at_ns=time.time_ns())
    )


def _start_unguarded(runtime: Runtime, agent_id: UUID) -> TaskRun | None:
    """Start an activity even if another worker may run it; None if this process does already."""
    live = runtime.known(agent_id)
    if live is None or live.is_over:
        live = runtime.assume(agent_id)
    if live.owner is not None:
        return None
    run = TaskRun(live)
    runtime.record(live, Status.RUNNING, CONF.activity_message_started)
    return run


def start(agent_id: UUID, attempt: int, *, redelivered: bool = False) -> TaskRun | None:
    """Start an attempt of an activity from a plain function. Waits for the database no longer than `patience`.

    If an engine delivers a task twice, both run, and the first end counts. A redelivery of an attempt that has failed,
    or still seems to run, starts the next attempt. An activity that was canceled or is complete stays so, and this run
    is late.

    Args:
        redelivered: The engine has given up an earlier delivery.

    Returns:
        None if this process runs the activity already.
    """
    runtime = active()
    if on_event_loop():
        return _start_unguarded(runtime, agent_id)
    loop = asyncio.new_event_loop()  # The thread's current event loop stays as it is.
    try:
        return loop.run_until_complete(_start(runtime, agent_id, attempt, redelivered))
    finally:
        loop.close()


async def _start(runtime: Runtime, agent_id: UUID, attempt: int, redelivered: bool) -> TaskRun | None:
    deadline = time.monotonic() + patience()
    run = await claim(agent_id, attempt, _left(deadline))
    if run is not None:
        return run
    stored = None
    with suppress(TimeoutError):
        stored = await runtime.read_async(agent_id, _left(deadline))
    if stored is not None and stored.status in (Status.CANCELED, Status.COMPLETE):
        return TaskRun(runtime.adopt(stored), is_late=True)
    if stored is not None and (stored.status is Status.ERROR or (redelivered and stored.status is Status.RUNNING)):
        with suppress(TimeoutError):
            async with asyncio.timeout(_left(deadline)):
                await _reopen(runtime, stored)
        run = await claim(agent_id, stored.attempt + 1, _left(deadline))
    return _start_unguarded(runtime, agent_id) if run is None else run


def _left(deadline: float | None) -> float | None:
    """Seconds until the deadline; None if there is none."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())
