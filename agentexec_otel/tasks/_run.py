"""A task's run of an activity: started by one worker only, ended by the engine's verdict."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Final, Self
from uuid import UUID

from opentelemetry import context

from agentexec_otel._config import CONF
from agentexec_otel._errors import ExportError
from agentexec_otel._model.event import ActivityEvent, Status
from agentexec_otel._model.ids import parse_agent_id
from agentexec_otel._runtime import process as _runtime
from agentexec_otel._runtime.live import LiveActivity
from agentexec_otel._runtime.process import Runtime
from agentexec_otel.activity import ActivityRun
from agentexec_otel.activity._lifecycle import describe_error
from agentexec_otel.export import Ack, ExportResult, StoredActivity

AGENT_ID: Final = "agentexec_agent_id"
ATTEMPT: Final = "agentexec_attempt"
"""What a task's message calls the id of its activity, and the attempt that it is sent for."""

PATIENCE: Final = 2.0
"""Seconds that a task which is only watched waits for the database."""

HANDED_BACK: Final = "handed back"
"""The message of a cancellation by which a worker that stops lets go of a task that has not started."""

_LONGEST_WAIT: Final = 1.0


def agent_id_of(task_id: str) -> UUID | None:
    """The agent id that an engine's task id is, if it is one."""
    try:
        return parse_agent_id(task_id)
    except ValueError:
        return None


class TaskRun(ActivityRun):
    """A block that was started by `claim`. Entering and leaving it sets the context; `end` ends the activity."""

    def __init__(self, runtime: Runtime, live: LiveActivity) -> None:
        super().__init__(None, live.agent_id, None, None, None, waits=False)
        self._runtime, self._live = runtime, live
        self._owner = True
        self._inside: context.Context | None = None
        live.owner = self

    @property
    def attempt(self) -> int:
        """Which attempt of the activity this is: 1, 2, …"""
        return self._entered()[0].attempt or 1

    @property
    def failed(self) -> bool:
        """Whether the activity has ended as ERROR already, such as by `error()`."""
        return self._entered()[0].status is Status.ERROR

    def __enter__(self) -> Self:
        self._attach(self._entered()[0])
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
            self._tokens = (self._tokens[0], None)  # Another library's hook has gone back behind us already.
        super().detach()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.detach()

    def end(self, exc: BaseException | None) -> Future[ExportResult] | None:
        """End the activity as a block that is left by `exc`, or by its end (None). The second call does nothing."""
        live, _ = self._entered()
        live.on_cancel = None
        if self.canceled and not (live.usage or live.counts):
            self._owner = False
            live.owner = None
            return None  # It has ended; there are no tokens to add.
        return self._finish(exc)

    def end_attempt(self, exc: BaseException | None) -> None:
        """The attempt has failed, but the engine tries again: no ending of the activity, and its next attempt waits."""
        live, _ = self._entered()
        runtime = _runtime.active()
        if not self._owner:
            return
        self._owner = False
        live.owner = live.on_cancel = None
        _, outcome = self._outcome(live, exc)
        text = CONF.activity_message_retry.replace("{error}", describe_error(exc))
        failed = runtime.event(live.agent_id, Status.RUNNING, text, live=live)
        runtime.emit(runtime.spans.observe(live, failed))
        runtime.spans.forget(live.agent_id)
        runtime.primary.call_soon(lambda: runtime.spans.end(live, Status.ERROR, outcome, failed, failed.message))
        queued = runtime.event(live.agent_id, Status.QUEUED, CONF.activity_message_create)
        # Refused where the activity was canceled meanwhile. Not spooled: whoever starts the attempt opens it, too.
        queued = queued._replace(attempt=(live.attempt or 1) + 1, claims=True)
        runtime.primary.offer(queued)
        runtime.emit_to_others(queued)

    def when_canceled(self, stop: asyncio.Task[object]) -> None:
        """Cancel this task of the running event loop as soon as somebody cancels the activity."""
        live, _ = self._entered()
        loop = asyncio.get_running_loop()
        live.on_cancel = lambda: loop.call_soon_threadsafe(stop.cancel)
        if self.canceled:
            stop.cancel()


async def claim(
    agent_id: UUID, attempt: int, patience: float | None = None, opened: ActivityEvent | None = None
) -> TaskRun | None:
    """Start an attempt of an activity, as the only one.

    Args:
        opened: The event that has created the activity, where the message has brought it: saves reading the row.
        patience: After so many seconds without an answer of the database, start all the same, unguarded. None waits
            for as long as it takes.

    Returns:
        The block to run in; None where somebody else has started that attempt, where it has ended or is gone.

    Raises:
        TimeoutError: the writer was shut down.
    """
    runtime = _runtime.active()
    deadline = None if patience is None else time.monotonic() + patience
    try:
        if opened is not None and attempt == 1 and runtime.spans.known(agent_id) is None:
            runtime.spans.handed_over(opened)
        live = await _look_up(runtime, agent_id, attempt, deadline)
        if live is None or live.owner is not None or live.status is not Status.QUEUED:
            return None
        return await _claimed(runtime, live, deadline)
    except _OutOfPatienceError:
        return join(runtime, agent_id)


class _OutOfPatienceError(Exception):
    """The database does not answer, and the run is not to wait for it."""


async def _claimed(runtime: Runtime, live: LiveActivity, deadline: float | None) -> TaskRun | None:
    run = TaskRun(runtime, live)
    started = runtime.event(live.agent_id, Status.RUNNING, CONF.activity_message_started, live=live)
    started = runtime.spans.observe(live, started._replace(claims=True))
    answer = runtime.primary.offer(started)
    try:
        async with asyncio.timeout(None if deadline is None else max(0.0, deadline - time.monotonic())):
            result = await asyncio.wrap_future(answer)  # Nobody can cancel the answer itself.
    except TimeoutError:
        return run  # Started, as far as we are concerned; the claim stays in the queue.
    except asyncio.CancelledError as exc:
        handed_back = HANDED_BACK in exc.args
        answer.add_done_callback(lambda done: _let_go(run, done.result(), handed_back))
        raise
    if isinstance(result, Ack):
        runtime.emit_to_others(started)
        return run
    if runtime.primary.closed:
        raise TimeoutError("the writer has been shut down: the task was not started")
    return None


def _let_go(run: TaskRun, result: ExportResult, handed_back: bool) -> None:
    """Whoever waited for the claim is gone."""
    if not isinstance(result, Ack):
        return
    if handed_back:
        run.end_attempt(TimeoutError("its worker has stopped"))  # Another one gets its message.
    else:
        run.end(asyncio.CancelledError())


async def _look_up(runtime: Runtime, agent_id: UUID, attempt: int, deadline: float | None) -> LiveActivity | None:
    """The activity at this attempt or a later one, from its row where this process does not know it."""
    known = runtime.spans.known(agent_id)
    if known is not None and known.opening is not None and (known.attempt or 0) >= attempt and not known.over:
        return known
    if runtime.lookups is None:
        return known or runtime.spans.unresolved(agent_id)
    stored = None
    given_up = time.monotonic() + CONF.lookup_timeout
    for wait in _waits():
        try:
            stored = await _within(deadline, asyncio.wrap_future(runtime.lookups.soon(agent_id)))
        except ExportError:
            pass  # The writer says what is wrong.
        else:
            if stored is not None and stored.attempt >= attempt:
                return runtime.spans.adopt(stored)
            if time.monotonic() >= given_up:
                return None if stored is None else runtime.spans.adopt(_next_attempt(stored, attempt))
        if deadline is not None and time.monotonic() >= deadline:
            raise _OutOfPatienceError
        await asyncio.sleep(wait)
    return None


async def _within(deadline: float | None, reading: asyncio.Future[StoredActivity | None]) -> StoredActivity | None:
    if deadline is None:
        return await reading
    try:
        return await asyncio.wait_for(reading, max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        raise _OutOfPatienceError from None


def _next_attempt(stored: StoredActivity, attempt: int) -> StoredActivity:
    """The activity as it will be once the line that opens this attempt is stored: its process may have died first."""
    status = stored.status if stored.status.terminal else Status.QUEUED
    return replace(stored, attempt=attempt, status=status, span=None, history=(), created_at_ns=time.time_ns())


def join(runtime: Runtime, agent_id: UUID) -> TaskRun | None:
    """Start an activity without a guard, beside whoever else may run it; None where this process does already."""
    live = runtime.spans.known(agent_id)
    if live is None or live.over:
        runtime.spans.forget(agent_id)
        live = runtime.spans.unresolved(agent_id)
        live.opening_pending = True
    if live.owner is not None:
        return None
    run = TaskRun(runtime, live)
    started = runtime.event(agent_id, Status.RUNNING, CONF.activity_message_started, live=live)
    runtime.emit(runtime.spans.observe(live, started))
    return run


async def stored_within(seconds: float, answer: Future[ExportResult]) -> None:
    """Wait for an event to be stored, but no longer than that; it stays on its way."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.wrap_future(answer)  # Nobody can cancel the answer itself.


def _waits() -> Iterator[float]:
    wait = 0.01
    while True:
        yield wait
        wait = min(2 * wait, _LONGEST_WAIT)
