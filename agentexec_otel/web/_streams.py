"""Streams of Server-Sent Events, as the HTML standard has them: of one activity, and of a list."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Final, cast
from uuid import UUID

from fastapi.responses import StreamingResponse
from pydantic import BaseModel

import agentexec_otel as ax
from agentexec_otel.activity import ActivityFilters, ActivityListItemSchema, ActivityLogSchema
from agentexec_otel.web._database import Database
from agentexec_otel.web._hub import MOST, Hub, Page, Viewer, activities_of
from agentexec_otel.web._schemas import Activity
from agentexec_otel.web._scope import Scope, scoped, shown, shown_log

_PAGE: Final = 200
"""Logs that are read at once. A viewer that reads nothing holds one page."""
_HEARTBEAT_SECONDS: Final = 15.0
HEARTBEAT: Final = b": alive\n\n"


def encoded(name: str, data: BaseModel | str, cursor: str | None = None) -> bytes:
    """An event as it is sent. A browser that connects again sends the cursor as ``Last-Event-ID``."""
    text = data if isinstance(data, str) else data.model_dump_json()  # JSON has no line breaks
    place = "" if cursor is None else f"id: {cursor}\n"
    return f"event: {name}\n{place}data: {text}\n\n".encode()


def streamed(events: AsyncIterator[bytes]) -> StreamingResponse:
    """A response that is not cached or buffered on its way."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


class Left(BaseModel):
    """An activity that changed, and meets the filters no longer."""

    agent_id: UUID


@dataclass(frozen=True)
class StreamLog:
    """A log as it may be seen. All viewers of an activity share it, and so does its event, which is encoded once."""

    log: ActivityLogSchema

    @cached_property
    def event(self) -> bytes:
        """The log as it is sent."""
        return encoded("log", self.log, str(self.log.seq))


@dataclass(frozen=True, slots=True)
class Change:
    """A log of an activity, and its state then or later."""

    log: StreamLog
    activity: ActivityListItemSchema


class ActivityStream:
    """The logs of an activity behind a cursor, until it ends.

    Events: ``log`` has a log, and its ``seq`` as id; ``end`` has the activity, and is the last one.

    Attributes:
        activity: Its state, as of the logs that were returned last, or later.
    """

    activity: ActivityListItemSchema

    def __init__(self, database: Database, hub: Hub, scope: Scope, agent_id: UUID, after_seq: int) -> None:
        self._database = database
        self._hub = hub
        self._scope = scope
        self._agent_id = agent_id
        self._seq = after_seq
        self._ended_attempt = 0  # the latest one whose last log was returned

    async def load(self) -> None:
        """Read the activity. Raises ActivityNotFoundError."""
        query = partial(ax.activity.get, agent_id=self._agent_id, metadata_filter=self._scope.metadata_filter)
        found = await self._database.ask(query)
        if found is None:
            raise ax.ActivityNotFoundError(self._agent_id)
        self.activity = found

    async def events(self) -> AsyncGenerator[bytes]:
        """The events as they are sent."""
        async for logs in self.logs():
            yield b"".join(log.event for log in logs) or HEARTBEAT
        if self.activity.status.terminal:
            yield encoded("end", shown(Activity.model_validate(self.activity), self._scope))

    async def logs(self) -> AsyncGenerator[Sequence[StreamLog]]:
        """The next logs, as they come, until the activity ends or the server stops. An empty
        list after those that are stored, and if there are none for 15 s."""
        topic = (self._agent_id, self._scope.may_see_content)
        async with self._hub.viewing(topic, self._changes) as (viewer, _):
            await self.load()
            async for stored in self._stored():
                yield stored
            yield []
            while not (self.activity.status.terminal or viewer.closed):
                changes = await viewer.take(_HEARTBEAT_SECONDS)
                async for logs in self._continued(viewer, changes):
                    yield logs
            if self.activity.status.terminal and self._ended_attempt != self.activity.attempt:
                async for stored in self._stored():
                    yield stored

    async def _changes(self, page: Page) -> list[Change]:
        activity = page.activities.get(self._agent_id)
        if activity is None:
            return []
        return [Change(log, activity) for log in self._shown(page.logs[self._agent_id])]

    async def _continued(
        self, viewer: Viewer[Change], changes: Sequence[Change]
    ) -> AsyncGenerator[Sequence[StreamLog]]:
        """The logs behind the last one. They come from the database if the changes leave some of them out."""
        fresh = [change.log for change in changes if change.log.log.seq > self._seq]
        if changes:
            self.activity = changes[-1].activity
        if viewer.missed:
            await self.load()
        if viewer.missed or any(log.log.seq != seq for seq, log in enumerate(fresh, self._seq + 1)):
            viewer.missed = False
            async for stored in self._stored():
                yield stored
        else:
            yield self._returned(fresh)

    async def _stored(self) -> AsyncGenerator[Sequence[StreamLog]]:
        """The logs in the database behind the last one."""
        query = partial(ax.activity.logs, agent_id=self._agent_id, limit=_PAGE)
        while found := await self._database.ask(partial(query, after_seq=self._seq)):
            yield self._returned(self._shown(found))

    def _returned(self, logs: Sequence[StreamLog]) -> Sequence[StreamLog]:
        for stream_log in logs:
            log = stream_log.log
            self._seq = log.seq
            if log.status.terminal and not log.late:
                self._ended_attempt = log.attempt
        return logs

    def _shown(self, logs: Sequence[ActivityLogSchema]) -> list[StreamLog]:
        """The logs as the scope may see them, without the fields of the feed."""
        kept = [ActivityLogSchema.model_validate(log, from_attributes=True) for log in logs]
        return [StreamLog(shown_log(log, self._scope)) for log in kept]


class ListStream:
    """The activities of a list that change.

    Events: ``ready`` comes first; ``activity`` has an activity that is new, has a new log or has ended; ``left`` has
    the id of one that meets the filters no longer; ``reset`` says that too much has changed to be sent. Each has the
    cursor of the feed as its id.
    """

    def __init__(self, database: Database, hub: Hub, scope: Scope, filters: ActivityFilters) -> None:
        self._database = database
        self._hub = hub
        self._scope = scope
        self._own = scoped({}, scope)
        self._filters = scoped(filters, scope)
        self._named = cast(Collection[UUID] | None, filters.get("agent_id"))
        self._topic = repr((self._filters, scope))

    async def events(self, after: str | None) -> AsyncGenerator[bytes]:
        """The events as they are sent, those behind the cursor first."""
        async with self._hub.viewing(self._topic, self._changes) as (viewer, cursor):
            if after is None:
                yield encoded("ready", "{}", cursor)
            else:
                for event in await self._changes_since(after):
                    yield event
            while not viewer.closed:
                news = await viewer.take(_HEARTBEAT_SECONDS)
                if viewer.missed:
                    viewer.missed = False
                    yield encoded("reset", "{}")
                for event in news or [HEARTBEAT]:
                    yield event

    async def check(self, after: str | None) -> None:
        """Raise ValueError if the cursor is malformed."""
        await self._database.ask(partial(ax.activity.feed, after=after, limit=1))

    async def _changes_since(self, after: str) -> list[bytes]:
        agent_ids: set[UUID] = set()
        more = True
        while more:
            query = partial(ax.activity.feed, after=after, metadata_filter=self._scope.metadata_filter)
            page = await self._database.ask(query)
            agent_ids |= {log.agent_id for log in page.logs}
            after, more = page.next_cursor, page.has_more and len(agent_ids) <= MOST
        if len(agent_ids) > MOST:
            return [encoded("reset", "{}", after)]
        inside = await activities_of(self._database, agent_ids, self._own)
        return [encoded("ready", "{}", after), *await self._events_of(inside, after)]

    async def _changes(self, page: Page) -> list[bytes]:
        inside = page.activities
        if self._own:
            inside = await activities_of(self._database, inside, self._own)
        return await self._events_of(inside, page.cursor)

    async def _events_of(self, inside: Mapping[UUID, ActivityListItemSchema], cursor: str) -> list[bytes]:
        """The events of activities that are inside the scope."""
        if self._named is not None:  # `activities_of` asks for ids of its own
            inside = {agent_id: item for agent_id, item in inside.items() if agent_id in self._named}
        matching = inside
        if self._filters != self._own:
            matching = await activities_of(self._database, inside, self._filters)
        left = [Left(agent_id=agent_id) for agent_id in inside if agent_id not in matching]
        return [
            *(
                encoded("activity", shown(Activity.model_validate(item), self._scope), cursor)
                for item in matching.values()
            ),
            *(encoded("left", one, cursor) for one in left),
        ]
