"""Redis as a broker, and for results."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError
from taskiq import AckableMessage, AsyncBroker, AsyncResultBackend
from taskiq.serializers import JSONSerializer
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from agentexec_otel._config import CONF
from agentexec_otel.tasks._listening import forgiving, heed_cancellation

_logger = logging.getLogger("agentexec_otel.tasks")

_TRIES: Final = 3


class StreamBroker(RedisStreamBroker):
    """A stream that is cleared of what is done, and from which what a dead worker has taken is taken again.

    taskiq-redis looks for such messages only behind a new one, and leaves all messages in the stream for ever.
    """

    async def listen(self) -> AsyncGenerator[AckableMessage, None]:
        """Messages for this worker, one by one."""
        look_at = 0.0
        async with Redis(connection_pool=self.connection_pool) as redis:
            while True:
                try:
                    taken = await self._fresh(redis)
                    if time.monotonic() >= look_at:
                        look_at = time.monotonic() + self.idle_timeout / 2_000
                        taken += await self._left(redis)
                except RedisError as exc:  # Whatever it is: if this ended, so would all tasks that are at work.
                    _logger.warning(
                        "Redis is away, or refuses us (%s): looking for tasks again in a second", type(exc).__name__
                    )
                    await asyncio.sleep(1)
                    with suppress(RedisError):
                        await self._declare_consumer_group()  # It may be back without its data.
                    continue
                if not taken:
                    heed_cancellation()
                for message_id, fields in taken:
                    yield AckableMessage(data=fields[b"data"], ack=forgiving(self._done(redis, message_id)))

    async def _fresh(self, redis: Redis) -> list[Any]:
        """A message that nobody has yet, if one comes within `block` milliseconds."""
        streams: Any = {self.queue_name: ">"}
        answer: Any = await redis.xreadgroup(
            self.consumer_group_name, self.consumer_name, streams, count=1, block=self.block
        )
        return [entry for _, entries in answer or () for entry in entries]

    async def _left(self, redis: Redis) -> list[Any]:
        """Messages that others took, and have not done for too long."""
        answer: Any = await redis.xautoclaim(
            self.queue_name, self.consumer_group_name, self.consumer_name, self.idle_timeout
        )
        return list(answer[1])

    def _done(self, redis: Redis, message_id: bytes) -> Callable[[], Awaitable[None]]:
        async def done() -> None:
            async with redis.pipeline(transaction=False) as both:  # A client of its own would take longer than both.
                queued: Any = both
                queued.xack(self.queue_name, self.consumer_group_name, message_id)
                queued.xdel(self.queue_name, message_id)
                await both.execute()

        return done


def _retry() -> Retry:
    """Behind an outage each connection that the pool has kept is a dead one, and tells so when it is used."""
    return Retry(ExponentialBackoff(cap=0.5, base=0.05), _TRIES)


def broker(url: str, queue: str, concurrency: int) -> AsyncBroker:
    """A stream of that name."""
    return StreamBroker(
        url,
        queue_name=queue,
        consumer_group_name=queue,
        consumer_id="0",
        # A message is done as soon as its task has started. A worker that holds one longer may be dead.
        idle_timeout=int(CONF.lease_seconds * 1_000),
        xread_block=1_000,
        retry=_retry(),
    )


def results(url: str, queue: str) -> AsyncResultBackend[Any]:
    """Keys that expire."""
    return RedisAsyncResultBackend(
        url,
        result_ex_time=CONF.result_seconds,
        serializer=JSONSerializer(),
        prefix_str=f"{queue}:result",
        retry=_retry(),
    )
