"""What the SDK's own traces tell: steps of a run, and activities for traces that the application opens itself."""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from threading import RLock
from typing import Any, Final, cast
from uuid import UUID
from weakref import WeakKeyDictionary

from agents.tracing import Span, Trace, TracingProcessor, add_trace_processor, get_trace_provider
from agents.tracing.span_data import (
    AgentSpanData,
    FunctionSpanData,
    GuardrailSpanData,
    HandoffSpanData,
    MCPListToolsSpanData,
    TurnSpanData,
)
from agents.tracing.traces import ReattachedTrace
from opentelemetry.context import Context, attach, get_current

from agentexec_otel._config import CONF
from agentexec_otel._errors import guarded
from agentexec_otel.activity import ActivityRun
from agentexec_otel.openai_agents._opening import configured, describe_trace, enclosing, prepare
from agentexec_otel.openai_agents._progress import Progress, progress_of, told_by_hooks
from agentexec_otel.openai_agents._steps import at_work, counts_in_leaving, record_usage

_MOST_OPEN: Final = 10_000
_OVER: Final = -1


@dataclass(slots=True)
class _OpenTrace:
    trace: Trace
    run: ActivityRun
    within: Context  # what was current once the block had been entered
    handled: BaseException | None  # that was being handled already when the trace began
    left_by: BaseException | None = None
    runs: int = 0  # at work
    over: bool = False


class ActivityTraceProcessor(TracingProcessor):
    """Opens an activity for each trace that starts outside of any, and ends it with the trace.

    How it ends is told by the exception that is on its way out then: an error on some span may have been recovered
    from, and a trace that fails may have none. Runs that are wrapped have their activity already.
    """

    def __init__(self) -> None:
        self._closing = _Closing(self)
        self._added = False
        self._active = False
        self._open: OrderedDict[str, _OpenTrace] = OrderedDict()
        self._began_in: WeakKeyDictionary[Trace, int] = WeakKeyDictionary()  # the process, or _OVER
        self._by_activity: dict[UUID, _OpenTrace] = {}
        self._lock = RLock()

    def on_trace_start(self, trace: Trace) -> None:
        with self._lock:
            self._began_in[trace] = os.getpid()
        with guarded("opening an activity for a trace"):
            if self._active and configured() and not _within_other() and trace.trace_id not in self._open:
                enter = ActivityRun.__enter__ if self.register() else _enter_detached
                self._begin(trace, enter)

    def adopt(self, trace: Trace) -> ActivityRun:
        """The activity of a trace whose start was not seen, or was seen in another context."""
        opened = self._open.get(trace.trace_id)
        if opened is not None:
            return opened.run
        return self._begin(trace, _enter_detached)

    def is_over(self, trace: Trace) -> bool:
        """Whether nobody here will tell of this trace's end: a task may outlive it, a forked process inherit it."""
        here, trace = os.getpid(), _as_started(trace)
        with self._lock:
            return isinstance(trace, ReattachedTrace) or self._began_in.get(trace, here) != here

    def _begin(self, trace: Trace, enter: Callable[[ActivityRun], object]) -> ActivityRun:
        run = prepare(describe_trace(trace))
        enter(run)
        counts_in_leaving(run)
        opened = _OpenTrace(_as_started(trace), run, get_current(), sys.exc_info()[1])
        with self._lock:
            self._open[trace.trace_id] = self._by_activity[run.agent_id] = opened
            if len(self._open) > _MOST_OPEN:
                self._by_activity.pop(self._open.popitem(last=False)[1].run.agent_id, None)
        return run

    def on_trace_end(self, trace: Trace) -> None:
        """Nothing yet: first those processors leave their spans that entered them after ours."""

    def finish(self, trace: Trace) -> None:
        """End the activity of a trace, if it has one of its own."""
        with self._lock:
            ours = self._began_in.get(trace, os.getpid()) == os.getpid()
            self._began_in[trace] = _OVER
            opened = self._open.get(trace.trace_id)
            if opened is None or opened.trace is not trace:
                return  # Another one with the same id is open still.
            del self._open[trace.trace_id]
        if not ours:
            opened.run.detach()  # Whose process it is ends it.
            return
        left_by = sys.exc_info()[1]
        if left_by is not opened.handled:
            opened.left_by = left_by
        here = get_current()
        with guarded("ending the activity of a trace"):
            opened.run.detach()
            with self._lock:
                opened.over = True
                waits = opened.runs > 0
            if not waits:
                self._end(opened)
        if here is not opened.within:
            attach(here)  # Logfire goes back to what was before its span and ours, then ends the trace.
        if not self._active:
            self.unregister()

    def _end(self, opened: _OpenTrace) -> None:
        self._by_activity.pop(opened.run.agent_id, None)
        left_by = opened.left_by
        record_usage(opened.run)
        opened.run.__exit__(None if left_by is None else type(left_by), left_by, None)

    def hold(self, run: ActivityRun) -> Callable[[BaseException | None], None]:
        """A run begins in this block; call what is returned when it is over, with what it has raised.

        The activity of a trace does not end before the runs in it, such as a stream that is read behind the trace.
        """
        with self._lock:
            opened = self._by_activity.get(run.agent_id)
            if opened is not None:
                opened.runs += 1
        return partial(self._release, opened)

    def _release(self, opened: _OpenTrace | None, left_by: BaseException | None) -> None:
        if opened is None:
            return
        with self._lock:
            opened.runs -= 1
            if opened.over and opened.left_by is None:
                opened.left_by = left_by  # Nobody in the trace can get over it any more.
            last = opened.over and not opened.runs
        if last:
            self._end(opened)

    def on_span_start(self, span: Span[Any]) -> None:
        if self._active:
            _tell(_AT_START, span)

    def on_span_end(self, span: Span[Any]) -> None:
        if self._active:
            _tell(_AT_END, span)

    def shutdown(self) -> None:
        """Nothing is held back: the writers are shut down by `ax.shutdown`."""

    def force_flush(self) -> None:
        """Nothing is held back."""

    # -- registration -----------------------------------------------------------------------------------------

    def register(self) -> bool:
        """Be the first processor to hear of a start and the last to hear of an end, so that spans nest.

        The SDK can add a processor or replace them all; it cannot list, order or remove them. False where it has
        changed so much that they cannot be ordered.
        """
        self._active = True
        closing = self._closing

        def change(found: _Processors) -> _Processors:
            if found and found[0] is self and found[-1] is closing:
                return found
            return (self, *(one for one in found if one is not self and one is not closing), closing)

        ordered = _change_processors(change)
        if not ordered and not self._added:
            self._added = True
            add_trace_processor(self)
            add_trace_processor(closing)
        return ordered

    def unregister(self) -> None:
        """Open no more, and leave the others as they are; what is open already is ended with its trace.

        A library that puts back the processors it had found may put these back, too: they then do nothing.
        """
        self._active = False
        gone = (self,) if self._open else (self, self._closing)
        _change_processors(lambda found: tuple(one for one in found if one not in gone))


class _Closing(TracingProcessor):
    """Ends what an `ActivityTraceProcessor` has opened."""

    def __init__(self, opening: ActivityTraceProcessor) -> None:
        self._opening = opening

    def on_trace_start(self, trace: Trace) -> None:
        """Nothing."""

    def on_trace_end(self, trace: Trace) -> None:
        self._opening.finish(trace)

    def on_span_start(self, span: Span[Any]) -> None:
        """Nothing."""

    def on_span_end(self, span: Span[Any]) -> None:
        """Nothing."""

    def shutdown(self) -> None:
        """Nothing."""

    def force_flush(self) -> None:
        """Nothing."""


def _within_other() -> bool:
    """Whether a trace that begins here has its activity: a block's, or that of a run which has outlived the block."""
    return at_work() or enclosing() is not None


def _as_started(trace: Trace) -> Trace:
    """What processors are told of: Logfire makes a wrapper of it current, which cannot be hashed."""
    return cast(Trace, getattr(trace, "wrapped", trace))


def _enter_detached(run: ActivityRun) -> object:
    """Enter a block that leaves nothing attached in this context."""
    return copy_context().run(run.__enter__)


_Processors = tuple[TracingProcessor, ...]


def _change_processors(change: Callable[[_Processors], _Processors]) -> bool:
    multi: Any = getattr(get_trace_provider(), "_multi_processor", None)
    lock = getattr(multi, "_lock", None)
    if not isinstance(getattr(multi, "_processors", None), tuple) or lock is None:
        return False
    with lock:
        multi._processors = change(multi._processors)
    return True


# -- steps ------------------------------------------------------------------------------------------------------

_Tell = Callable[[Progress, Any, Span[Any]], None]


def _tell(table: dict[type[Any], _Tell], span: Span[Any]) -> None:
    data: Any = span.span_data
    tell = table.get(data.__class__)
    if tell is None or CONF.progress == "off" or (data.__class__ in _HOOKED and span.error is None and told_by_hooks()):
        return
    with guarded("reporting a step of a run"):
        run = enclosing() if configured() else None
        if run is not None:
            tell(progress_of(run), data, span)


def _turn(progress: Progress, data: TurnSpanData, span: Span[Any]) -> None:
    progress.turn(data.turn, data.agent_name)


def _tool(progress: Progress, data: FunctionSpanData, span: Span[Any]) -> None:
    progress.tool(data.name)


def _tool_end(progress: Progress, data: FunctionSpanData, span: Span[Any]) -> None:
    if (error := span.error) is not None:
        details = error.get("data") or {}
        progress.tool_failed(data.name, str(details["error"]) if "error" in details else error.get("message"))
    else:
        progress.tool_done(data.name)


def _handoff_end(progress: Progress, data: HandoffSpanData, span: Span[Any]) -> None:
    if data.from_agent and data.to_agent and not progress.hooked:
        progress.handoff(data.from_agent, data.to_agent)


def _guardrail_end(progress: Progress, data: GuardrailSpanData, span: Span[Any]) -> None:
    progress.guardrail(data.name, tripped=data.triggered)


def _listing_end(progress: Progress, data: MCPListToolsSpanData, span: Span[Any]) -> None:
    progress.listed(data.server or "An MCP server", len(data.result or ()))


def _agent_end(progress: Progress, data: AgentSpanData, span: Span[Any]) -> None:
    error = span.error
    if error is not None and error.get("message") == "Max turns exceeded":
        progress.limit((error.get("data") or {}).get("max_turns"))


_HOOKED: Final = frozenset({TurnSpanData, FunctionSpanData, HandoffSpanData})
_AT_START: Final[dict[type[Any], _Tell]] = {TurnSpanData: _turn, FunctionSpanData: _tool}
_AT_END: Final[dict[type[Any], _Tell]] = {
    FunctionSpanData: _tool_end,
    HandoffSpanData: _handoff_end,
    GuardrailSpanData: _guardrail_end,
    MCPListToolsSpanData: _listing_end,
    AgentSpanData: _agent_end,
}
