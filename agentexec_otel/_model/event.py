"""Events of activities, which flow from producers to exporters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from time import time_ns
from typing import Any, Final, NamedTuple
from uuid import UUID

from agentexec_otel._model.ids import uuid7
from agentexec_otel._model.text import describe, plain_str


class Status(StrEnum):
    """Status of an activity, stored as the upper-case string.

    QUEUED → RUNNING → COMPLETE | ERROR | CANCELED. QUEUED may change to any terminal status directly. The first
    terminal status of an attempt is final. ``Status("running")``, as agentexec writes it, is `Status.RUNNING`.

    Attributes:
        terminal: Whether an attempt with this status has ended.
    """

    terminal: bool

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    ERROR = "ERROR"
    CANCELED = "CANCELED"

    def __init__(self, value: str) -> None:
        self.terminal = value in {"COMPLETE", "ERROR", "CANCELED"}

    @classmethod
    def _missing_(cls, value: object) -> Status | None:
        return _named(value)


def parse_status(value: object) -> Status:
    """Return the status of that name, in upper or in lower case. Raises `ValueError` if there is none."""
    found = _named(value)
    if found is None:
        raise ValueError(f"{describe(value)} is no status: use {', '.join(Status)}")
    return found


def _named(value: object) -> Status | None:
    name = plain_str(value) or ""
    return Status.__members__.get(name.upper() if name.islower() else name)


# Reading a member of an enum takes 0.1 µs before Python 3.12, which counts on the caller's path.
QUEUED: Final = Status.QUEUED
RUNNING: Final = Status.RUNNING

TERMINAL: Final = frozenset(status for status in Status if status.terminal)
ACTIVE: Final = (Status.QUEUED, Status.RUNNING)


@dataclass(frozen=True, slots=True)
class Opening:
    """What only the first event of an activity carries.

    Attributes:
        trace_context: The creator's context as a text-map carrier, written by the global propagator.
    """

    agent_type: str
    metadata: Mapping[str, Any] | None = None
    trace_context: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class SpanRef:
    """Identity of an activity's span, in lower-case hex as in a W3C traceparent.

    Attributes:
        started_in: The traceparent of the worker's span that is its parent or is linked, besides the creator's.
    """

    trace_id: str
    span_id: str
    sampled: bool
    started_in: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """Why and how an attempt ended. Tokens and model requests are totals of the run.

    Attributes:
        cached_input_tokens: Those of the input tokens that the provider had in its cache.
        reasoning_tokens: Those of the output tokens that were spent on reasoning.
        model: The model that the run called last.
    """

    error_type: str | None = None
    reason: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    requests: int | None = None
    cached_input_tokens: int | None = None
    reasoning_tokens: int | None = None
    model: str | None = None


# Made for each log, on the caller's path. A frozen dataclass takes five times as long to make.
class ActivityEvent(NamedTuple):
    """A log of an activity, and the only thing that an exporter is given.

    An activity is the fold of its events. Delivering an event twice changes nothing, because ``event_id`` (a UUIDv7)
    identifies it.

    Attributes:
        occurred_at_ns: Wall clock of the call, in nanoseconds since the Unix epoch. For display only: the store decides
            the order.
        attempt: The attempt to which this event belongs. None means the current one.
        opening: Present on the event that creates the activity.
        span: The span that this process has opened for the activity. The row keeps the first one offered.
        expects_row: The activity's row must exist. Otherwise (an unknown id, a deleted activity) the event is rejected
            instead of creating it.
        reopens: Opens the next attempt of an activity that has ended.
        claims: Starts (RUNNING) or announces (QUEUED) an attempt. Rejected if another worker has started it, or if it
            or the attempt before it has ended. Together with `reopens`: rejected unless the activity has ended, so
            that one of several callers opens the next attempt.
        withdraws: Removes the activity that the event with this ``event_id`` has created, unless anything else was
            reported on it. Its producer has reported that it is not stored.
        waiting: What the run waits for, as `waiting_for` returns it, until the next event of a worker.
        starts: The first RUNNING of an attempt, or the one with which its span was opened, as far as the process that
            reports it knows.
        agent_type: The activity's type, if the process that reports knows it. Only exporters that are no store get it.
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
    waiting: Mapping[str, Any] | None = None
    starts: bool = False
    agent_type: str | None = None


def late_cancellation(agent_id: UUID, attempt: int | None) -> ActivityEvent:
    """The end of an attempt that cannot be removed, after its producer has reported that it is not stored."""
    now_ns, text = time_ns(), "Given up: stored too late."
    return ActivityEvent(
        uuid7(now_ns), agent_id, Status.CANCELED, text, None, now_ns, attempt=attempt, expects_row=True
    )
