"""RabbitMQ as a broker. It keeps no results."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from taskiq import AckableMessage, AsyncBroker
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue

from agentexec_otel.tasks._listening import forgiving


class QueueBroker(AioPikaBroker):
    """A task that has started runs, whether its message could be acknowledged or not."""

    async def listen(self) -> AsyncGenerator[AckableMessage, None]:
        """Messages for this worker, one by one."""
        async with aclosing(super().listen()) as messages:
            async for message in messages:
                yield AckableMessage(data=message.data, ack=forgiving(message.ack))


def broker(url: str, queue: str, concurrency: int) -> AsyncBroker:
    """A durable quorum queue of that name, with an exchange of its own."""
    return QueueBroker(
        url,
        qos=concurrency,
        exchange=Exchange(name=queue),
        task_queues=[Queue(name=queue)],
        dead_letter_queue=Queue(name=f"{queue}.dead_letter"),
    )
