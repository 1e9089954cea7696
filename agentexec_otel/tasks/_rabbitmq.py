"""RabbitMQ as a broker. It keeps no results."""

from __future__ import annotations

from taskiq import AsyncBroker
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue


def broker(url: str, queue: str, concurrency: int) -> AsyncBroker:
    """A durable quorum queue of that name, with an exchange of its own."""
    return AioPikaBroker(
        url,
        qos=concurrency,
        exchange=Exchange(name=queue),
        task_queues=[Queue(name=queue)],
        dead_letter_queue=Queue(name=f"{queue}.dead_letter"),
    )
