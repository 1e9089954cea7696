"""Activity events as attributes of OpenTelemetry spans and log records, and back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Literal, Protocol
from uuid import UUID

from agentexec_otel._model import attributes as semconv
from agentexec_otel._model.event import ActivityEvent, Opening, Outcome, SpanRef, Status
from agentexec_otel._model.text import NAME_LIMIT, clean_message, clean_metadata, clean_percentage

AttributeValue = str | bool | int | float

# Reading `Status.value` calls a descriptor written in Python, which counts on the caller's path.
_STATUS_TEXT: Final = {status: status.value for status in Status}

# Attributes of a span may come from any program. A huge number would reopen the activity.
_MOST_ATTEMPTS: Final = 1_000_000
_TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


def log_attributes(event: ActivityEvent) -> dict[str, AttributeValue]:
    """Attributes of the span event or log record that mirrors a log."""
    attributes: dict[str, AttributeValue] = {
        semconv.LOG_ID: str(event.event_id),
        semconv.LOG_STATUS: _STATUS_TEXT[event.status],
        semconv.LOG_MESSAGE: event.message,
    }
    if event.percentage is not None:
        attributes[semconv.LOG_PERCENTAGE] = event.percentage
    return attributes


def record_attributes(event: ActivityEvent) -> dict[str, AttributeValue]:
    """Attributes of a log record."""
    return {semconv.AGENT_ID: str(event.agent_id), semconv.RECORD_UID: str(event.event_id), **log_attributes(event)}


def severity_of(status: Status) -> Literal["INFO", "WARN", "ERROR"]:
    """The severity of a log record, as OpenTelemetry names it."""
    return _SEVERITIES.get(status, "INFO")


_SEVERITIES: Final[dict[Status, Literal["WARN", "ERROR"]]] = {Status.ERROR: "ERROR", Status.CANCELED: "WARN"}


def state_attributes(event: ActivityEvent) -> dict[str, AttributeValue]:
    """What an event says of its activity beside the log: type, attempt, worker, metadata, wait and outcome."""
    values: dict[str, AttributeValue | None] = {
        semconv.AGENT_TYPE: event.agent_type,
        semconv.ATTEMPT: event.attempt,
        semconv.WORKER_ID: event.worker_id,
    }
    if event.opening is not None:
        values |= opening_attributes(event.agent_id, event.opening, event.attempt)
    if event.waiting is not None:
        values[semconv.WAITING_FOR] = event.waiting["for"]
        values[semconv.WAITING_SINCE] = event.waiting["since"]
        values[semconv.WAITING_ITEMS] = json.dumps(event.waiting["items"])
    if event.outcome is not None:
        values |= outcome_attributes(event.status, event.outcome, None)
    return {name: value for name, value in values.items() if value is not None}


def event_name_of(event: ActivityEvent) -> str:
    """The name of the event that a log record is. The same for a replayed event."""
    if event.status.terminal:
        return semconv.ENDED_EVENT
    if event.status is Status.QUEUED:
        if event.opening is not None:
            return semconv.CREATED_EVENT
        return semconv.RETRIED_EVENT if event.reopens or event.claims else semconv.LOG_EVENT
    if event.starts or event.claims:
        return semconv.STARTED_EVENT
    return semconv.LOG_EVENT if event.waiting is None else semconv.WAITING_EVENT


def opening_attributes(agent_id: UUID, opening: Opening, attempt: int | None) -> dict[str, AttributeValue]:
    """Attributes that the span of an activity has from its start."""
    attributes: dict[str, AttributeValue] = {
        semconv.AGENT_ID: str(agent_id),
        semconv.AGENT_TYPE: opening.agent_type,
        semconv.ATTEMPT: attempt or 1,
    }
    for key, value in (opening.metadata or {}).items():
        attributes[semconv.METADATA_PREFIX + key] = (
            value if isinstance(value, str | bool | int | float) else json.dumps(value)
        )
    return attributes


def outcome_attributes(status: Status, outcome: Outcome | None, percentage: int | None) -> dict[str, AttributeValue]:
    """Attributes that are added to the span of an activity at its end."""
    values = {semconv.STATUS: status.value, semconv.PERCENTAGE: percentage}
    values |= {name: getattr(outcome, field, None) for field, (name, _) in _OUTCOME.items()}
    return {name: value for name, value in values.items() if value is not None}


def traceparent_of(trace_id: int, span_id: int, trace_flags: int) -> str:
    """The W3C ``traceparent`` of a span."""
    return f"00-{trace_id:032x}-{span_id:016x}-{trace_flags & 0xFF:02x}"


def span_ref_of(traceparent: str) -> SpanRef | None:
    """The span that a W3C ``traceparent`` names. None if it is malformed."""
    match = _TRACEPARENT.fullmatch(traceparent)
    return match and SpanRef(match[1], match[2], bool(int(match[3], 16) & 1))


class EndedSpanEvent(Protocol):
    """The part of a span event that is read."""

    @property
    def attributes(self) -> Mapping[str, Any] | None: ...
    @property
    def timestamp(self) -> int: ...


def events_of_span(
    attributes: Mapping[str, Any], span: SpanRef, span_events: Sequence[EndedSpanEvent]
) -> list[ActivityEvent]:
    """Return the events of an ended activity span, without the logs that the SDK has dropped.

    Empty for a span that is not an activity's.
    """
    try:
        agent_id = UUID(str(attributes[semconv.AGENT_ID]))
        opening = Opening(clean_message(str(attributes[semconv.AGENT_TYPE]), NAME_LIMIT), _metadata_of(attributes))
        attempt = int(attributes.get(semconv.ATTEMPT, 1))
        if not 1 <= attempt <= _MOST_ATTEMPTS:
            return []
        logs = [event for event in span_events if semconv.LOG_ID in (event.attributes or {})]  # The name is a setting.
        events = [_event_of(agent_id, attempt, span, log) for log in logs]
    except (KeyError, ValueError, TypeError, OverflowError):
        return []
    if events:
        events[0] = events[0]._replace(opening=opening)
    if events and events[-1].status.terminal:
        found = {field: read(attributes.get(name)) for field, (name, read) in _OUTCOME.items()}
        events[-1] = events[-1]._replace(outcome=Outcome(**found))
    return events


def _event_of(agent_id: UUID, attempt: int, span: SpanRef, log: EndedSpanEvent) -> ActivityEvent:
    values = log.attributes or {}
    percentage, _ = clean_percentage(values.get(semconv.LOG_PERCENTAGE))
    return ActivityEvent(
        event_id=UUID(str(values[semconv.LOG_ID])),
        agent_id=agent_id,
        status=Status(str(values[semconv.LOG_STATUS])),
        message=clean_message(str(values[semconv.LOG_MESSAGE])),
        percentage=percentage,
        occurred_at_ns=log.timestamp,
        attempt=attempt,
        span=span,
    )


def _text(value: object) -> str | None:
    return clean_message(value, NAME_LIMIT) if isinstance(value, str) else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 else None


# The attribute of each field of `Outcome`, and what is read from it.
_OUTCOME: Final[dict[str, tuple[str, Callable[[object], Any]]]] = {
    "error_type": (semconv.ERROR_TYPE, _text),
    "reason": (semconv.REASON, _text),
    "input_tokens": (semconv.INPUT_TOKENS, _count),
    "output_tokens": (semconv.OUTPUT_TOKENS, _count),
    "requests": (semconv.REQUESTS, _count),
    "cached_input_tokens": (semconv.CACHED_INPUT_TOKENS, _count),
    "reasoning_tokens": (semconv.REASONING_TOKENS, _count),
    "model": (semconv.MODEL, _text),
}


def _metadata_of(attributes: Mapping[str, Any]) -> dict[str, Any] | None:
    prefix = semconv.METADATA_PREFIX
    found = {key.removeprefix(prefix): value for key, value in attributes.items() if key.startswith(prefix)}
    with suppress(ValueError):  # more than is accepted here; the logs are kept without it
        return clean_metadata(found) or None
    return None
