"""Shared polls: all iterators of a process over one source wait for the same queries.

Whichever iterator is due first asks the database on behalf of all that are due soon, in one session. Nothing is asked
for an iterator that does not wait, and there is no thread or task that outlives the waiting ones.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar
from uuid import UUID
from weakref import WeakValueDictionary

from sqlalchemy import bindparam, func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from agentexec_otel._model.event import ACTIVE, Status
from agentexec_otel._model.text import describe, is_a
from agentexec_otel.activity._criteria import ACTIVITY, LOG
from agentexec_otel.activity._execute import AnySelect, execute
from agentexec_otel.activity._sessions import async_session_factory, session_factory

if TYPE_CHECKING:
    # Its module cannot be imported without greenlet, which synchronous applications need not have.
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
    from sqlalchemy.orm import sessionmaker

_Log = TypeVar("_Log")
_Event = TypeVar("_Event", threading.Event, asyncio.Event)

_SHORTEST: Final = 0.02
_LONGEST: Final = 1.0
_MOST_PER_STATEMENT: Final = 1_000

_STATES: Final[AnySelect] = select(ACTIVITY.c.agent_id, ACTIVITY.c.status, ACTIVITY.c.last_seq).where(
    ACTIVITY.c.agent_id.in_(bindparam("agent_ids", expanding=True))
)
_LAST_ID: Final[AnySelect] = select(func.max(LOG.c.id))


@dataclass(frozen=True, slots=True)
class Found(Generic[_Log]):
    """What one poll has read.

    Attributes:
        is_last: The iteration ends behind these logs.
        has_more: The next logs can be read at once.
    """

    logs: Sequence[_Log]
    is_last: bool = False
    has_more: bool = False


class Reader(Protocol[_Log]):
    """Reads what an iterator returns.

    Attributes:
        missed: What has not happened if the time is over.
    """

    missed: str

    def read(self, session: Session) -> Found[_Log]:
        """Return what comes after that which was read before."""
        ...

    def waiter(self) -> Waiter:
        """Return what waits for more."""
        ...


def iterate(source: Engine | sessionmaker[Session], reader: Reader[_Log], timeout: float | None) -> Generator[_Log]:
    """Iterate over the logs that the reader finds, and wait in between."""
    polls = shared_polls(source)
    pace = Pace(timeout, reader.missed)
    while True:
        with polls.open_session() as session:
            found = reader.read(session)
        yield from found.logs
        if found.is_last:
            return
        pause, waiter = pace.pause(news=bool(found.logs)), reader.waiter()
        while not (found.has_more or polls.wait(waiter, pause)):
            pause = pace.pause(news=False)


async def iterate_async(
    source: AsyncEngine | async_sessionmaker[AsyncSession], reader: Reader[_Log], timeout: float | None
) -> AsyncGenerator[_Log]:
    """Iterate as `iterate` does, for asyncio."""
    polls = async_shared_polls(source)
    pace = Pace(timeout, reader.missed)
    while True:
        async with polls.open_session() as session:
            found = await session.run_sync(reader.read)
        for log in found.logs:
            yield log
        if found.is_last:
            return
        pause, waiter = pace.pause(news=bool(found.logs)), reader.waiter()
        while not (found.has_more or await polls.wait(waiter, pause)):
            pause = pace.pause(news=False)


class Pace:
    """When to poll again: soon after news, otherwise twice as late each time, up to a second.

    Args:
        timeout: Seconds from now until `pause` raises TimeoutError. None: it does not.
        missed: What has not happened then.
        clock: Monotonic time in seconds.
    """

    def __init__(self, timeout: float | None, missed: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout = timeout
        self._missed = missed
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
            raise TimeoutError(f"{self._missed} within {self._timeout:g} s")
        return min(pause, left)


def checked_timeout(timeout: float | None) -> float | None:
    """Return the timeout. Raises ValueError if it is no number of seconds."""
    if timeout is None or ((is_a(timeout, int) or is_a(timeout, float)) and timeout >= 0):
        return timeout
    raise ValueError(
        f"timeout is {describe(timeout)}: pass seconds, 0 or more, or None to wait for as long as it takes"
    )


class Waiter:
    """One iterator, from one read to the next.

    Attributes:
        agent_id: The activity that it follows. None: the feed.
        seen: The last ``seq`` that it has read, or the last id of the feed.
        news: Whether there is anything to read. None: not asked in this pause.
        poll: The poll under way that asks for it.
    """

    def __init__(self, agent_id: UUID | None, seen: int) -> None:
        self.agent_id = agent_id
        self.seen = seen
        self.news: bool | None = None
        self.poll: Any = None
        self._asked_at = time.monotonic()
        self._pause = 0.0

    def begin(self, pause: float) -> float:
        """Begin a pause, and return how many seconds of it are left: it counts from the last poll."""
        self.news, self._pause = None, pause
        return max(0.0, self._asked_at + pause - time.monotonic())

    def is_due_soon(self, now: float) -> bool:
        """Whether it can be asked for now, up to half of its pause early."""
        return self.news is None and self.poll is None and now >= self._asked_at + self._pause / 2

    def answer(self, *, news: bool) -> None:
        """Take the answer of a poll."""
        self.news, self._asked_at = news, time.monotonic()


def _ask(session: Session, waiters: Collection[Waiter]) -> None:
    """Find out who has news: one statement for all activities, and one for the feed."""
    of_activities = [waiter for waiter in waiters if waiter.agent_id is not None]
    states: dict[UUID | None, tuple[Status, int]] = {}
    for agent_ids in _chunks(list({waiter.agent_id for waiter in of_activities})):
        rows = execute(session, _STATES, agent_ids=agent_ids).all()
        states |= {agent_id: (status, last_seq) for agent_id, status, last_seq in rows}
    last_id = 0
    if len(of_activities) < len(waiters):
        last_id = execute(session, _LAST_ID).scalar() or 0
    for waiter in waiters:
        if waiter.agent_id is None:
            waiter.answer(news=last_id > waiter.seen)
        else:
            # One that is not there is news, too.
            status, last_seq = states.get(waiter.agent_id, (None, 0))
            waiter.answer(news=status not in ACTIVE or last_seq > waiter.seen)


def _chunks(ids: list[Any]) -> Iterator[list[Any]]:
    return (ids[at : at + _MOST_PER_STATEMENT] for at in range(0, len(ids), _MOST_PER_STATEMENT))


class SharedPolls:
    """The polls of threads over one source. A thread waits in `wait`; the first that is due asks for the others."""

    def __init__(self, source: Engine | sessionmaker[Session]) -> None:
        self._source = source  # its id is the key, so it has to live
        self.open_session = session_factory(source)
        self.reset()

    def reset(self) -> None:
        """In a forked child: the threads that wait are the parent's."""
        self._lock = threading.Lock()  # Guards what follows, and `poll` of the waiters.
        self._waiting: dict[Waiter, threading.Event] = {}

    def wait(self, waiter: Waiter, pause: float) -> bool:
        """Wait for the pause, at most. Return whether there is news. Raises the database's error."""
        woken, left = threading.Event(), waiter.begin(pause)
        with self._lock:
            self._waiting[waiter] = woken
        try:
            if not woken.wait(left):
                self._poll(waiter)
        finally:
            with self._lock:
                self._waiting.pop(waiter, None)
        return bool(waiter.news)

    def _poll(self, waiter: Waiter) -> None:
        with self._lock:
            if waiter.news is not None:
                return
            poll: Future[None] = waiter.poll or Future()
            asked = {} if waiter.poll else _due_soon(self._waiting, poll)
        if asked:
            self._ask(poll, asked)
        else:
            poll.result()

    def _ask(self, poll: Future[None], asked: dict[Waiter, threading.Event]) -> None:
        try:
            with self.open_session() as session:
                _ask(session, asked)
        except SQLAlchemyError as exc:
            poll.set_exception(exc)
            raise
        finally:
            with self._lock:
                woken = _finished(asked)
            for event in woken:
                event.set()
            if not poll.done():
                poll.set_result(None)


class AsyncSharedPolls:
    """The polls of the tasks of one event loop over one source, like `SharedPolls`."""

    def __init__(self, source: AsyncEngine | async_sessionmaker[AsyncSession], loop: asyncio.AbstractEventLoop) -> None:
        self._key = source, loop  # their ids are the key, so they have to live
        self.open_session = async_session_factory(source)
        self._waiting: dict[Waiter, asyncio.Event] = {}

    async def wait(self, waiter: Waiter, pause: float) -> bool:
        """Wait for the pause, at most. Return whether there is news. Raises the database's error."""
        left = waiter.begin(pause)
        self._waiting[waiter] = woken = asyncio.Event()
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(woken.wait(), left)
            if waiter.news is None:
                await self._poll(waiter)
        finally:
            del self._waiting[waiter]
        return bool(waiter.news)

    async def _poll(self, waiter: Waiter) -> None:
        poll: _Poll | None = waiter.poll
        if poll is None:
            poll = _Poll()
            asked = _due_soon(self._waiting, poll)
            poll.task = asyncio.create_task(self._ask(asked))
        await poll.join()

    async def _ask(self, asked: dict[Waiter, asyncio.Event]) -> None:
        try:
            async with self.open_session() as session:
                await session.run_sync(_ask, asked)
        finally:
            for event in _finished(asked):
                event.set()


class _Poll:
    """A poll for several tasks. If all of them are canceled, it ends before the last one does."""

    task: asyncio.Task[None]

    def __init__(self) -> None:
        self._joined = 0

    async def join(self) -> None:
        self._joined += 1
        try:
            await asyncio.shield(self.task)
        except asyncio.CancelledError:
            if self._joined == 1:
                self.task.cancel()
                await asyncio.wait([self.task])
            raise
        finally:
            self._joined -= 1


def _due_soon(waiting: Mapping[Waiter, _Event], poll: object) -> dict[Waiter, _Event]:
    """Give those that are due soon to the poll, and return them."""
    now = time.monotonic()
    found = {waiter: event for waiter, event in waiting.items() if waiter.is_due_soon(now)}
    for waiter in found:
        waiter.poll = poll
    return found


def _finished(asked: Mapping[Waiter, _Event]) -> list[_Event]:
    """Take the poll from its waiters, and return how those are woken that have news."""
    for waiter in asked:
        waiter.poll = None
    return [event for waiter, event in asked.items() if waiter.news]


# -- one for each source ------------------------------------------------------------------------------------------


class _Sources:
    """The polls of threads, by source. They exist as long as an iterator uses them."""

    def __init__(self) -> None:
        self._polls: WeakValueDictionary[int, SharedPolls] = WeakValueDictionary()
        self._lock = threading.Lock()  # Guards `_polls`.

    def polls(self, source: Engine | sessionmaker[Session]) -> SharedPolls:
        """Those over this source."""
        with self._lock:
            found = self._polls.get(id(source))
            if found is None:
                found = self._polls[id(source)] = SharedPolls(source)
            return found

    def after_fork_in_child(self) -> None:
        """Start with new locks."""
        self._lock = threading.Lock()
        for polls in list(self._polls.values()):
            polls.reset()


_sources: Final = _Sources()
_async_polls: Final[WeakValueDictionary[tuple[int, int], AsyncSharedPolls]] = WeakValueDictionary()

shared_polls: Final = _sources.polls


def async_shared_polls(source: AsyncEngine | async_sessionmaker[AsyncSession]) -> AsyncSharedPolls:
    """Return the polls over this source on the running event loop. They exist as long as an iterator uses them."""
    loop = asyncio.get_running_loop()
    key = id(source), id(loop)
    found = _async_polls.get(key)
    if found is None:
        found = _async_polls[key] = AsyncSharedPolls(source, loop)
    return found


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_sources.after_fork_in_child)
