"""Contexts of tasks that can be sent again. They are kept where results are kept, and expire as results do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

from taskiq import AsyncResultBackend, TaskiqResult

from agentexec_otel._config import CONF
from agentexec_otel._errors import ActivityStateError, ConfigurationError, TaskResultError


async def keep_context(backend: AsyncResultBackend[Any], agent_id: UUID, task_name: str, packed: Any) -> None:
    """Keep the context of a task, as plain JSON values."""
    kept: TaskiqResult[Any] = TaskiqResult(is_err=False, return_value=[task_name, packed], execution_time=0.0)
    await backend.set_result(_key(agent_id), kept)


async def kept_context(
    backend: AsyncResultBackend[Any], agent_id: UUID, connect: Callable[[], Awaitable[None]]
) -> tuple[str, Any]:
    """Connect, and return the name of a task, and its context as plain JSON values.

    Raises:
        ConfigurationError: Of `connect`.
        ActivityStateError: The context is not kept.
        TaskResultError: The place where results are kept does not answer.
    """
    kept: Any = None
    try:
        async with asyncio.timeout(CONF.create_timeout):
            await connect()
            if await backend.is_result_ready(_key(agent_id)):
                kept = (await backend.get_result(_key(agent_id))).return_value
    except ConfigurationError:
        raise
    except Exception as exc:  # Each backend has its own exceptions.
        name = type(exc).__name__
        raise TaskResultError(
            f"the context of the activity {agent_id} could not be read ({name}): check where results are kept"
        ) from exc
    if kept is None:
        raise ActivityStateError(
            f"the activity {agent_id} cannot be retried, because the context of its task is not kept:"
            f" ax.Pool(keep_contexts=True) keeps it for AGENTEXEC_RESULT_SECONDS ({CONF.result_seconds})"
        )
    task_name, packed = kept
    return str(task_name), packed


def _key(agent_id: UUID) -> str:
    return f"{agent_id}-context"
