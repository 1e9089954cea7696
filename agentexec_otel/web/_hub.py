"""Polls the feed once for all viewers of this process."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, TypeAlias, TypeVar
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError

import agentexec_otel as ax
from agentexec_otel.activity import (
    ActivityFeedLogSchema,
    ActivityFeedSchema,
    ActivityFilters,
    ActivityListItemSchema,
)
from agentexec_otel.web._database import Database

_T = TypeVar("_T")

_SHORTEST: Final = 0.05
_LONGEST: Final = 0.5
_AFTER_AN_ERROR: Final = 2.0
_ROOM: Final = 2_000
_AT_ONCE: Final = 10
"""Viewers that get news before other requests have a turn. Without turns, those wait for the writes to all viewers."""
MOST: Final = 1_000
"""Activities that are read at once. A page of the feed has no more logs."""

_logger = logging.getLogger("agentexec_otel.web")


class Viewer(Generic[_T]):
    """The news of one viewer, in the order of the feed.

    Attributes:
        missed: The viewer was slow, and news were dropped: read the database again.
        closed: There will be no more news.
    """

    def __init__(self) -> None:
        self.missed = False
        self.closed = False
        self._news: deque[_T] = deque()
        self._arrived = asyncio.Event()

    def put(self, news: Iterable[_T]) -> None:
        """Hand over news. Drop all that are waiting if there are too many."""
        self._news.extend(news)
        if len(self._news) > _ROOM:
            self._news.clear()
            self.missed = True
        self._arrived.set()

    def close(self) -> None:
        """Say that there will be no more news."""
        self.closed = True
        self._arrived.set()

    async def take(self, seconds: float) -> list[_T]:
        """Return the news as soon as there are some, at the latest after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._arrived.wait()
        except TimeoutError:
            return []
        self._arrived.clear()
        taken = list(self._news)
        self._news.clear()
        return taken


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the feed, with the present state of the activities that it has logs of."""

    logs: Mapping[UUID, Sequence[ActivityFeedLogSchema]]
    cursor: str
    activities: Mapping[UUID, ActivityListItemSchema]


Prepare: TypeAlias = Callable[[Page], Awaitable[Iterable[_T]]]
"""Makes the news of a topic from a page, once for all its viewers."""


class Hub:
    """One poll of the feed per interval and of what has changed, however many viewers there are. None without a viewer.

    Belongs to one event loop. Viewers of the same topic get the same news, which are prepared once.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._topics: dict[Hashable, tuple[Prepare[object], set[Viewer[object]]]] = {}
        self._cursor: str | None = None
        self._task: asyncio.Task[None] | None = None
        self._pause = _SHORTEST
        self._starting = asyncio.Lock()

    @asynccontextmanager
    async def viewing(self, topic: Hashable, prepare: Prepare[_T]) -> AsyncGenerator[tuple[Viewer[_T], str]]:
        """Add a viewer. Yield it with the cursor of the feed behind which it gets all news of its topic."""
        async with self._starting:
            if self._cursor is None:
                self._cursor = (await self._database.ask(partial(ax.activity.feed, after="now"))).next_cursor
        viewer: Viewer[_T] = Viewer()
        _, viewers = self._topics.setdefault(topic, (prepare, set()))
        viewers.add(viewer)  # type: ignore[arg-type]
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._poll())
        try:
            yield viewer, self._cursor
        finally:
            viewers.discard(viewer)
            if not viewers:
                self._topics.pop(topic, None)

    async def _poll(self) -> None:
        try:
            while self._topics and not _server_stops():
                pause = await self._poll_once()
                await asyncio.sleep(pause)
        finally:
            self._cursor = None
            for _, viewers in self._topics.values():
                for viewer in viewers:
                    viewer.close()

    async def _poll_once(self) -> float:
        """Hand out the next page of the feed. Return the seconds until the next poll."""
        before = self._cursor
        try:
            page = await self._database.ask(partial(ax.activity.feed, after=before))
            # A viewer that arrives while the news are prepared may get some of them twice, never miss one.
            self._cursor = page.next_cursor
            if page.logs:
                await self._hand_out(page)
        except (SQLAlchemyError, OSError, ax.AgentExecError) as exc:
            _logger.warning("reading the feed is failing and will be retried: %s", type(exc).__name__)
            self._cursor = before
            return _AFTER_AN_ERROR
        self._pause = _SHORTEST if page.logs else min(2 * self._pause, _LONGEST)
        return 0.0 if page.has_more else self._pause

    async def _hand_out(self, page: ActivityFeedSchema) -> None:
        """Hand the news to all viewers, or raise before any viewer has got them."""
        logs: defaultdict[UUID, list[ActivityFeedLogSchema]] = defaultdict(list)
        for log in page.logs:
            logs[log.agent_id].append(log)
        whole = Page(logs, page.next_cursor, await activities_of(self._database, logs.keys()))
        topics = list(self._topics.values())
        news = [list(await prepare(whole)) for prepare, _ in topics]
        each = [(viewer, made) for (_, viewers), made in zip(topics, news, strict=True) for viewer in viewers]
        for number, (viewer, made) in enumerate(each, 1):
            viewer.put(made)
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)


async def activities_of(
    database: Database, agent_ids: Collection[UUID], filters: ActivityFilters | None = None
) -> dict[UUID, ActivityListItemSchema]:
    """Those of up to 1,000 activities that meet the filters, newest first."""
    wanted: ActivityFilters = {**(filters or {}), "agent_id": agent_ids}
    # Behind a cursor nothing is counted.
    page = await database.ask(lambda session: ax.activity.list(session, page_size=MOST, cursor="", **wanted))
    return {item.agent_id: item for item in page.items}


def _server_stops() -> bool:
    """Whether the server of this process waits for its responses to end. It cannot, while a stream is open.

    uvicorn says so in its signal handler's object only, before it notifies the application.
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return bool(getattr(server, "should_exit", False))
