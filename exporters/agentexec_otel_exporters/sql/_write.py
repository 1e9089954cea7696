"""The transaction: lock the activities, fold the events onto them, write logs and rows. Opens and commits nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from datetime import UTC, datetime
from typing import Any, Final, cast
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    Float,
    Insert,
    Select,
    String,
    Table,
    Update,
    bindparam,
    case,
    false,
    insert,
    literal,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite

from agentexec_otel._config import CONF
from agentexec_otel._event import ActivityEvent, Opening, Outcome, SpanRef, Status
from agentexec_otel._ids import uuid7
from agentexec_otel.activity.models import Activity, ActivityLog
from agentexec_otel.export import Ack, Ending, ExportResult, StoredActivity
from agentexec_otel_exporters.sql._clock import database_now
from agentexec_otel_exporters.sql._fold import STUB_TYPE, TICK, Row, fold, moment, nanoseconds

_ACTIVITY: Final = cast(Table, Activity.__table__)
_LOG: Final = cast(Table, ActivityLog.__table__)
_CHUNK: Final = 500
_HISTORY: Final = 100
_REAPED: Final = 100

_ROW_COLUMNS: Final = tuple(
    _ACTIVITY.c[name]
    for name in (
        "id", "agent_id", "agent_type", "created_at", "updated_at", "status", "latest_percentage", "last_seq",
        "attempt", "started_at", "metadata", "trace_context", "trace_id", "span_id", "sampled", "worker_id",
        "error_type", "reason", "input_tokens", "output_tokens", "requests",
    )
)  # fmt: skip
_SUMMARY: Final = (
    "updated_at", "status", "latest_percentage", "last_seq", "attempt", "started_at", "trace_context", "trace_id",
    "span_id", "sampled", "worker_id", "error_type", "reason", "input_tokens", "output_tokens",
    "requests",
)  # fmt: skip
_OPENING: Final = ("agent_type", "created_at", "metadata")

_LOCK: Final = (
    select(*_ROW_COLUMNS)
    .where(_ACTIVITY.c.agent_id.in_(bindparam("agent_ids", expanding=True)))
    .order_by(_ACTIVITY.c.agent_id)
    .with_for_update()
)
_STORED: Final = select(_LOG.c.event_id, _LOG.c.late).where(_LOG.c.event_id.in_(bindparam("event_ids", expanding=True)))
_INSERT_LOGS: Final = insert(_LOG)
_NOW: Final = database_now(literal(0))
_LEASE_END: Final = database_now(bindparam("lease_seconds", type_=Float))


def _by_lease(column: ColumnElement[Any], extended: ColumnElement[Any]) -> ColumnElement[Any]:
    lease = bindparam("lease", type_=String)
    return case((lease == "extend", extended), (lease == "clear", null()), else_=column)


def _update_of(names: Iterable[str]) -> Update:
    return (
        update(_ACTIVITY)
        .where(_ACTIVITY.c.id == bindparam("row_id"))
        .values(
            {
                **{name: bindparam(f"new_{name}") for name in names},
                "heartbeat_at": _by_lease(_ACTIVITY.c.heartbeat_at, _NOW),
                "lease_expires_at": _by_lease(_ACTIVITY.c.lease_expires_at, _LEASE_END),
            }
        )
    )


_UPDATE: Final = _update_of(_SUMMARY)
_UPDATE_OPENED: Final = _update_of((*_SUMMARY, *_OPENING))
_ATTACH: Final = (
    update(_ACTIVITY)
    .where(
        _ACTIVITY.c.agent_id == bindparam("of_agent"),
        _ACTIVITY.c.attempt == bindparam("of_attempt"),
        _ACTIVITY.c.span_id.is_(None),
    )
    .values(
        trace_id=bindparam("new_trace_id"),
        span_id=bindparam("new_span_id"),
        sampled=bindparam("new_sampled"),
        updated_at=_ACTIVITY.c.updated_at,
    )
)


def _insert_if_absent(dialect: str) -> Insert:
    if dialect == "postgresql":
        return postgresql.insert(_ACTIVITY).on_conflict_do_nothing(index_elements=["agent_id"])
    if dialect == "sqlite":
        return sqlite.insert(_ACTIVITY).on_conflict_do_nothing(index_elements=["agent_id"])
    # INSERT IGNORE would also hide truncation; this ignores the one conflict that is meant.
    return mysql.insert(_ACTIVITY).on_duplicate_key_update(agent_id=_ACTIVITY.c.agent_id)


_NOTHING: Final = update(_ACTIVITY).where(false()).values(updated_at=_ACTIVITY.c.updated_at)
_INSERT_ACTIVITIES: Final = {name: _insert_if_absent(name) for name in ("postgresql", "sqlite", "mysql", "mariadb")}


def join_transaction(connection: Connection) -> None:
    """Before anything is read in the caller's transaction on SQLite, which has no row locks: take the write lock.

    Its driver begins a transaction only with the first statement that writes, and what was read before is not guarded.
    """
    if connection.dialect.name == "sqlite":
        connection.execute(_NOTHING)


def write_events(
    connection: Connection, events: Sequence[ActivityEvent], *, replay: bool = False
) -> list[ExportResult]:
    """Store a batch within the connection's transaction; rows are locked in the order of ``agent_id``."""
    _insert_stubs(connection, [event for event in events if event.opening is not None])
    agent_ids = sorted({event.agent_id for event in events})
    rows = _lock(connection, agent_ids)
    unknown = [event for event in events if event.agent_id not in rows and not event.expects_row]
    if unknown:
        _insert_stubs(connection, unknown)
        rows = _lock(connection, agent_ids)
    stored = _stored(connection, events) if replay else dict[UUID, bool]()
    logs, changed, results = fold(rows, events, stored, datetime.now(UTC), replay=replay)
    if logs:
        connection.execute(_INSERT_LOGS, logs)
        _update(connection, changed)
    return results


def _insert_stubs(connection: Connection, events: Iterable[ActivityEvent]) -> None:
    first = {event.agent_id: event for event in reversed(list(events))}
    if not first:
        return
    rows = [
        {
            "id": uuid7(),
            "agent_id": agent_id,
            "agent_type": STUB_TYPE,
            "created_at": moment(first[agent_id].occurred_at_ns),
            "updated_at": moment(first[agent_id].occurred_at_ns),
            "status": Status.QUEUED,
        }
        for agent_id in sorted(first)
    ]
    connection.execute(_INSERT_ACTIVITIES[connection.dialect.name], rows)


def _lock(connection: Connection, agent_ids: Sequence[UUID]) -> dict[UUID, Row]:
    found = connection.execute(_LOCK, {"agent_ids": agent_ids})
    return {values.agent_id: Row(*values) for values in found}


def _stored(connection: Connection, events: Sequence[ActivityEvent]) -> Mapping[UUID, bool]:
    found = connection.execute(_STORED, {"event_ids": [event.event_id for event in events]})
    return {row.event_id: row.late for row in found}


def _update(connection: Connection, changed: Sequence[Row]) -> None:
    for statement, names, rows in (
        (_UPDATE, _SUMMARY, [row for row in changed if not row.opened]),
        (_UPDATE_OPENED, (*_SUMMARY, *_OPENING), [row for row in changed if row.opened]),
    ):
        if rows:
            connection.execute(
                statement,
                [
                    {
                        "row_id": row.id,
                        "lease": row.lease,
                        "lease_seconds": CONF.lease_seconds,
                        **{f"new_{name}": getattr(row, name) for name in names},
                    }
                    for row in rows
                ],
            )


def read_activity(connection: Connection, agent_id: UUID) -> StoredActivity | None:
    """An activity as its row has it, with the lines of its current attempt where no span holds them yet."""
    values = connection.execute(select(*_ROW_COLUMNS).where(_ACTIVITY.c.agent_id == agent_id)).first()
    if values is None:
        return None
    row = Row(*values)
    history = () if row.span_id is not None else _history(connection, {row.id: row}).get(row.id, ())
    return _stored_activity(row, history)


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
        select(_ACTIVITY.c.agent_id, _ACTIVITY.c.span_id).where(_ACTIVITY.c.agent_id.in_(list(offered)))
    )
    return {agent_id for agent_id, span_id in named if offered[agent_id] == span_id}


def end_chunk(connection: Connection, criteria: Sequence[Any], ending: Ending) -> list[StoredActivity]:
    """End up to 500 that are QUEUED or RUNNING and meet the criteria; the changed ones as they were before."""
    active = _ACTIVITY.c.status.in_([Status.QUEUED, Status.RUNNING])
    candidates = select(*_ROW_COLUMNS).where(active, *criteria).order_by(_ACTIVITY.c.id).limit(_CHUNK)
    return _end(connection, candidates.with_for_update(), ending)


def reap_chunk(connection: Connection, ending: Ending) -> list[StoredActivity]:
    """End up to 100 that are RUNNING behind an expired lease. Several reapers share the work."""
    expired = select(*_ROW_COLUMNS).where(_ACTIVITY.c.status == Status.RUNNING, _ACTIVITY.c.lease_expires_at < _NOW)
    candidates = expired.order_by(_ACTIVITY.c.id).limit(_REAPED)
    return _end(connection, candidates.with_for_update(skip_locked=True), ending)


def _end(connection: Connection, candidates: Select[*tuple[Any, ...]], ending: Ending) -> list[StoredActivity]:
    rows = [Row(*values) for values in connection.execute(candidates)]
    if not rows:
        return []
    histories = _history(connection, {row.id: row for row in rows if row.span_id is None})
    now = datetime.now(UTC)
    connection.execute(_INSERT_LOGS, [_ending_log(row, ending, now) for row in rows])
    _end_rows(connection, [row.id for row in rows if row.updated_at < now], ending, now)
    for row in rows:  # Written by a host whose clock is ahead of ours.
        if row.updated_at >= now:
            _end_rows(connection, [row.id], ending, row.updated_at + TICK)
    return [_stored_activity(row, histories.get(row.id, ())) for row in rows]


def _end_rows(connection: Connection, ids: Sequence[UUID], ending: Ending, updated_at: datetime) -> None:
    if not ids:
        return
    connection.execute(
        update(_ACTIVITY)
        .where(_ACTIVITY.c.id.in_(ids))
        .values(
            status=ending.status,
            reason=ending.outcome.reason,
            error_type=ending.outcome.error_type,
            last_seq=_ACTIVITY.c.last_seq + 1,
            lease_expires_at=None,
            updated_at=updated_at,
        )
    )


def _ending_log(row: Row, ending: Ending, now: datetime) -> dict[str, Any]:
    return {
        "activity_id": row.id,
        "message": ending.message,
        "status": ending.status,
        "percentage": None,
        "created_at": now,
        "seq": row.last_seq + 1,
        "event_id": uuid7(),
        "attempt": row.attempt,
        "late": False,
    }


def heartbeat(
    connection: Connection, worker_id: str, agent_ids: Sequence[UUID], owned: Set[UUID] = frozenset()
) -> dict[UUID, Ack]:
    """Extend the leases of what this worker runs; where each of these activities stands.

    Those that it owns become its own again where another worker has reported meanwhile.
    """
    mine = or_(_ACTIVITY.c.worker_id == worker_id, _ACTIVITY.c.agent_id.in_(sorted(owned)))
    # Locked in the order in which batches lock.
    running = select(_ACTIVITY.c.agent_id).where(
        _ACTIVITY.c.agent_id.in_(agent_ids), _ACTIVITY.c.status == Status.RUNNING, mine
    )
    locked = connection.scalars(running.order_by(_ACTIVITY.c.agent_id).with_for_update()).all()
    if locked:
        connection.execute(
            update(_ACTIVITY)
            .where(_ACTIVITY.c.agent_id.in_(locked))
            .values(
                worker_id=worker_id,
                heartbeat_at=_NOW,
                lease_expires_at=_LEASE_END,
                updated_at=_ACTIVITY.c.updated_at,
            ),
            {"lease_seconds": CONF.lease_seconds},
        )
    return standing(connection, agent_ids)


def standing(connection: Connection, agent_ids: Sequence[UUID]) -> dict[UUID, Ack]:
    """Where each of these activities stands."""
    found = connection.execute(
        select(
            _ACTIVITY.c.agent_id,
            _ACTIVITY.c.status,
            _ACTIVITY.c.attempt,
            _ACTIVITY.c.span_id,
            _ACTIVITY.c.error_type,
            _ACTIVITY.c.reason,
        ).where(_ACTIVITY.c.agent_id.in_(agent_ids))
    )
    return {
        agent_id: Ack(status, attempt, late=status.terminal, span_id=span_id, outcome=Outcome(error_type, reason))
        for agent_id, status, attempt, span_id, error_type, reason in found
    }


def release(connection: Connection, worker_id: str, agent_ids: Sequence[UUID]) -> None:
    """This worker goes in good order: what it leaves RUNNING is not lost."""
    connection.execute(
        update(_ACTIVITY)
        .where(_ACTIVITY.c.agent_id.in_(agent_ids), _ACTIVITY.c.worker_id == worker_id)
        .values(lease_expires_at=None, updated_at=_ACTIVITY.c.updated_at)
    )


def _history(connection: Connection, rows: Mapping[UUID, Row]) -> dict[UUID, tuple[ActivityEvent, ...]]:
    if not rows:
        return {}
    found = connection.execute(
        select(_LOG.c.activity_id, _LOG.c.event_id, _LOG.c.status, _LOG.c.message, _LOG.c.percentage,
               _LOG.c.created_at, _LOG.c.attempt)
        .join(_ACTIVITY, _ACTIVITY.c.id == _LOG.c.activity_id)
        .where(_LOG.c.activity_id.in_(list(rows)), _LOG.c.seq > _ACTIVITY.c.last_seq - _HISTORY)
        .order_by(_LOG.c.activity_id, _LOG.c.seq)
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
    return StoredActivity(row.agent_id, opening, row.status, row.attempt, nanoseconds(row.created_at), span, history)
