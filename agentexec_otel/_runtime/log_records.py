"""Lines as OpenTelemetry log records: the standard way to be live over OTLP."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from opentelemetry.context import Context

from agentexec_otel._model import attributes as semconv
from agentexec_otel._model.event import ActivityEvent, Status
from agentexec_otel._model.mapping import log_attributes

LogSink = Callable[[ActivityEvent, Context], None]


def log_record_sink(provider: Any | None) -> LogSink | None:
    """Emits lines as LogRecords with the event name ``agentexec.activity.log``.

    None where this version of opentelemetry-api has no logs API (it is still marked experimental).
    """
    try:
        from opentelemetry._logs import LogRecord, SeverityNumber, get_logger
    except ImportError:
        return None
    logger = get_logger(semconv.SCOPE, logger_provider=provider)

    def emit(event: ActivityEvent, context: Context) -> None:
        failed = event.status is Status.ERROR
        logger.emit(
            LogRecord(
                timestamp=event.occurred_at_ns,
                observed_timestamp=time.time_ns(),
                context=context,
                severity_number=SeverityNumber.ERROR if failed else SeverityNumber.INFO,
                severity_text="ERROR" if failed else "INFO",
                body=event.message,
                attributes={semconv.AGENT_ID: str(event.agent_id), **log_attributes(event)},
                event_name=semconv.LOG_EVENT,
            )
        )

    return emit
