"""The transaction of a batch: lock the rows, apply the events, write logs and rows. Commits nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from operator import attrgetter
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, TwoPhaseTransaction, bindparam, delete, false, select, update

from agentexec_otel._config import CONF
from agentexec_otel._model.event import ActivityEvent
from agentexec_otel._model.fold import answer, fold, moment, must_exist
from agentexec_otel._model.ids import uuid7
from agentexec_otel._model.results import ExportResult, Reject
from agentexec_otel.activity.models import CHANNEL
from agentexec_otel_exporters.sql.write.batch import Row, apply_events
from agentexec_otel_exporters.sql.write.bulk import insert_logs, insert_rows, insert_stubs, lock_rows, update_rows
from agentexec_otel_exporters.sql.write.statements import ACTIVITY, LOG

_STORED: Final = select(LOG.c.event_id, LOG.c.late).where(LOG.c.event_id.in_(bindparam("event_ids", expanding=True)))
_NOTHING: Final = update(ACTIVITY).where(false()).values(updated_at=ACTIVITY.c.updated_at)
_DELETE_LOG: Final = delete(LOG).where(
    LOG.c.activity_id == bindparam("of_row"), LOG.c.event_id == bindparam("of_event")
)
_DELETE_ROW: Final = delete(ACTIVITY).where(ACTIVITY.c.id == bindparam("of_row"))
_NOTIFY: Final = f'NOTIFY "{CHANNEL}"'


def join_transaction(connection: Connection) -> None:
    """On SQLite, take the write lock before anything is read in the caller's transaction.

    SQLite has no row locks, and its driver begins a transaction only with the first statement that writes.
    """
    if connection.dialect.name == "sqlite":
        connection.execute(_NOTHING)


def notify_followers(connection: Connection) -> None:
    """Notify the followers when the transaction is committed, if that is wanted and the database can.

    PostgreSQL sends equal notifications of one transaction once, and refuses to prepare a transaction that has any.
    """
    if not CONF.notify or connection.dialect.name != "postgresql":
        return
    if not isinstance(connection.get_transaction(), TwoPhaseTransaction):
        connection.exec_driver_sql(_NOTIFY)


def write_events(
    connection: Connection, events: Sequence[ActivityEvent], *, replay: bool = False, new: bool = False
) -> list[ExportResult]:
    """Store a batch within the connection's transaction; rows are locked in the order of ``agent_id``.

    Args:
        new: Assume that activities that are opened here do not exist, which saves most of the work. If one does,
            SQLAlchemy's IntegrityError is raised.
    """
    results: list[ExportResult] = []
    for withdraws, part in groupby(events, attrgetter("withdraws")):
        given = list(part)
        results += _withdraw(connection, given) if withdraws else _store(connection, given, replay=replay, new=new)
    return results


def _store(connection: Connection, events: Sequence[ActivityEvent], *, replay: bool, new: bool) -> list[ExportResult]:
    opening = {event.agent_id for event in events if event.opening is not None}
    opened = _stubs(event for event in events if event.agent_id in opening) if opening else {}
    fresh = opened if new else {}
    if opened and not new:
        insert_stubs(connection, list(opened.values()))
    agent_ids = _sorted({event.agent_id for event in events} - fresh.keys())
    rows = lock_rows(connection, agent_ids) if agent_ids else {}
    if len(rows) < len(agent_ids):
        absent = _stubs(event for event in events if not must_exist(event) and event.agent_id not in rows | fresh)
        if absent:
            insert_stubs(connection, list(absent.values()))
            rows = lock_rows(connection, agent_ids)
    stored = _stored(connection, events) if replay else dict[UUID, bool]()
    logs, changed, results = apply_events(rows | fresh, events, stored, datetime.now(UTC), replay=replay)
    if logs:
        insert_rows(connection, [row for row in changed if row.agent_id in fresh])
        insert_logs(connection, logs)
        update_rows(connection, [row for row in changed if row.agent_id not in fresh])
        notify_followers(connection)
    return results if replay else _without_duplicates(connection, rows, events, results)


def _without_duplicates(
    connection: Connection, rows: Mapping[UUID, Row], events: Sequence[ActivityEvent], results: list[ExportResult]
) -> list[ExportResult]:
    """Acknowledge refused events that are stored already: an insert would have failed for any other duplicate."""
    refused = [at for at, result in enumerate(results) if isinstance(result, Reject) and events[at].agent_id in rows]
    stored = _stored(connection, [events[at] for at in refused]) if refused else dict[UUID, bool]()
    for at in refused:
        late = stored.get(events[at].event_id)
        if late is not None:
            results[at] = rows[events[at].agent_id].acknowledge(late, duplicate=True)
    return results


def _withdraw(connection: Connection, events: Sequence[ActivityEvent]) -> list[ExportResult]:
    """Delete the activities whose only log is the withdrawn event."""
    stubs = _stubs(events)
    if connection.dialect.name == "postgresql":
        # Only an INSERT waits for a transaction that is about to commit the same activity.
        with connection.begin_nested() as savepoint:
            insert_stubs(connection, list(stubs.values()))
            savepoint.rollback()
    rows = lock_rows(connection, list(stubs))
    results: list[ExportResult] = []
    for event in events:
        row = rows.get(event.agent_id)
        state, verdict = fold(row, event)
        if row is not None and state is None:
            if connection.execute(_DELETE_LOG, {"of_row": row.id, "of_event": event.event_id}).rowcount:
                connection.execute(_DELETE_ROW, {"of_row": row.id})
                del rows[event.agent_id]
            else:
                state = row
        results.append(answer(state, event, verdict))
    return results


def _stubs(events: Iterable[ActivityEvent]) -> dict[UUID, Row]:
    """A new row for each activity, in the order of ``agent_id``, before anything was applied to it."""
    first: dict[UUID, ActivityEvent] = {}
    for event in events:
        first.setdefault(event.agent_id, event)
    stubs: dict[UUID, Row] = {}
    for agent_id in _sorted(first):
        occurred_at_ns = first[agent_id].occurred_at_ns
        stubs[agent_id] = Row.unopened(agent_id, occurred_at_ns, uuid7(), moment(occurred_at_ns))
    return stubs


def _sorted(ids: Iterable[UUID]) -> list[UUID]:
    # By their numbers: UUIDs are slow to compare.
    return sorted(ids, key=attrgetter("int"))


def _stored(connection: Connection, events: Sequence[ActivityEvent]) -> Mapping[UUID, bool]:
    found = connection.execute(_STORED, {"event_ids": [event.event_id for event in events]})
    return {row.event_id: row.late for row in found}
