"""A FastAPI application with the status API, over each database, read by a synchronous or an asynchronous engine."""

from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

import agentexec_otel as ax
from tests.databases import Database

ACT = {"X-AgentExec-Action": "test"}
Serve: TypeAlias = Callable[..., httpx.AsyncClient]


@pytest.fixture(params=["sync", "async"])
async def serve(request: pytest.FixtureRequest, database: Database) -> AsyncIterator[Serve]:
    """Return a function that mounts the router under ``/api`` and returns a client of it."""
    ax.configure(database.url)
    engine = create_async_engine(database.async_url, poolclass=NullPool) if request.param == "async" else None
    clients: list[httpx.AsyncClient] = []

    def mount(**arguments: Any) -> httpx.AsyncClient:
        app = FastAPI()
        arguments = {"authorize": ax.web.public, "database": engine or database.engine, **arguments}
        app.include_router(ax.web.router(**arguments), prefix="/api")
        clients.append(httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test/api"))
        return clients[-1]

    yield mount
    for client in clients:
        await client.aclose()
    if engine is not None:
        await engine.dispose()
