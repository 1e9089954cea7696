"""taskiq's receiver, made to survive every message, and a filter that keeps secrets out of its log."""

from __future__ import annotations

import logging
import traceback
from typing import Any, Final, Self

from taskiq import AckableMessage
from taskiq.receiver import Receiver
from taskiq.utils import maybe_awaitable

from agentexec_otel._errors import guarded
from agentexec_otel.tasks import _activities, _sdk
from agentexec_otel.tasks.taskiq.delivery import current_delivery

_logger = logging.getLogger("agentexec_otel.tasks")


class ActivityReceiver(Receiver):
    """Acknowledges each message once it has been handled, whatever was raised meanwhile.

    taskiq's own receiver never acknowledges a message if a middleware or a label raises. RabbitMQ then sends it again
    only after the connection has closed, and sends no others after as many as a worker may hold.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in _sdk.TASK_LOGGERS:
            logging.getLogger(name).addFilter(_redacting)

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
            raise _activities.RefusedMessageError(f"it is no message of taskiq ({type(exc).__name__})") from exc


def refuse(data: bytes, exc: Exception) -> None:
    """Keep a message that cannot be handled, and log the reason."""
    if isinstance(exc, _activities.RefusedMessageError):
        reason = str(exc)
    else:
        reason = f"handling it has raised {type(exc).__name__}"
        _logger.debug(reason, exc_info=exc)
    with guarded("keeping a message that was refused"):
        _activities.keep_message(data.decode(errors="backslashreplace"), reason)


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


class _Redacting(logging.Filter):
    """Redacts what taskiq logs of a task as the activity's own logs are, and drops that a task has not run.

    Handlers get the traceback as text only: the exception itself contains the secret.
    """

    def filter(self, record: logging.LogRecord) -> bool:
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


_redacting: Final = _Redacting()
