"""Tasks as activities: `Pool` and `enqueue` on taskiq, and one line for engines that are there already.

`ActivityMiddleware` is for a taskiq broker of the application's; `agentexec_otel.tasks.celery` for Celery.
"""

from agentexec_otel.tasks._middleware import ActivityMiddleware
from agentexec_otel.tasks._pool import Pool, enqueue
from agentexec_otel.tasks._task import Task

__all__ = ["ActivityMiddleware", "Pool", "Task", "enqueue"]
