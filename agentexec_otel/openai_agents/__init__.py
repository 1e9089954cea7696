"""The OpenAI Agents SDK with activities. The only place that imports `agents`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentexec_otel._errors import MissingExtraError

try:
    from agentexec_otel.openai_agents._runner import OpenAIRunner, Prompts, Tools
except ModuleNotFoundError as exc:
    if exc.name != "agents":
        raise
    raise MissingExtraError("agentexec_otel.openai_agents", "openai-agents", "openai-agents") from None

if TYPE_CHECKING:
    from agentexec_otel.openai_agents._instrumentor import AgentExecInstrumentor

__all__ = ["AgentExecInstrumentor", "OpenAIRunner", "Prompts", "Tools"]


def __getattr__(name: str) -> Any:
    if name != "AgentExecInstrumentor":
        raise AttributeError(f"module 'agentexec_otel.openai_agents' has no attribute {name!r}")
    try:
        from agentexec_otel.openai_agents._instrumentor import AgentExecInstrumentor
    except ModuleNotFoundError as exc:
        if not str(exc.name).startswith("opentelemetry.instrumentation"):
            raise
        package = "opentelemetry-instrumentation"
        raise MissingExtraError("AgentExecInstrumentor", package, "openai-agents") from None
    return AgentExecInstrumentor
