"""One activity over a streamed run, whoever reads the stream and however far."""

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
from agentexec_otel.openai_agents._steps import TrackedRun

WrapUp = Callable[[RunResultStreaming, MaxTurnsExceeded], RunResultStreaming]


class ActivityStream:
    """Follows the background task of a streamed run, and ends the activity when that ends.

    The consumer decides nothing: it may read on, stop, go away or never come. All that touches the
    activity's span happens in `context`, a copy of the caller's, so nothing stays attached in theirs.

    Args:
        wrap_up: Starts the run that wraps up after the first has used up its turns; None: there is none.
    """

    def __init__(self, tracked: TrackedRun, context: Context, wrap_up: WrapUp | None = None) -> None:
        self._tracked = tracked
        self._context = context
        self._wrap_up = wrap_up
        self._limit: MaxTurnsExceeded | None = None
        self.second: RunResultStreaming | None = None
        self.ended = False

    def follow(self, result: RunResultStreaming) -> None:
        """End the activity, or have it wrapped up, as soon as `result` has run to its end."""
        unfinished.add(self)
        task = cast("asyncio.Task[Any]", result.run_loop_task)
        gone = finalize(task, self._vanish, os.getpid())
        gone.atexit = False

        def settle(done: asyncio.Task[Any]) -> None:
            gone.detach()
            self._settle(result, done)

        task.add_done_callback(settle, context=self._context)

    def end(self, left_by: BaseException | None, result: RunResultStreaming | None = None) -> None:
        """End the activity like a block that is left by this exception, or by its end (None)."""
        self.ended = True
        unfinished.discard(self)
        self._tracked.leave(left_by, result)

    def _vanish(self, pid: int) -> None:
        """The task is gone without having been done: its event loop was closed under it."""
        if pid == os.getpid() and not self.ended:
            self._context.run(self.end, asyncio.CancelledError())

    def _settle(self, result: RunResultStreaming, task: asyncio.Task[Any]) -> None:
        left_by = ending_of(result, task)
        if self._limit is not None:
            failed = isinstance(left_by, Exception) and not isinstance(left_by, ActivityCanceledError)
            left_by = self._limit if failed else left_by
        elif isinstance(left_by, MaxTurnsExceeded) and self._wrap_up is not None:
            self._limit = left_by
            with guarded("the run that wraps up"):
                self.second = self._wrap_up(result, left_by)
                self.follow(self.second)
                return
        self.end(left_by, result)


unfinished: Final[set[ActivityStream]] = set()  # asyncio holds tasks weakly; a stream nobody reads must not vanish


def ending_of(result: RunResultStreaming, task: asyncio.Task[Any]) -> BaseException | None:
    """How a streamed run has ended: what its consumer was or would be given to see, a cancellation, or None.

    The background task alone does not tell: the SDK finds a parallel guardrail's verdict and the turn
    limit only when the stream is read, and a cancellation after the turn leaves no exception at all.
    """
    guardrails: asyncio.Task[Any] | None = getattr(result, "_input_guardrails_task", None)
    if broken := _guardrail_failure(result, guardrails):
        return broken  # It cancels the run.
    if task.cancelled():
        return asyncio.CancelledError()
    if failure := task.exception():
        return failure
    tripped = next((each for each in result.input_guardrail_results if each.output.tripwire_triggered), None)
    if tripped is not None:
        return InputGuardrailTripwireTriggered(tripped)
    if guardrails is not None and guardrails.cancelled():
        return asyncio.CancelledError()  # With the consumer, who was waiting for their verdict.
    if getattr(result, "_cancel_mode", "none") != "none" and result.final_output is None and not result.interruptions:
        return asyncio.CancelledError()
    if result.max_turns is not None and result.current_turn > result.max_turns:
        return MaxTurnsExceeded(f"Max turns ({result.max_turns}) exceeded")
    return cast("BaseException | None", getattr(result, "_stored_exception", None))


def _guardrail_failure(result: RunResultStreaming, guardrails: asyncio.Task[Any] | None) -> Exception | None:
    if guardrails is None or not guardrails.done() or guardrails.cancelled():
        return None
    failure = guardrails.exception()
    selected = getattr(result, "_tool_error_selected", False)  # that of a tool, which the SDK prefers
    return failure if isinstance(failure, Exception) and not selected else None


_OWN: Final = frozenset({"_activity_stream", "_first", "__class__", "stream_events"})


class ContinuedStream(RunResultStreaming):
    """Two streamed runs in a row that read as one: the run, and the one that wraps it up.

    Everything but the stream of events is that of the run at work, or of the last one. As its input is
    the conversation so far, so is `to_input_list()` the entire conversation.
    """

    def __init__(self, first: RunResultStreaming, activity_stream: ActivityStream) -> None:
        object.__setattr__(self, "_first", first)
        object.__setattr__(self, "_activity_stream", activity_stream)

    def __getattribute__(self, name: str) -> Any:
        if name in _OWN:
            return object.__getattribute__(self, name)
        stream: ActivityStream = object.__getattribute__(self, "_activity_stream")
        if name == "is_complete":
            return stream.ended
        return getattr(stream.second or object.__getattribute__(self, "_first"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._activity_stream.second or self._first, name, value)

    def __del__(self) -> None:
        """Leave the runs' agents alone: they may be at work still."""

    async def stream_events(self) -> AsyncIterator[StreamEvent]:
        """The events of both runs. Raises what the first raised: its MaxTurnsExceeded also where the second failed."""
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
