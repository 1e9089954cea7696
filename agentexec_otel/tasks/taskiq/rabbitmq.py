"""RabbitMQ as a broker. It keeps no results."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qs, urlsplit, urlunsplit

from taskiq import AsyncBroker
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue

from agentexec_otel.tasks.taskiq.brokers import check_queue

_NAMES: Final = re.compile(r"(?!amq\.)[a-zA-Z0-9_.:@#,/+ -]{1,127}")
"""Names that client and server accept for an exchange and a queue."""
HEARTBEAT: Final = 10
"""Seconds. With aiormq's default of 60, a connection that has died silently is closed only after three minutes."""


def broker(url: str, queue: str, concurrency: int) -> AsyncBroker:
    """A durable quorum queue of that name, with an exchange of its own. Raises ValueError for a name it cannot have."""
    said = "1 to 127 of a-z, A-Z, 0-9, space and -_.:@#,/+ that do not begin with 'amq.'"
    check_queue(queue, "RabbitMQ", _NAMES, said)
    return AioPikaBroker(
        with_heartbeat(url),
        qos=concurrency,
        exchange=Exchange(name=queue),
        task_queues=[Queue(name=queue)],
        dead_letter_queue=Queue(name=f"{queue}.dead_letter"),
    )


def with_heartbeat(url: str) -> str:
    """The URL with our heartbeat, unless it names one. aio-pika takes it from the URL only."""
    parts = urlsplit(url)
    if "heartbeat" in parse_qs(parts.query, keep_blank_values=True):
        return url
    return urlunsplit(parts._replace(query=f"{parts.query}&heartbeat={HEARTBEAT}".removeprefix("&")))
