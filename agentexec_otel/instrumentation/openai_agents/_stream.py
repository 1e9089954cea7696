"""The activity of a streamed run, however far its stream is read."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from contextvars import Context
from typing import Any, Final, cast
from weakref import finalize

from agents import InputGuardrailTripwireTriggered, MaxTurnsExceeded, RunResultStreaming
from agents.stream_events import StreamEvent

from agentexec_otel._errors import ActivityCanceledError, guarded
from agentexec_otel.instrumentation._tracked_run import TrackedRun
from agentexec_otel.instrumentation.openai_agents import _sdk

UNNOTICED_SECONDS: Final = 0.015
"""How long `run_streamed`, which cannot await, may block the event loop to read a row."""

WrapUp = Callable[[RunResultStreaming, MaxTurnsExceeded], RunResultStreaming]


class ActivityStream:
    """Follows the background task of a streamed run, and ends the activity when the task ends.

    The consumer of the stream decides nothing. It may read all of it, a part, or none. The activity's span is current
    only in `context`, a copy of the caller's context.

    Args:
        wrap_up: Starts the run that wraps up after the first one has used up its turns. None: do not wrap up.
    """

    def __init__(self, tracked: TrackedRun, context: Context, wrap_up: WrapUp | None = None) -> None:
        self._tracked = tracked
        self._context = context
        self._wrap_up = wrap_up
        self._limit: MaxTurnsExceeded | None = None
        self.second: RunResultStreaming | None = None
        self.has_ended = False

    def start(self, run: Callable[[], RunResultStreaming]) -> RunResultStreaming:
        """Start the run, and follow it. If it cannot be started, end the activity with that error."""
        try:
            self._context.run(self._tracked.__enter__)
            result = self._context.run(run)
        except BaseException as exc:
            self._context.run(self._end, exc)
            raise
        self._follow(result)
        return result

    def _follow(self, result: RunResultStreaming) -> None:
        """When `result` has run to its end, end the activity, or start the run that wraps up."""
        _unfinished.add(self)
        task = cast("asyncio.Task[Any]", result.run_loop_task)
        abandoned = finalize(task, self._on_task_deleted, os.getpid())
        abandoned.atexit = False

        def on_done(done: asyncio.Task[Any]) -> None:
            abandoned.detach()
            self._on_task_done(result, done)

        task.add_done_callback(on_done, context=self._context)

    def _end(self, exc: BaseException | None, result: RunResultStreaming | None = None) -> None:
        """End the activity like a block that is left by this exception, or normally (None)."""
        self.has_ended = True
        _unfinished.discard(self)
        self._tracked.result = result
        self._tracked.__exit__(None, exc, None)

    def _on_task_deleted(self, pid: int) -> None:
        """The task was deleted before it was done, because its event loop was closed."""
        if pid == os.getpid() and not self.has_ended:
            self._context.run(self._end, asyncio.CancelledError())

    def _on_task_done(self, result: RunResultStreaming, task: asyncio.Task[Any]) -> None:
        exc = ending_of(result, task)
        if self._limit is not None:
            failed = isinstance(exc, Exception) and not isinstance(exc, ActivityCanceledError)
            exc = self._limit if failed else exc
        elif isinstance(exc, MaxTurnsExceeded) and self._wrap_up is not None:
            self._limit = exc
            with guarded("the run that wraps up"):
                self.second = self._wrap_up(result, exc)
                self._follow(self.second)
                return
        self._end(exc, result)


_unfinished: Final[set[ActivityStream]] = set()  # asyncio holds tasks weakly, and a stream may have no reader


def ending_of(result: RunResultStreaming, task: asyncio.Task[Any]) -> BaseException | None:
    """How a streamed run has ended: the exception that a consumer of its stream sees, a cancellation, or None.

    The background task does not say it all. The SDK evaluates parallel guardrails and the turn limit only when the
    stream is read, and a cancellation after the turn leaves no exception.
    """
    guardrails = _sdk.guardrails_task(result)
    if broken := _guardrail_failure(result, guardrails):
        return broken  # It has canceled the run.
    if task.cancelled():
        return asyncio.CancelledError()
    if failure := task.exception():
        return failure
    tripped = next((each for each in result.input_guardrail_results if each.output.tripwire_triggered), None)
    if tripped is not None:
        return InputGuardrailTripwireTriggered(tripped)
    if guardrails is not None and guardrails.cancelled():
        return asyncio.CancelledError()  # Together with the consumer, which waited for them.
    if _sdk.is_canceled(result) and result.final_output is None and not result.interruptions:
        return asyncio.CancelledError()
    if result.max_turns is not None and result.current_turn > result.max_turns:
        return MaxTurnsExceeded(f"Max turns ({result.max_turns}) exceeded")
    return _sdk.stored_exception(result)


def _guardrail_failure(result: RunResultStreaming, guardrails: asyncio.Task[Any] | None) -> Exception | None:
    if guardrails is None or not guardrails.done() or guardrails.cancelled():
        return None
    failure = guardrails.exception()
    return failure if isinstance(failure, Exception) and not _sdk.is_tool_error_raised(result) else None


_OWN: Final = frozenset({"_activity_stream", "_first", "__class__", "stream_events"})


class ContinuedStream(RunResultStreaming):
    """Reads a streamed run and the run that wraps it up as one stream.

    Every other attribute is that of the second run, as soon as there is one. Its input is the conversation so far, so
    `to_input_list()` returns the entire conversation.
    """

    def __init__(self, first: RunResultStreaming, activity_stream: ActivityStream) -> None:
        object.__setattr__(self, "_first", first)
        object.__setattr__(self, "_activity_stream", activity_stream)

    def __getattribute__(self, name: str) -> Any:
        if name in _OWN:
            return object.__getattribute__(self, name)
        stream: ActivityStream = object.__getattribute__(self, "_activity_stream")
        if name == "is_complete":
            return stream.has_ended
        return getattr(stream.second or object.__getattribute__(self, "_first"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._activity_stream.second or self._first, name, value)

    def __del__(self) -> None:
        """Do not release the agents of the runs, which may still be running."""

    async def stream_events(self) -> AsyncIterator[StreamEvent]:
        """The events of both runs. If the second fails, raises the MaxTurnsExceeded of the first."""
        try:
            async with aclosing(self._first.stream_events()) as events:
                async for event in events:
                    yield event
        except MaxTurnsExceeded as limit:
            second = self._activity_stream.second
            if second is None:
                raise
            try:
                async with aclosing(second.stream_events()) as events:
                    async for event in events:
                        yield event
            except ActivityCanceledError:
                raise
            except Exception as failure:
                raise limit from failure
