"""taskiq's receiver, made to survive every message; a message in its hands; what keeps secrets out of its log."""

from __future__ import annotations

import asyncio
import logging
import traceback
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Self

from taskiq import AckableMessage, TaskiqMessage
from taskiq.receiver import Receiver
from taskiq.utils import maybe_awaitable

from agentexec_otel._errors import guarded
from agentexec_otel.tasks import _activities, _sdk
from agentexec_otel.tasks._activities import RefusedMessageError, TaskRun

_logger = logging.getLogger("agentexec_otel.tasks")


@dataclass(slots=True)
class Delivery:
    """A message whose task runs in this asyncio task.

    Attributes:
        run: The block of the task; None if the task must not run here.
        left_by: The exception that the task has raised.
        retried: A retry middleware has sent the message again.
        refused: The message's arguments are not those of its task.
    """

    message: TaskiqMessage
    run: TaskRun | None
    left_by: BaseException | None = None
    retried: bool = False
    refused: RefusedMessageError | None = None

    def end(self, left_by: BaseException | None) -> None:
        """End the activity as its task has ended."""
        self.leave()
        if self.run is not None:
            with guarded("ending the activity of a task"):
                self.run.end(left_by)

    def enter(self) -> None:
        """From now on, the activity ends at the latest with the asyncio task."""
        receiving = asyncio.current_task()
        if receiving is not None:
            receiving.add_done_callback(self._end_dropped)

    def leave(self) -> None:
        """The asyncio task may now run on: with an in-place broker it is the caller's."""
        receiving = asyncio.current_task()
        if receiving is not None:
            receiving.remove_done_callback(self._end_dropped)

    def drop(self, raised: BaseException | None) -> None:
        """End the activity of a message that taskiq has dropped because its ack, or another middleware, raised."""
        if self.run is not None and self.run.owner:
            self.end(self.left_by or raised)

    def _end_dropped(self, receiving: asyncio.Task[Any]) -> None:
        self.drop(asyncio.CancelledError() if receiving.cancelled() else receiving.exception())


current_delivery: Final[ContextVar[Delivery | None]] = ContextVar("agentexec_otel.tasks.delivery", default=None)


class ActivityReceiver(Receiver):
    """Acknowledges each message once it has been handled, whatever was raised meanwhile.

    taskiq's own receiver never acknowledges a message if a middleware or a label raises. RabbitMQ then sends it again
    only after the connection has closed, and sends no others after as many as a worker may hold.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in _sdk.TASK_LOGGERS:
            logging.getLogger(name).addFilter(_redact)

    @classmethod
    def instead_of(cls, other: Receiver) -> Self:
        """A receiver with the settings of an in-memory broker's, which calls nothing but `callback`."""
        return cls(
            other.broker,
            other.executor,
            other.validate_params,
            max_async_tasks=1,
            propagate_exceptions=other.propagate_exceptions,
        )

    async def callback(self, message: bytes | AckableMessage, raise_err: bool = False) -> None:
        """Handle a message. If it is canceled, or the writer is shut down, the broker delivers the message again."""
        ack = _Acknowledgment(message)
        data = message.data if isinstance(message, AckableMessage) else message
        current_delivery.set(None)
        try:
            self._check(data)
            await super().callback(AckableMessage(data=data, ack=ack), raise_err)
        except Exception as exc:
            if _activities.active().is_closed:
                raise
            refuse(data, exc)
            delivery = current_delivery.get()
            if delivery is not None:
                delivery.drop(exc)
        await ack()

    def _check(self, data: bytes) -> None:
        """Raise RefusedMessageError if taskiq cannot parse the message. It would log all of it."""
        try:
            parsed = self.broker.formatter.loads(message=data)
            parsed.parse_labels()
        except Exception as exc:
            raise RefusedMessageError(f"it is no message of taskiq ({type(exc).__name__})") from exc


def refuse(data: bytes, exc: Exception) -> None:
    """Keep a message that cannot be handled, and log the reason."""
    if isinstance(exc, RefusedMessageError):
        reason = str(exc)
    else:
        reason = f"handling it has raised {type(exc).__name__}"
        _logger.debug(reason, exc_info=exc)
    with guarded("keeping a message that was refused"):
        _activities.active().keep_message(data.decode(errors="backslashreplace"), reason)


class _Acknowledgment:
    """Acknowledges a message once.

    A failure is only logged: the activity of a task has started before, so a redelivery does not start it again.
    """

    def __init__(self, message: bytes | AckableMessage) -> None:
        self._ack = message.ack if isinstance(message, AckableMessage) else None

    async def __call__(self) -> None:
        ack, self._ack = self._ack, None
        if ack is None:
            return
        try:
            await maybe_awaitable(ack())
        except Exception as exc:  # noqa: BLE001  # each broker has its own exceptions
            _logger.warning("a message could not be acknowledged, and may come again: %s", type(exc).__name__)


def _redact(record: logging.LogRecord) -> bool:
    """Redact what taskiq logs of a task as the activity's own logs are, and drop that a task has not run.

    Handlers get the traceback as text only: the exception itself contains the secret.
    """
    if record.msg == _sdk.SKIPPED and _is_logged():
        return False
    raised, record.exc_info = record.exc_info, None
    with guarded("redacting a log of taskiq"):
        record.msg, record.args = _activities.redacted(record.getMessage()), ()
        if isinstance(raised, tuple) and raised[0] is not None:
            record.exc_text = _activities.redacted("".join(traceback.format_exception(*raised)).rstrip())
    return True


def _is_logged() -> bool:
    """Whether the middleware has logged why the current task has not run."""
    delivery = current_delivery.get()
    return delivery is not None and (delivery.run is None or delivery.refused is not None)
