"""Ends many activities at once, each with one log. Opens and commits no transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    BindParameter,
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
from sqlalchemy.sql.dml import Insert, ReturningUpdate

from agentexec_otel._model.event import ACTIVE, Status
from agentexec_otel._model.fold import TICK, nanoseconds
from agentexec_otel._model.ids import uuid7
from agentexec_otel._model.results import EndedActivity, Ending
from agentexec_otel.activity.models import UtcDateTime
from agentexec_otel_exporters.sql.write.statements import ACTIVITY, LOG, database_now
from agentexec_otel_exporters.sql.write.transaction import notify_followers

CHUNK: Final = 2_000
CHUNK_LOST: Final = 100
"""Most rows that one transaction ends, so that no lock is held for long."""

_ACTIVE: Final = ACTIVITY.c.status.in_(ACTIVE)
_Candidate = tuple[UUID, UUID, int, int]
_CANDIDATES: Final[Select[*_Candidate]] = select(
    ACTIVITY.c.id, ACTIVITY.c.agent_id, ACTIVITY.c.last_seq, ACTIVITY.c.attempt
).order_by(ACTIVITY.c.agent_id)
"""The rows to end, in the order in which batches lock."""
_MOMENT: Final = bindparam("new_updated_at", type_=UtcDateTime)
_ENDED: Final[dict[str, Any]] = {
    **{name: bindparam(f"new_{name}") for name in ("status", "reason", "error_type")},
    "last_seq": ACTIVITY.c.last_seq + 1,
    "ended_at": bindparam("new_ended_at", type_=UtcDateTime),
    "lease_expires_at": null(),
    "waiting": null(),
}
_IDS: Final[BindParameter[Any]] = bindparam("ids", expanding=True)
_BY_IDS: Final = (
    update(ACTIVITY)
    .where(ACTIVITY.c.id.in_(_IDS), ACTIVITY.c.updated_at < _MOMENT)
    .values(_ENDED | {"updated_at": _MOMENT})
)
"""End these rows, except those whose ``updated_at`` is ahead of our clock."""


def end_chunk(connection: Connection, criteria: Sequence[Any], ending: Ending) -> list[EndedActivity]:
    """End up to 2,000 activities that are QUEUED or RUNNING and meet the criteria; see `SessionStore.end_where`."""
    candidates = _CANDIDATES.where(_ACTIVE, *criteria).limit(CHUNK)
    return _end(connection, candidates.with_for_update(), ending)


def end_lost_chunk(connection: Connection, ending: Ending) -> list[EndedActivity]:
    """End up to 100 activities that are RUNNING with an expired lease. Concurrent callers share the work."""
    expired = ACTIVITY.c.lease_expires_at < database_now(literal(0))
    # A run that waits has no lease, unless a worker of an earlier version has extended it.
    candidates = _CANDIDATES.where(ACTIVITY.c.status == Status.RUNNING, expired, ACTIVITY.c.waiting.is_(None)).limit(
        CHUNK_LOST
    )
    return _end(connection, candidates.with_for_update(skip_locked=True), ending)


def _end(connection: Connection, candidates: Select[*_Candidate], ending: Ending) -> list[EndedActivity]:
    now, base = datetime.now(UTC), uuid7().hex[:-5]
    values = {
        "new_status": ending.status,
        "new_reason": ending.outcome.reason,
        "new_error_type": ending.outcome.error_type,
        "new_updated_at": now,
        "new_ended_at": now,
    }
    logs = {"new_message": ending.message, "new_event_id": base}
    if connection.dialect.name == "postgresql":
        # Fetched at once: SQLAlchemy iterates with fetchone(), which costs psycopg a microsecond and a half per row.
        ended = [tuple(row) for row in connection.execute(_in_one(candidates), values | logs).all()]
    else:
        rows = connection.execute(candidates).all()
        if rows:
            _end_rows(connection, [row_id for row_id, *_ in rows], values, logs)
        ended = [(agent_id, attempt, _FIRST_NUMBER + at) for at, (_, agent_id, _, attempt) in enumerate(rows, 1)]
    if ended:
        notify_followers(connection)
    moment_ns = nanoseconds(now)
    return [EndedActivity(agent_id, attempt, UUID(f"{base}{number}"), moment_ns) for agent_id, attempt, number in ended]


def _end_rows(connection: Connection, ids: Sequence[UUID], values: Mapping[str, Any], logs: Mapping[str, Any]) -> None:
    connection.execute(_LOGS_BY_IDS, {"ids": ids, **values, **logs})
    if connection.execute(_BY_IDS, {"ids": ids, **values}).rowcount < len(ids):
        # The others were written by a host whose clock is ahead of ours.
        ahead = select(ACTIVITY.c.id, ACTIVITY.c.updated_at).where(ACTIVITY.c.id.in_(_IDS), _ACTIVE)
        for row_id, updated_at in connection.execute(ahead, {"ids": ids}).all():
            connection.execute(_BY_IDS, {"ids": [row_id], **values, "new_updated_at": updated_at + TICK})


# -- logs that the database makes ---------------------------------------------------------------------------------

_FIRST_NUMBER: Final = 10_000  # so that all have five digits


def _numbered(rows: FromClause) -> Select[*tuple[Any, ...]]:
    """These rows, numbered in the order of ``agent_id``: the number completes the id of the log."""
    number = func.row_number().over(order_by=rows.c.agent_id) + _FIRST_NUMBER
    return select(rows.c.id, rows.c.last_seq, rows.c.attempt, number.label("number"))


def _logs_of(numbered: FromClause, as_uuid: Any = type_coerce) -> Insert:
    """Insert a log for each of these rows; their ids are one time-ordered UUID, except for the number at its end."""
    event_id = bindparam("new_event_id", type_=Text).concat(sql_cast(numbered.c.number, Text))
    log = {
        "activity_id": numbered.c.id,
        "message": bindparam("new_message", type_=Text),
        "status": bindparam("new_status", type_=LOG.c.status.type),
        "created_at": _MOMENT,
        "seq": numbered.c.last_seq + 1,
        "event_id": as_uuid(event_id, Uuid),
        "attempt": numbered.c.attempt,
        "late": false(),
    }
    return insert(LOG).from_select(list(log), select(*log.values()), include_defaults=False)


_LOGS_BY_IDS: Final = _logs_of(_numbered(select(ACTIVITY).where(ACTIVITY.c.id.in_(_IDS)).subquery()).subquery())


def _in_one(candidates: Select[*_Candidate]) -> ReturningUpdate[Any, Any, Any]:
    """PostgreSQL: lock the candidates, insert their logs and end them; only the answer is transferred."""
    ended = _numbered(candidates.cte("locked")).cte("ended")
    moment = func.greatest(_MOMENT, ACTIVITY.c.updated_at + literal(TICK))
    return (
        update(ACTIVITY)
        .where(ACTIVITY.c.id == ended.c.id)
        .values(_ENDED | {"updated_at": moment})
        .add_cte(_logs_of(ended, sql_cast).cte("logs"))
        .returning(ACTIVITY.c.agent_id, ACTIVITY.c.attempt, ended.c.number)
    )
