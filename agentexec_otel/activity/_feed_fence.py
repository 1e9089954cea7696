"""Which gaps in the log's ids can no longer be filled.

Ids are taken before the commit, so a transaction may commit an id that is lower than one that is visible. A gap is
closed only if no such transaction can be left:

* PostgreSQL: a transaction that has inserted into the log holds a lock on it until it ends. A fence names the holders.
* MySQL, MariaDB and standbys of PostgreSQL do not show these locks: a gap is kept for five minutes.
* SQLite has one writer at a time: ids are committed in order.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Final

from sqlalchemy import (
    BigInteger,
    Connection,
    Dialect,
    Select,
    String,
    bindparam,
    column,
    extract,
    func,
    literal,
    literal_column,
    select,
    table,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.orm import Session

from agentexec_otel.activity._criteria import ACTIVITY, LOG
from agentexec_otel.activity._feed_cursor import FeedCursor, Fence
from agentexec_otel.activity._sessions import AnySelect, connection_of, execute
from agentexec_otel.activity.models import Activity

PATIENCE: Final = timedelta(minutes=5)
"""How long a transaction may stay open where the database does not show it."""

_EVERY_ID: Final = (1 << 63) - 1
LAST_ID: Final = func.coalesce(select(func.max(LOG.c.id)).scalar_subquery(), 0)

_LOCKS: Final = table(
    "pg_locks",
    *map(column, ("locktype", "database", "relation", "mode", "granted", "virtualtransaction")),
    schema="pg_catalog",
)
_DATABASE: Final = table("pg_database", column("oid"), column("datname"), schema="pg_catalog")
_OF_LOG: Final[Select[int]] = (
    select(literal_column("tableoid", BigInteger)).select_from(LOG).order_by(LOG.c.id.desc()).limit(1)
)
"""Not by its name: a schema_translate_map may have put it elsewhere."""
_HOLDERS: Final = select(func.string_agg(_LOCKS.c.virtualtransaction, " ")).where(
    _LOCKS.c.locktype == "relation",
    _LOCKS.c.database
    == select(_DATABASE.c.oid).where(_DATABASE.c.datname == func.current_database()).scalar_subquery(),
    _LOCKS.c.relation == _OF_LOG.scalar_subquery(),
    _LOCKS.c.mode == "RowExclusiveLock",
    _LOCKS.c.granted,
)
_POSTGRESQL: Final = select(
    LAST_ID,
    sql_cast(extract("epoch", func.clock_timestamp()), BigInteger),
    func.pg_is_in_recovery(),
    _HOLDERS.scalar_subquery(),
)
_MYSQL: Final = select(LAST_ID, func.unix_timestamp(), literal(True), literal("", String))
"""The highest id, the time in seconds, whether locks are hidden, and which transactions hold one."""
_MOMENTS: Final = {"postgresql": _POSTGRESQL, "mysql": _MYSQL, "mariadb": _MYSQL}

_UNCHANGED: Final = (
    select(func.max(LOG.c.id))
    .join(ACTIVITY, ACTIVITY.c.id == LOG.c.activity_id)
    .where(LOG.c.id.between(bindparam("first_id"), bindparam("final_id")), ACTIVITY.c.updated_at < bindparam("before"))
)


@dataclass(frozen=True, slots=True)
class Moment:
    """What the database shows at one moment."""

    last: int
    seconds: int
    hidden: bool
    holders: Set[str]

    @classmethod
    def read(cls, session: Session, statement: AnySelect) -> Moment:
        last, seconds, hidden, holders = execute(session, statement).one()
        return cls(last, int(seconds), hidden, {holder.replace("/", "-") for holder in (holders or "").split()})

    @property
    def writers(self) -> tuple[str, ...]:
        """Who may commit an id up to the last one: transactions, or time."""
        return (f"t{self.seconds + int(PATIENCE.total_seconds())}",) if self.hidden else tuple(sorted(self.holders))

    def open_writers(self, writers: Sequence[str]) -> tuple[str, ...]:
        """Those of them that have not ended."""
        if self.hidden and not all(map(_is_time, writers)):
            return self.writers  # made on the primary server, whose locks a standby does not show
        return tuple(one for one in writers if one in self.holders or (_is_time(one) and int(one[1:]) > self.seconds))


class Settlement:
    """Closes gaps, for one call of the feed. Made before the session is used."""

    def __init__(self, session: Session) -> None:
        self._session = session
        bind = session.get_bind(mapper=Activity)
        self._dialect: Dialect = bind.dialect
        self._begun = bind.in_transaction() if isinstance(bind, Connection) else session.in_transaction()

    @cached_property
    def _is_fresh(self) -> bool:
        """Whether this call's statements see what was committed before the call."""
        if not self._begun:
            return True
        return connection_of(self._session).get_isolation_level().startswith("READ")

    def settled(self, cursor: FeedCursor, ids: Sequence[int]) -> int:
        """Up to which id the snapshot that shows these ids has all that will ever be there."""
        if self._dialect.name == "sqlite":
            return _EVERY_ID
        if not _has_gaps(cursor, ids) or not self._is_fresh:
            return 0
        if not ids or not (self._dialect.name in ("mysql", "mariadb") or _waits_for_time(cursor.fence)):
            return cursor.settled
        # What a transaction wrote next to these ids is old, too.
        before = datetime.now(UTC) - PATIENCE
        old = execute(self._session, _UNCHANGED, first_id=ids[0], final_id=ids[-1], before=before).scalar()
        return max(cursor.settled, old or 0)

    def fenced(self, cursor: FeedCursor) -> FeedCursor:
        """The cursor with a fence, if it needs one, and with those of its writers that have not ended."""
        statement = _MOMENTS.get(self._dialect.name)
        if statement is None or not cursor.gaps or (cursor.fence is not None and not cursor.fence.writers):
            return cursor
        moment = Moment.read(self._session, statement)
        if cursor.fence is None:
            # The last log may have been deleted.
            return replace(cursor, fence=Fence(max(moment.last, cursor.last), moment.writers))
        return replace(cursor, fence=Fence(cursor.fence.last, moment.open_writers(cursor.fence.writers)))


def _has_gaps(cursor: FeedCursor, ids: Sequence[int]) -> bool:
    behind = [one for one in ids if one > cursor.last]
    return bool(cursor.gaps) or (bool(behind) and behind[-1] - cursor.last > len(behind))


def _waits_for_time(fence: Fence | None) -> bool:
    return fence is not None and any(map(_is_time, fence.writers))


def _is_time(writer: str) -> bool:
    return writer.startswith("t")
