"""Agent frameworks with activities.

The modules of this package have what every framework needs, and import none. Each framework has a package below it.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, cast

from agentexec_otel._errors import MissingExtraError
from agentexec_otel.instrumentation._activities import tracer_provider

if TYPE_CHECKING:
    from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

__all__ = ["instrument", "uninstrument"]

_logger = logging.getLogger("agentexec_otel.instrumentation")

# Each framework with the class that instruments it, in the package of that name. Its extra has the name with hyphens.
_FRAMEWORKS: Final = {"openai_agents": "AgentExecInstrumentor"}


def instrument(*names: str, spans: bool = False) -> None:
    """Give each run of these agent frameworks an activity. Calling it again changes nothing.

    Args:
        names: ``"openai_agents"``. Default: every supported framework that is installed.
        spans: Use OpenTelemetry's own GenAI instrumentation of the framework, too: agents, tools and calls of models
            get spans below the activity's. They go to the TracerProvider that `ax.configure` was given before, else to
            the global one. What the application has instrumented itself is left alone.

    Raises:
        ValueError: A name is not that of a supported framework. Nothing is instrumented.
        MissingExtraError: A framework that was named is not installed, or OpenTelemetry's instrumentation of it.
            Nothing is instrumented.
    """
    found: dict[str, BaseInstrumentor] = {}
    for name in _checked(names, "instrument"):
        try:
            found[name] = _instrumentor(name)
        except ImportError as exc:
            if names:
                raise
            if not isinstance(exc, MissingExtraError):  # such as a package of the application with the same name
                _logger.warning("ax.instrument() skips %s, which cannot be imported: %s", name, exc)
    if not found:
        _logger.warning("ax.instrument() has found no agent framework: %s", ", ".join(map(_pip, _FRAMEWORKS)))
    official = {name: _spans(name).span_instrumentors() for name in found if spans}
    for instrumentor in found.values():
        if not instrumentor.is_instrumented_by_opentelemetry:
            instrumentor.instrument()
    for name, instrumentors in official.items():
        _spans(name).add_spans(instrumentors, tracer_provider())


def uninstrument(*names: str) -> None:
    """Track no more runs of these frameworks, and restore what was patched. Calling it again changes nothing.

    OpenTelemetry's instrumentation is removed if `instrument` has added it.

    Args:
        names: As for `instrument`. Default: all.

    Raises:
        ValueError: A name is not that of a supported framework.
    """
    for name in _checked(names, "uninstrument"):
        if _module(name) in sys.modules:  # Otherwise nothing has instrumented it.
            instrumentor = _instrumentor(name)
            if instrumentor.is_instrumented_by_opentelemetry:
                instrumentor.uninstrument()
            _spans(name).remove_spans()


def _checked(names: tuple[str, ...], call: str) -> list[str]:
    for name in names:
        if name not in _FRAMEWORKS:
            known = ", ".join(f"{one!r} ({_pip(one)})" for one in _FRAMEWORKS)
            raise ValueError(f"ax.{call}() does not support {name!r}, only {known}")
    return list(dict.fromkeys(names or _FRAMEWORKS))


def _pip(name: str) -> str:
    return f"pip install 'agentexec-otel[{name.replace('_', '-')}]'"


def _module(name: str) -> str:
    return f"{__name__}.{name}"


def _spans(name: str) -> Any:
    return import_module(f"{_module(name)}._spans")


def _instrumentor(name: str) -> BaseInstrumentor:
    return cast("BaseInstrumentor", getattr(import_module(_module(name)), _FRAMEWORKS[name])())
