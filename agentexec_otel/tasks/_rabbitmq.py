"""RabbitMQ as a broker. It keeps no results."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final
from urllib.parse import parse_qs, urlsplit, urlunsplit

from taskiq import AckableMessage, AsyncBroker
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue

from agentexec_otel.tasks._listening import check_queue, forgiving

_NAMES: Final = re.compile(r"(?!amq\.)[a-zA-Z0-9_.:@#,/+ -]{1,127}")
"""What the client and the server take for an exchange and a queue."""
_HEARTBEAT: Final = 10
"""Seconds. aiormq's own minute lets three minutes pass before a connection that is dead without a word is given up."""


class QueueBroker(AioPikaBroker):
    """A task that has started runs, whether its message could be acknowledged or not."""

    async def listen(self) -> AsyncGenerator[AckableMessage, None]:
        """Messages for this worker, one by one."""
        async with aclosing(super().listen()) as messages:
            async for message in messages:
                yield AckableMessage(data=message.data, ack=forgiving(message.ack))


def broker(url: str, queue: str, concurrency: int) -> AsyncBroker:
    """A durable quorum queue of that name, with an exchange of its own. Raises ValueError: it cannot have that name."""
    said = "1 to 127 of a-z, A-Z, 0-9, space and -_.:@#,/+ that do not begin with 'amq.'"
    check_queue(queue, "RabbitMQ", _NAMES, said)
    return QueueBroker(
        with_heartbeat(url),
        qos=concurrency,
        exchange=Exchange(name=queue),
        task_queues=[Queue(name=queue)],
        dead_letter_queue=Queue(name=f"{queue}.dead_letter"),
    )


def with_heartbeat(url: str) -> str:
    """The URL with a heartbeat, where it names none."""
    parts = urlsplit(url)
    if "heartbeat" in parse_qs(parts.query, keep_blank_values=True):
        return url
    return urlunsplit(parts._replace(query=f"{parts.query}&heartbeat={_HEARTBEAT}".removeprefix("&")))
