"""OpenTelemetry's own instrumentation of the Agents SDK, and of the OpenAI client that it calls models with."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any, Final

from opentelemetry import trace

from agentexec_otel._errors import MissingExtraError

# The spans of agents and tools, and those of calls to models.
_INSTRUMENTORS: Final = {
    "opentelemetry.instrumentation.genai.openai_agents": "OpenAIAgentsInstrumentor",
    "opentelemetry.instrumentation.genai.openai": "OpenAIInstrumentor",
}
_added: Final[list[Any]] = []


def span_instrumentors() -> list[Any]:
    """The instrumentors. Raises `MissingExtraError` if the package of one is not installed."""
    return [getattr(_imported(module), name)() for module, name in _INSTRUMENTORS.items()]


def add_spans(instrumentors: Iterable[Any], tracer_provider: trace.TracerProvider | None) -> None:
    """Instrument by those that the application does not use already."""
    for instrumentor in instrumentors:
        if not instrumentor.is_instrumented_by_opentelemetry:
            instrumentor.instrument(tracer_provider=tracer_provider)
            _added.append(instrumentor)


def remove_spans() -> None:
    """Undo what `add_spans` has done."""
    while _added:
        _added.pop().uninstrument()


def _imported(module: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as exc:
        if not str(exc.name).startswith("opentelemetry"):
            raise
        package = module.replace(".", "-").replace("_", "-")
        raise MissingExtraError("ax.instrument(spans=True)", package, "openai-agents-spans") from None
