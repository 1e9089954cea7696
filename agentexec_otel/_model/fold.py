"""Pure: events onto an activity's row. What the transaction reads goes in, what it writes comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

from agentexec_otel._model.attributes import PREVIOUS_SPAN
from agentexec_otel._model.event import ActivityEvent, Opening, Outcome, Status
from agentexec_otel._model.results import Ack, ExportResult, Reject
from agentexec_otel._model.text import NAME_LIMIT

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
TICK: Final = timedelta(microseconds=1)
_RANK: Final = {Status.QUEUED: 0, Status.RUNNING: 1, Status.COMPLETE: 2, Status.ERROR: 2, Status.CANCELED: 2}
_REASON_LIMIT: Final = 64

STUB_TYPE: Final = ""
"""agent_type of a row whose QUEUED event has not arrived yet."""


def moment(occurred_at_ns: int) -> datetime:
    """Nanoseconds since the epoch as an aware UTC datetime, cut to microseconds."""
    return _EPOCH + timedelta(microseconds=occurred_at_ns // 1000)


def nanoseconds(value: datetime) -> int:
    """The inverse of `moment`."""
    return (value - _EPOCH) // TICK * 1000


Lease = Literal["keep", "extend", "clear"]
"""What a batch does to a row's lease: extended by its own worker's lines, cleared where nobody runs it any more."""


def behind_span(
    trace_context: Mapping[str, str] | None, trace_id: str, span_id: str, sampled: bool | None
) -> dict[str, str]:
    """The trace context of an activity whose next span is to be linked to this one."""
    return {**(trace_context or {}), PREVIOUS_SPAN: f"00-{trace_id}-{span_id}-{'01' if sampled else '00'}"}


class Line(NamedTuple):
    """A log row but for its id: every column by its name, and the moment in nanoseconds since the epoch."""

    activity_id: UUID
    message: str
    status: Status
    percentage: int | None
    created_at: int
    seq: int
    event_id: UUID
    attempt: int
    late: bool


@dataclass(slots=True)
class Row:
    """An activity's row under its lock, while events are applied to it."""

    id: UUID
    agent_id: UUID
    agent_type: str
    created_at: datetime
    updated_at: datetime
    status: Status
    latest_percentage: int | None
    last_seq: int
    attempt: int
    started_at: datetime | None
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
    opened: bool = False
    lease: Lease = "keep"
    answer: Ack | None = field(default=None, compare=False, repr=False)
    before: tuple[object, ...] = field(default=(), compare=False, repr=False)

    @property
    def shape(self) -> tuple[object, ...]:
        """What mere progress leaves as it was `before`."""
        return (
            self.agent_type, self.status, self.attempt, self.started_at, self.trace_context, self.span_id,
            self.worker_id, self.error_type, self.reason, self.input_tokens, self.output_tokens, self.requests,
        )  # fmt: skip

    def apply(self, event: ActivityEvent, *, replay: bool = False) -> tuple[Line | None, ExportResult]:
        """The line of one event (None where it adds none), and the answer to its producer."""
        if event.opening is not None:
            if self.agent_type == STUB_TYPE:
                self._open(event.opening, event.occurred_at_ns)
            elif event.status is Status.QUEUED:
                return None, Reject(f"an activity with the agent_id {self.agent_id} exists already")
        if event.claims and not self._waits_for(event.attempt or self.attempt):
            return None, Reject(f"the activity {self.agent_id} has been started by somebody else, or has ended")
        if event.attempt is not None and event.attempt > self.attempt:
            self._reopen(event.attempt)
        elif event.reopens and self.status.terminal:
            self._reopen()
        attempt = self.attempt if event.attempt is None else event.attempt
        late = attempt < self.attempt or self.status.terminal
        if not late:
            self._advance(event, replay)
        if event.outcome is not None and attempt == self.attempt:
            self._count_tokens(event.outcome)
        self.last_seq += 1
        line = Line(
            self.id, event.message, self.status, event.percentage, event.occurred_at_ns, self.last_seq, event.event_id,
            attempt, late,
        )  # fmt: skip
        return line, self.acknowledge(late)

    def _waits_for(self, attempt: int) -> bool:
        """Whether this attempt is still to be started."""
        if attempt > self.attempt:
            return not self.status.terminal
        return attempt == self.attempt and self.status is Status.QUEUED

    def acknowledge(self, late: bool, *, duplicate: bool = False) -> Ack:
        """The answer for an event that is stored: where the activity stands now."""
        answer = self.answer
        if (
            answer is None
            or answer.status is not self.status
            or answer.attempt != self.attempt
            or answer.late is not late
            or answer.duplicate is not duplicate
            or answer.span_id != self.span_id
        ):
            outcome = Outcome(self.error_type, self.reason) if self.status.terminal else None
            self.answer = answer = Ack(self.status, self.attempt, late, duplicate, self.span_id, outcome)
        return answer

    def _open(self, opening: Opening, occurred_at_ns: int) -> None:
        self.opened = True
        self.agent_type = opening.agent_type[:NAME_LIMIT]
        self.created_at = moment(occurred_at_ns)
        self.metadata = opening.metadata
        self.trace_context = opening.trace_context

    def _reopen(self, attempt: int | None = None) -> None:
        if self.trace_id is not None and self.span_id is not None:
            self.trace_context = behind_span(self.trace_context, self.trace_id, self.span_id, self.sampled)
        self.attempt = attempt or self.attempt + 1
        self.status = Status.QUEUED
        self.started_at = self.trace_id = self.span_id = self.sampled = self.worker_id = None
        self.latest_percentage = self.error_type = self.reason = None
        self.lease = "clear"
        self.input_tokens = self.output_tokens = self.requests = None

    def _advance(self, event: ActivityEvent, replay: bool) -> None:
        if _RANK[event.status] > _RANK[self.status]:
            self.status = event.status
        if self.status is Status.RUNNING and self.started_at is None:
            self.started_at = moment(event.occurred_at_ns)
        if event.percentage is not None:
            self.latest_percentage = event.percentage
        self._take_lease(event, replay)
        if event.span is not None and self.span_id is None:
            self.trace_id, self.span_id = event.span.trace_id, event.span.span_id
            self.sampled = event.span.sampled
        if event.outcome is not None and self.status.terminal:
            self.error_type = event.outcome.error_type and event.outcome.error_type[:NAME_LIMIT]
            self.reason = event.outcome.reason and event.outcome.reason[:_REASON_LIMIT]

    def _take_lease(self, event: ActivityEvent, replay: bool) -> None:
        if self.status.terminal:
            self.lease = "clear"
        elif event.worker_id is not None:
            worker_id = event.worker_id[:NAME_LIMIT]
            # Whoever reports last runs it, but a line that was left behind by the dead takes nothing over.
            if self.worker_id is None or not replay:
                self.worker_id = worker_id
            if self.worker_id == worker_id:
                self.lease = "extend"

    def _count_tokens(self, outcome: Outcome) -> None:
        if outcome.input_tokens is not None:
            self.input_tokens = outcome.input_tokens
        if outcome.output_tokens is not None:
            self.output_tokens = outcome.output_tokens
        if outcome.requests is not None:
            self.requests = outcome.requests


def stub(row_id: UUID, agent_id: UUID, occurred_at_ns: int) -> Row:
    """The row of an activity of which nothing is known but that something happened."""
    created_at = moment(occurred_at_ns)
    return Row(
        row_id, agent_id, STUB_TYPE, created_at, created_at, Status.QUEUED, None, 0, 1,
        None, None, None, None, None, None, None, None, None, None, None, None,
    )  # fmt: skip


def fold(
    rows: Mapping[UUID, Row],
    events: Sequence[ActivityEvent],
    stored: Mapping[UUID, bool],
    now: datetime,
    *,
    replay: bool = False,
) -> tuple[list[Line], list[Row], list[ExportResult]]:
    """Apply events in order.

    Args:
        rows: The locked rows by ``agent_id``; changed in place.
        stored: Events found in the log already, each with its ``late`` flag.
        now: Becomes ``updated_at``, unless a row is ahead of it already.
        replay: Some of the events may be old: their worker may have been followed by another.

    Returns:
        The lines to insert, the activity rows that changed (in the order of `rows`), and one answer per event.
    """
    lines: list[Line] = []
    results: list[ExportResult] = []
    touched: dict[int, Row] = {}
    # By their numbers, since UUIDs are slow to hash.
    known = {event_id.int: late for event_id, late in stored.items()}
    by_number = {agent_id.int: row for agent_id, row in rows.items()}
    for event in events:
        row = by_number.get(event.agent_id.int)
        if row is None:
            results.append(Reject(f"no activity has the agent_id {event.agent_id}"))
            continue
        number = event.event_id.int
        if number in known:
            results.append(row.acknowledge(known[number], duplicate=True))
            continue
        line, result = row.apply(event, replay=replay)
        results.append(result)
        if line is not None:
            known[number] = line.late
            lines.append(line)
            touched[id(row)] = row
    changed = [row for row in rows.values() if id(row) in touched]
    for row in changed:
        row.updated_at = max(now, row.updated_at + TICK)
    return lines, changed, results
