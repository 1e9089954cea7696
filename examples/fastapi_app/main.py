"""The web service: enqueue research, list it, follow it live, cancel it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated
from uuid import UUID

from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, computed_field
from sqlalchemy import select
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity.models import Activity, Status
from agentexec_otel.activity.schemas import ActivityDetailSchema, ActivityListItemSchema, ActivityLogSchema
from fastapi_app.settings import engine, settings
from fastapi_app.tasks import ResearchContext, pool

PAGE = Path(__file__).with_name("page.html")
LOOK_EVERY = 0.2


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Clean up after the last time; at the end, let tasks finish, and store what is still to be stored."""
    app.state.stopping = False
    if settings.broker is None:
        clean_up()
    yield
    await pool.shutdown()
    await asyncio.to_thread(ax.flush)


def clean_up() -> None:
    """Cancel what an earlier process has left: without a broker, tasks die with the process that enqueued them.

    With a broker this would be wrong: what is QUEUED still waits there, and what is RUNNING has a worker. Activities of
    workers that are gone end by themselves.
    """
    with Session(engine) as session:
        canceled = sum(ax.activity.cancel_pending(session, agent_type=name) for name in pool.tasks)
    if canceled:
        print(f"Canceled {canceled} activities that an earlier process has left.", flush=True)


def get_session() -> Iterator[Session]:
    """A session for one request."""
    with Session(engine) as session:
        yield session


Database = Annotated[Session, Depends(get_session)]

app = FastAPI(title="Research", lifespan=lifespan)


@app.exception_handler(ax.ActivityNotFoundError)
def not_found(request: Request, exc: Exception) -> JSONResponse:
    """No such activity."""
    return JSONResponse({"detail": "Activity not found"}, 404)


@app.exception_handler(ax.ActivityNotStoredError)
@app.exception_handler(ax.TaskNotSentError)
def try_again(request: Request, exc: Exception) -> JSONResponse:
    """The database or the broker is away."""
    return JSONResponse({"detail": "The task could not be accepted, try again later"}, 503)


@app.get("/", include_in_schema=False)
def index() -> FileResponse:
    """The page for people."""
    return FileResponse(PAGE)


# -- research ---------------------------------------------------------------------------------------------------


@app.post("/api/research", status_code=202)
async def start_research(context: ResearchContext) -> dict[str, UUID]:
    """Enqueue research; the answer has the id by which to follow it."""
    task = await ax.enqueue("research", context, metadata={"company": context.company})
    return {"agent_id": task.agent_id}


# -- activities -------------------------------------------------------------------------------------------------


class Run(ActivityListItemSchema):
    """An activity in the list, with what the page shows of its metadata. By itself, metadata is never serialised."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def company(self) -> str | None:
        """What is researched."""
        return (self.metadata or {}).get("company")


class Runs(BaseModel):
    """A page of the list."""

    model_config = ConfigDict(from_attributes=True)

    items: list[Run]
    total: int
    page: int
    page_size: int
    pages: int


@app.get("/api/activities")
def list_activities(
    database: Database,
    page: Annotated[int, Query(ge=1)] = 1,
    page_size: Annotated[int, Query(ge=1, le=100)] = 20,
    status: Status | None = None,
) -> Runs:
    """List all activities with pagination, newest first."""
    return Runs.model_validate(ax.activity.list(database, page=page, page_size=page_size, status=status))


@app.get("/api/activities/{agent_id}")
def get_activity(agent_id: UUID, database: Database) -> ActivityDetailSchema:
    """Get detailed activity with full log history."""
    activity = ax.activity.detail(database, agent_id)
    if activity is None:
        raise HTTPException(404, "Activity not found")
    return activity


@app.get("/api/activities/{agent_id}/status")
def get_status(agent_id: UUID, database: Database) -> dict[str, Status | int | str | None]:
    """Get just the current status and progress."""
    activity = get_activity(agent_id, database)
    return {
        "status": activity.status,
        "progress": activity.latest_percentage,
        "message": activity.logs[-1].message if activity.logs else None,
    }


@app.get("/api/activities/{agent_id}/logs")
def get_logs(agent_id: UUID, database: Database, after_seq: int = 0) -> list[ActivityLogSchema]:
    """Get what is new behind a cursor: the last `seq` that the client has seen."""
    get_activity(agent_id, database)
    return ax.activity.logs(database, agent_id, after_seq=after_seq)


@app.get("/api/activities/{agent_id}/events")
async def follow(
    agent_id: UUID, request: Request, after_seq: int = 0, last_event_id: Annotated[int | None, Header()] = None
) -> StreamingResponse:
    """Follow an activity to its end, as server-sent events. A browser that reconnects says what it has seen."""
    start = after_seq if last_event_id is None else last_event_id
    found = await asyncio.to_thread(look, agent_id, start)

    async def events() -> AsyncIterator[str]:
        (status, lines), last = found, start
        while True:
            for line in lines:
                yield f"id: {line.seq}\ndata: {line.model_dump_json()}\n\n"
                last = line.seq
            if status.terminal or request.app.state.stopping:
                break
            await asyncio.sleep(LOOK_EVERY)
            status, lines = await asyncio.to_thread(look, agent_id, last)

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def look(agent_id: UUID, after_seq: int) -> tuple[Status, list[ActivityLogSchema]]:
    """The status of an activity, and the lines behind the cursor, up to that status at least."""
    with Session(engine) as session:
        status = session.scalar(select(Activity.status).where(Activity.agent_id == agent_id))
        if status is None:
            raise ax.ActivityNotFoundError(agent_id)
        return status, ax.activity.logs(session, agent_id, after_seq=after_seq)


@app.post("/api/activities/{agent_id}/cancel")
def cancel(agent_id: UUID) -> dict[str, bool]:
    """Cancel an activity: what waits does not start, what runs is stopped. False where it had ended before."""
    return {"canceled": ax.activity.cancel(agent_id, "Canceled by the user.")}
