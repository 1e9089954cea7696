"""Follow an activity until it ends, or the feed without an end: logs in order, each after its commit."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Unpack
from uuid import UUID

from sqlalchemy import ColumnElement, bindparam, select
from sqlalchemy.orm import Session

from agentexec_otel._errors import ActivityNotFoundError
from agentexec_otel._model.event import ACTIVE
from agentexec_otel._model.ids import parse_agent_id
from agentexec_otel.activity._criteria import ACTIVITY, LOG
from agentexec_otel.activity._feed import ActivityFeedFilters, feed_criteria, read_page, start_of
from agentexec_otel.activity._feed_cursor import FeedCursor
from agentexec_otel.activity._filters import metadata_criteria
from agentexec_otel.activity._polling import Found, Waiter, checked_timeout, iterate, iterate_async
from agentexec_otel.activity._query import LAST_SEQ, LOG_COLUMNS, checked_seq
from agentexec_otel.activity._sessions import AnySelect, async_session_factory, execute, session_factory
from agentexec_otel.activity.schemas import ActivityFeedLogSchema, ActivityLogSchema

if TYPE_CHECKING:
    # Its module cannot be imported without greenlet, which synchronous applications need not have.
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
    from sqlalchemy.orm import sessionmaker

_MOST_PER_READ: Final = 1_000
_FOLLOWED: Final[AnySelect] = (
    select(ACTIVITY.c.status.label("activity_status"), ACTIVITY.c.last_seq, *LOG_COLUMNS)
    .select_from(ACTIVITY)
    .outerjoin(
        LOG, (LOG.c.activity_id == ACTIVITY.c.id) & LOG.c.seq.between(bindparam("first_seq"), bindparam("final_seq"))
    )
    .where(ACTIVITY.c.agent_id == bindparam("of_agent"))
    .order_by(LOG.c.seq)
)


def follow(
    source: Engine | sessionmaker[Session],
    agent_id: UUID | str,
    *,
    after_seq: int = 0,
    metadata_filter: Mapping[str, Any] | None = None,
    timeout: float | None = None,
) -> Generator[ActivityLogSchema]:
    """Iterate over the logs of an activity in the order of ``seq``, each after its commit, until the activity ends.

    The logs may come from any process. Late logs are among them, with ``late=True``. The iteration stops when a poll
    finds that the current attempt has ended, after the logs that are committed by then. If the activity is retried
    before that poll, the iteration continues with the next attempt; afterwards, call again with the last ``seq``.

    Polls again 20 ms after news, and at most 1 s later without; with `AGENTEXEC_NOTIFY` on PostgreSQL, as soon as
    there is a commit. Between polls it holds no session, connection of the pool or transaction. An error of the
    database is raised as it is; call again with the last ``seq``.

    Args:
        source: An engine, or a sessionmaker. Each poll opens a session and closes it.
        after_seq: The last ``seq`` seen. 0 for all.
        metadata_filter: Keys of the activity's metadata, and the values that they must equal.
        timeout: Seconds from the first iteration in which the activity has to end, checked between polls. None waits
            for as long as it takes.

    Raises:
        TypeError: Another kind of ``source``, at the call.
        ValueError: A malformed argument, at the call.
        ActivityNotFoundError: While iterating: there is no such activity, or its metadata does not match.
        TimeoutError: While iterating: the activity has not ended in time.
    """
    session_factory(source)  # raises for another kind
    return iterate(source, _Reader(agent_id, after_seq, metadata_filter), checked_timeout(timeout))


def follow_async(
    source: AsyncEngine | async_sessionmaker[AsyncSession],
    agent_id: UUID | str,
    *,
    after_seq: int = 0,
    metadata_filter: Mapping[str, Any] | None = None,
    timeout: float | None = None,
) -> AsyncGenerator[ActivityLogSchema]:
    """Iterate as `ax.activity.follow` does, for asyncio: over an AsyncEngine or an async_sessionmaker."""
    async_session_factory(source)  # raises for another kind
    return iterate_async(source, _Reader(agent_id, after_seq, metadata_filter), checked_timeout(timeout))


def follow_feed(
    source: Engine | sessionmaker[Session],
    after: str | None = None,
    *,
    timeout: float | None = None,
    **filters: Unpack[ActivityFeedFilters],
) -> Generator[ActivityFeedLogSchema]:
    """Iterate over the logs of all activities as `ax.activity.feed` returns them, each after its commit. It has no end.

    Polls like `ax.activity.follow`: again 20 ms after news, and at most 1 s later without. Between polls it holds no
    session, connection or transaction. An error of the database is raised as it is; call again with the last
    ``cursor``.

    Args:
        source: An engine, or a sessionmaker. Each poll opens a session and closes it.
        after: The last ``cursor`` seen. None or ``""`` starts with the oldest log, ``"now"`` with those that are
            committed after the first iteration has begun.
        timeout: Seconds from the first iteration until TimeoutError is raised, checked between polls.
        filters: See `ActivityFeedFilters`.

    Raises:
        TypeError: Another kind of ``source``, or a filter that does not exist, at the call.
        ValueError: A malformed argument, at the call.
        TimeoutError: While iterating.
    """
    session_factory(source)  # raises for another kind
    return iterate(source, _FeedReader(after, feed_criteria(filters)), checked_timeout(timeout))


def follow_feed_async(
    source: AsyncEngine | async_sessionmaker[AsyncSession],
    after: str | None = None,
    *,
    timeout: float | None = None,
    **filters: Unpack[ActivityFeedFilters],
) -> AsyncGenerator[ActivityFeedLogSchema]:
    """Iterate as `ax.activity.follow_feed` does, for asyncio: over an AsyncEngine or an async_sessionmaker."""
    async_session_factory(source)  # raises for another kind
    return iterate_async(source, _FeedReader(after, feed_criteria(filters)), checked_timeout(timeout))


# -- what the iterators read. It does not wait, so that both loops can use it --------------------------------------


class _Reader:
    """Reads what comes after the logs that it has read before."""

    missed = "the activity has not ended"

    def __init__(self, agent_id: UUID | str, after_seq: int, metadata_filter: Mapping[str, Any] | None) -> None:
        self._agent_id = parse_agent_id(agent_id)
        self._seq = checked_seq(after_seq)
        self._statement = _FOLLOWED.where(*metadata_criteria(metadata_filter))

    def read(self, session: Session) -> Found[ActivityLogSchema]:
        """The next logs, at most 1,000, with late ones. One statement: status and logs are of one moment.

        Raises:
            ActivityNotFoundError: There is no such activity, or it does not meet the criteria.
        """
        final = min(self._seq + _MOST_PER_READ, LAST_SEQ)
        # Bounded by `seq` instead of LIMIT, for which PostgreSQL would sort all the logs behind the cursor.
        place = {"first_seq": min(self._seq + 1, LAST_SEQ), "final_seq": final}
        rows = execute(session, self._statement, of_agent=self._agent_id, **place).mappings().all()
        if not rows:
            raise ActivityNotFoundError(self._agent_id)
        status, last_seq = rows[0]["activity_status"], rows[0]["last_seq"]
        self._seq = max(self._seq, min(final, last_seq))
        logs = [
            ActivityLogSchema(**{c.name: row[c.name] for c in LOG_COLUMNS}) for row in rows if row["seq"] is not None
        ]
        return Found(logs, is_last=status not in ACTIVE and last_seq <= final)

    def waiter(self, asked_at: float) -> Waiter:
        """What waits for the next logs."""
        return Waiter(self._agent_id, self._seq, asked_at)


class _FeedReader:
    """Reads page after page."""

    missed = "the feed has not ended"

    def __init__(self, after: str | None, criteria: Sequence[ColumnElement[bool]]) -> None:
        self._cursor: FeedCursor | None = start_of(after)
        self._criteria = criteria

    def read(self, session: Session) -> Found[ActivityFeedLogSchema]:
        """The next page."""
        page = read_page(session, self._cursor, self._criteria, _MOST_PER_READ)
        self._cursor = FeedCursor.parse(page.next_cursor)
        return Found(page.logs, has_more=page.has_more)

    def waiter(self, asked_at: float) -> Waiter:
        """What waits for the next logs. Whether a gap is filled is only known once it is read."""
        cursor = self._cursor or FeedCursor()
        return Waiter(None, -1 if cursor.gaps else cursor.last, asked_at)
