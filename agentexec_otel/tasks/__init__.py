"""Tasks as activities: `Pool` and `enqueue` on taskiq, and one call for an engine that the application has already.

Use `ActivityMiddleware` for the application's own taskiq broker, and `agentexec_otel.tasks.celery` for Celery.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from agentexec_otel._errors import MissingExtraError

if TYPE_CHECKING:
    from agentexec_otel.tasks._agentexec import gather, get_result
    from agentexec_otel.tasks._pool import Pool, enqueue
    from agentexec_otel.tasks._task import Task
    from agentexec_otel.tasks.taskiq.middleware import ActivityMiddleware

__all__ = ["ActivityMiddleware", "Pool", "Task", "enqueue", "gather", "get_result"]

# A user of Celery may have no taskiq: each name is imported on first access.
_LAZY = {
    "ActivityMiddleware": "taskiq.middleware",
    "Pool": "_pool",
    "Task": "_task",
    "enqueue": "_pool",
    "gather": "_agentexec",
    "get_result": "_agentexec",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'agentexec_otel.tasks' has no attribute {name!r}")
    try:
        return getattr(import_module(f"agentexec_otel.tasks.{_LAZY[name]}"), name)
    except ModuleNotFoundError as exc:
        if exc.name != "taskiq":
            raise
        feature = name if name == "ActivityMiddleware" else f"ax.{name}"
        raise MissingExtraError(feature, "taskiq", "tasks") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *(__all__ if find_spec("taskiq") else ())})  # for completion and help()
