"""Many activities ended at once, each with one line. Opens and commits nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    Text,
    Uuid,
    bindparam,
    false,
    func,
    insert,
    literal,
    null,
    select,
    type_coerce,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.sql.dml import Insert, ReturningUpdate, Update

from agentexec_otel._model.event import Status
from agentexec_otel._model.fold import TICK
from agentexec_otel._model.ids import uuid7
from agentexec_otel.activity.models import UtcDateTime
from agentexec_otel.export import Ending
from agentexec_otel_exporters.sql._clock import database_now
from agentexec_otel_exporters.sql._statements import ACTIVITY, LOG, among, ids_given

CHUNK: Final = 2_000
REAPED: Final = 100
"""Most rows that one call ends: no lock is held for long."""

_ACTIVE: Final = ACTIVITY.c.status.in_([Status.QUEUED, Status.RUNNING])
_Candidate = tuple[UUID, UUID, int, int]
_CANDIDATES: Final[Select[*_Candidate]] = select(
    ACTIVITY.c.id, ACTIVITY.c.agent_id, ACTIVITY.c.last_seq, ACTIVITY.c.attempt
).order_by(ACTIVITY.c.agent_id)
"""What may be ended: no more than that takes; locked in the order in which batches lock."""
_MOMENT: Final = bindparam("new_updated_at", type_=UtcDateTime)
_ENDED: Final[dict[str, Any]] = {
    **{name: bindparam(f"new_{name}") for name in ("status", "reason", "error_type")},
    "last_seq": ACTIVITY.c.last_seq + 1,
    "lease_expires_at": null(),
}


def end_chunk(connection: Connection, criteria: Sequence[Any], ending: Ending) -> list[tuple[UUID, int]]:
    """End up to 2,000 that are QUEUED or RUNNING and meet the criteria; see `ActivityStore.end_where`."""
    candidates = _CANDIDATES.where(_ACTIVE, *criteria).limit(CHUNK)
    return _end(connection, candidates.with_for_update(), ending)


def reap_chunk(connection: Connection, ending: Ending) -> list[tuple[UUID, int]]:
    """End up to 100 that are RUNNING behind an expired lease. Several reapers share the work."""
    expired = ACTIVITY.c.lease_expires_at < database_now(literal(0))
    candidates = _CANDIDATES.where(ACTIVITY.c.status == Status.RUNNING, expired).limit(REAPED)
    return _end(connection, candidates.with_for_update(skip_locked=True), ending)


def _end(connection: Connection, candidates: Select[*_Candidate], ending: Ending) -> list[tuple[UUID, int]]:
    now = datetime.now(UTC)
    given = _given(ending, now)
    if connection.dialect.name == "postgresql":
        # Fetched at once: SQLAlchemy iterates by fetchone(), which takes psycopg a microsecond and a half each.
        ended = connection.execute(_in_one(candidates), given | _given_lines(ending)).all()
        return [(agent_id, attempt) for agent_id, attempt in ended]
    rows = connection.execute(candidates).all()
    if not rows:
        return []
    ids = [row_id for row_id, _, _, _ in rows]
    dialect = connection.dialect.name
    connection.execute(_lines_by_ids(dialect), given | _given_lines(ending) | {"ids": ids_given(dialect, ids)})
    if _end_rows(connection, ids, given) < len(ids):
        # The others were written by a host whose clock is ahead of ours.
        ahead = select(ACTIVITY.c.id, ACTIVITY.c.updated_at).where(ACTIVITY.c.id.in_(ids), _ACTIVE)
        for row_id, updated_at in connection.execute(ahead).all():
            _end_rows(connection, [row_id], given | {"new_updated_at": updated_at + TICK})
    return [(agent_id, attempt) for _, agent_id, _, attempt in rows]


def _given(ending: Ending, now: datetime) -> dict[str, Any]:
    return {
        "new_status": ending.status,
        "new_reason": ending.outcome.reason,
        "new_error_type": ending.outcome.error_type,
        "new_updated_at": now,
    }


def _end_rows(connection: Connection, ids: Sequence[UUID], given: Mapping[str, Any]) -> int:
    dialect = connection.dialect.name
    return connection.execute(_by_ids(dialect), {"ids": ids_given(dialect, ids), **given}).rowcount


@cache
def _by_ids(dialect: str) -> Update:
    """End the rows of those ``ids``, except those that are ahead in time."""
    wanted = among(ACTIVITY.c.id, "ids", dialect)
    return update(ACTIVITY).where(wanted, ACTIVITY.c.updated_at < _MOMENT).values(_ENDED | {"updated_at": _MOMENT})


# -- lines, which the database makes by itself --------------------------------------------------------------------

_FIRST_NUMBER: Final = 10_000  # so that all have five digits


def _given_lines(ending: Ending) -> dict[str, Any]:
    return {"new_message": ending.message, "new_event_id": uuid7().hex[:-5]}


def _lines_of(rows: FromClause, as_uuid: Callable[..., ColumnElement[UUID]] = type_coerce) -> Insert:
    """Insert a line for each of these rows; their ids are one time-ordered UUID, but for the number at its end."""
    number = func.row_number().over() + _FIRST_NUMBER
    numbered = select(rows.c.id, rows.c.last_seq, rows.c.attempt, number.label("number")).subquery()
    event_id = bindparam("new_event_id", type_=Text).concat(sql_cast(numbered.c.number, Text))
    line = {
        "activity_id": numbered.c.id,
        "message": bindparam("new_message", type_=Text),
        "status": bindparam("new_status", type_=LOG.c.status.type),
        "created_at": _MOMENT,
        "seq": numbered.c.last_seq + 1,
        "event_id": as_uuid(event_id, Uuid),
        "attempt": numbered.c.attempt,
        "late": false(),
    }
    return insert(LOG).from_select(list(line), select(*line.values()), include_defaults=False)


@cache
def _lines_by_ids(dialect: str) -> Insert:
    return _lines_of(select(ACTIVITY).where(among(ACTIVITY.c.id, "ids", dialect)).subquery())


def _in_one(candidates: Select[*_Candidate]) -> ReturningUpdate[Any, Any]:
    """PostgreSQL: lock the candidates, insert their lines and end them; no row travels but for the answer."""
    ended = candidates.cte("ended")
    moment = func.greatest(_MOMENT, ACTIVITY.c.updated_at + literal(TICK))
    return (
        update(ACTIVITY)
        .where(ACTIVITY.c.id == ended.c.id)
        .values(_ENDED | {"updated_at": moment})
        .add_cte(_lines_of(ended, sql_cast).cte("lines"))
        .returning(ACTIVITY.c.agent_id, ACTIVITY.c.attempt)
    )
