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
from agentexec_otel.tasks.taskiq.brokers import raise_if_canceled

_logger = logging.getLogger("agentexec_otel.tasks")

_TRIES: Final = 3
_PAUSE: Final = 1.0


class StreamBroker(RedisStreamBroker):
    """A stream from which finished messages are deleted, and from which those of a dead worker are taken over.

    taskiq-redis deletes nothing, looks for the messages of a dead worker only after a new message, and ends the worker
    with all its tasks if Redis does not answer.
    """

    async def listen(self) -> AsyncGenerator[AckableMessage, None]:
        """Messages for this worker."""
        next_claim = 0.0
        async with Redis(connection_pool=self.connection_pool) as redis:
            while True:
                try:
                    taken = await self._new(redis)
                    if time.monotonic() >= next_claim:
                        next_claim = time.monotonic() + self.idle_timeout / 2_000
                        taken += await self._abandoned(redis)
                except RedisError as exc:
                    _logger.warning(
                        "Redis is away, or refuses us (%s): looking for tasks again in a second", type(exc).__name__
                    )
                    await asyncio.sleep(_PAUSE)
                    with suppress(RedisError):  # It may be back without its data.
                        await redis.xgroup_create(self.queue_name, self.consumer_group_name, id="0", mkstream=True)
                    continue
                if not taken:
                    raise_if_canceled()
                for message_id, fields in taken:
                    yield AckableMessage(data=_data_of(fields), ack=self._done(redis, message_id))

    async def _new(self, redis: Redis) -> list[Any]:
        """A message that no worker has taken, if one comes within `block` milliseconds."""
        streams: Any = {self.queue_name: ">"}
        answer: Any = await redis.xreadgroup(
            self.consumer_group_name, self.consumer_name, streams, count=1, block=self.block
        )
        return [entry for _, entries in answer or () for entry in entries]

    async def _abandoned(self, redis: Redis) -> list[Any]:
        """Messages that other workers have taken, and not finished for too long."""
        answer: Any = await redis.xautoclaim(
            self.queue_name, self.consumer_group_name, self.consumer_name, self.idle_timeout
        )
        return [entry for entry in answer[1] if entry[0] is not None]  # Redis 6 names none of a deleted message.

    def _done(self, redis: Redis, message_id: bytes) -> Callable[[], Awaitable[None]]:
        async def done() -> None:
            async with redis.pipeline(transaction=False) as both:
                queued: Any = both
                queued.xack(self.queue_name, self.consumer_group_name, message_id)
                queued.xdel(self.queue_name, message_id)
                await both.execute()

        return done


def _data_of(fields: dict[bytes, bytes]) -> bytes:
    """The message in a stream entry; of an entry without one, its fields, for the receiver to refuse."""
    return fields.get(b"data", repr(fields).encode())


def _retry() -> Retry:
    """Retries for a pool whose connections were broken by an outage. A connection of a pool has none by default."""
    return Retry(ExponentialBackoff(cap=0.5, base=0.05), _TRIES)


def broker(url: str, queue: str, concurrency: int) -> AsyncBroker:
    """A stream of that name."""
    return StreamBroker(
        url,
        queue_name=queue,
        consumer_group_name=queue,
        consumer_id="0",
        # A message is finished as soon as its task has started. A worker that keeps one longer may be dead.
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
