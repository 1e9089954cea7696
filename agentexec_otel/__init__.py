"""OpenTelemetry-style instrumentation for AI-agent runs: live in your own SQL database, and on your own traces.

::

    import agentexec_otel as ax

    ax.configure("sqlite:///app.db", create_tables=True)

    with ax.activity.run("research") as run:
        run.update("Analyzing competitors...", percentage=50)
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from agentexec_otel import activity, db, reasons, spool
from agentexec_otel._config import CONF, Settings
from agentexec_otel._errors import (
    ActivityCanceledError,
    ActivityNotFoundError,
    ActivityNotStoredError,
    ActivityStateError,
    AgentExecError,
    ConfigurationError,
    MissingExtraError,
    SpanNotExportedError,
    TaskFailedError,
    TaskNotSentError,
    TaskResultError,
    UnknownTaskError,
)
from agentexec_otel._runtime.process import configure, configured_database, flush, health, recover, shutdown, tracked
from agentexec_otel._runtime.signals import install_signal_handlers
from agentexec_otel.activity._replay import replay
from agentexec_otel.activity.models import Base
from agentexec_otel.instrumentation import instrument, uninstrument

if TYPE_CHECKING:
    from agentexec_otel import web
    from agentexec_otel.instrumentation.openai_agents import AgentExecInstrumentor, OpenAIRunner
    from agentexec_otel.tasks import Pool, Task, enqueue, gather, get_result

__version__ = "0.1.0"

__all__ = [
    "ActivityCanceledError",
    "ActivityNotFoundError",
    "ActivityNotStoredError",
    "ActivityStateError",
    "AgentExecError",
    "AgentExecInstrumentor",
    "Base",
    "CONF",
    "ConfigurationError",
    "MissingExtraError",
    "OpenAIRunner",
    "Pool",
    "Settings",
    "SpanNotExportedError",
    "Task",
    "TaskFailedError",
    "TaskNotSentError",
    "TaskResultError",
    "UnknownTaskError",
    "activity",
    "configure",
    "configured_database",
    "db",
    "enqueue",
    "flush",
    "gather",
    "get_result",
    "health",
    "install_signal_handlers",
    "instrument",
    "reasons",
    "recover",
    "replay",
    "shutdown",
    "spool",
    "tracked",
    "uninstrument",
    "web",
]

# What needs an extra: the module that has it or is it, the package that may be missing, the extra that brings it.
_LAZY = {
    "web": ("agentexec_otel.web", "fastapi", "web"),
    "AgentExecInstrumentor": ("agentexec_otel.instrumentation.openai_agents", "agents", "openai-agents"),
    "OpenAIRunner": ("agentexec_otel.instrumentation.openai_agents", "agents", "openai-agents"),
    "Pool": ("agentexec_otel.tasks", "taskiq", "tasks"),
    "Task": ("agentexec_otel.tasks", "taskiq", "tasks"),
    "enqueue": ("agentexec_otel.tasks", "taskiq", "tasks"),
    "gather": ("agentexec_otel.tasks", "taskiq", "tasks"),
    "get_result": ("agentexec_otel.tasks", "taskiq", "tasks"),
}
_OF_AGENTEXEC = frozenset(("BaseAgentRunner", "Pipeline", "Priority", "Tracker"))
_PACKAGES = {"agents": "openai-agents", "fastapi": "fastapi", "taskiq": "taskiq"}


def __getattr__(name: str) -> Any:
    if name in _OF_AGENTEXEC:
        raise AttributeError(
            f"agentexec-otel has no {name}: docs/how-to/coming-from-agentexec.md says what to use instead"
        )
    if name not in _LAZY:
        raise AttributeError(f"module 'agentexec_otel' has no attribute {name!r}")
    module, needs, extra = _LAZY[name]
    try:
        found = import_module(module)
    except ImportError:
        if find_spec(needs) is not None:
            raise
        raise MissingExtraError(f"ax.{name}", _PACKAGES[needs], extra) from None
    return found if module.endswith(f".{name}") else getattr(found, name)


def __dir__() -> list[str]:
    # Completion, help() and inspect look at all that is named here: without what would raise for want of its extra.
    missing = {name for name, (_, needs, _) in _LAZY.items() if find_spec(needs) is None}
    if find_spec("opentelemetry.instrumentation") is None:
        missing.add("AgentExecInstrumentor")
    return sorted({*globals(), *__all__} - missing)
