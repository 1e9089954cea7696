"""Activities for traces that the application opens, and logs about steps that only the SDK's spans report."""

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

from agents.exceptions import ModelBehaviorError
from agents.tracing import Span, Trace, TracingProcessor, add_trace_processor
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

from agentexec_otel._errors import guarded
from agentexec_otel.activity import ActivityRun
from agentexec_otel.instrumentation._activities import expect_usage
from agentexec_otel.instrumentation._open_run import enclosing_block, is_configured, open_activity
from agentexec_otel.instrumentation._progress import Progress
from agentexec_otel.instrumentation._tally import tally_of
from agentexec_otel.instrumentation._tracked_run import is_tracked
from agentexec_otel.instrumentation.openai_agents._run_arguments import describe_trace
from agentexec_otel.instrumentation.openai_agents._sdk import (
    INVALID_ARGUMENTS,
    Processors,
    change_processors,
    is_not_approved,
)
from agentexec_otel.instrumentation.openai_agents._tool_calls import current_progress

_MOST_OPEN: Final = 10_000
_OVER: Final = -1
_MAY_RAISE: Final = (FunctionSpanData, GuardrailSpanData, MCPListToolsSpanData)
"""What can be left by an exception that is not on the span: the SDK adds only those of tools."""


@dataclass(slots=True)
class _OpenTrace:
    trace: Trace
    block: ActivityRun
    context: Context  # current after the block was entered
    handled: BaseException | None  # the exception that was being handled when the trace began
    exc: BaseException | None = None  # the exception that left the trace, or a run that outlived it
    holders: int = 1  # the trace, and the runs in it
    is_over: bool = False


class ActivityTraceProcessor(TracingProcessor):
    """Opens an activity for each trace that starts outside of an activity, and ends it with the trace.

    The exception that leaves the trace decides how the activity ends. Errors on spans do not: the application may have
    recovered from them, and a trace that fails may have none. `RunWrapper` opens the activities of runs.

    `_lock` guards changes to `_open`, `_by_activity`, `_began_in` and each `_OpenTrace`. No activity ends under it.
    """

    def __init__(self) -> None:
        self._closing = _Closing(self)
        self._handled: dict[str, BaseException | None] = {}  # by span, the exception that was handled as it began
        self._is_added = False
        self.is_active = True
        self._open: OrderedDict[str, _OpenTrace] = OrderedDict()
        self._began_in: WeakKeyDictionary[Trace, int] = WeakKeyDictionary()  # the process, or _OVER
        self._by_activity: dict[UUID, _OpenTrace] = {}
        self._lock = RLock()

    def on_trace_start(self, trace: Trace) -> None:
        with self._lock:
            self._began_in[trace] = os.getpid()
        with guarded("opening an activity for a trace"):
            if self.is_active and is_configured() and trace.trace_id not in self._open:
                if is_tracked() or enclosing_block() is not None:
                    return  # A block, or a run that has outlived its block, has an activity.
                enter = ActivityRun.__enter__ if self.register() else _enter_detached
                self._begin(trace, enter)

    def adopt(self, trace: Trace) -> ActivityRun:
        """The block of a trace; opens it if this processor has not seen the trace start."""
        opened = self._open.get(trace.trace_id)
        return self._begin(trace, _enter_detached) if opened is None else opened.block

    def is_over(self, trace: Trace) -> bool:
        """Whether no end of this trace will be seen here: a task may outlive it, or a forked process inherit it."""
        here, trace = os.getpid(), _as_started(trace)
        with self._lock:
            return isinstance(trace, ReattachedTrace) or self._began_in.get(trace, here) != here

    def _begin(self, trace: Trace, enter: Callable[[ActivityRun], object]) -> ActivityRun:
        block = open_activity(describe_trace(trace)).block
        enter(block)
        expect_usage(block)
        opened = _OpenTrace(_as_started(trace), block, get_current(), sys.exc_info()[1])
        with self._lock:
            self._open[trace.trace_id] = self._by_activity[block.agent_id] = opened
            if len(self._open) > _MOST_OPEN:
                self._by_activity.pop(self._open.popitem(last=False)[1].block.agent_id, None)
        return block

    def on_trace_end(self, trace: Trace) -> None:
        """Nothing yet: other processors leave their spans first. `_Closing` comes last."""

    def finish(self, trace: Trace) -> None:
        """End the activity of a trace, if it has one of its own."""
        with self._lock:
            ours = self._began_in.get(trace, os.getpid()) == os.getpid()
            self._began_in[trace] = _OVER
            opened = self._open.get(trace.trace_id)
            if opened is None or opened.trace is not trace:
                return  # Another trace with the same id is still open.
            del self._open[trace.trace_id]
        if not ours:
            opened.block.detach()  # The parent process ends it.
            return
        exc = sys.exc_info()[1]
        if exc is not opened.handled:
            opened.exc = exc
        here = get_current()
        with guarded("ending the activity of a trace"):
            opened.block.detach()
            with self._lock:
                opened.is_over = True
            self._release(opened, opened.exc)
        if here is not opened.context:
            attach(here)  # Logfire has restored the context before its span and ours already.
        if not self.is_active:
            self.unregister()

    def hold(self, block: ActivityRun) -> Callable[[BaseException | None], None]:
        """Keep the activity of a trace open during a run in it, which may outlast the trace, such as a stream.

        Call the returned function after the run, with the exception that left it.
        """
        with self._lock:
            opened = self._by_activity.get(block.agent_id)
            if opened is not None:
                opened.holders += 1
        return partial(self._release, opened)

    def _release(self, opened: _OpenTrace | None, exc: BaseException | None) -> None:
        if opened is None:
            return
        with self._lock:
            opened.holders -= 1
            if opened.is_over and opened.exc is None:
                opened.exc = exc  # The trace is over, so it cannot recover from it.
            if opened.holders:
                return
            self._by_activity.pop(opened.block.agent_id, None)
        tally_of(opened.block).record(opened.block)
        opened.block.__exit__(None, opened.exc, None)

    def on_span_start(self, span: Span[Any]) -> None:
        if not self.is_active:
            return
        with guarded("reporting a step of a run"):
            if isinstance(span.span_data, _MAY_RAISE):
                self._handled[span.span_id] = sys.exc_info()[1]
            progress = current_progress()
            if progress is not None and not progress.is_hooked:
                _report_start(progress, span)

    def on_span_end(self, span: Span[Any]) -> None:
        if not self.is_active:
            return
        with guarded("reporting a step of a run"):
            exc = sys.exc_info()[1]
            raised = None if exc is self._handled.pop(span.span_id, exc) else exc
            progress = current_progress()
            if progress is not None:
                _report_end(progress, span, raised)

    def shutdown(self) -> None:
        """Nothing is buffered here: `ax.shutdown` stops the writers."""

    def force_flush(self) -> None:
        """Nothing is buffered here."""

    # -- registration -----------------------------------------------------------------------------------------

    def register(self) -> bool:
        """Become the first processor to see a start and the last to see an end, so that spans nest.

        False if the processors of this trace provider cannot be ordered.
        """
        closing = self._closing

        def change(found: Processors) -> Processors:
            if found and found[0] is self and found[-1] is closing:
                return found
            return (self, *(one for one in found if one is not self and one is not closing), closing)

        ordered = change_processors(change)
        if not ordered and not self._is_added:
            self._is_added = True
            add_trace_processor(self)
            add_trace_processor(closing)
        return ordered

    def unregister(self) -> None:
        """Open no more activities, and remove this processor. Open activities still end with their traces.

        A library that restores the processors it had found may restore this one, too. It then does nothing.
        """
        self.is_active = False
        gone = (self,) if self._open else (self, self._closing)
        change_processors(lambda found: tuple(one for one in found if one not in gone))


class _Closing(TracingProcessor):
    """Ends the activities that an `ActivityTraceProcessor` has opened."""

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


def _as_started(trace: Trace) -> Trace:
    """The trace as processors see it. Logfire makes a wrapper of it current, which cannot be hashed."""
    return cast(Trace, getattr(trace, "wrapped", trace))


def _enter_detached(block: ActivityRun) -> object:
    """Enter a block without attaching anything to this context."""
    return copy_context().run(block.__enter__)


# -- steps ------------------------------------------------------------------------------------------------------


def _report_start(progress: Progress, span: Span[Any]) -> None:
    data: object = span.span_data
    if isinstance(data, TurnSpanData):
        progress.turn(data.turn, data.agent_name)
    elif isinstance(data, FunctionSpanData):
        progress.tool(data.name)


def _report_end(progress: Progress, span: Span[Any], raised: BaseException | None) -> None:
    match span.span_data:
        case FunctionSpanData() as tool:
            _report_call(progress, span, tool, raised)
            progress.forget(span.span_id)
        case HandoffSpanData(from_agent=str(giver), to_agent=str(taker)) if not progress.is_hooked:
            progress.handoff(giver, taker)
        case GuardrailSpanData() as guardrail if raised is None:
            progress.guardrail(guardrail.name, tripped=guardrail.triggered)
        case GuardrailSpanData() as guardrail if isinstance(raised, Exception):
            progress.guardrail_failed(guardrail.name)
        case MCPListToolsSpanData() as listing if raised is None:
            progress.listed(listing.server or "An MCP server", len(listing.result or ()))
        case MCPListToolsSpanData() as listing if isinstance(raised, Exception):
            progress.not_listed(listing.server or "An MCP server")
        case AgentSpanData() if span.error is not None and span.error.get("message") == "Max turns exceeded":
            progress.limit((span.error.get("data") or {}).get("max_turns"))
        case _:
            pass


def _report_call(progress: Progress, span: Span[Any], tool: FunctionSpanData, raised: BaseException | None) -> None:
    error, call = span.error, span.span_id
    if error is None:
        if not progress.is_hooked and tool.output is not None:  # Without an output it may wait for an approval.
            progress.tool_done(tool.name, call)
    elif is_not_approved(error):
        progress.tool_not_approved(tool.name, call)
    elif isinstance(raised, ModelBehaviorError) and str(raised).startswith(INVALID_ARGUMENTS):
        progress.tool_misused(tool.name, call)
    else:
        details = error.get("data") or {}
        progress.tool_failed(tool.name, str(details["error"]) if "error" in details else error.get("message"), call)
