"""Shared polls: all iterators of a process over one source wait for the same queries.

Whichever iterator is due first asks the database on behalf of all that are due soon, in one session. Nothing is asked
for an iterator that does not wait, and there is no thread or task that outlives the waiting ones. With
`AGENTEXEC_NOTIFY`, a notification of the database ends the pause of the first, which then asks for all.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar
from uuid import UUID
from weakref import WeakValueDictionary

from sqlalchemy import bindparam, func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from agentexec_otel._config import CONF
from agentexec_otel._model.event import ACTIVE, Status
from agentexec_otel._model.text import describe, is_a
from agentexec_otel.activity._criteria import ACTIVITY, LOG
from agentexec_otel.activity._listening import Retry, listen, listen_async, listening_engine
from agentexec_otel.activity._sessions import AnySelect, async_session_factory, execute, session_factory

if TYPE_CHECKING:
    # Its module cannot be imported without greenlet, which synchronous applications need not have.
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
    from sqlalchemy.orm import sessionmaker

_Log = TypeVar("_Log")
_Event = TypeVar("_Event", threading.Event, asyncio.Event)
_Poll = TypeVar("_Poll")

_SHORTEST: Final = 0.02
_LONGEST: Final = 1.0
_LONGEST_REST: Final = 0.2
"""Notifications that are no news for any that wait here lead to a poll this often, in seconds."""
_LINGER: Final = 1.0
"""Seconds for which listening outlasts the pauses of those that follow."""
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

    def waiter(self, asked_at: float) -> Waiter:
        """Return what waits for more than a read has found that began then."""
        ...


def iterate(source: Engine | sessionmaker[Session], reader: Reader[_Log], timeout: float | None) -> Generator[_Log]:
    """Iterate over the logs that the reader finds, and wait in between."""
    polls = shared_polls(source)
    pace = Pace(timeout, reader.missed)
    with polls.following():
        while True:
            asked_at = time.monotonic()
            with polls.open_session() as session:
                found = reader.read(session)
            yield from found.logs
            if found.is_last:
                return
            pause, waiter = pace.pause(news=bool(found.logs)), reader.waiter(asked_at)
            while not (found.has_more or polls.wait(waiter, pause)):
                pause = pace.pause(news=False)


async def iterate_async(
    source: AsyncEngine | async_sessionmaker[AsyncSession], reader: Reader[_Log], timeout: float | None
) -> AsyncGenerator[_Log]:
    """Iterate as `iterate` does, for asyncio."""
    polls = async_shared_polls(source)
    pace = Pace(timeout, reader.missed)
    async with polls.following_async():
        while True:
            asked_at = time.monotonic()
            async with polls.open_session() as session:
                found = await session.run_sync(reader.read)
            for log in found.logs:
                yield log
            if found.is_last:
                return
            pause, waiter = pace.pause(news=bool(found.logs)), reader.waiter(asked_at)
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
        asked_at: When the read or poll began that it knows the answer of, in monotonic seconds.
        news: Whether there is anything to read. None: not asked in this pause.
        poll: The poll under way that asks for it.
    """

    def __init__(self, agent_id: UUID | None, seen: int, asked_at: float) -> None:
        self.agent_id = agent_id
        self.seen = seen
        self.asked_at = asked_at
        self.news: bool | None = None
        self.poll: Any = None
        self._polled_at = asked_at
        self._answered_at = time.monotonic()
        self._pause = 0.0

    def begin(self, pause: float) -> float:
        """Begin a pause, and return how many seconds of it are left: it counts from the last answer."""
        self.news, self._pause = None, pause
        return max(0.0, self._answered_at + pause - time.monotonic())

    def is_due_soon(self, now: float) -> bool:
        """Whether its pause is over, or half of it."""
        return self.news is None and now >= self._answered_at + self._pause / 2

    def begin_poll(self, poll: object, now: float) -> None:
        """Become part of a poll."""
        self.poll, self._polled_at = poll, now

    def answer(self, *, news: bool) -> None:
        """Take the answer of a poll."""
        self.news, self.asked_at, self._answered_at = news, self._polled_at, time.monotonic()


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


class _Waiters(Generic[_Event]):
    """Those that wait over one source, each with the event that ends its pause. Threads may share it."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """In a forked child: those that wait, and what listens, are the parent's."""
        # Guards what follows, and `poll` of the waiters. Re-entrant, as an iterator may be collected under it.
        self._lock = threading.RLock()
        self._events: dict[Waiter, _Event] = {}
        self._followers = 0
        self._left_at = -math.inf
        self._polled_at = -math.inf
        self._notified_at = -math.inf
        self._rest = _SHORTEST
        self._retry = Retry()

    @contextmanager
    def _waiting(self, waiter: Waiter, event: _Event, pause: float) -> Generator[float]:
        """Wait inside. Yield how long."""
        with self._lock:
            self._events[waiter] = event
            left = waiter.begin(pause)
            if self._is_outdated(waiter):
                left = 0.0
        try:
            yield left
        finally:
            with self._lock:
                self._events.pop(waiter, None)
                self._left_at = time.monotonic()
                self._wake_next_to_ask()

    def _begin_poll(self, waiter: Waiter, new: _Poll) -> tuple[_Poll | None, dict[Waiter, _Event]]:
        """Return the poll that asks for the waiter, at the end of its pause, and those that the caller has to ask for.

        The poll is None if the waiter knows whether there is news. A new poll asks for those that are due soon, or may
        have been notified of news.
        """
        with self._lock:
            if waiter.poll is not None:
                return waiter.poll, {}
            if waiter.news or (waiter.news is not None and not self._is_outdated(waiter)):
                return None, {}
            now = self._polled_at = time.monotonic()
            asked: dict[Waiter, _Event] = {}
            for one, event in self._events.items():
                if one.poll is None and (one.is_due_soon(now) or (not one.news and self._is_outdated(one))):
                    one.begin_poll(new, now)
                    asked[one] = event
            return new, asked

    def _end_poll(self, asked: Mapping[Waiter, _Event]) -> None:
        """Take the poll from its waiters, and wake those that have news."""
        with self._lock:
            for waiter, event in asked.items():
                waiter.poll = None
                if waiter.news:
                    event.set()
                    self._rest = _SHORTEST
            self._wake_next_to_ask()

    def notify(self) -> float:
        """Have one of those that wait ask now, for all. Return how many seconds to rest before the next time."""
        with self._lock:
            self._notified_at, rest = time.monotonic(), self._rest
            self._rest = min(2 * rest, _LONGEST_REST)
            self._wake_next_to_ask()
            return rest

    def _is_outdated(self, waiter: Waiter) -> bool:
        return waiter.asked_at <= self._notified_at

    def _wake_next_to_ask(self) -> None:
        """Wake one of those that were notified since they were asked for: it asks for the others."""
        if self._notified_at < self._polled_at:
            return
        for waiter, event in self._events.items():
            if waiter.poll is None and not waiter.news and self._is_outdated(waiter):
                event.set()
                return

    # -- how long to listen ---------------------------------------------------------------------------------------

    @contextmanager
    def following(self) -> Generator[None]:
        """Continue listening between the pauses inside."""
        with self._lock:
            self._followers += 1
        try:
            yield
        finally:
            with self._lock:
                self._followers -= 1
                if self._followers <= 0:
                    self._left_at = -math.inf

    def is_followed(self) -> bool:
        """Whether one waits, or has done so a moment ago: an iterator's caller may be busy with a log."""
        with self._lock:
            return bool(self._events) or time.monotonic() < self._left_at + _LINGER


class SharedPolls(_Waiters[threading.Event]):
    """The polls of threads over one source. A thread waits in `wait`; the first that is due asks for the others."""

    def __init__(self, source: Engine | sessionmaker[Session]) -> None:
        super().__init__()
        self._source = source  # its id is the key, so it has to live
        self.open_session = session_factory(source)

    def reset(self) -> None:
        """See `_Waiters`."""
        super().reset()
        self._listener: threading.Thread | None = None

    def wait(self, waiter: Waiter, pause: float) -> bool:
        """Wait for the pause, at most. Return whether there is news. Raises the database's error."""
        woken = threading.Event()
        with self._waiting(waiter, woken, pause) as left:
            if CONF.notify:
                self._start_listening()
            woken.wait(left)
            poll, asked = self._begin_poll(waiter, Future[None]())
            if poll is not None and asked:
                self._ask(poll, asked)
            elif poll is not None:
                poll.result()
        return bool(waiter.news)

    def _ask(self, poll: Future[None], asked: dict[Waiter, threading.Event]) -> None:
        try:
            with self.open_session() as session:
                _ask(session, asked)
        except SQLAlchemyError as exc:
            poll.set_exception(exc)
            raise
        finally:
            self._end_poll(asked)
            if not poll.done():
                poll.set_result(None)

    def _start_listening(self) -> None:
        with self._lock:
            if (self._listener is not None and self._listener.is_alive()) or not self._retry.begin():
                return
            # Another thread that comes here now finds that it is not due.
        with self.open_session() as session:
            engine = listening_engine(session)
        if engine is None:
            return
        arguments = engine, self, self._retry
        thread = threading.Thread(target=listen, args=arguments, name="agentexec-listener", daemon=True)
        # No thread can be started late in the interpreter's life.
        with suppress(RuntimeError):
            thread.start()
            self._listener = thread


class AsyncSharedPolls(_Waiters[asyncio.Event]):
    """The polls of the tasks of one event loop over one source, like `SharedPolls`."""

    def __init__(self, source: AsyncEngine | async_sessionmaker[AsyncSession], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._key = source, loop  # their ids are the key, so they have to live
        self.open_session = async_session_factory(source)
        self._listener: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def following_async(self) -> AsyncGenerator[None]:
        """Continue listening between the pauses inside, and stop with the last follower."""
        try:
            with self.following():
                yield
        finally:
            if self._followers <= 0 and not self.is_followed():
                await self._stop_listening()

    async def wait(self, waiter: Waiter, pause: float) -> bool:
        """Wait for the pause, at most. Return whether there is news. Raises the database's error."""
        woken = asyncio.Event()
        with self._waiting(waiter, woken, pause) as left:
            if CONF.notify:
                self._start_listening()
            with suppress(TimeoutError):
                await asyncio.wait_for(woken.wait(), left)
            poll, asked = self._begin_poll(waiter, _Joined())
            if poll is not None and asked:
                poll.task = asyncio.create_task(self._ask(asked))
            if poll is not None:
                await poll.join()
        return bool(waiter.news)

    async def _ask(self, asked: dict[Waiter, asyncio.Event]) -> None:
        try:
            async with self.open_session() as session:
                await session.run_sync(_ask, asked)
        finally:
            self._end_poll(asked)

    def _start_listening(self) -> None:
        if (self._listener is not None and not self._listener.done()) or not self._retry.begin():
            return
        engine = listening_engine(self.open_session().sync_session)
        if engine is not None:
            self._listener = asyncio.create_task(listen_async(engine, self, self._retry), name="agentexec-listener")

    async def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait([self._listener])


class _Joined:
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
