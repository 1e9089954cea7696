"""What the span of an activity carries, computed from its logs and its outcome.

The live span and a span that is rebuilt from a row both come from here, so that they are equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

from agentexec_otel._model import attributes as semconv
from agentexec_otel._model.event import ActivityEvent, Opening, Outcome, SpanRef, Status
from agentexec_otel._model.mapping import AttributeValue, log_attributes, opening_attributes, outcome_attributes

EventName = Literal["log", "message"]
LevelScheme = Literal["langfuse", "logfire"]

_MOST_CHARACTERS: Final = 120  # of a message that is the name of an event
# The attribute for a level, and its values for a warning and for an error.
_LEVELS: Final[dict[LevelScheme, tuple[str, AttributeValue, AttributeValue]]] = {
    "langfuse": (semconv.LANGFUSE_LEVEL, "WARNING", "ERROR"),
    "logfire": (semconv.LOGFIRE_LEVEL, 13, 17),
}
_USAGE: Final = (
    semconv.INPUT_TOKENS, semconv.OUTPUT_TOKENS, semconv.CACHED_INPUT_TOKENS, semconv.REASONING_TOKENS,
)  # fmt: skip
# The keys of the metadata that name the conversation, the first of which counts.
_CONVERSATION: Final = {
    semconv.CONVERSATION_ID: ("conversation_id", "thread_id", "group_id", "session_id"),
    semconv.SESSION_ID: ("session_id", "conversation_id", "thread_id", "group_id"),
}


@dataclass(frozen=True, slots=True)
class SpanStyle:
    """How spans are written, by the settings.

    Attributes:
        has_events: Logs are events of the span.
        event_name: Each event has the name ``agentexec.activity.log``, or its own message as the name.
        has_usage: The span has the run's tokens.
        canceled_is_error: The span of a canceled activity has the status ERROR.
        levels: Backends whose attribute for a severity level is set if the activity was canceled or has failed.
    """

    has_events: bool = True
    event_name: EventName = "log"
    has_usage: bool = True
    canceled_is_error: bool = False
    levels: tuple[LevelScheme, ...] = ()


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


def start_attributes(start: SpanStart) -> dict[str, AttributeValue]:
    """Return the attributes that the span has from its start."""
    attributes = opening_attributes(start.agent_id, start.opening, start.attempt)
    attributes[semconv.OPERATION] = semconv.INVOKE_AGENT
    attributes[semconv.AGENT_NAME] = start.opening.agent_type
    attributes |= _conversation_attributes(start.opening.metadata or {})
    if start.queue_seconds is not None:
        attributes[semconv.QUEUE_DURATION] = start.queue_seconds
    return attributes


def _conversation_attributes(metadata: Mapping[str, Any]) -> dict[str, AttributeValue]:
    found: dict[str, AttributeValue] = {}
    for name, keys in _CONVERSATION.items():
        ids = (metadata.get(key) for key in keys)
        texts = (str(one) for one in ids if isinstance(one, str | int) and not isinstance(one, bool))
        if chosen := next(filter(None, texts), None):
            found[name] = chosen
    return found


def span_events(end: SpanEnd, style: SpanStyle) -> Iterator[tuple[str, dict[str, AttributeValue], int]]:
    """Yield the events that the span is given at its end: name, attributes and time."""
    for log in end.logs if style.has_events else ():
        yield _event_name(log, style), log_attributes(log), log.occurred_at_ns


def is_error(end: SpanEnd, style: SpanStyle) -> bool:
    """Whether the span's status is ERROR; else it stays unset."""
    return end.status is Status.ERROR or (end.status is Status.CANCELED and style.canceled_is_error)


def end_attributes(end: SpanEnd, style: SpanStyle) -> dict[str, AttributeValue]:
    """Return the attributes that are added to the span at its end."""
    attributes = outcome_attributes(end.status, end.outcome, end.percentage)
    if not style.has_usage:
        attributes = {name: value for name, value in attributes.items() if name not in _USAGE}
    attributes[semconv.LOG_COUNT] = end.log_count
    if end.status in {Status.ERROR, Status.CANCELED}:
        for level in style.levels:
            name, warning, error = _LEVELS[level]
            attributes[name] = error if is_error(end, style) else warning
    return attributes


def _event_name(log: ActivityEvent, style: SpanStyle) -> str:
    if style.event_name == "log":
        return semconv.LOG_EVENT
    text = " ".join(log.message.split())
    if len(text) > _MOST_CHARACTERS:
        return f"{text[: _MOST_CHARACTERS - 1]}…"
    return text or semconv.LOG_EVENT
