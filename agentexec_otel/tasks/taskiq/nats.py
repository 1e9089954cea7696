"""NATS JetStream as a broker, and for results."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator
from typing import Any, Final

import nats
from nats.aio.client import Client
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.api import ConsumerConfig, ObjectStoreConfig, RetentionPolicy, StreamConfig
from nats.js.errors import BucketNotFoundError
from taskiq import AckableMessage, AsyncBroker, AsyncResultBackend
from taskiq.serializers import JSONSerializer
from taskiq_nats import NATSObjectStoreResultBackend, PullBasedJetStreamBroker

from agentexec_otel._config import CONF
from agentexec_otel.tasks import _sdk
from agentexec_otel.tasks.taskiq.brokers import check_queue, raise_if_canceled

_connect: Any = nats.connect  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

_logger = logging.getLogger("agentexec_otel.tasks")

_NAMES: Final = re.compile(r"[a-zA-Z0-9_-]{1,243}")
"""Names that client and server accept for a stream, a consumer, a subject and, with our suffix, a bucket."""
_CONNECT_SECONDS: Final = 5.0
PING_SECONDS: Final = 10
"""Interval of the client's pings. After three without an answer, the connection is closed."""


async def _log_error(exc: Exception) -> None:
    """Log a background error in one line. By default the client logs a traceback for each retry."""
    _logger.warning("the connection to NATS is in trouble: %s", type(exc).__name__)


class JetStreamBroker(PullBasedJetStreamBroker):
    """A work queue. Each method says why it differs from taskiq-nats."""

    async def startup(self) -> None:
        """Connect within `_CONNECT_SECONDS`, else raise TimeoutError. The client alone would retry for minutes.

        A client that was made before a fork has the same inbox in each worker process, so each would receive all
        messages.
        """
        _sdk.replace(self, "client", Client())
        async with asyncio.timeout(_CONNECT_SECONDS):
            await super().startup()

    async def shutdown(self) -> None:
        """Disconnect. A client that has never connected cannot be closed."""
        if self.client.is_connected or self.client.is_reconnecting:
            await super().shutdown()

    async def listen(self) -> AsyncGenerator[AckableMessage, None]:
        """Messages for this worker. If a cancellation is lost, upstream's loop continues and the worker never stops."""
        while True:
            try:
                messages = await self.consumer.fetch(batch=1, timeout=1)
            except NatsTimeoutError:
                raise_if_canceled()
                continue
            for message in messages:
                yield AckableMessage(data=message.data, ack=message.ack)


class ExpiringResults(NATSObjectStoreResultBackend[Any]):
    """Results that expire. The bucket that taskiq-nats creates never deletes any."""

    async def startup(self) -> None:
        """Connect, and create the bucket if there is none."""
        async with asyncio.timeout(_CONNECT_SECONDS):
            client = await _connect(self.servers, **self.connect_options)
        jetstream = client.jetstream()
        try:
            bucket = await jetstream.object_store(self.bucket_name)
        except BucketNotFoundError:
            config = ObjectStoreConfig(ttl=CONF.result_seconds)
            bucket = await jetstream.create_object_store(self.bucket_name, config=config)
        self.nats_client, self.nats_jetstream, self.object_store = client, jetstream, bucket


def broker(url: str, queue: str, concurrency: int) -> AsyncBroker:
    """A stream and subject of that name. Raises ValueError for a name they cannot have."""
    _check(queue)
    return JetStreamBroker(
        url,
        subject=queue,
        stream_name=queue,
        durable=queue,
        stream_config=StreamConfig(retention=RetentionPolicy.WORK_QUEUE),
        consumer_config=ConsumerConfig(durable_name=queue, ack_wait=CONF.lease_seconds),
        error_cb=_log_error,
        ping_interval=PING_SECONDS,
    )


def results(url: str, queue: str) -> AsyncResultBackend[Any]:
    """A bucket of the object store. Raises ValueError if it cannot be named after that queue."""
    _check(queue)
    return ExpiringResults(
        url,
        bucket_name=f"{queue}_results",
        serializer=JSONSerializer(),
        error_cb=_log_error,
        ping_interval=PING_SECONDS,
    )


def _check(queue: str) -> None:
    check_queue(queue, "NATS", _NAMES, "1 to 243 of a-z, A-Z, 0-9, - and _")
