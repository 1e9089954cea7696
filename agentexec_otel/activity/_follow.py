"""Follow an activity: its logs in order, each after its commit, until it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from sqlalchemy.orm import Session

from agentexec_otel._model.ids import parse_agent_id
from agentexec_otel._model.text import describe, is_a
from agentexec_otel.activity._filters import metadata_criteria
from agentexec_otel.activity._query import Tail, checked_seq, tail
from agentexec_otel.activity._sessions import async_session_factory, session_factory
from agentexec_otel.activity.schemas import ActivityLogSchema

if TYPE_CHECKING:
    # Its module cannot be imported without greenlet, which synchronous applications need not have.
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
    from sqlalchemy.orm import sessionmaker

_SHORTEST: Final = 0.02
_LONGEST: Final = 1.0


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
    return _follow(session_factory(source), _Poll(agent_id, after_seq, metadata_filter), _checked_timeout(timeout))


def follow_async(
    source: AsyncEngine | async_sessionmaker[AsyncSession],
    agent_id: UUID | str,
    *,
    after_seq: int = 0,
    metadata_filter: Mapping[str, Any] | None = None,
    timeout: float | None = None,
) -> AsyncGenerator[ActivityLogSchema]:
    """Iterate as `ax.activity.follow` does, for asyncio: over an AsyncEngine or an async_sessionmaker."""
    poll = _Poll(agent_id, after_seq, metadata_filter)
    return _follow_async(async_session_factory(source), poll, _checked_timeout(timeout))


class Pace:
    """When to poll again: soon after news, otherwise twice as late each time, up to a second.

    Args:
        timeout: Seconds from now until `pause` raises TimeoutError. None: it does not.
        clock: Monotonic time in seconds.
    """

    def __init__(self, timeout: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout = timeout
        self._clock = clock
        self._began = clock()
        self._next = _SHORTEST

    def pause(self, *, news: bool) -> float:
        """Return how many seconds to sleep before the next poll. Raises TimeoutError if no time is left."""
        pause = _SHORTEST if news else self._next
        self._next = min(2 * pause, _LONGEST)
        if self._timeout is None:
            return pause
        left = self._began + self._timeout - self._clock()
        if left <= 0:
            raise TimeoutError(f"the activity has not ended within {self._timeout:g} s")
        return min(pause, left)


class _Poll:
    """Reads what comes after the logs that it has read before. It does not wait, so that both loops can use it."""

    def __init__(self, agent_id: UUID | str, after_seq: int, metadata_filter: Mapping[str, Any] | None) -> None:
        self._agent_id = parse_agent_id(agent_id)
        self._seq = checked_seq(after_seq)
        self._criteria = metadata_criteria(metadata_filter)

    def __call__(self, session: Session) -> Tail:
        found = tail(session, self._agent_id, self._seq, self._criteria)
        self._seq = found.seq
        return found


def _follow(open_session: Callable[[], Session], poll: _Poll, timeout: float | None) -> Generator[ActivityLogSchema]:
    pace = Pace(timeout)
    while True:
        with open_session() as session:
            found = poll(session)
        yield from found.logs
        if found.is_last:
            return
        time.sleep(pace.pause(news=bool(found.logs)))


async def _follow_async(
    open_session: Callable[[], AsyncSession], poll: _Poll, timeout: float | None
) -> AsyncGenerator[ActivityLogSchema]:
    pace = Pace(timeout)
    while True:
        async with open_session() as session:
            found = await session.run_sync(poll)
        for log in found.logs:
            yield log
        if found.is_last:
            return
        await asyncio.sleep(pace.pause(news=bool(found.logs)))


def _checked_timeout(timeout: float | None) -> float | None:
    if timeout is None or ((is_a(timeout, int) or is_a(timeout, float)) and timeout >= 0):
        return timeout
    raise ValueError(f"timeout is {describe(timeout)}: pass seconds, 0 or more, or None to wait for the end")
