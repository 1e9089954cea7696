"""What exporters answer, and what a store tells of an activity."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from agentexec_otel._model.event import ActivityEvent, Opening, Outcome, SpanRef, Status


@dataclass(frozen=True, slots=True)
class Ack:
    """The event is stored.

    Attributes:
        status: The activity's status after this event: the winner's, where the event came late.
        attempt: The activity's current attempt.
        late: The event's attempt had already ended; it is kept in the history and changed nothing.
        duplicate: The event had been stored before.
        span_id: The span that the activity's row names, whichever process opened it.
        outcome: Why the attempt ended, where it has.
    """

    status: Status
    attempt: int = 1
    late: bool = False
    duplicate: bool = False
    span_id: str | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """The event is not stored yet; offer it again after that many seconds."""

    after: float = 0.0


class Refusal(StrEnum):
    """Which rule of an activity's life an event has broken."""

    EXISTS = "exists"
    """It creates an activity whose ``agent_id`` is taken."""
    STARTED = "started"
    """It claims an attempt that another worker has started, or that has ended."""
    NOT_ENDED = "not_ended"
    """It retries an activity that has not ended."""
    UNKNOWN = "unknown"
    """It reports on an activity that does not exist."""


@dataclass(frozen=True, slots=True)
class Reject:
    """The event can never be stored.

    Attributes:
        reason: One sentence without the event's content.
        refusal: The broken rule; None if the event itself cannot be stored.
    """

    reason: str
    refusal: Refusal | None = None


ExportResult = Ack | Retry | Reject


@dataclass(frozen=True, slots=True)
class Ending:
    """How many activities are ended at once: one terminal status, one line, one reason."""

    status: Status
    message: str
    outcome: Outcome


class EndedActivity(NamedTuple):
    """An attempt that was ended together with others, and the log that says so."""

    agent_id: UUID
    attempt: int
    event_id: UUID
    occurred_at_ns: int


@dataclass(frozen=True, slots=True)
class StoredActivity:
    """An activity as its row has it, and the lines that were written before it had a span.

    Attributes:
        counted: A run in it has ended, and has said what it spent.
        outcome: Why the attempt ended, if it has.
    """

    agent_id: UUID
    opening: Opening
    status: Status
    attempt: int
    created_at_ns: int
    span: SpanRef | None
    history: tuple[ActivityEvent, ...] = ()
    counted: bool = False
    outcome: Outcome | None = None
