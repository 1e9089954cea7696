"""A worker process of the tasks benchmark: ``python -m benchmarks._task_worker plain|ours REDIS QUEUE DATABASE``."""

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

AT_ONCE = 20
_RESULT_SECONDS = 600


class Job(BaseModel):
    """What a task is to do."""

    seconds: float
    done: str
    """A counter in Redis for tasks that have ended, and the beginning of the keys of those that have started."""


def of_taskiq(url: str, queue: str) -> tuple[AsyncBroker, AsyncTaskiqDecoratedTask[Any, Any]]:
    """The task on taskiq alone, with the broker and the results of its Redis package as they are; the same work."""
    stream = RedisStreamBroker(url, queue_name=queue, consumer_id="0")
    broker = stream.with_result_backend(RedisAsyncResultBackend(url, result_ex_time=_RESULT_SECONDS))
    work = _work(Redis.from_url(url))  # pyright: ignore[reportUnknownMemberType]

    async def job(agent_id: str, context: Job) -> dict[str, int]:
        return await work(context)

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


def main(kind: str, url: str, queue: str, database: str) -> None:
    """Work until the process is ended."""
    if kind == "plain":
        broker, _ = of_taskiq(url, queue)
    else:
        ax.configure(database)
        broker = of_ours(url, queue).broker
    asyncio.run(run_receiver_task(broker, max_async_tasks=AT_ONCE, run_startup=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
