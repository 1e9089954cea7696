"""Many viewers of the status API: nothing missed, nothing twice, and one query of the feed for all of them."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import event

import agentexec_otel as ax
from agentexec_otel.activity import aio
from agentexec_otel.activity.models import ActivityLog
from tests.databases import Database

pytestmark = [pytest.mark.one_python, pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)]

VIEWERS, ACTIVITIES, LOGS = 60, 6, 40
SHORTEST_POLL = 0.05
BOUND = 2_000
"""News that are held for a viewer."""


@pytest.fixture
async def port(database: Database) -> AsyncIterator[int]:
    """The port of a real server."""
    ax.configure(database.url)
    app = FastAPI()
    app.include_router(ax.web.router(authorize=ax.web.public, database=database.engine))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await asyncio.wait_for(serving, 10)


def request(agent_id: UUID) -> bytes:
    """A request for the stream of an activity."""
    return f"GET /activities/{agent_id}/events HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode()


async def follow(port: int, agent_id: UUID, first: asyncio.Event) -> list[int]:
    """The ids of a stream's events, up to its end. `first` is set at the first one."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(request(agent_id))
    return await seqs(connection, first)


async def seqs(connection: socket.socket, first: asyncio.Event | None = None) -> list[int]:
    """The ids of the events that the connection receives, up to the end."""
    reader, writer = await asyncio.open_connection(sock=connection)
    seen: list[int] = []
    while not (line := await reader.readline()).startswith(b"event: end"):
        assert line, "the stream was cut"
        if line.startswith(b"id: "):
            seen.append(int(line[4:]))
            if first is not None:
                first.set()
    writer.close()
    await writer.wait_closed()
    return seen


async def test_many_viewers(database: Database, port: int) -> None:
    """Each viewer gets each log of its activity once; the feed is not asked more often than for one viewer."""
    ids = [await aio.create("research") for _ in range(ACTIVITIES)]
    asked: list[str] = []

    @event.listens_for(database.engine, "before_cursor_execute")
    def count(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if f"WHERE {ActivityLog.__tablename__}.id > " in statement:
            asked.append(statement)

    began = time.monotonic()
    firsts = [asyncio.Event() for _ in range(VIEWERS)]
    viewers = [asyncio.create_task(follow(port, ids[at % ACTIVITIES], first)) for at, first in enumerate(firsts)]
    await asyncio.gather(*(first.wait() for first in firsts))
    for number in range(LOGS):
        for agent_id in ids:
            await aio.update(agent_id, f"Step {number}.")
        await asyncio.sleep(0.01)
    for agent_id in ids:
        await aio.complete(agent_id)
    seen = await asyncio.gather(*viewers)
    seconds = time.monotonic() - began
    assert seen == [list(range(1, LOGS + 3))] * VIEWERS
    assert 2 <= len(asked) <= seconds / SHORTEST_POLL + 2, f"{len(asked)} queries in {seconds:.1f} s"


async def test_viewer_that_reads_nothing(database: Database, port: int) -> None:
    """A viewer that falls behind by five times what is held for it reads the rest from the database."""
    agent_id = await aio.create("research")
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    slow.connect(("127.0.0.1", port))
    slow.sendall(request(agent_id))
    first = asyncio.Event()
    reading = asyncio.create_task(follow(port, agent_id, first))
    await first.wait()
    for number in range(5 * BOUND):
        ax.activity.update(agent_id, f"Step {number}. {'x' * 1_000}")
        if number % 500 == 0:
            await asyncio.sleep(0.01)
    await aio.complete(agent_id)
    expected = list(range(1, 5 * BOUND + 3))
    assert await reading == expected
    assert await seqs(slow) == expected
