"""The OpenAI Agents SDK with activities. The only package that imports `agents`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentexec_otel._errors import MissingExtraError

try:
    from agentexec_otel.instrumentation.openai_agents._runner import OpenAIRunner, Prompts, Tools
except ModuleNotFoundError as exc:
    if exc.name != "agents":
        raise
    raise MissingExtraError(__name__, "openai-agents", "openai-agents") from None

if TYPE_CHECKING:
    from agentexec_otel.instrumentation.openai_agents._instrumentor import AgentExecInstrumentor

__all__ = ["AgentExecInstrumentor", "OpenAIRunner", "Prompts", "Tools"]


def __getattr__(name: str) -> Any:
    if name != "AgentExecInstrumentor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from agentexec_otel.instrumentation.openai_agents._instrumentor import AgentExecInstrumentor
    except ModuleNotFoundError as exc:
        if not str(exc.name).startswith("opentelemetry.instrumentation"):
            raise
        raise MissingExtraError(name, "opentelemetry-instrumentation", "openai-agents") from None
    return AgentExecInstrumentor
