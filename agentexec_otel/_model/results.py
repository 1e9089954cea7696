"""What exporters and stores return."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from agentexec_otel._model.event import ActivityEvent, Opening, Outcome, SpanRef, Status


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """An attempt that has ended, as run metrics count it.

    Attributes:
        queued_seconds: From the creation to the start, or to the end if it never started. None for a retry.
        duration_seconds: From the start to the end. None if it never started.
        outcome: Why it ended, and its token usage.
    """

    agent_type: str
    status: Status
    queued_seconds: float | None
    duration_seconds: float | None
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Ack:
    """The event is stored.

    Attributes:
        status: The activity's status after this event. If the event is late, the status that won.
        attempt: The activity's current attempt.
        late: The event's attempt had already ended. The event is kept in the history and changed nothing.
        duplicate: The event had been stored before.
        span_id: The span that the activity's row names. Any process may have opened it.
        outcome: Why the attempt ended, if it has.
        end: The attempt, if this event has ended it.
    """

    status: Status
    attempt: int = 1
    late: bool = False
    duplicate: bool = False
    span_id: str | None = None
    outcome: Outcome | None = None
    end: AttemptEnd | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """The event is not stored yet. Offer it again after that many seconds."""

    after: float = 0.0


class Refusal(StrEnum):
    """The rule that an event has broken."""

    EXISTS = "exists"
    """It creates an activity whose ``agent_id`` is taken."""
    STARTED = "started"
    """It claims an attempt that another worker has started, or that has ended."""
    NOT_ENDED = "not_ended"
    """It retries an activity that has not ended."""
    AHEAD = "ahead"
    """It claims an attempt that is more than one after the current one."""
    UNKNOWN = "unknown"
    """It reports on an activity that does not exist."""


@dataclass(frozen=True, slots=True)
class Reject:
    """The event can never be stored.

    Attributes:
        reason: One sentence without the event's content.
        refusal: The broken rule. None if the event itself cannot be stored.
    """

    reason: str
    refusal: Refusal | None = None


ExportResult = Ack | Retry | Reject


@dataclass(frozen=True, slots=True)
class Ending:
    """The status, log message and outcome with which several activities are ended at once."""

    status: Status
    message: str
    outcome: Outcome


class EndedActivity(NamedTuple):
    """An attempt that was ended together with others, and its log."""

    agent_id: UUID
    attempt: int
    event_id: UUID
    occurred_at_ns: int


class ActiveCount(NamedTuple):
    """How many activities of a type have this status, QUEUED or RUNNING. `waiting` of them wait."""

    agent_type: str
    status: Status
    activities: int
    waiting: int


@dataclass(frozen=True, slots=True)
class StoredActivity:
    """The state of an activity's row, and the logs that were written before it had a span.

    Attributes:
        counted: A run of the attempt has ended and reported its token usage.
        outcome: Why the attempt ended, if it has.
        is_waiting: The run waits, such as for an approval.
        failure: Message of the log with which it ended as ERROR, if the history was asked for.
        started_at_ns: When the attempt started, if it has.
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
    is_waiting: bool = False
    failure: str | None = None
    started_at_ns: int | None = None
