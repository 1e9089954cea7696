"""The activities of tasks: created, started by one worker only, and ended as the task engine decides.

The only module of this package that uses the runtime. `claim` is for engines with asynchronous hooks, `start` for those
whose hooks are plain functions.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self
from uuid import UUID

from opentelemetry import context

from agentexec_otel._config import CONF
from agentexec_otel._errors import ConfigurationError
from agentexec_otel._model.event import ActivityEvent, Outcome, Status
from agentexec_otel._model.ids import parse_agent_id
from agentexec_otel._model.outcome import qualified_name
from agentexec_otel._runtime import process
from agentexec_otel._runtime.live import LiveActivity
from agentexec_otel._runtime.runtime import Runtime, on_event_loop
from agentexec_otel.activity import ActivityRun, aio
from agentexec_otel.activity._lifecycle import create_async, create_soon, describe_error, error_message
from agentexec_otel.export import Ack, ExportResult, StoredActivity

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

AGENT_ID: Final = "agentexec_agent_id"
ATTEMPT: Final = "agentexec_attempt"
"""What a task's message calls the id of its activity, and the attempt that it is sent for."""

PATIENCE: Final = 2.0
"""Seconds that the hooks of somebody else's task engine wait for the database."""

HANDED_BACK: Final = "handed back"
"""Message of the cancellation by which a worker that stops returns a task that has not started."""

_FIRST_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 1.0
_READ_SECONDS: Final = 5.0
_SHUT_DOWN: Final = "the writer has been shut down: the task was not started"


# -- the runtime ------------------------------------------------------------------------------------------------


def configure(engine_or_url: str | URL | Engine | AsyncEngine | None, create_tables: bool | None) -> None:
    """Configure this process, unless it is configured and no database is given."""
    if engine_or_url is not None or not process.is_configured():
        process.configure(engine_or_url, create_tables=create_tables)


def start_writer() -> None:
    """Start the writer thread before there is an event: it also ends what a dead worker has left."""
    process.active().start_writer()


def shutdown() -> None:
    """Store what this process has reported, and stop."""
    process.shutdown()


def is_in_trouble() -> bool:
    """Whether storing fails at the moment."""
    return process.active().in_trouble is not None


def is_shut_down() -> bool:
    """Whether nothing is stored or read any more, until `ax.configure` is called again."""
    return process.active().is_closed


def patience() -> float:
    """How many seconds a hook waits for the database: none if storing fails already."""
    return 0.0 if is_in_trouble() else PATIENCE


async def stored_within(seconds: float, answer: Future[ExportResult]) -> None:
    """Wait until an event is stored, but no longer than that; it stays in the queue."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.wrap_future(answer)  # Canceling the wait does not cancel the event.


async def standing(agent_id: UUID, seconds: float) -> StoredActivity | None:
    """Status and outcome of an activity, from its row; None if there is no such activity.

    Raises:
        TimeoutError: the database does not answer in time, or refuses.
        ConfigurationError: there is no database.
    """
    runtime = process.active()
    if not runtime.has_store:
        raise ConfigurationError("this call needs a database: call ax.configure(engine_or_url)")
    return await runtime.read_async(agent_id, max(0.0, seconds), history=False)


# -- create and end ---------------------------------------------------------------------------------------------

create_stored = create_async
"""Create an activity, and return when its row is committed; raises as `ax.activity.create`."""


def create(task_name: str, agent_id: UUID, metadata: Mapping[str, Any] | None = None) -> Future[ExportResult]:
    """Create an activity; the future resolves when its row is committed."""
    _, created = create_soon(task_name, agent_id=agent_id, metadata=metadata)
    return created


def created_with(agent_id: UUID) -> ActivityEvent | None:
    """The event by which this process has just created the activity."""
    live = process.active().known(agent_id)
    return None if live is None else live.opening_event


def has_ended(agent_id: UUID) -> bool:
    """Whether this process knows that the activity has ended."""
    live = process.active().known(agent_id)
    return live is not None and live.status.terminal


def end_unsent(agent_id: UUID, exc: BaseException) -> Future[ExportResult]:
    """End the activity of a task that could not be sent."""
    runtime = process.active()
    outcome = Outcome(qualified_name(type(exc)), "enqueue")
    return runtime.end(runtime.find(agent_id), Status.ERROR, error_message(exc), outcome=outcome)


def end_elsewhere(agent_id: UUID, reason: str, exc: BaseException | None = None) -> None:
    """End an activity that runs in another process, or nowhere: as ERROR for an exception, else as CANCELED."""
    runtime = process.active()
    live = runtime.known(agent_id) or runtime.assume(agent_id)
    if exc is None:
        runtime.end(
            live, Status.CANCELED, CONF.activity_message_cancel, outcome=Outcome(reason=reason), of_current=True
        )
    else:
        outcome = Outcome(qualified_name(type(exc)), reason)
        runtime.end(live, Status.ERROR, error_message(exc), outcome=outcome, of_current=True)


def open_attempt(agent_id: UUID, attempt: int) -> None:
    """Open the next attempt of an activity whose run was lost, QUEUED."""
    process.active().announce(agent_id, attempt, CONF.activity_message_create)


async def reopen_failed(agent_id: UUID, attempt: int, seconds: float) -> None:
    """Reopen an activity for an attempt, if the one before has ended as ERROR.

    Raises:
        TimeoutError: the database does not answer in time. The worker that gets the attempt's message reopens it then.
    """
    async with asyncio.timeout(seconds):
        stored = await process.active().read_async(agent_id, seconds, history=False)
        if stored is not None and stored.status is Status.ERROR and stored.attempt < attempt:
            await aio.retry(agent_id)


async def _reopen(runtime: Runtime, stored: StoredActivity) -> None:
    """Open the attempt after the stored one, QUEUED, and wait until that is stored."""
    text = CONF.activity_message_create
    if stored.status.terminal:
        answer = runtime.requeue(stored.agent_id, text)
    else:
        answer = runtime.announce(stored.agent_id, stored.attempt + 1, text)
    await asyncio.wrap_future(answer)


def agent_id_of(task_id: str) -> UUID | None:
    """The agent id that an engine's task id is, if it is one."""
    try:
        return parse_agent_id(task_id)
    except ValueError:
        return None


# -- a run ------------------------------------------------------------------------------------------------------


class TaskRun(ActivityRun):
    """A block that was started by `claim`. Entering and leaving it sets the context; `end` ends the activity."""

    def __init__(self, live: LiveActivity) -> None:
        super().__init__(agent_id=live.agent_id, waits=False)
        self._view = live
        self._owner = live.own(self)
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

    async def __aenter__(self) -> Self:
        return self.__enter__()

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
        """End the activity as a block that is left by `exc`, or normally (None). The second call does nothing."""
        live = self._entered()
        if self.canceled and live.usage_total() is None and not live.expects_usage:
            self._owner = False
            live.disown(self)
            return None  # It has ended; there are no tokens to add.
        return self._finish(exc)

    def end_attempt(self, exc: BaseException | None) -> None:
        """The attempt has failed and the engine tries again: the activity does not end, its next attempt is QUEUED."""
        live = self._entered()
        if not self._owner:
            return
        self._owner = False
        live.disown(self)
        _, outcome = self._outcome(live, exc)
        text = CONF.activity_message_retry.replace("{error}", describe_error(exc))
        # The announcement is refused if the activity was canceled meanwhile.
        process.active().end_attempt(live, text, outcome, CONF.activity_message_create)

    def when_canceled(self, stop: asyncio.Task[object]) -> None:
        """Cancel this task of the running event loop as soon as the activity is canceled."""
        live = self._entered()
        loop = asyncio.get_running_loop()
        live.when_canceled(lambda: loop.call_soon_threadsafe(stop.cancel))
        if self.canceled:
            stop.cancel()


class LateRun(TaskRun):
    """The run of a task whose activity has ended: its logs are kept as late, and it ends nothing.

    Attributes:
        was_canceled: The activity was canceled before this run.
    """

    def __init__(self, live: LiveActivity) -> None:
        super().__init__(live)
        self._owner = False
        self.was_canceled: Final = live.status is Status.CANCELED

    def end(self, exc: BaseException | None) -> Future[ExportResult] | None:
        """Release the activity."""
        live = self._entered()
        live.disown(self)
        process.active().forget(live)
        return None

    def end_attempt(self, exc: BaseException | None) -> None:
        """Release the activity."""
        self.end(exc)


# -- start ------------------------------------------------------------------------------------------------------


async def claim(
    agent_id: UUID, attempt: int, patience: float | None = None, opened: ActivityEvent | None = None
) -> TaskRun | None:
    """Start an attempt of an activity, unless another worker has.

    Args:
        opened: The event that has created the activity, if the message carries it: saves reading the row.
        patience: If the database does not answer for so many seconds, start unguarded. None waits until it answers.

    Returns:
        The block to run in; None if another worker has started the attempt, or if it has ended or does not exist.

    Raises:
        TimeoutError: the writer was shut down.
    """
    runtime = process.active()
    deadline = None if patience is None else time.monotonic() + patience
    try:
        if opened is not None and attempt == 1 and runtime.known(agent_id) is None:
            runtime.created_elsewhere(opened)
        live = await _find_attempt(runtime, agent_id, attempt, deadline)
        if live is None or live.owner is not None or live.status is not Status.QUEUED:
            return None
        return await _claimed(runtime, live, deadline)
    except _NoAnswerError:
        return _start_unguarded(runtime, agent_id)


class _NoAnswerError(Exception):
    """The database has not answered until the deadline."""


async def _claimed(runtime: Runtime, live: LiveActivity, deadline: float | None) -> TaskRun | None:
    run = TaskRun(live)
    answer = runtime.claim(live, CONF.activity_message_started)
    try:
        async with asyncio.timeout(None if deadline is None else _left(deadline)):
            result = await asyncio.wrap_future(answer)  # Canceling the wait does not cancel the event.
    except TimeoutError:
        return run  # Started as far as this process is concerned; the claim stays in the queue.
    except asyncio.CancelledError as exc:
        handed_back = HANDED_BACK in exc.args
        answer.add_done_callback(lambda done: _release(run, done.result(), handed_back))
        raise
    if isinstance(result, Ack):
        return run
    if runtime.is_closed:
        raise TimeoutError(_SHUT_DOWN)
    return None


def _release(run: TaskRun, result: ExportResult, handed_back: bool) -> None:
    """End a run whose claim was stored after its worker had stopped waiting."""
    if not isinstance(result, Ack):
        return
    if handed_back:
        run.end_attempt(TimeoutError("its worker has stopped"))  # Another worker gets its message.
    else:
        run.end(asyncio.CancelledError())


async def _find_attempt(runtime: Runtime, agent_id: UUID, attempt: int, deadline: float | None) -> LiveActivity | None:
    """The activity at this attempt or a later one, from its row if this process does not know it."""
    known = runtime.known(agent_id)
    if known is not None and known.is_resolved and (known.attempt or 0) >= attempt and not known.is_over:
        return known
    if not runtime.has_store:
        return known or runtime.assume(agent_id)
    given_up = time.monotonic() + CONF.lookup_timeout
    pause = _FIRST_PAUSE
    while True:
        with suppress(TimeoutError):  # The writer logs what is wrong.
            stored = await runtime.read_async(agent_id, _READ_SECONDS if deadline is None else _left(deadline))
            if stored is not None and stored.attempt >= attempt:
                return runtime.adopt(stored)
            if time.monotonic() >= given_up:
                return None if stored is None else await _adopt_next(runtime, stored, attempt, deadline)
        if deadline is not None and time.monotonic() >= deadline:
            raise _NoAnswerError
        if is_shut_down():
            raise TimeoutError(_SHUT_DOWN)
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


async def _adopt_next(runtime: Runtime, stored: StoredActivity, attempt: int, deadline: float | None) -> LiveActivity:
    """The activity at an attempt that is not stored: the process that opens it may have died, or had no database."""
    if stored.status is Status.ERROR:
        async with asyncio.timeout(None if deadline is None else _left(deadline)):
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
    """Start an attempt of an activity from a plain function; waits for the database no longer than `patience`.

    If an engine delivers a task twice, both run, and the first to end decides. A redelivery of what still seems to run
    is the next attempt, and so is the start of one that has failed. One that was canceled or is complete stays so: see
    `LateRun`.

    Args:
        redelivered: The engine has given up an earlier delivery.

    Returns:
        None if this process runs the activity already.
    """
    runtime = process.active()
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
        return LateRun(runtime.adopt(stored))
    if stored is not None and (stored.status is Status.ERROR or (redelivered and stored.status is Status.RUNNING)):
        with suppress(TimeoutError):
            async with asyncio.timeout(_left(deadline)):
                await _reopen(runtime, stored)
        run = await claim(agent_id, stored.attempt + 1, _left(deadline))
    return _start_unguarded(runtime, agent_id) if run is None else run


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
