"""The status API."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from uuid import UUID
from weakref import WeakKeyDictionary

from fastapi import APIRouter, Header, HTTPException, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field
from sqlalchemy import URL, Engine
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity import (
    ActivityDetailSchema,
    ActivityFilters,
    ActivityListItemSchema,
    ActivityLogSchema,
    ActivityStatsSchema,
)
from agentexec_otel.web._agui import AguiRun, RunAgentInput
from agentexec_otel.web._database import Database
from agentexec_otel.web._filters import FilterParameters
from agentexec_otel.web._hub import Hub
from agentexec_otel.web._openapi import AGENT_ID, ENDPOINTS
from agentexec_otel.web._problems import ProblemRoute
from agentexec_otel.web._retry import HandOver, OnRetry, PoolRetries, Retries
from agentexec_otel.web._schemas import (
    Act,
    Activity,
    ActivityDetail,
    ActivityPage,
    Canceled,
    CanceledMany,
    Retried,
    RetriedMany,
    SessionInfo,
)
from agentexec_otel.web._scope import Authorize, Scope, acting_scope, scope_of, scoped, shown, shown_log
from agentexec_otel.web._streams import ActivityStream, ListStream, streamed

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from agentexec_otel import Pool

__all__ = ["router"]

_MOST_PER_PAGE: Final = 200
_MOST_LOGS: Final = 1_000


def router(
    *,
    authorize: Authorize,
    database: str | URL | Engine | AsyncEngine | None = None,
    on_retry: OnRetry | None = None,
    pool: Pool | None = None,
    prefix: str = "",
    tags: list[str] | None = None,
) -> APIRouter:
    """Return a FastAPI router with the status API.

    Below the prefix: ``activities``, ``activities/{agent_id}``, ``activities/{agent_id}/logs``,
    ``activities/{agent_id}/events``, ``activities/{agent_id}/agui``, ``activities/{agent_id}/cancel``, ``cancel``,
    ``events``, ``stats`` and ``session``; with `on_retry` or `pool` also ``activities/{agent_id}/retry`` and ``retry``.
    Errors are problem details (RFC 9457). A change needs the header ``X-AgentExec-Action``.

    Args:
        authorize: Called with each request, maybe asynchronous. Returns the `Scope` of the caller; None, or a raised
            HTTPException, refuses the request. `ax.web.public` allows everything to everybody.
        database: An engine, sync or async, or a URL. Default: what `ax.configure()` was given.
        on_retry: Called with each activity that was re-opened, maybe asynchronous, to hand it to a worker. If it
            raises, the activity ends as ERROR again.
        pool: Sends tasks again whose context it has kept, see `Pool.retry`. Without it and `on_retry`, the API offers
            no retry.
        prefix: As for FastAPI's APIRouter.
        tags: As for FastAPI's APIRouter. Default: ``activities``.

    Raises:
        ValueError: Both `on_retry` and `pool` are given.
    """
    api = APIRouter(prefix=prefix, tags=list(tags or ["activities"]), route_class=ProblemRoute)
    opened = Database(database)
    retries = _retries(opened, on_retry, pool)
    endpoints = _Endpoints(authorize, opened, can_retry=retries is not None)
    routes: list[tuple[str, str, Callable[..., Any]]] = [
        ("GET", "/session", endpoints.get_session),
        ("GET", "/activities", endpoints.list_activities),
        ("GET", "/activities/{agent_id}", endpoints.get_activity),
        ("GET", "/activities/{agent_id}/logs", endpoints.get_logs),
        ("GET", "/activities/{agent_id}/events", endpoints.follow_activity),
        ("POST", "/activities/{agent_id}/agui", endpoints.join_run),
        ("GET", "/events", endpoints.follow_list),
        ("GET", "/stats", endpoints.get_stats),
        ("POST", "/activities/{agent_id}/cancel", endpoints.cancel_activity),
        ("POST", "/cancel", endpoints.cancel_activities),
    ]
    if retries is not None:
        retrying = _RetryEndpoints(authorize, retries)
        routes += [
            ("POST", "/activities/{agent_id}/retry", retrying.retry_activity),
            ("POST", "/retry", retrying.retry_activities),
        ]
    for method, path, endpoint in routes:
        api.add_api_route(path, endpoint, methods=[method], **ENDPOINTS[endpoint.__name__])
    return api


def _retries(database: Database, on_retry: OnRetry | None, pool: Pool | None) -> Retries | None:
    if on_retry is not None and pool is not None:
        raise ValueError("on_retry and pool are given: an activity can be handed to only one of them")
    if pool is not None:
        return PoolRetries(database, pool)
    return None if on_retry is None else HandOver(database, on_retry)


class ListParameters(FilterParameters):
    """Which page, and the filters."""

    page: Annotated[int, Field(ge=1, le=1_000_000, description="Number of the page.", examples=[1])] = 1
    page_size: Annotated[int, Field(ge=1, le=_MOST_PER_PAGE, description="Activities per page.", examples=[50])] = 50
    order: Annotated[
        Literal["newest", "oldest"], Field(description="Created first: `newest` or `oldest`.", examples=["newest"])
    ] = "newest"
    cursor: Annotated[
        str | None,
        Field(
            description="`next_cursor` of the page before, or empty for the first page. Counts nothing.", examples=[""]
        ),
    ] = None
    total: Annotated[
        int | None, Field(ge=0, description="The total of an earlier page, which saves the count.", examples=[120])
    ] = None


class StatsParameters(FilterParameters):
    """Which activities to count, and the width of a bucket."""

    bucket: Annotated[int | None, Field(ge=1, description="Seconds in a bucket of `series`.", examples=[3600])] = None


class StreamParameters(FilterParameters):
    """Where to continue, and the filters."""

    after: Annotated[str | None, Field(description="The `id` of the last event seen.", examples=["67"])] = None


class ManyParameters(FilterParameters):
    """Which activities to change."""

    all: Annotated[bool, Field(description="Required to change activities without any filter.", examples=[True])] = (
        False
    )

    def selection(self) -> ActivityFilters:
        """The filters. Raises HTTPException if there are none, and `all` is not set."""
        found = self.filters()
        if not found and not self.all:
            raise HTTPException(422, "Name a filter, or send all=true to change every activity.")
        return found


_AgentId = Annotated[UUID, Path(description="The activity.", examples=[str(AGENT_ID)])]
_LastEventId = Annotated[str | None, Header(description="As `after`, from a browser that reconnects.", examples=["3"])]
_AfterSeq = Annotated[int, Query(ge=0, description="The last `seq` seen. 0 for all.", examples=[0])]


class _Endpoints:
    def __init__(self, authorize: Authorize, database: Database, *, can_retry: bool) -> None:
        self._authorize = authorize
        self._database = database
        self._can_retry = can_retry
        self._hubs: WeakKeyDictionary[asyncio.AbstractEventLoop, Hub] = WeakKeyDictionary()

    async def get_session(self, request: Request) -> SessionInfo:
        """Get what the caller may do, and the version of the server."""
        scope = await scope_of(self._authorize, request)
        return SessionInfo(
            may_act=scope.may_act,
            may_see_content=scope.may_see_content,
            may_retry=scope.may_act and self._can_retry,
        )

    async def list_activities(self, request: Request, query: Annotated[ListParameters, Query()]) -> ActivityPage:
        """List activities, newest first, each with its most recent log."""
        scope = await scope_of(self._authorize, request)
        filters = scoped(query.filters(), scope)

        def read(session: Session) -> ActivityPage:
            found = ax.activity.list(
                session,
                query.page,
                query.page_size,
                order=query.order,
                cursor=query.cursor,
                total=query.total,
                **filters,
            )
            return ActivityPage.model_validate(found)

        page = await self._database.ask(read)
        page.items = [shown(item, scope) for item in page.items]
        return page

    async def get_activity(
        self,
        request: Request,
        agent_id: _AgentId,
        logs: Annotated[bool, Query(description="Include the logs, oldest first.", examples=[True])] = True,
        include_late: Annotated[
            bool, Query(description="Include logs that came after their attempt ended.", examples=[False])
        ] = False,
    ) -> Any:
        """Get an activity. One that has ended has an ETag."""
        scope = await scope_of(self._authorize, request)

        def query(session: Session) -> ActivityDetailSchema | ActivityListItemSchema | None:
            if logs:
                return ax.activity.detail(session, agent_id, scope.metadata_filter, include_late=include_late)
            return ax.activity.get(session, agent_id, scope.metadata_filter)

        found = await self._database.ask(query)
        if found is None:
            raise ax.ActivityNotFoundError(agent_id)
        schema = ActivityDetail if logs else Activity
        return _with_etag(request, shown(schema.model_validate(found, from_attributes=True), scope))

    async def get_logs(
        self,
        request: Request,
        agent_id: _AgentId,
        after_seq: _AfterSeq = 0,
        limit: Annotated[
            int, Query(ge=1, le=_MOST_LOGS, description="How many logs at most.", examples=[100])
        ] = _MOST_LOGS,
    ) -> list[ActivityLogSchema]:
        """Get the logs after a cursor, oldest first, late ones included."""
        scope = await scope_of(self._authorize, request)

        def read(session: Session) -> list[ActivityLogSchema]:
            found = ax.activity.logs(session, agent_id, after_seq, limit, scope.metadata_filter)
            if not found and ax.activity.get(session, agent_id, scope.metadata_filter) is None:
                raise ax.ActivityNotFoundError(agent_id)
            return found

        return [shown_log(log, scope) for log in await self._database.ask(read)]

    async def get_stats(self, request: Request, query: Annotated[StatsParameters, Query()]) -> ActivityStatsSchema:
        """Count activities by status, type and reason, with percentiles of their durations, waits and tokens."""
        scope = await scope_of(self._authorize, request)
        filters = scoped(query.filters(), scope)
        bucket = None if query.bucket is None else timedelta(seconds=query.bucket)
        return await self._database.ask(lambda session: ax.activity.stats(session, bucket=bucket, **filters))

    async def follow_activity(
        self,
        request: Request,
        agent_id: _AgentId,
        after: _AfterSeq = 0,
        last_event_id: _LastEventId = None,
    ) -> StreamingResponse:
        """Follow an activity as Server-Sent Events: `log` with each log, then `end` with the activity."""
        scope = await scope_of(self._authorize, request)
        stream = await self._stream(scope, agent_id, _seen(after, last_event_id))
        return streamed(stream.events())

    async def join_run(
        self,
        request: Request,
        agent_id: _AgentId,
        run: RunAgentInput,
        after: Annotated[int, Query(ge=0, description="The last `seq` seen. 0 for a snapshot.", examples=[0])] = 0,
        last_event_id: _LastEventId = None,
    ) -> StreamingResponse:
        """Join an activity as a run of the AG-UI protocol."""
        scope = await scope_of(self._authorize, request)
        seq = _seen(after, last_event_id)
        stream = await self._stream(scope, agent_id, seq)
        return streamed(AguiRun(stream, run, scope, resumes=seq > 0).events())

    async def follow_list(
        self,
        request: Request,
        query: Annotated[StreamParameters, Query()],
        last_event_id: _LastEventId = None,
    ) -> StreamingResponse:
        """Follow a list as Server-Sent Events: `ready`, then `activity` with each that changes, `left` and `reset`."""
        scope = await scope_of(self._authorize, request)
        stream = ListStream(self._database, self._hub(), scope, query.filters())
        after = last_event_id or query.after
        await stream.check(after)
        return streamed(stream.events(after))

    async def cancel_activity(self, request: Request, agent_id: _AgentId, act: Act | None = None) -> Canceled:
        """Cancel an activity. Its worker is notified."""
        scope = await acting_scope(self._authorize, request)
        message = act.message if act else None
        canceled = await self._database.ask(
            lambda session: ax.activity.cancel(agent_id, message, session, scope.metadata_filter)
        )
        return Canceled(canceled=canceled)

    async def cancel_activities(self, request: Request, query: Annotated[ManyParameters, Query()]) -> CanceledMany:
        """Cancel every activity that is QUEUED or RUNNING and meets the filters."""
        scope = await acting_scope(self._authorize, request)
        filters = scoped(query.selection(), scope)
        canceled = await self._database.ask(lambda session: ax.activity.cancel_pending(session, **filters))
        return CanceledMany(canceled=canceled)

    async def _stream(self, scope: Scope, agent_id: UUID, seq: int) -> ActivityStream:
        """The stream of an activity. Raises ActivityNotFoundError before the response begins."""
        stream = ActivityStream(self._database, self._hub(), scope, agent_id, seq)
        await stream.load()
        return stream

    def _hub(self) -> Hub:
        loop = asyncio.get_running_loop()
        if loop not in self._hubs:
            self._hubs[loop] = Hub(self._database)
        return self._hubs[loop]


class _RetryEndpoints:
    def __init__(self, authorize: Authorize, retries: Retries) -> None:
        self._authorize = authorize
        self._retries = retries

    async def retry_activity(self, request: Request, agent_id: _AgentId, act: Act | None = None) -> Retried:
        """Re-open an activity that has ended, as its next attempt, and hand it to a worker."""
        scope = await acting_scope(self._authorize, request)
        message = act.message if act else None
        return Retried(attempt=await self._retries.one(agent_id, message, scope))

    async def retry_activities(self, request: Request, query: Annotated[ManyParameters, Query()]) -> RetriedMany:
        """Re-open every activity that has ended and meets the filters, and hand each to a worker. Default: ERROR."""
        scope = await acting_scope(self._authorize, request)
        filters = scoped(query.selection(), scope)
        return await self._retries.many(filters)


def _seen(after: int, last_event_id: str | None) -> int:
    """The last ``seq`` that the client has seen."""
    return int(last_event_id) if last_event_id and last_event_id.isdecimal() else after


def _with_etag(request: Request, activity: ActivityDetail | Activity) -> Response:
    """The response; while the activity is active its durations tick, so that an ETag would never match."""
    body = activity.model_dump_json().encode()
    headers: dict[str, str] = {}
    if activity.status.terminal:
        headers["ETag"] = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
        if headers["ETag"] in request.headers.get("If-None-Match", ""):
            return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")
