"""How calls of tools end.

A hook says that a tool has returned, and a span whether it has failed. Neither tells of a timeout, of a guardrail's
verdict, or of an MCP server that answers with an error, so the SDK's methods that know of them are wrapped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from functools import partial, wraps
from typing import Any

from agents import FunctionTool, Tool, ToolInputGuardrail, ToolOutputGuardrail
from agents.exceptions import ToolTimeoutError
from agents.mcp import MCPUtil
from agents.tracing import FunctionSpanData, Span, get_current_span

from agentexec_otel._config import CONF
from agentexec_otel._errors import guarded
from agentexec_otel.instrumentation._open_run import enclosing_block, is_configured
from agentexec_otel.instrumentation._progress import Progress, progress_of
from agentexec_otel.instrumentation.openai_agents import _sdk
from agentexec_otel.instrumentation.openai_agents._patches import Patches
from agentexec_otel.instrumentation.openai_agents._run_arguments import is_private

_Verdict = Callable[..., Coroutine[Any, Any, Any]]


def current_progress() -> Progress | None:
    """The progress of the activity that encloses this code; None if there is none, or it wants no logs of steps."""
    if CONF.progress == "off" or not is_configured():
        return None
    block = enclosing_block()
    return None if block is None else progress_of(block)


def report_return(progress: Progress, tool: Tool, context: object, result: object) -> None:
    """Report that a tool has returned `result`, or that the SDK has returned an error message for it.

    The span knows which. Without one, only the SDK's own message is known, so nothing is said to be done.
    """
    span = _current_call()
    failed = result == _sdk.TOOL_FAILURE if span is None else span.error is not None
    call = None if span is None else span.span_id
    if failed and isinstance(tool, FunctionTool) and _lacks_arguments(tool, getattr(context, "tool_arguments", "{}")):
        progress.tool_misused(tool.name, call)
    elif failed and span is None:
        progress.tool_failed(tool.name, None)
    elif call is not None and not failed:
        progress.tool_done(tool.name, call)


def _current_call() -> Span[FunctionSpanData] | None:
    """The span of the call that this code is part of; None if the SDK's tracing is disabled."""
    span = get_current_span()
    is_call = span is not None and isinstance(span.span_data, FunctionSpanData) and not _sdk.is_disabled(span)
    return span if is_call else None


def _lacks_arguments(tool: FunctionTool, arguments: str) -> bool:
    """Whether the arguments of a call are not a JSON object, or one that the tool requires is missing."""
    try:
        given: object = json.loads(arguments or "{}")
    except ValueError:
        return True
    return not (isinstance(given, dict) and given.keys() >= set(tool.params_json_schema.get("required", ())))


class ToolCallWrapper:
    """Wraps the methods of the SDK that decide how a call of a tool ends."""

    def __init__(self, patches: Patches) -> None:
        self._patches = patches

    def wrap(self) -> None:
        """Report timeouts, verdicts of guardrails and errors of MCP servers from now on."""
        self._patches.wrap(ToolTimeoutError, "__init__", self._timeout)
        self._patches.wrap(ToolInputGuardrail, "run", partial(self._verdict, "call"))
        self._patches.wrap(ToolOutputGuardrail, "run", partial(self._verdict, "output"))
        self._patches.wrap(MCPUtil, _sdk.MCP_RESULT, self._mcp_result)

    def _report(self, report: Callable[[Progress, str | None], None]) -> None:
        with guarded("reporting a step of a run"):
            progress = current_progress() if self._patches.are_active else None
            if progress is not None:
                span = _current_call()
                report(progress, None if span is None else span.span_id)

    def _timeout(self, original: Callable[..., None]) -> Callable[..., None]:
        @wraps(original)
        def init(error: ToolTimeoutError, *args: Any, **named: Any) -> None:
            original(error, *args, **named)
            self._report(lambda progress, call: progress.tool_timed_out(error.tool_name, error.timeout_seconds, call))

        return init

    def _verdict(self, what: str, original: _Verdict) -> _Verdict:
        @wraps(original)
        async def run(guardrail: Any, data: Any) -> Any:
            verdict = await original(guardrail, data)
            if verdict.behavior["type"] != "allow":
                names = guardrail.get_name(), data.context.tool_name
                self._report(lambda progress, call: progress.rejected(*names, what, call))
            return verdict

        return run

    def _mcp_result(self, original: Callable[..., Coroutine[Any, Any, Any]]) -> object:
        async def extract(*, context: Any, tool_display_name: str, result: Any, tool_output: Any, **more: Any) -> Any:
            if _sdk.is_mcp_error(result):
                text = None if is_private(getattr(context, "run_config", None)) else _sdk.text_of_output(tool_output)
                self._report(lambda progress, call: progress.tool_answered_error(tool_display_name, text, call))
            return await original(
                context=context, tool_display_name=tool_display_name, result=result, tool_output=tool_output, **more
            )

        return staticmethod(extract)
