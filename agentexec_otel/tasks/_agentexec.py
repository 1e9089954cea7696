"""What agentexec's users call: `gather` and `get_result`, and the arguments of its `Pool`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from agentexec_otel.tasks._task import Task

if TYPE_CHECKING:
    from agentexec_otel.db import Database

_SECONDS: Final = 300.0
_REDIS: Final = ("AGENTEXEC_REDIS_URL", "REDIS_URL")


async def get_result(task: Task, timeout: float | None = _SECONDS) -> Any:
    """Wait for the result of a task: ``task.result(timeout)``, with agentexec's default of 300 s."""
    return await task.result(timeout)


async def gather(*tasks: Task, timeout: float | None = _SECONDS) -> tuple[Any, ...]:
    """Wait for the results of several tasks. If one fails, its error is raised at once; the others keep running.

    Args:
        timeout: Seconds for all of them. None waits without a limit.

    Raises:
        TimeoutError, TaskFailedError, ActivityCanceledError, TaskResultError: As `Task.result`.
    """
    waiting = [asyncio.ensure_future(task.result(timeout)) for task in tasks]
    try:
        return tuple(await asyncio.gather(*waiting))
    finally:
        for one in waiting:
            one.cancel()


def one_database(*given: Database | None) -> Database | None:
    """The one database that a pool is given. Raises ValueError for several."""
    databases = [database for database in given if database is not None]
    if len(databases) > 1:
        raise ValueError("several databases: give the pool one of engine_or_url, engine and database_url")
    return databases[0] if databases else None


def redis_url() -> str | None:
    """Where agentexec looks for its Redis server."""
    return next((url for name in _REDIS if (url := os.environ.get(name))), None)


def check_labels(labels: Mapping[str, object]) -> None:
    """Raise TypeError for agentexec's lock: as a label of taskiq, it would be ignored."""
    if "lock_key" in labels:
        raise TypeError(
            f"lock_key={labels['lock_key']!r} is an argument of agentexec, and pools have no locks: take a lock of your"
            " Redis server in the task"
        )
