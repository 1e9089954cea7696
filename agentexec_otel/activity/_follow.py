"""Follow an activity: its logs in order, each after its commit, until it ends."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy.orm import Session

from agentexec_otel._model.ids import parse_agent_id
from agentexec_otel.activity._filters import metadata_criteria
from agentexec_otel.activity._polling import Found, Waiter, checked_timeout, iterate, iterate_async
from agentexec_otel.activity._query import checked_seq, tail
from agentexec_otel.activity._sessions import async_session_factory, session_factory
from agentexec_otel.activity.schemas import ActivityLogSchema

if TYPE_CHECKING:
    # Its module cannot be imported without greenlet, which synchronous applications need not have.
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
    from sqlalchemy.orm import sessionmaker


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

    Polls again 20 ms after news, and at most 1 s later without. Between polls it holds no session, connection or
    transaction. An error of the database is raised as it is; call again with the last ``seq``.

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


class _Reader:
    """Reads what comes after the logs that it has read before. It does not wait, so that both loops can use it."""

    missed = "the activity has not ended"

    def __init__(self, agent_id: UUID | str, after_seq: int, metadata_filter: Mapping[str, Any] | None) -> None:
        self._agent_id = parse_agent_id(agent_id)
        self._seq = checked_seq(after_seq)
        self._criteria = metadata_criteria(metadata_filter)

    def read(self, session: Session) -> Found[ActivityLogSchema]:
        """The next logs."""
        found = tail(session, self._agent_id, self._seq, self._criteria)
        self._seq = found.seq
        return Found(found.logs, is_last=found.is_last)

    def waiter(self) -> Waiter:
        """What waits for the next logs."""
        return Waiter(self._agent_id, self._seq)
