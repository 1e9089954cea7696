"""A worker process of the tasks benchmark.

    python -m benchmarks._task_worker plain|hand|ours REDIS QUEUE KIND URL DSN

KIND, URL and DSN are those of a `Database`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

from pydantic import BaseModel
from redis.asyncio import Redis
from taskiq import AsyncBroker
from taskiq.api import run_receiver_task
from taskiq.decor import AsyncTaskiqDecoratedTask
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

import agentexec_otel as ax
from benchmarks._by_hand import Lines, open_lines

AT_ONCE = 20
_RESULT_SECONDS = 600


class Job(BaseModel):
    """What a task is to do."""

    seconds: float
    done: str
    """A counter in Redis for tasks that have ended, and the beginning of the keys of those that have started."""


def of_taskiq(
    url: str, queue: str, lines: Lines | None = None
) -> tuple[AsyncBroker, AsyncTaskiqDecoratedTask[Any, Any]]:
    """The task on taskiq alone, with the broker and the results of its Redis package as they are; the same work.

    With `lines`, it writes down by hand that it runs and that it has ended.
    """
    stream = RedisStreamBroker(url, queue_name=queue, consumer_id="0")
    broker = stream.with_result_backend(RedisAsyncResultBackend(url, result_ex_time=_RESULT_SECONDS))
    work = _work(Redis.from_url(url))  # pyright: ignore[reportUnknownMemberType]

    async def job(agent_id: str, context: Job) -> dict[str, int]:
        if lines is None:
            return await work(context)
        if not await lines.put(agent_id, "RUNNING"):
            return {}
        result = await work(context)
        await lines.put(agent_id, "COMPLETE")
        return result

    return broker, broker.register_task(job, "job")


def of_ours(url: str, queue: str) -> ax.Pool:
    """The task in a pool."""
    pool = ax.Pool(broker=url, queue=queue, concurrency=AT_ONCE)
    work = _work(Redis.from_url(url))  # pyright: ignore[reportUnknownMemberType]

    @pool.task("job")
    async def job(agent_id: UUID, context: Job) -> dict[str, int]:  # pyright: ignore[reportUnusedFunction]
        return await work(context)

    return pool


def _work(redis: Redis) -> Callable[[Job], Awaitable[dict[str, int]]]:
    async def work(job: Job) -> dict[str, int]:
        await redis.incr(f"{job.done}:started")
        await asyncio.sleep(job.seconds)
        return {"done": await redis.incr(job.done)}

    return work


def main(side: str, url: str, queue: str, kind: str, database: str, dsn: str) -> None:
    """Work until the process is ended."""
    if side == "ours":
        ax.configure(database)
        broker = of_ours(url, queue).broker
    else:
        broker, _ = of_taskiq(url, queue, open_lines(kind, dsn) if side == "hand" else None)
    asyncio.run(run_receiver_task(broker, max_async_tasks=AT_ONCE, run_startup=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
