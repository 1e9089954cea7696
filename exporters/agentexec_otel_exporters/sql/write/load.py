"""Loads activities from their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, bindparam, func, select

from agentexec_otel._model.event import ACTIVE, ActivityEvent, Opening, Outcome, SpanRef, Status
from agentexec_otel._model.fold import nanoseconds
from agentexec_otel._model.results import ActiveCount, StoredActivity
from agentexec_otel_exporters.sql.write.batch import Row
from agentexec_otel_exporters.sql.write.statements import ACTIVITY, LOG, READ

_MOST_LOGS: Final = 100

_LATEST: Final = (
    select(LOG.c.activity_id, LOG.c.message)
    .join(ACTIVITY, ACTIVITY.c.id == LOG.c.activity_id)
    .where(LOG.c.activity_id.in_(bindparam("ids", expanding=True)), LOG.c.seq > ACTIVITY.c.last_seq - _MOST_LOGS)
)
_LOGS: Final = _LATEST.add_columns(
    LOG.c.event_id, LOG.c.status, LOG.c.percentage, LOG.c.created_at, LOG.c.attempt
).order_by(LOG.c.activity_id, LOG.c.seq)
_FAILURES: Final = _LATEST.where(
    LOG.c.attempt == ACTIVITY.c.attempt, LOG.c.status == Status.ERROR, LOG.c.late.is_(False)
)
_ACTIVE_COUNTS: Final = (
    select(ACTIVITY.c.agent_type, ACTIVITY.c.status, func.count(), func.count(ACTIVITY.c.waiting))
    .where(ACTIVITY.c.status.in_(ACTIVE))
    .group_by(ACTIVITY.c.agent_type, ACTIVITY.c.status)
    .order_by(func.count().desc())
)


def count_active(connection: Connection) -> list[ActiveCount]:
    """Count what is QUEUED or RUNNING by type and status, the most frequent first."""
    return [ActiveCount(*values) for values in connection.execute(_ACTIVE_COUNTS).all()]


def find_activities(connection: Connection, criteria: Sequence[Any], most: int) -> list[UUID]:
    """The ``agent_id`` of up to `most` activities that meet the criteria, in its order."""
    found = select(ACTIVITY.c.agent_id).where(*criteria).order_by(ACTIVITY.c.agent_id).limit(most)
    return list(connection.scalars(found))


def load_activities(
    connection: Connection, agent_ids: Sequence[UUID], *, history: bool = True
) -> dict[UUID, StoredActivity]:
    """Those activities that exist; see `ActivityStore.load`."""
    rows = [Row(*values) for values in connection.execute(READ, {"agent_ids": agent_ids}).all()]
    without_span = {row.id: row for row in rows if row.span_id is None} if history else {}
    histories = _histories(connection, without_span)
    failures = _failures(connection, [row.id for row in rows if row.status is Status.ERROR]) if history else {}
    return {row.agent_id: _stored_activity(row, histories.get(row.id, ()), failures.get(row.id)) for row in rows}


def _failures(connection: Connection, ids: Sequence[UUID]) -> dict[UUID, str]:
    """The message of the log that has ended each row's attempt as ERROR."""
    if not ids:
        return {}
    return {row.activity_id: row.message for row in connection.execute(_FAILURES, {"ids": ids})}


def _histories(connection: Connection, rows: Mapping[UUID, Row]) -> dict[UUID, tuple[ActivityEvent, ...]]:
    """The logs of the current attempt of each row."""
    if not rows:
        return {}
    histories: dict[UUID, list[ActivityEvent]] = {}
    for activity_id, message, event_id, status, percentage, created_at, attempt in connection.execute(
        _LOGS, {"ids": list(rows)}
    ):
        row = rows[activity_id]
        if attempt == row.attempt:
            histories.setdefault(activity_id, []).append(
                ActivityEvent(event_id, row.agent_id, status, message, percentage, nanoseconds(created_at), attempt)
            )
    return {activity_id: tuple(events) for activity_id, events in histories.items()}


def _stored_activity(row: Row, history: tuple[ActivityEvent, ...], failure: str | None) -> StoredActivity:
    span = outcome = None
    if row.trace_id is not None and row.span_id is not None:
        span = SpanRef(row.trace_id, row.span_id, bool(row.sampled))
    if row.status.terminal:
        outcome = Outcome(
            row.error_type, row.reason, row.input_tokens, row.output_tokens, row.requests, row.cached_input_tokens,
            row.reasoning_tokens, row.model,
        )  # fmt: skip
    opening = Opening(row.agent_type, row.metadata, row.trace_context)
    created_at_ns, counted = nanoseconds(row.created_at), row.requests is not None
    return StoredActivity(
        row.agent_id, opening, row.status, row.attempt, created_at_ns, span, history, counted, outcome,
        row.waiting is not None, failure, None if row.started_at is None else nanoseconds(row.started_at),
    )  # fmt: skip
