"""A batch of events applied to locked rows: the logs to insert and the rows to write back. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from agentexec_otel._model.event import ActivityEvent, Status
from agentexec_otel._model.fold import TICK, ActivityState, answer, fold
from agentexec_otel._model.results import ExportResult


class LogRow(NamedTuple):
    """A log row without its id: every column by its name, the time in nanoseconds since the epoch."""

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
class Row(ActivityState):
    """An activity's row under its lock.

    Attributes:
        opened: This batch has brought its opening.
        before: `shape` as the row was read.
    """

    id: UUID
    updated_at: datetime
    opened: bool = False
    before: tuple[object, ...] = field(default=(), compare=False, repr=False)

    @property
    def shape(self) -> tuple[object, ...]:
        """Everything that a progress report leaves unchanged."""
        return (
            self.agent_type, self.status, self.attempt, self.started_at, self.ended_at, self.trace_context,
            self.span_id, self.worker_id, self.error_type, self.reason, self.input_tokens, self.output_tokens,
            self.requests, self.cached_input_tokens, self.reasoning_tokens, self.model, self.waiting,
        )  # fmt: skip


def apply_events(
    rows: Mapping[UUID, Row],
    events: Sequence[ActivityEvent],
    stored: Mapping[UUID, bool],
    now: datetime,
    *,
    replay: bool = False,
) -> tuple[list[LogRow], list[Row], list[ExportResult]]:
    """Apply events in order.

    Args:
        rows: The locked rows by ``agent_id``; changed in place.
        stored: Events that the log has already, each with its ``late`` flag.
        now: Becomes ``updated_at``, unless a row is ahead of this clock.
        replay: As for `ActivityState.apply`.

    Returns:
        The logs to insert, the rows that changed (in the order of `rows`), and one answer per event.
    """
    logs: list[LogRow] = []
    results: list[ExportResult] = []
    touched: dict[int, Row] = {}
    # By their numbers, since UUIDs are slow to hash.
    known = {event_id.int: late for event_id, late in stored.items()}
    by_number = {agent_id.int: row for agent_id, row in rows.items()}
    for event in events:
        row = by_number.get(event.agent_id.int)
        number = event.event_id.int
        if row is not None and number in known:
            results.append(row.acknowledge(known[number], duplicate=True))
            continue
        state, verdict = fold(row, event, replay=replay)
        results.append(answer(state, event, verdict))
        if row is None or verdict.refusal is not None:
            continue
        known[number] = verdict.late
        row.opened = row.opened or verdict.opens
        logs.append(_log_row(row, event, verdict.late))
        touched[id(row)] = row
    changed = [row for row in rows.values() if id(row) in touched]
    for row in changed:
        row.updated_at = max(now, row.updated_at + TICK)
    return logs, changed, results


def _log_row(row: Row, event: ActivityEvent, late: bool) -> LogRow:
    attempt = row.attempt if event.attempt is None else event.attempt
    return LogRow(
        row.id, event.message, row.status, event.percentage, event.occurred_at_ns, row.last_seq, event.event_id,
        attempt, late,
    )  # fmt: skip
