"""What we use of the Agents SDK that it does not promise to keep.

A test looks for each entry of `PRIVATE`, so that a release of the SDK without one fails with its name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

from agents import RunContextWrapper, RunResult, RunResultStreaming, RunState
from agents.items import ToolApprovalItem
from agents.tool import default_tool_error_function
from agents.tracing import Span, SpanError, Trace, TracingProcessor, get_trace_provider
from agents.tracing.traces import TraceState
from agents.usage import Usage

PRIVATE: Final = {
    "MCPUtil": ("_extract_custom_data",),
    "RunState": ("_context", "_current_turn", "_trace_state"),
    "RunResult": ("_trace_state",),
    "RunResultStreaming": (
        "_cancel_mode",
        "_input_guardrails_task",
        "_stored_exception",
        "_tool_error_selected",
        "_trace_state",
    ),
    "TraceProvider": ("_multi_processor",),
    "SynchronousMultiTracingProcessor": ("_lock", "_processors"),
}

TOOL_FAILED: Final = "Error running tool"
"""How the message of a `UserError` begins that the SDK makes of a tool's exception."""

TOOL_FAILURE: Final[str] = default_tool_error_function(cast(Any, None), Exception())
"""What the SDK returns to the model if a tool has raised, and the application has chosen no other message."""

INVALID_ARGUMENTS: Final = "Invalid JSON input for tool"
"""How the message of the `ModelBehaviorError` begins that the SDK raises for wrong arguments of a tool."""

MCP_RESULT: Final = "_extract_custom_data"
"""The method of `MCPUtil` that is called with each result of an MCP server."""

_NOT_APPROVED: Final = "was manually rejected by user."
_DISABLED_TRACE_ID: Final = "no-op"

Processors = tuple[TracingProcessor, ...]


# -- states of interrupted runs ---------------------------------------------------------------------------------


def trace_state_of(state: object) -> TraceState | None:
    """What a run's state knows of its trace; None if `state` is not one."""
    return getattr(cast(object, state), "_trace_state", None) if isinstance(state, RunState) else None


def ensure_trace_state(result: RunResult | RunResultStreaming) -> TraceState:
    """What `result.to_state()` will know of the run's trace, to be changed."""
    private: Any = result
    if private._trace_state is None:
        private._trace_state = TraceState.from_trace(getattr(private, "trace", None)) or TraceState()
    return cast(TraceState, private._trace_state)


def usage_of(state: RunState[Any]) -> Usage | None:
    """The tokens that a run had spent when it was interrupted."""
    return getattr(_context_of(state), "usage", None)


def turns_of(state: RunState[Any]) -> int:
    """How many turns a run had taken when it was interrupted."""
    return cast(int, getattr(state, "_current_turn", 0))


def pending_call(item: ToolApprovalItem) -> dict[str, str | None]:
    """The call that a person has to approve or reject: the tool's name and the call's id."""
    return {"tool": item.name, "call_id": item.call_id}


def rejected_calls(state: RunState[Any]) -> list[tuple[str, str]]:
    """The calls that a run waited for and that were rejected since, each by the tool's name and the call's id."""
    context = _context_of(state)
    pending = [(item.tool_name or "a tool", item.call_id or "") for item in state.get_interruptions()]
    return [one for one in pending if context is not None and context.is_tool_approved(*one) is False]


def _context_of(state: RunState[Any]) -> RunContextWrapper[Any] | None:
    return getattr(state, "_context", None)


# -- calls of tools ---------------------------------------------------------------------------------------------


def is_not_approved(error: SpanError) -> bool:
    """Whether the span of a call has this error because a person has rejected the call."""
    return str((error.get("data") or {}).get("error")).endswith(_NOT_APPROVED)


def is_mcp_error(result: Any) -> bool:
    """Whether an MCP server has flagged its result as an error, with either major version of ``mcp``."""
    return bool(getattr(result, "is_error", None) or getattr(result, "isError", None))


def text_of_output(output: Any) -> str | None:
    """The first text in the output of an MCP tool."""
    parts = cast("list[object]", output if isinstance(output, list) else [output])
    found = (cast("dict[str, object]", part).get("text") for part in parts if isinstance(part, dict))
    return next((str(text) for text in found if text), None)


# -- streamed runs ----------------------------------------------------------------------------------------------


def guardrails_task(result: RunResultStreaming) -> asyncio.Task[Any] | None:
    """The task of the input guardrails that run in parallel with the agent."""
    return getattr(result, "_input_guardrails_task", None)


def is_canceled(result: RunResultStreaming) -> bool:
    """Whether `result.cancel()` was called."""
    return getattr(result, "_cancel_mode", "none") != "none"


def is_tool_error_raised(result: RunResultStreaming) -> bool:
    """Whether the SDK raises the error of a tool, although a guardrail has failed as well."""
    return getattr(result, "_tool_error_selected", False)


def stored_exception(result: RunResultStreaming) -> BaseException | None:
    """What the SDK raises at the end of `stream_events()`."""
    return getattr(result, "_stored_exception", None)


# -- traces -----------------------------------------------------------------------------------------------------


def is_disabled(trace: Trace | Span[Any]) -> bool:
    """Whether tracing is disabled, so that processors are not notified of this trace or span."""
    return trace.trace_id == _DISABLED_TRACE_ID


def change_processors(change: Callable[[Processors], Processors]) -> bool:
    """Replace the trace processors by what `change` returns for them. False if the provider is not the SDK's own.

    The SDK can add a processor or replace all of them. It cannot list, order or remove them.
    """
    multi: Any = getattr(get_trace_provider(), "_multi_processor", None)
    lock = getattr(multi, "_lock", None)
    if not isinstance(getattr(multi, "_processors", None), tuple) or lock is None:
        return False
    with lock:
        multi._processors = change(multi._processors)
    return True
