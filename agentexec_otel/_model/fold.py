"""The state machine of an activity. A state and an event make the next state, and a verdict on the event.

The SQL exporter calls it with a locked row. The testing kit and the live view of a process call it as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from typing import Any, Final, Literal, Self
from uuid import UUID

from agentexec_otel._model.attributes import PREVIOUS_SPAN, WORKER_SPAN
from agentexec_otel._model.event import QUEUED, RUNNING, TERMINAL, ActivityEvent, Outcome, SpanRef, Status
from agentexec_otel._model.results import Ack, AttemptEnd, ExportResult, Refusal, Reject
from agentexec_otel._model.text import NAME_LIMIT

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
TICK: Final = timedelta(microseconds=1)
RANK: Final = {Status.QUEUED: 0, Status.RUNNING: 1, Status.COMPLETE: 2, Status.ERROR: 2, Status.CANCELED: 2}
"""Within an attempt, no status is replaced by one of a lower or the same rank."""
_REASON_LIMIT: Final = 64
_COUNTS: Final = ("input_tokens", "output_tokens", "requests", "cached_input_tokens", "reasoning_tokens")
_UNKNOWN: Final[tuple[Any, ...]] = (None,) * 17
"""What `ActivityState` has after its attempt, before the first event."""

STUB_TYPE: Final = ""
"""agent_type of an activity whose opening event has not arrived yet."""

Lease = Literal["keep", "extend", "clear"]
"""What events mean for a lease: reports of the worker extend it, the end of an attempt and a wait clear it."""


def moment(occurred_at_ns: int) -> datetime:
    """Convert nanoseconds since the epoch to an aware UTC datetime, truncated to microseconds."""
    return _EPOCH + timedelta(microseconds=occurred_at_ns // 1000)


def nanoseconds(value: datetime) -> int:
    """The inverse of `moment`."""
    return (value - _EPOCH) // TICK * 1000


def context_after_span(
    trace_context: Mapping[str, str] | None, trace_id: str, span_id: str, sampled: bool | None
) -> dict[str, str]:
    """The trace context with which the next span of an activity is linked to this one."""
    kept = {key: value for key, value in (trace_context or {}).items() if key != WORKER_SPAN}
    return {**kept, PREVIOUS_SPAN: f"00-{trace_id}-{span_id}-{'01' if sampled else '00'}"}


def context_with_span(trace_context: Mapping[str, str] | None, span: SpanRef) -> Mapping[str, str] | None:
    """The trace context of a row that names this span: with it the span can be rebuilt."""
    return trace_context if span.started_in is None else {**(trace_context or {}), WORKER_SPAN: span.started_in}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an event means for its activity. It is accepted unless `refusal` is set. A refused event changes nothing.

    Attributes:
        refusal: The rule that the event breaks.
        late: Its attempt had already ended. The event is kept in the history and changes no status.
        opens: It creates the activity, or adds the opening to an activity of which only other events have arrived.
        ends: It ends the current attempt.
        reopens: It starts the next attempt.
    """

    refusal: Refusal | None = None
    late: bool = False
    opens: bool = False
    ends: bool = False
    reopens: bool = False


_ACCEPTED: Final = Verdict()
_SENTENCES: Final = {
    Refusal.EXISTS: "an activity with the agent_id {} exists already",
    Refusal.STARTED: "the activity {} has been started by another worker, or has ended",
    Refusal.NOT_ENDED: "the activity {} is {}: only an activity that has ended is retried",
    Refusal.AHEAD: "the activity {} is in an earlier attempt, and not in the one before that of the claim",
    Refusal.UNKNOWN: "no activity has the agent_id {}",
}


# There are few different ones, and each event needs one.
_verdict = cache(Verdict)
# Neighbors in a batch often get equal answers: 0.6 instead of 1.9 µs each.
_ack = lru_cache(maxsize=256)(Ack)


@dataclass(slots=True)
class ActivityState:
    """The state of one activity, changed in place by its events.

    Attributes:
        last_seq: Number of accepted events.
        lease: What the events applied so far mean for the worker's lease.
    """

    agent_id: UUID
    agent_type: str
    created_at: datetime
    status: Status
    latest_percentage: int | None
    last_seq: int
    attempt: int
    started_at: datetime | None
    ended_at: datetime | None
    metadata: Mapping[str, Any] | None
    trace_context: Mapping[str, str] | None
    trace_id: str | None
    span_id: str | None
    sampled: bool | None
    worker_id: str | None
    error_type: str | None
    reason: str | None
    input_tokens: int | None
    output_tokens: int | None
    requests: int | None
    cached_input_tokens: int | None
    reasoning_tokens: int | None
    model: str | None
    waiting: Mapping[str, Any] | None
    lease: Lease = field(default="keep", kw_only=True)

    @classmethod
    def unopened(cls, agent_id: UUID, occurred_at_ns: int, *more: Any) -> Self:
        """The state before the first event. `more` are the fields of a subclass."""
        return cls(agent_id, STUB_TYPE, moment(occurred_at_ns), QUEUED, None, 0, 1, *_UNKNOWN, *more)

    @property
    def is_unopened(self) -> bool:
        """Whether no event has been applied yet."""
        return not self.last_seq and self.agent_type == STUB_TYPE

    def apply(self, event: ActivityEvent, *, replay: bool = False) -> Verdict:
        """Apply one event.

        Args:
            replay: The event may be old: another worker may have taken over since it was emitted.
        """
        opens = reopens = False
        attempt = event.attempt
        ahead = attempt is not None and attempt > self.attempt
        if ahead or event.opening is not None or event.claims or event.reopens:
            refusal = self._refusal(event)
            if refusal is not None:
                return Verdict(refusal)
            opens, reopens = self._open(event), self._reopen(event)
        late = self.status in TERMINAL or (attempt is not None and attempt < self.attempt)
        if not late:
            self._advance(event, replay)
        if event.outcome is not None and attempt in (None, self.attempt):
            self._count_tokens(event.outcome)
        self.last_seq += 1
        ends = not late and self.status in TERMINAL
        return _verdict(None, late, opens, ends, reopens) if late or opens or ends or reopens else _ACCEPTED

    def acknowledge(self, late: bool, *, duplicate: bool = False, ends: bool = False) -> Ack:
        """The answer for a stored event, with the present state of the activity."""
        outcome = Outcome(self.error_type, self.reason) if self.status in TERMINAL else None
        if ends:
            return Ack(self.status, self.attempt, late, duplicate, self.span_id, outcome, self._end())
        return _ack(self.status, self.attempt, late, duplicate, self.span_id, outcome)

    def _end(self) -> AttemptEnd:
        outcome = Outcome(
            self.error_type, self.reason, self.input_tokens, self.output_tokens, self.requests,
            self.cached_input_tokens, self.reasoning_tokens, self.model,
        )  # fmt: skip
        return attempt_end(
            self.agent_type, self.status, self.attempt, self.created_at, self.started_at, self.ended_at, outcome
        )

    def _refusal(self, event: ActivityEvent) -> Refusal | None:
        if event.opening is not None and event.status is QUEUED and self.agent_type != STUB_TYPE:
            return Refusal.EXISTS
        if not event.claims:
            return None
        ended = self.status in TERMINAL
        attempt = event.attempt or (self.attempt + event.reopens)
        if event.reopens and not ended:
            return Refusal.NOT_ENDED
        if attempt > self.attempt + 1 and not self.is_unopened:
            return Refusal.AHEAD
        if attempt > self.attempt:
            return Refusal.STARTED if ended and not event.reopens else None
        return None if attempt == self.attempt and self.status is QUEUED else Refusal.STARTED

    def _open(self, event: ActivityEvent) -> bool:
        opening = event.opening
        if opening is None or self.agent_type != STUB_TYPE:
            return False
        self.agent_type = opening.agent_type[:NAME_LIMIT]
        self.created_at = moment(event.occurred_at_ns)
        self.metadata = opening.metadata
        self.trace_context = opening.trace_context
        return True

    def _reopen(self, event: ActivityEvent) -> bool:
        """Start a later attempt: the one that the event names, or the next one if the event reopens what has ended."""
        attempt = event.attempt
        if attempt is None and event.reopens and self.status in TERMINAL:
            attempt = self.attempt + 1
        if attempt is None or attempt <= self.attempt:
            return False
        if self.trace_id is not None and self.span_id is not None:
            self.trace_context = context_after_span(self.trace_context, self.trace_id, self.span_id, self.sampled)
        self.attempt = attempt
        self.status = QUEUED
        self.started_at = self.ended_at = self.trace_id = self.span_id = self.sampled = self.worker_id = None
        self.latest_percentage = self.error_type = self.reason = None
        self.input_tokens = self.output_tokens = self.requests = None
        self.cached_input_tokens = self.reasoning_tokens = self.model = self.waiting = None
        self.lease = "clear"
        return True

    def _advance(self, event: ActivityEvent, replay: bool) -> None:
        status = event.status
        if status is not self.status and RANK[status] > RANK[self.status]:
            self.status = status
        if self.started_at is None and self.status is RUNNING:
            self.started_at = moment(event.occurred_at_ns)
        if event.percentage is not None:
            self.latest_percentage = event.percentage
        if event.span is not None and self.span_id is None:
            self.trace_id, self.span_id, self.sampled = event.span.trace_id, event.span.span_id, event.span.sampled
            self.trace_context = context_with_span(self.trace_context, event.span)
        if self.status in TERMINAL:
            self.lease = "clear"
            self.waiting = None
            self.ended_at = moment(event.occurred_at_ns)
            if event.outcome is not None:
                self.error_type = event.outcome.error_type and event.outcome.error_type[:NAME_LIMIT]
                self.reason = event.outcome.reason and event.outcome.reason[:_REASON_LIMIT]
        elif event.worker_id is not None:
            waiting = event.waiting if self.status is RUNNING else None
            self._follow_worker(event.worker_id[:NAME_LIMIT], waiting, replay)

    def _follow_worker(self, worker_id: str, waiting: Mapping[str, Any] | None, replay: bool) -> None:
        # The last worker to report runs the activity, but an old event of a dead worker does not take it over.
        if self.worker_id is None or not replay:
            self.worker_id = worker_id
        if self.worker_id == worker_id:
            self.waiting = waiting
            self.lease = "extend" if waiting is None else "clear"

    def _count_tokens(self, outcome: Outcome) -> None:
        for name in _COUNTS:
            count = getattr(outcome, name)
            if count is not None:
                setattr(self, name, count)
        if outcome.model is not None:
            self.model = outcome.model[:NAME_LIMIT]


def attempt_end(
    agent_type: str,
    status: Status,
    attempt: int,
    created_at: datetime,
    started_at: datetime | None,
    ended_at: datetime | None,
    outcome: Outcome,
) -> AttemptEnd:
    """What metrics count of an attempt that has ended. No duration is negative: the clocks of hosts differ."""
    ended = ended_at or created_at
    queued = None if attempt > 1 else max(0.0, ((started_at or ended) - created_at).total_seconds())
    duration = None if started_at is None else max(0.0, (ended - started_at).total_seconds())
    return AttemptEnd(agent_type, status, queued, duration, outcome)


def must_exist(event: ActivityEvent) -> bool:
    """Whether the event is refused if its activity does not exist."""
    return event.expects_row or (event.claims and event.reopens)


def fold(
    state: ActivityState | None, event: ActivityEvent, *, replay: bool = False
) -> tuple[ActivityState | None, Verdict]:
    """Apply one event to an activity that may not exist.

    A withdrawal removes the activity (None is returned for its state) if nothing else was reported on it. The caller
    offers it only if the withdrawn event is in the activity's history.

    Args:
        state: None if the activity does not exist; otherwise changed in place.
        replay: As for `ActivityState.apply`.
    """
    if event.withdraws:
        return (state if state is not None and state.last_seq > 1 else None), _ACCEPTED
    if (state is None or state.is_unopened) and must_exist(event):
        return state, Verdict(Refusal.UNKNOWN)
    if state is None:
        state = ActivityState.unopened(event.agent_id, event.occurred_at_ns)
    return state, state.apply(event, replay=replay)


def answer(state: ActivityState | None, event: ActivityEvent, verdict: Verdict) -> ExportResult:
    """What an exporter returns for an event, from what `fold` has returned."""
    if verdict.refusal is not None:
        status = None if state is None else state.status
        return Reject(_SENTENCES[verdict.refusal].format(event.agent_id, status), verdict.refusal)
    return Ack(event.status) if state is None else state.acknowledge(verdict.late, ends=verdict.ends)
