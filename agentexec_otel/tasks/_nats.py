"""NATS JetStream as a broker, and for results."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator
from typing import Any, Final

import nats
from nats.aio.client import Client
from nats.errors import TimeoutError as NothingError
from nats.js.api import ConsumerConfig, ObjectStoreConfig, RetentionPolicy, StreamConfig
from nats.js.errors import BucketNotFoundError
from taskiq import AckableMessage, AsyncBroker, AsyncResultBackend
from taskiq.serializers import JSONSerializer
from taskiq_nats import NATSObjectStoreResultBackend, PullBasedJetStreamBroker

from agentexec_otel._config import CONF
from agentexec_otel.tasks._listening import check_queue, forgiving, heed_cancellation

_connect: Any = nats.connect  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


_logger = logging.getLogger("agentexec_otel.tasks")

_NAMES: Final = re.compile(r"[a-zA-Z0-9_-]{1,243}")
"""What the client and the server take for a stream, a consumer, a subject and, with our ending, a bucket."""
_STARTUP_SECONDS: Final = 5.0
_PING_SECONDS: Final = 10
"""A connection that is dead without a word is noticed after three of them."""


async def _note(exc: Exception) -> None:
    """What the client meets in the background; by itself it logs a traceback for each try."""
    _logger.warning("the connection to NATS is in trouble: %s", type(exc).__name__)


class JetStreamBroker(PullBasedJetStreamBroker):
    """A work queue whose workers can be stopped."""

    async def startup(self) -> None:
        """Connect, or raise TimeoutError: the client would go on trying for minutes."""
        # One that was made before a fork has the same inbox as those of the other workers: each would get what all get.
        setattr(self, "client", Client())  # noqa: B010  # it is final there
        async with asyncio.timeout(_STARTUP_SECONDS):
            await super().startup()

    async def shutdown(self) -> None:
        """Disconnect; a client that has never connected cannot be closed."""
        if self.client.is_connected or self.client.is_reconnecting:
            await super().shutdown()

    async def listen(self) -> AsyncGenerator[AckableMessage, None]:
        """Messages for this worker, one by one."""
        while True:
            try:
                messages = await self.consumer.fetch(batch=1, timeout=1)
            except NothingError:
                heed_cancellation()
                continue
            for message in messages:
                yield AckableMessage(data=message.data, ack=forgiving(message.ack))


class ExpiringResults(NATSObjectStoreResultBackend[Any]):
    """Results that are dropped after a while; the bucket that taskiq-nats makes keeps everything for ever."""

    async def startup(self) -> None:
        """Make the bucket, where there is none."""
        async with asyncio.timeout(_STARTUP_SECONDS):
            client = await _connect(self.servers, error_cb=_note)
        try:
            jetstream = client.jetstream()
            try:
                await jetstream.object_store(self.bucket_name)
            except BucketNotFoundError:
                config = ObjectStoreConfig(ttl=CONF.result_seconds)
                await jetstream.create_object_store(self.bucket_name, config=config)
        finally:
            await client.close()
        await super().startup()


def broker(url: str, queue: str, concurrency: int) -> AsyncBroker:
    """A stream and subject of that name. Raises ValueError: they cannot have it."""
    _check(queue)
    return JetStreamBroker(
        url,
        subject=queue,
        stream_name=queue,
        durable=queue,
        stream_config=StreamConfig(retention=RetentionPolicy.WORK_QUEUE),
        consumer_config=ConsumerConfig(durable_name=queue, ack_wait=CONF.lease_seconds),
        error_cb=_note,
        ping_interval=_PING_SECONDS,
    )


def results(url: str, queue: str) -> AsyncResultBackend[Any]:
    """A bucket of the object store. Raises ValueError: it cannot be named after that queue."""
    _check(queue)
    return ExpiringResults(
        url,
        bucket_name=f"{queue}_results",
        serializer=JSONSerializer(),
        error_cb=_note,
        ping_interval=_PING_SECONDS,
    )


def _check(queue: str) -> None:
    check_queue(queue, "NATS", _NAMES, "1 to 243 of a-z, A-Z, 0-9, - and _")
