"""A taskiq broker, and where its results are kept, from a URL."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from taskiq import AsyncBroker, AsyncResultBackend, InMemoryBroker
from taskiq.serializers import JSONSerializer

from agentexec_otel._config import CONF
from agentexec_otel._errors import ConfigurationError, MissingExtraError

if TYPE_CHECKING:
    from taskiq import AckableMessage

_logger = logging.getLogger("agentexec_otel.tasks")

_MOST_RESULTS: Final = 10_000


def broker_of(
    broker: str | AsyncBroker | None, results: str | AsyncResultBackend[Any] | None, queue: str, concurrency: int
) -> AsyncBroker:
    """The broker as it is, or made from a URL; None is the one that runs tasks in this process.

    Args:
        queue: Name of the queue, stream or subject, and of whatever else is made there.
        concurrency: How many messages a worker process works at.

    Raises:
        ConfigurationError: an URL of no known kind.
        MissingExtraError: its package is not installed.
    """
    if broker is None:
        made: AsyncBroker = InMemoryBroker(max_stored_results=_MOST_RESULTS)
    elif isinstance(broker, str):
        kind = _kind_of(broker, "broker", _BROKERS)
        made = kind.make(broker, queue, concurrency)
        if results is None and kind.scheme in _RESULTS:
            results = broker
    else:
        made = broker
    if isinstance(results, str):
        results = _kind_of(results, "results", _RESULTS).make(results, queue, concurrency)
    return made if results is None else made.with_result_backend(results)


@dataclass(frozen=True, slots=True)
class _Kind:
    scheme: str
    package: str
    extra: str
    make: Callable[[str, str, int], Any]


def _kind_of(url: str, argument: str, kinds: dict[str, _Kind]) -> _Kind:
    scheme, found, _ = url.partition("://")
    kind = kinds.get(scheme.lower()) if found else None
    if kind is None:
        shown = f"{scheme}://…" if found else "no URL"
        known = ", ".join(f"{name}://" for name in sorted(kinds))
        raise ConfigurationError(f"{argument}={shown!r} is not supported: use one of {known}, or a taskiq object")
    try:
        import_module(kind.package)
    except ModuleNotFoundError as exc:
        if exc.name != kind.package:
            raise
        raise MissingExtraError(f"{argument}={scheme}://…", kind.package.replace("_", "-"), kind.extra) from None
    return kind


# -- Redis ------------------------------------------------------------------------------------------------------


def _redis(url: str, queue: str, concurrency: int) -> AsyncBroker:
    from taskiq_redis import RedisStreamBroker

    class StreamBroker(RedisStreamBroker):
        """A stream that is cleared of what is done, and from which what a dead worker has taken is taken again.

        taskiq-redis looks for such messages only behind a new one, and leaves all messages in the stream for ever.
        """

        async def listen(self) -> AsyncGenerator[AckableMessage, None]:
            from redis.asyncio import Redis
            from redis.exceptions import ConnectionError  # noqa: A004  # its name
            from taskiq import AckableMessage

            group, consumer = self.consumer_group_name, self.consumer_name
            look_at = 0.0
            async with Redis(connection_pool=self.connection_pool) as redis:
                while True:
                    try:
                        answer: Any = await redis.xreadgroup(
                            group, consumer, {self.queue_name: ">"}, count=1, block=self.block
                        )
                        taken = [entry for _, entries in answer or () for entry in entries]
                        if time.monotonic() >= look_at:
                            look_at = time.monotonic() + self.idle_timeout / 2_000
                            left: Any = await redis.xautoclaim(self.queue_name, group, consumer, self.idle_timeout)
                            taken += left[1]
                    except ConnectionError as exc:
                        _logger.warning("Redis is away, looking for tasks again in a second: %s", type(exc).__name__)
                        await asyncio.sleep(1)
                        continue
                    waiter = asyncio.current_task()
                    if not taken and waiter is not None and waiter.cancelling():
                        raise asyncio.CancelledError  # redis-py may swallow it together with an empty answer.
                    for message_id, fields in taken:
                        yield AckableMessage(data=fields[b"data"], ack=self._done(message_id))

        def _done(self, message_id: bytes) -> Callable[[], Awaitable[None]]:
            from redis.asyncio import Redis

            async def done() -> None:
                async with Redis(connection_pool=self.connection_pool) as redis, redis.pipeline() as both:
                    both.xack(self.queue_name, self.consumer_group_name, message_id)
                    both.xdel(self.queue_name, message_id)
                    await both.execute()

            return done

    return StreamBroker(
        url,
        queue_name=queue,
        consumer_group_name=queue,
        consumer_id="0",
        # A message is done as soon as its task has started. A worker that holds one longer may be dead.
        idle_timeout=int(CONF.lease_seconds * 1_000),
        xread_block=1_000,
    )


def _redis_results(url: str, queue: str, concurrency: int) -> AsyncResultBackend[Any]:
    from taskiq_redis import RedisAsyncResultBackend

    return RedisAsyncResultBackend(
        url, result_ex_time=CONF.result_seconds, serializer=JSONSerializer(), prefix_str=f"{queue}:result"
    )


# -- RabbitMQ ---------------------------------------------------------------------------------------------------


def _rabbitmq(url: str, queue: str, concurrency: int) -> AsyncBroker:
    from taskiq_aio_pika import AioPikaBroker, Exchange, Queue

    return AioPikaBroker(
        url,
        qos=concurrency,
        exchange=Exchange(name=queue),
        task_queues=[Queue(name=queue)],
        dead_letter_queue=Queue(name=f"{queue}.dead_letter"),
    )


# -- NATS -------------------------------------------------------------------------------------------------------


def _nats(url: str, queue: str, concurrency: int) -> AsyncBroker:
    from nats.js.api import ConsumerConfig, RetentionPolicy, StreamConfig
    from taskiq_nats import PullBasedJetStreamBroker

    return PullBasedJetStreamBroker(
        url,
        subject=queue,
        stream_name=queue,
        durable=queue,
        stream_config=StreamConfig(retention=RetentionPolicy.WORK_QUEUE),
        consumer_config=ConsumerConfig(durable_name=queue, ack_wait=CONF.lease_seconds),
        pull_consume_timeout=1,
    )


def _nats_results(url: str, queue: str, concurrency: int) -> AsyncResultBackend[Any]:
    import nats
    from nats.js.api import ObjectStoreConfig
    from nats.js.errors import BucketNotFoundError
    from taskiq_nats import NATSObjectStoreResultBackend

    bucket = f"{queue}_results"

    class ExpiringResults(NATSObjectStoreResultBackend[Any]):
        """taskiq-nats makes a bucket that keeps everything for ever."""

        async def startup(self) -> None:
            client = await nats.connect(self.servers)
            try:
                jetstream = client.jetstream()
                try:
                    await jetstream.object_store(bucket)
                except BucketNotFoundError:
                    settings = ObjectStoreConfig(ttl=CONF.result_seconds)
                    await jetstream.create_object_store(bucket, config=settings)
            finally:
                await client.close()
            await super().startup()

    return ExpiringResults(url, bucket_name=bucket, serializer=JSONSerializer())


_BROKERS: Final = {
    "redis": _Kind("redis", "taskiq_redis", "redis", _redis),
    "rediss": _Kind("rediss", "taskiq_redis", "redis", _redis),
    "amqp": _Kind("amqp", "taskiq_aio_pika", "rabbitmq", _rabbitmq),
    "amqps": _Kind("amqps", "taskiq_aio_pika", "rabbitmq", _rabbitmq),
    "nats": _Kind("nats", "taskiq_nats", "nats", _nats),
}
_RESULTS: Final = {
    "redis": _Kind("redis", "taskiq_redis", "redis", _redis_results),
    "rediss": _Kind("rediss", "taskiq_redis", "redis", _redis_results),
    "nats": _Kind("nats", "taskiq_nats", "nats", _nats_results),
}
