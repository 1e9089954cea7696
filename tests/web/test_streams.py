"""Streams: nothing missed, nothing twice, resumed at any place."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, NamedTuple
from uuid import UUID

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

import agentexec_otel as ax
from agentexec_otel.activity import aio
from tests.databases import Database

pytestmark = pytest.mark.one_python


class Event(NamedTuple):
    """A server-sent event."""

    name: str
    id: str | None
    data: Any


@pytest.fixture
async def server(database: Database) -> AsyncIterator[uvicorn.Server]:
    """A real server. It has 5 s to stop."""
    ax.configure(database.url)
    app = FastAPI()
    app.include_router(ax.web.router(authorize=authorize, database=database.engine))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    serving = asyncio.create_task(server.serve())
    async with asyncio.timeout(5):
        while not server.started:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    yield server
    server.should_exit = True
    await asyncio.wait_for(serving, 5)


@pytest.fixture
def url(server: uvicorn.Server) -> str:
    """Its address."""
    port = server.servers[0].sockets[0].getsockname()[1]
    return f"http://127.0.0.1:{port}"


def authorize(request: Any) -> ax.web.Scope:
    """The scope of the tenant that the request names."""
    tenant = request.headers.get("X-Tenant")
    return ax.web.Scope({"tenant": tenant} if tenant else None, may_see_content="X-Hide" not in request.headers)


async def events(url: str, **headers: str) -> AsyncGenerator[Event]:
    """The events of a stream, without heartbeats."""
    async with httpx.AsyncClient(timeout=20) as client, client.stream("GET", url, headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        async for line in response.aiter_lines():
            name, colon, value = line.partition(": ")
            if colon and name:
                fields[name] = value
            elif not line and fields:
                yield Event(fields["event"], fields.get("id"), json.loads(fields["data"]))
                fields = {}


async def run(agent_id: UUID, *messages: str) -> None:
    """Report logs and complete."""
    for message in messages:
        await aio.update(agent_id, message)
        await asyncio.sleep(0.01)
    await aio.complete(agent_id)


async def test_activity_to_its_end(database: Database, url: str) -> None:
    """Every log comes once, in order, with its seq as id; the stream ends with the activity."""
    agent_id = await aio.create("research", metadata={"tenant": "acme"})
    running = asyncio.create_task(run(agent_id, *"abc"))
    seen = [event async for event in events(f"{url}/activities/{agent_id}/events")]
    await running
    assert [event.data["message"] for event in seen[:-1]] == [
        "Waiting to start.", "a", "b", "c", "Task completed successfully.",
    ]  # fmt: skip
    assert [event.id for event in seen[:-1]] == ["1", "2", "3", "4", "5"]
    assert (seen[-1].name, seen[-1].data["status"]) == ("end", "COMPLETE")
    assert seen[-1].data["metadata"] == {"tenant": "acme"}


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_activity_is_resumed(database: Database, url: str) -> None:
    """`Last-Event-ID` and `after` continue behind a log; what has ended is sent at once."""
    agent_id = await aio.create("research")
    await run(agent_id, *"abc")
    address = f"{url}/activities/{agent_id}/events"
    assert [event.id async for event in events(address, **{"Last-Event-ID": "3"})] == ["4", "5", None]
    assert [event.id async for event in events(f"{address}?after=4")] == ["5", None]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_refused_streams(database: Database, url: str) -> None:
    """What does not exist, or is another tenant's, is 404; a cursor that is none is 422."""
    agent_id = await aio.create("research", metadata={"tenant": "acme"})
    async with httpx.AsyncClient(base_url=url) as client:
        missing = await client.get("/activities/00000000-0000-0000-0000-000000000000/events")
        other = await client.get(f"/activities/{agent_id}/events", headers={"X-Tenant": "other"})
        malformed = await client.get("/events?after=x!")
    assert [answer.status_code for answer in (missing, other, malformed)] == [404, 404, 422]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_content_is_hidden(database: Database, url: str) -> None:
    """A scope without content gets neither messages nor metadata."""
    agent_id = await aio.create("research", metadata={"tenant": "acme"})
    await run(agent_id, "private")
    seen = [event async for event in events(f"{url}/activities/{agent_id}/events", **{"X-Hide": "1"})]
    assert {event.data["message"] for event in seen[:-1]} == {""}
    assert (seen[-1].data["metadata"], seen[-1].data["latest_log"]) == (None, None)


async def test_list(database: Database, url: str) -> None:
    """A list's stream has each activity of its scope that changes, and says which ones no longer match."""
    async with aclosing(events(f"{url}/events?status=QUEUED&status=RUNNING", **{"X-Tenant": "acme"})) as stream:
        assert (await anext(stream)).name == "ready"
        await aio.create("research", metadata={"tenant": "other"})
        agent_id = await aio.create("research", metadata={"tenant": "acme"})
        event = await anext(stream)
        assert (event.name, event.data["agent_id"], event.data["status"]) == ("activity", str(agent_id), "QUEUED")
        await aio.update(agent_id, "Reading.", 30)
        event = await anext(stream)
        assert (event.data["latest_log"], event.data["latest_percentage"]) == ("Reading.", 30)
        await aio.complete(agent_id)
        event = await anext(stream)
        assert (event.name, event.data) == ("left", {"agent_id": str(agent_id)})


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_list_of_one_activity(database: Database, url: str) -> None:
    """A list's stream that is filtered by `agent_id` has this activity only, also behind a cursor."""
    agent_id, other = await aio.create("research"), await aio.create("research")
    async with aclosing(events(f"{url}/events?agent_id={agent_id}")) as stream:
        cursor = (await anext(stream)).id
        assert cursor is not None
        await aio.update(other, "Another one.")
        await aio.update(agent_id, "Reading.")
        event = await anext(stream)
        assert (event.name, event.data["agent_id"]) == ("activity", str(agent_id))
    async with aclosing(events(f"{url}/events?agent_id={agent_id}", **{"Last-Event-ID": cursor})) as stream:
        assert (await anext(stream)).name == "ready"
        event = await anext(stream)
        assert (event.name, event.data["latest_log"]) == ("activity", "Reading.")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_list_is_resumed(database: Database, url: str) -> None:
    """A list that continues behind a cursor gets what has changed meanwhile."""
    async with aclosing(events(f"{url}/events")) as stream:
        cursor = (await anext(stream)).id
    assert cursor is not None
    agent_id = await aio.create("research")
    async with aclosing(events(f"{url}/events", **{"Last-Event-ID": cursor})) as stream:
        assert (await anext(stream)).name == "ready"
        event = await anext(stream)
        assert (event.name, event.data["agent_id"]) == ("activity", str(agent_id))


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_open_streams_do_not_hold_the_server(database: Database, server: uvicorn.Server, url: str) -> None:
    """A stream ends when the server is told to stop, before its activity does."""
    agent_id = await aio.create("research")
    async with asyncio.timeout(5):
        async for event in events(f"{url}/activities/{agent_id}/events"):
            assert event.name == "log"
            server.should_exit = True
