"""What the span of an activity carries, computed from its logs and its outcome.

The live span and a span that is rebuilt from a row both come from here, so that they are equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from agentexec_otel._model import attributes as semconv
from agentexec_otel._model.event import ActivityEvent, Opening, Outcome, SpanRef, Status
from agentexec_otel._model.mapping import AttributeValue, log_attributes, opening_attributes, outcome_attributes


@dataclass(frozen=True, slots=True)
class SpanStyle:
    """How spans are written, by the settings.

    Attributes:
        has_events: Logs are events of the span.
        canceled_is_error: The span of a canceled activity has the status ERROR.
    """

    has_events: bool = True
    canceled_is_error: bool = False


@dataclass(frozen=True, slots=True)
class SpanStart:
    """What is known of an attempt when its span starts. The span's name is the type in `opening`."""

    agent_id: UUID
    opening: Opening
    attempt: int
    start_time_ns: int
    queue_seconds: float | None


@dataclass(frozen=True, slots=True)
class SpanEnd:
    """What is known of an attempt when its span ends.

    Attributes:
        logs: The last logs of the attempt, oldest first.
        log_count: How many logs there were.
        description: Describes an error.
    """

    logs: tuple[ActivityEvent, ...]
    log_count: int
    status: Status
    outcome: Outcome | None
    percentage: int | None
    description: str | None
    end_time_ns: int


class SpanOfAttempt(NamedTuple):
    """The span of an attempt, by the id that its row may name."""

    agent_id: UUID
    attempt: int
    span_id: str


class StoredSpan(NamedTuple):
    """The span of an attempt that has ended, as its row and its logs have it.

    Attributes:
        cursor: Where it stands among all; see `SpanStore.claim_spans`.
        worker_id: The worker that reported last.
    """

    ref: SpanRef
    start: SpanStart
    end: SpanEnd
    worker_id: str | None
    cursor: tuple[object, ...]


class SpanEvent(NamedTuple):
    """An event of a span."""

    name: str
    attributes: dict[str, AttributeValue]
    timestamp_ns: int


class SpanContent(NamedTuple):
    """What is put on a span at its end.

    Attributes:
        is_error: The span's status is ERROR; else it stays unset.
        description: Describes the error.
    """

    events: list[SpanEvent]
    attributes: dict[str, AttributeValue]
    is_error: bool
    description: str | None


def start_attributes(start: SpanStart) -> dict[str, AttributeValue]:
    """Return the attributes that the span has from its start."""
    attributes = opening_attributes(start.agent_id, start.opening, start.attempt)
    if start.queue_seconds is not None:
        attributes[semconv.QUEUE_DURATION] = start.queue_seconds
    return attributes


def end_content(end: SpanEnd, style: SpanStyle) -> SpanContent:
    """Return what the span is given at its end."""
    logs = end.logs if style.has_events else ()
    events = [SpanEvent(semconv.LOG_EVENT, log_attributes(log), log.occurred_at_ns) for log in logs]
    attributes = outcome_attributes(end.status, end.outcome, end.percentage)
    attributes[semconv.LOG_COUNT] = end.log_count
    is_error = end.status is Status.ERROR or (end.status is Status.CANCELED and style.canceled_is_error)
    return SpanContent(events, attributes, is_error, end.description if is_error else None)
