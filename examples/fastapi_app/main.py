"""The web service: it starts research. The status API and the dashboard show it, cancel it and retry it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated
from uuid import UUID

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, JSONResponse
from sqlalchemy.orm import Session

import agentexec_otel as ax
from fastapi_app.settings import engine, settings
from fastapi_app.tasks import ResearchContext, pool

PAGE = Path(__file__).with_name("page.html")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Clean up after the last time; at the end, let tasks finish, and store what is still to be stored."""
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


app = FastAPI(title="Research", lifespan=lifespan)


@app.exception_handler(ax.ActivityNotStoredError)
@app.exception_handler(ax.TaskNotSentError)
def try_again(request: Request, exc: Exception) -> JSONResponse:
    """The database or the broker is away."""
    return JSONResponse({"detail": "The task could not be accepted, try again later"}, 503)


# -- who is asking ----------------------------------------------------------------------------------------------


def tenant_of(request: Request) -> str | None:
    """The customer whose user is asking. Your application takes this from its session; the example trusts a cookie."""
    return request.cookies.get("tenant")


def authorize(request: Request) -> ax.web.Scope | None:
    """Users see the activities of their own company, and may cancel and retry them."""
    tenant = tenant_of(request)
    return ax.web.Scope({"tenant": tenant}, may_act=True) if tenant else None


@app.get("/", include_in_schema=False)
def index(tenant: str = "acme") -> FileResponse:
    """The page where research is started. Signs in as the tenant of the query."""
    page = FileResponse(PAGE, headers={"Cache-Control": "no-store"})
    page.set_cookie("tenant", tenant, httponly=True, samesite="lax")
    return page


# -- research ---------------------------------------------------------------------------------------------------


@app.post("/api/research", status_code=202)
async def start_research(
    context: ResearchContext, tenant: Annotated[str | None, Depends(tenant_of)]
) -> dict[str, UUID]:
    """Enqueue research; the answer has the id by which to follow it."""
    if tenant is None:
        raise HTTPException(403, "Open the page first.")
    task = await ax.enqueue("research", context, metadata={"tenant": tenant, "company": context.company})
    return {"agent_id": task.agent_id}


app.include_router(ax.web.router(authorize=authorize, pool=pool), prefix="/api")
app.mount("/agents", ax.web.dashboard(authorize=authorize, pool=pool, title="Research"))
