"""The values that flow from producers through the core to exporters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple
from uuid import UUID


class Status(StrEnum):
    """Where an activity stands; stored as the upper-case string.

    QUEUED → RUNNING → COMPLETE | ERROR | CANCELED, and QUEUED may go straight to any terminal one.
    The first terminal status of an attempt wins, for ever.
    """

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    ERROR = "ERROR"
    CANCELED = "CANCELED"

    @property
    def terminal(self) -> bool:
        """Whether an attempt with this status has ended."""
        return self in TERMINAL


# For where every tenth of a microsecond counts: that is what a look at an enum's member costs before Python 3.12.
QUEUED: Final = Status.QUEUED
RUNNING: Final = Status.RUNNING

TERMINAL: Final = frozenset((Status.COMPLETE, Status.ERROR, Status.CANCELED))
ACTIVE: Final = (Status.QUEUED, Status.RUNNING)


@dataclass(frozen=True, slots=True)
class Opening:
    """What only an activity's first event carries.

    ``trace_context`` is the creator's context as a text-map carrier, written by the global propagator.
    """

    agent_type: str
    metadata: Mapping[str, Any] | None = None
    trace_context: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class SpanRef:
    """Identity of an activity's span: lower-case hex, as in a W3C traceparent."""

    trace_id: str
    span_id: str
    sampled: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """Why and how an attempt ended. Tokens and model requests are totals of the run."""

    error_type: str | None = None
    reason: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    requests: int | None = None


# Made for each line, on the caller's path: a frozen dataclass takes five times as long to make.
class ActivityEvent(NamedTuple):
    """One line of an activity's history, and the only thing an exporter is given.

    An activity is the fold of its events; delivering one twice changes nothing, because ``event_id``
    (a UUIDv7) identifies it.

    Attributes:
        occurred_at_ns: Wall clock of the call, nanoseconds since the Unix epoch. Display only: order is
            decided by the store.
        attempt: The attempt this event belongs to; None means whichever is current.
        opening: Present on the event that creates the activity.
        span: The span this process has opened for the activity; the row keeps the first one offered.
        expects_row: The activity's row must be there; without one (an unknown id, a deleted activity) the event is
            rejected instead of creating it.
        reopens: Opens the next attempt of an activity that has ended.
        claims: Starts (RUNNING) or announces (QUEUED) an attempt, and is rejected where somebody else has started it,
            or where it, or the attempt before it, has ended. Together with `reopens`: rejected unless the activity has
            ended, so that of several callers one opens the next attempt.
        withdraws: Removes the activity that the event with this ``event_id`` has created, unless something else was
            reported on it meanwhile: its producer was told that it is not stored.
    """

    event_id: UUID
    agent_id: UUID
    status: Status
    message: str
    percentage: int | None
    occurred_at_ns: int
    attempt: int | None = None
    opening: Opening | None = None
    span: SpanRef | None = None
    outcome: Outcome | None = None
    worker_id: str | None = None
    expects_row: bool = False
    reopens: bool = False
    claims: bool = False
    withdraws: bool = False
