"""Follow the feed: the logs of all activities as they are committed, without an end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from typing import TYPE_CHECKING, Final, Unpack

from sqlalchemy import ColumnElement
from sqlalchemy.orm import Session

from agentexec_otel.activity._feed import ActivityFeedFilters, feed_criteria, read_page, start_of
from agentexec_otel.activity._feed_cursor import FeedCursor
from agentexec_otel.activity._polling import Found, Waiter, checked_timeout, iterate, iterate_async
from agentexec_otel.activity._sessions import async_session_factory, session_factory
from agentexec_otel.activity.schemas import ActivityFeedLogSchema

if TYPE_CHECKING:
    # Its module cannot be imported without greenlet, which synchronous applications need not have.
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
    from sqlalchemy.orm import sessionmaker

_PER_POLL: Final = 1_000


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
    return iterate(source, _Reader(after, feed_criteria(filters)), checked_timeout(timeout))


def follow_feed_async(
    source: AsyncEngine | async_sessionmaker[AsyncSession],
    after: str | None = None,
    *,
    timeout: float | None = None,
    **filters: Unpack[ActivityFeedFilters],
) -> AsyncGenerator[ActivityFeedLogSchema]:
    """Iterate as `ax.activity.follow_feed` does, for asyncio: over an AsyncEngine or an async_sessionmaker."""
    async_session_factory(source)  # raises for another kind
    return iterate_async(source, _Reader(after, feed_criteria(filters)), checked_timeout(timeout))


class _Reader:
    """Reads page after page. It does not wait, so that both loops can use it."""

    missed = "the feed has not ended"

    def __init__(self, after: str | None, criteria: Sequence[ColumnElement[bool]]) -> None:
        self._cursor: FeedCursor | None = start_of(after)
        self._criteria = criteria

    def read(self, session: Session) -> Found[ActivityFeedLogSchema]:
        """The next page."""
        page = read_page(session, self._cursor, self._criteria, _PER_POLL)
        self._cursor = page.cursor
        return Found(page.logs, has_more=page.has_more)

    def waiter(self) -> Waiter:
        """What waits for the next logs. Whether a gap is filled is only known once it is read."""
        cursor = self._cursor or FeedCursor()
        return Waiter(None, -1 if cursor.gaps else cursor.last)
