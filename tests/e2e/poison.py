"""Messages that no task can run, and how to send them beside every client."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final
from uuid import UUID, uuid4

import aio_pika
import nats
from redis.asyncio import Redis
from taskiq.labels import LabelType

from tests.brokers import URLS

Message = dict[str, Any]


def message(agent_id: UUID, **labels: Any) -> Message:
    """The message of a task that would run."""
    return {
        "task_id": str(agent_id),
        "task_name": "job",
        "labels": {"agentexec_agent_id": str(agent_id), "agentexec_attempt": "1", **labels},
        "labels_types": None,
        "args": [],
        "kwargs": {"agent_id": str(agent_id), "context": {"number": 1}},
    }


def _without_label(agent_id: UUID) -> Message:
    sent = message(agent_id)
    del sent["labels"]["agentexec_agent_id"]
    return sent


def _opened_by_nobody(agent_id: UUID) -> Message:
    nobody = uuid4()
    opening = [1, uuid4().hex, nobody.hex, "QUEUED", "forged", None, 1, 1, None, 0, None, ["job", None, None], None]
    return message(nobody, agentexec_opening=json.dumps(opening))


def _with_argument(**arguments: Any) -> Callable[[UUID], Message]:
    def make(agent_id: UUID) -> Message:
        sent = message(agent_id)
        return {**sent, "kwargs": {**sent["kwargs"], **arguments}}

    return make


def _labeled(**labels: Any) -> Callable[[UUID], Message]:
    return lambda agent_id: message(agent_id, **labels)


def _changed(**fields: Any) -> Callable[[UUID], Message]:
    return lambda agent_id: message(agent_id) | fields


RAW: Final[Mapping[str, bytes]] = {
    "no field": b"",
    "no UTF-8": b"\xff\xfe\x00",
    "text": b"hello",
    "number": b"7",
    "null": b"null",
    "list": b"[]",
    "half": json.dumps(message(UUID(int=1))).encode()[:100],
    "deep": b"[" * 100_000,
}
"""What is no message. Of Redis, "no field" is a stream entry without the field that taskiq reads."""

REFUSED: Final[Mapping[str, Callable[[UUID], Message]]] = {
    "no task name": lambda agent_id: {"task_id": str(agent_id), "labels": {}, "args": [], "kwargs": {}},
    "labels no mapping": _changed(labels=["agentexec_agent_id"]),
    "unknown type of a label": _changed(labels_types={"agentexec_attempt": 99}),
    "label of another type": lambda agent_id: (
        message(agent_id, agentexec_attempt="x") | {"labels_types": {"agentexec_attempt": LabelType.INT.value}}
    ),
    "no agent_id": _without_label,
    "agent_id no UUID": _labeled(agentexec_agent_id="not-a-uuid"),
    "agent_id a list": _labeled(agentexec_agent_id=["x"]),
    "agent_id of nothing": lambda _: message(uuid4()),
    "attempt too high": _labeled(agentexec_attempt="999999999"),
    "attempt no number": _labeled(agentexec_attempt="x"),
    "attempt negative": _labeled(agentexec_attempt="-1"),
    "retries too high": _labeled(_retries=999_999_999),
    "retries no number": _labeled(_retries=[]),
    "opening of nothing": _opened_by_nobody,
}
"""What does not concern the activity of this id."""

FAILED: Final[Mapping[str, Callable[[UUID], Message]]] = {
    "unknown task": _changed(task_name="nobody has this"),
    "no arguments": _changed(kwargs={}),
    "context that does not fit": _with_argument(context={"digit": 7}),
    "agent_id of another": _with_argument(agent_id=str(UUID(int=7))),
    "unknown acknowledgment": _labeled(ack_type="sometimes"),
}
"""What starts the activity of this id, and fails it."""


async def send(broker: str, queue: str, data: bytes) -> None:
    """Put a message into a queue. Into a stream of Redis without data: an entry without the field."""
    if broker == "redis":
        from_url: Any = Redis.from_url  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        async with from_url(URLS[broker]) as redis:
            await redis.xadd(queue, {"data": data} if data else {"other": "x"})
    elif broker == "rabbitmq":
        async with await aio_pika.connect(URLS[broker]) as connection:
            channel = await connection.channel()
            sent = aio_pika.Message(data, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await channel.default_exchange.publish(sent, routing_key=queue)
    else:
        connect: Any = nats.connect  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        client = await connect(URLS[broker])
        await client.jetstream().publish(queue, data)
        await client.close()
