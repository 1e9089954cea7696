"""The transaction: lock the activities, fold the events onto them, write logs and rows. Opens and commits nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from datetime import UTC, datetime
from operator import attrgetter
from typing import Final
from uuid import UUID

from sqlalchemy import (
    Connection,
    Float,
    bindparam,
    false,
    literal,
    or_,
    select,
    update,
)

from agentexec_otel._config import CONF
from agentexec_otel._model.event import ActivityEvent, Opening, Outcome, SpanRef, Status
from agentexec_otel._model.fold import Row, behind_span, fold, nanoseconds, stub
from agentexec_otel._model.ids import uuid7
from agentexec_otel.export import Ack, ExportResult, StoredActivity
from agentexec_otel_exporters.sql._bulk import insert_lines, insert_rows, insert_stubs, lock_rows, update_rows
from agentexec_otel_exporters.sql._clock import database_now
from agentexec_otel_exporters.sql._statements import ACTIVITY, LOG, ROW_COLUMNS

_HISTORY: Final = 100

_READ: Final = select(*ROW_COLUMNS).where(ACTIVITY.c.agent_id.in_(bindparam("agent_ids", expanding=True)))
_NOW: Final = database_now(literal(0))
_LEASE_END: Final = database_now(bindparam("lease_seconds", type_=Float))
_STORED: Final = select(LOG.c.event_id, LOG.c.late).where(LOG.c.event_id.in_(bindparam("event_ids", expanding=True)))
_ATTACH: Final = (
    update(ACTIVITY)
    .where(
        ACTIVITY.c.agent_id == bindparam("of_agent"),
        ACTIVITY.c.attempt == bindparam("of_attempt"),
        ACTIVITY.c.span_id.is_(None),
    )
    .values(
        trace_id=bindparam("new_trace_id"),
        span_id=bindparam("new_span_id"),
        sampled=bindparam("new_sampled"),
        updated_at=ACTIVITY.c.updated_at,
    )
)
_DROP_SPAN: Final = (
    update(ACTIVITY)
    .where(ACTIVITY.c.id == bindparam("of_row"))
    .values(
        trace_context=bindparam("new_context"),
        trace_id=None,
        span_id=None,
        sampled=None,
        updated_at=ACTIVITY.c.updated_at,
    )
)
_NOTHING: Final = update(ACTIVITY).where(false()).values(updated_at=ACTIVITY.c.updated_at)


def join_transaction(connection: Connection) -> None:
    """Before anything is read in the caller's transaction on SQLite, which has no row locks: take the write lock.

    Its driver begins a transaction only with the first statement that writes, and what was read before is not guarded.
    """
    if connection.dialect.name == "sqlite":
        connection.execute(_NOTHING)


def write_events(
    connection: Connection, events: Sequence[ActivityEvent], *, replay: bool = False, new: bool = False
) -> list[ExportResult]:
    """Store a batch within the connection's transaction; rows are locked in the order of ``agent_id``.

    Args:
        new: Take activities that are opened here for new, which saves most of the work. Where one is not,
            SQLAlchemy's IntegrityError is raised.
    """
    opened = _stubs(event for event in events if event.opening is not None)
    fresh = opened if new else {}
    if opened and not new:
        insert_stubs(connection, list(opened.values()))
    agent_ids = _sorted({event.agent_id for event in events} - fresh.keys())
    rows = lock_rows(connection, agent_ids) if agent_ids else {}
    if len(rows) < len(agent_ids):
        absent = _stubs(event for event in events if not event.expects_row and event.agent_id not in rows | fresh)
        if absent:
            insert_stubs(connection, list(absent.values()))
            rows = lock_rows(connection, agent_ids)
    stored = _stored(connection, events) if replay else dict[UUID, bool]()
    lines, changed, results = fold(rows | fresh, events, stored, datetime.now(UTC), replay=replay)
    if lines:
        insert_rows(connection, [row for row in changed if row.agent_id in fresh])
        insert_lines(connection, lines)
        update_rows(connection, [row for row in changed if row.agent_id not in fresh])
    return results


def _stubs(events: Iterable[ActivityEvent]) -> dict[UUID, Row]:
    """A new row for each activity, in the order of ``agent_id``, before anything was applied to it."""
    first: dict[UUID, ActivityEvent] = {}
    for event in events:
        first.setdefault(event.agent_id, event)
    return {agent_id: stub(uuid7(), agent_id, first[agent_id].occurred_at_ns) for agent_id in _sorted(first)}


def _sorted(ids: Iterable[UUID]) -> list[UUID]:
    # By their numbers: UUIDs are slow to compare.
    return sorted(ids, key=attrgetter("int"))


def _stored(connection: Connection, events: Sequence[ActivityEvent]) -> Mapping[UUID, bool]:
    found = connection.execute(_STORED, {"event_ids": [event.event_id for event in events]})
    return {row.event_id: row.late for row in found}


def read_activities(connection: Connection, agent_ids: Sequence[UUID]) -> dict[UUID, StoredActivity]:
    """Activities as their rows have them, with the lines of the current attempt where no span holds them yet."""
    rows = [Row(*values) for values in connection.execute(_READ, {"agent_ids": agent_ids}).all()]
    histories = _history(connection, {row.id: row for row in rows if row.span_id is None})
    return {row.agent_id: _stored_activity(row, histories.get(row.id, ())) for row in rows}


def attach_spans(connection: Connection, spans: Sequence[tuple[UUID, int, SpanRef]]) -> set[UUID]:
    """Name spans on the rows of these attempts; the first one stays."""
    connection.execute(
        _ATTACH,
        [
            {
                "of_agent": agent_id,
                "of_attempt": attempt,
                "new_trace_id": span.trace_id,
                "new_span_id": span.span_id,
                "new_sampled": span.sampled,
            }
            for agent_id, attempt, span in sorted(spans, key=lambda one: one[0])
        ],
    )
    offered = {agent_id: span.span_id for agent_id, _, span in spans}
    named = connection.execute(
        select(ACTIVITY.c.agent_id, ACTIVITY.c.span_id).where(ACTIVITY.c.agent_id.in_(list(offered)))
    )
    return {agent_id for agent_id, span_id in named if offered[agent_id] == span_id}


def heartbeat(
    connection: Connection, worker_id: str, agent_ids: Sequence[UUID], owned: Set[UUID] = frozenset()
) -> dict[UUID, Ack]:
    """Extend the leases of what this worker runs; where each of these activities stands.

    Those that it owns become its own again where another worker has reported meanwhile.
    """
    mine = or_(ACTIVITY.c.worker_id == worker_id, ACTIVITY.c.agent_id.in_(sorted(owned)))
    # Locked in the order in which batches lock.
    running = select(ACTIVITY.c.agent_id).where(
        ACTIVITY.c.agent_id.in_(agent_ids), ACTIVITY.c.status == Status.RUNNING, mine
    )
    locked = connection.scalars(running.order_by(ACTIVITY.c.agent_id).with_for_update()).all()
    if locked:
        connection.execute(
            update(ACTIVITY)
            .where(ACTIVITY.c.agent_id.in_(locked))
            .values(
                worker_id=worker_id,
                heartbeat_at=_NOW,
                lease_expires_at=_LEASE_END,
                updated_at=ACTIVITY.c.updated_at,
            ),
            {"lease_seconds": CONF.lease_seconds},
        )
    return standing(connection, agent_ids)


def standing(connection: Connection, agent_ids: Sequence[UUID]) -> dict[UUID, Ack]:
    """Where each of these activities stands."""
    found = connection.execute(
        select(
            ACTIVITY.c.agent_id,
            ACTIVITY.c.status,
            ACTIVITY.c.attempt,
            ACTIVITY.c.span_id,
            ACTIVITY.c.error_type,
            ACTIVITY.c.reason,
        ).where(ACTIVITY.c.agent_id.in_(agent_ids))
    )
    return {
        agent_id: Ack(status, attempt, late=status.terminal, span_id=span_id, outcome=Outcome(error_type, reason))
        for agent_id, status, attempt, span_id, error_type, reason in found
    }


def release(connection: Connection, worker_id: str, agent_ids: Sequence[UUID], spans: Set[str]) -> None:
    """This worker goes in good order: what it leaves RUNNING is not lost, and may have another span."""
    left = (ACTIVITY.c.agent_id.in_(agent_ids), ACTIVITY.c.worker_id == worker_id)
    connection.execute(update(ACTIVITY).where(*left).values(lease_expires_at=None, updated_at=ACTIVITY.c.updated_at))
    if not spans:
        return
    named = (ACTIVITY.c.id, ACTIVITY.c.trace_context, ACTIVITY.c.trace_id, ACTIVITY.c.span_id, ACTIVITY.c.sampled)
    dropped = [
        {"of_row": row_id, "new_context": behind_span(context, trace_id, span_id, sampled)}
        for row_id, context, trace_id, span_id, sampled in connection.execute(
            select(*named).where(*left, ACTIVITY.c.span_id.in_(spans)).with_for_update()
        )
    ]
    if dropped:
        connection.execute(_DROP_SPAN, dropped)


def _history(connection: Connection, rows: Mapping[UUID, Row]) -> dict[UUID, tuple[ActivityEvent, ...]]:
    if not rows:
        return {}
    found = connection.execute(
        select(LOG.c.activity_id, LOG.c.event_id, LOG.c.status, LOG.c.message, LOG.c.percentage,
               LOG.c.created_at, LOG.c.attempt)
        .join(ACTIVITY, ACTIVITY.c.id == LOG.c.activity_id)
        .where(LOG.c.activity_id.in_(list(rows)), LOG.c.seq > ACTIVITY.c.last_seq - _HISTORY)
        .order_by(LOG.c.activity_id, LOG.c.seq)
    )  # fmt: skip
    histories: dict[UUID, list[ActivityEvent]] = {}
    for activity_id, event_id, status, message, percentage, created_at, attempt in found:
        row = rows[activity_id]
        if attempt == row.attempt:
            histories.setdefault(activity_id, []).append(
                ActivityEvent(event_id, row.agent_id, status, message, percentage, nanoseconds(created_at), attempt)
            )
    return {activity_id: tuple(events) for activity_id, events in histories.items()}


def _stored_activity(row: Row, history: tuple[ActivityEvent, ...]) -> StoredActivity:
    span = None
    if row.trace_id is not None and row.span_id is not None:
        span = SpanRef(row.trace_id, row.span_id, bool(row.sampled))
    opening = Opening(row.agent_type, row.metadata, row.trace_context)
    created_at_ns, counted = nanoseconds(row.created_at), row.requests is not None
    return StoredActivity(row.agent_id, opening, row.status, row.attempt, created_at_ns, span, history, counted)
