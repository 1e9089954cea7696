"""Streams of one activity, and of a list."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from functools import partial
from typing import Final
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity import ActivityFeedSchema, ActivityFilters, ActivityListItemSchema, ActivityLogSchema
from agentexec_otel.web._database import Database
from agentexec_otel.web._hub import Hub, Viewer
from agentexec_otel.web._schemas import Activity
from agentexec_otel.web._scope import Scope, scoped, shown, shown_log
from agentexec_otel.web._sse import HEARTBEAT, encoded

_PAGE: Final = 1_000
_HEARTBEAT_SECONDS: Final = 15.0


class Left(BaseModel):
    """An activity that changed, and meets the filters no longer."""

    agent_id: UUID


class ActivityStream:
    """The logs of an activity behind a cursor, until it ends.

    Events: ``log`` has a log, and its ``seq`` as id; ``end`` has the activity, and is the last one.
    """

    def __init__(self, database: Database, hub: Hub, scope: Scope, agent_id: UUID, after_seq: int) -> None:
        self._database = database
        self._hub = hub
        self._scope = scope
        self._agent_id = agent_id
        self._seq = after_seq

    async def activity(self) -> ActivityListItemSchema:
        """Return the activity. Raises ActivityNotFoundError."""
        query = partial(ax.activity.get, agent_id=self._agent_id, metadata_filter=self._scope.metadata_filter)
        found = await self._database.ask(query)
        if found is None:
            raise ax.ActivityNotFoundError(self._agent_id)
        return found

    async def events(self) -> AsyncGenerator[bytes]:
        """The events as they are sent."""
        async with self._hub.viewing(self._agent_id, self._own_logs) as (viewer, _):
            activity = await self.activity()
            async for log in self._stored():
                yield self._sent(log)
            while not (activity.status.terminal or viewer.closed):
                news = await viewer.take(_HEARTBEAT_SECONDS)
                if not news:
                    yield HEARTBEAT
                may_have_ended = viewer.missed or any(log.status.terminal for log in news)
                async for log in self._continued(viewer, news):
                    yield self._sent(log)
                if may_have_ended:
                    activity = await self.activity()
            if activity.status.terminal:
                async for log in self._stored():
                    yield self._sent(log)
                yield encoded("end", shown(Activity.model_validate(activity), self._scope))

    async def _own_logs(self, page: ActivityFeedSchema) -> list[ActivityLogSchema]:
        return [log for log in page.logs if log.agent_id == self._agent_id]

    async def _continued(
        self, viewer: Viewer[ActivityLogSchema], news: Sequence[ActivityLogSchema]
    ) -> AsyncGenerator[ActivityLogSchema]:
        """The logs behind the last one. They come from the database if the news leave some of them out."""
        fresh = [log for log in news if log.seq > self._seq]
        if viewer.missed or any(log.seq != seq for seq, log in enumerate(fresh, self._seq + 1)):
            viewer.missed = False
            async for log in self._stored():
                yield log
        else:
            for log in fresh:
                yield log

    async def _stored(self) -> AsyncGenerator[ActivityLogSchema]:
        """The logs in the database behind the last one."""
        while True:
            logs = await self._database.ask(
                partial(ax.activity.logs, agent_id=self._agent_id, after_seq=self._seq, limit=_PAGE)
            )
            for log in logs:
                yield log
            if len(logs) < _PAGE:
                return

    def _sent(self, log: ActivityLogSchema) -> bytes:
        self._seq = log.seq
        kept = ActivityLogSchema.model_validate(log, from_attributes=True)
        return encoded("log", shown_log(kept, self._scope), str(log.seq))


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
        self._filters = scoped(filters, scope)
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
        agent_ids: dict[UUID, None] = {}
        more = True
        while more:
            page = await self._database.ask(
                partial(ax.activity.feed, after=after, metadata_filter=self._scope.metadata_filter)
            )
            agent_ids |= dict.fromkeys(log.agent_id for log in page.logs)
            after, more = page.next_cursor, page.has_more and len(agent_ids) <= _PAGE
        if len(agent_ids) > _PAGE:
            return [encoded("reset", "{}", after)]
        return [encoded("ready", "{}", after), *await self._events_of(agent_ids, after)]

    async def _changes(self, page: ActivityFeedSchema) -> list[bytes]:
        return await self._events_of(dict.fromkeys(log.agent_id for log in page.logs), page.next_cursor)

    async def _events_of(self, agent_ids: Iterable[UUID], cursor: str) -> list[bytes]:
        ids = list(agent_ids)

        def read(session: Session) -> tuple[list[ActivityListItemSchema], list[ActivityListItemSchema]]:
            own: ActivityFilters = {"agent_id": ids, "metadata_filter": self._scope.metadata_filter}
            inside = ax.activity.list(session, page_size=_PAGE, cursor="", **own).items
            wanted: ActivityFilters = {**self._filters, "agent_id": ids}
            matching = ax.activity.list(session, page_size=_PAGE, cursor="", **wanted).items
            return inside, matching

        inside, matching = await self._database.ask(read)
        found = {item.agent_id for item in matching}
        left = [encoded("left", Left(agent_id=item.agent_id), cursor) for item in inside if item.agent_id not in found]
        return [
            *(encoded("activity", shown(Activity.model_validate(item), self._scope), cursor) for item in matching),
            *left,
        ]
