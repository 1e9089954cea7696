"""The reason that is stored for a failure of each kind, raised by the real clients and frameworks."""

import asyncio
import json
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anthropic
import openai
import pytest
from agents import Agent, Runner
from agents.mcp import MCPServerSse, MCPServerStdio, MCPServerStreamableHttp
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai.models.test import TestModel
from pydantic_ai.usage import UsageLimits
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

import agentexec_otel as ax
from tests.databases import Database
from tests.e2e.scripted import call, scripted
from tests.sql.rows import row

pytestmark = [pytest.mark.one_python, pytest.mark.parametrize("database", ["sqlite"], indirect=True)]

QUOTA = {"error": {"message": "You exceeded your current quota.", "code": "insufficient_quota"}}
MCP_SERVER = """
import os
from mcp.server.mcpserver import MCPServer

server = MCPServer("mortal")

@server.tool()
def die() -> str:
    os._exit(1)

server.run()
"""


class Provider(BaseHTTPRequestHandler):
    """A provider whose answer stands in the path: a status, "hang", or "cut"."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._respond(self.path.split("/")[1])

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._respond(self.path.split("/")[1])

    def _respond(self, how: str) -> None:
        if how == "hang":
            released.wait(30)
        elif how == "cut":
            self._answer(200, b"data: {}\n\n", more=1000, content_type="text/event-stream")
        else:
            self._answer(int(how.removesuffix("-quota")), json.dumps(QUOTA if "quota" in how else {}).encode())
        self.close_connection = True

    def _answer(self, status: int, body: bytes, more: int = 0, content_type: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body) + more))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep quiet."""


released = threading.Event()


@pytest.fixture
def provider() -> Iterator[str]:
    """The address of a `Provider`."""
    released.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Provider) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        released.set()
        server.shutdown()
        thread.join()


async def stored_reason(database: Database, failing: Callable[[], Awaitable[object]]) -> tuple[str | None, str | None]:
    """The error type and the reason of an activity that a failure has ended."""
    ax.configure(database.url)
    run = ax.activity.run("task")
    with pytest.raises(Exception):  # noqa: B017, PT011  # Each has its own.
        async with run:
            await failing()
    assert await asyncio.to_thread(ax.flush)
    stored = row(database.engine, run.agent_id)
    assert stored.status == "ERROR"
    return stored.error_type, stored.reason


@pytest.mark.parametrize(
    ("answer", "error_type", "reason"),
    [
        ("401", "openai.AuthenticationError", "auth"),
        ("403", "openai.PermissionDeniedError", "auth"),
        ("400", "openai.BadRequestError", "other"),
        ("429", "openai.RateLimitError", "rate_limit"),
        ("429-quota", "openai.RateLimitError", "usage_limit"),
        ("503", "openai.InternalServerError", "model_unavailable"),
        ("hang", "openai.APITimeoutError", "timeout"),
        ("cut", "openai.APIConnectionError", "connection"),
    ],
)
async def test_openai(provider: str, database: Database, answer: str, error_type: str, reason: str) -> None:
    """A refused, slow or cut request to a model has the reason of its answer."""
    client = openai.AsyncOpenAI(api_key="none", base_url=f"{provider}/{answer}", max_retries=0, timeout=1)

    async def ask() -> None:
        async for _ in await client.chat.completions.create(model="model", messages=[], stream=True):
            pass

    assert await stored_reason(database, ask) == (error_type, reason)
    await client.close()


async def test_anthropic(provider: str, database: Database) -> None:
    """Another provider's client has the same reasons."""
    client = anthropic.AsyncAnthropic(api_key="none", base_url=f"{provider}/529", max_retries=0)

    async def ask() -> None:
        await client.messages.create(model="model", max_tokens=1, messages=[])

    assert await stored_reason(database, ask) == ("anthropic.OverloadedError", "model_unavailable")
    await client.close()


async def test_pydantic_ai(database: Database) -> None:
    """A run that meets its limit of tokens has the reason `usage_limit`."""

    async def ask() -> None:
        await PydanticAgent(TestModel()).run("Hello", usage_limits=UsageLimits(total_tokens_limit=1))

    assert await stored_reason(database, ask) == ("pydantic_ai.exceptions.UsageLimitExceeded", "usage_limit")


async def test_unknown_host(database: Database) -> None:
    """A server that is not there is a failed connection."""
    client = openai.AsyncOpenAI(api_key="none", base_url="http://127.0.0.1:1", max_retries=0)

    async def ask() -> None:
        await client.models.list()

    assert await stored_reason(database, ask) == ("openai.APIConnectionError", "connection")
    await client.close()


async def test_websocket(database: Database) -> None:
    """A web socket that the server closes is a failed connection."""

    async def leave(connection: ServerConnection) -> None:
        await connection.close(1011)

    async def listen() -> None:
        async with serve(leave, "127.0.0.1", 0) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            async with connect(f"ws://127.0.0.1:{port}", proxy=None) as socket:
                await socket.recv()

    expected = ("websockets.exceptions.ConnectionClosedError", "connection")
    assert await stored_reason(database, listen) == expected


@pytest.mark.usefixtures("no_uploads")
async def test_dead_mcp_server(database: Database) -> None:
    """An MCP server that dies while its tool is called, and raises into the run, is a failed connection."""

    async def ask() -> None:
        params = {"command": sys.executable, "args": ["-c", MCP_SERVER]}
        async with MCPServerStdio(params, failure_error_function=None) as server:  # type: ignore[arg-type]
            await Runner.run(Agent("agent", model=scripted(call("die")), mcp_servers=[server]), "Go.")

    assert await stored_reason(database, ask) == ("agents.exceptions.UserError", "connection")


@pytest.mark.parametrize(("answer", "reason"), [("401", "auth"), ("429", "rate_limit")])
async def test_mcp_server_that_refuses(provider: str, database: Database, answer: str, reason: str) -> None:
    """An MCP server that refuses a client has the reason of its answer."""

    async def ask() -> None:
        async with MCPServerSse({"url": f"{provider}/{answer}"}):
            pass

    assert await stored_reason(database, ask) == ("agents.exceptions.UserError", reason)


async def test_mcp_server_that_is_away(database: Database) -> None:
    """An MCP server that cannot be reached is a failed connection, although the SDK removes the cause."""

    async def ask() -> None:
        async with MCPServerStreamableHttp({"url": "http://127.0.0.1:1"}):
            pass

    assert await stored_reason(database, ask) == ("agents.exceptions.UserError", "connection")


async def test_groups_and_causes(provider: str, database: Database) -> None:
    """Tasks of a group whose failures an application wraps have the reason of what they wrap."""
    client = openai.AsyncOpenAI(api_key="none", base_url=f"{provider}/429", max_retries=0)

    async def ask() -> None:
        try:
            await client.models.list()
        except openai.APIError as exc:
            raise LookupError("no models") from exc

    async def ask_both() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(ask())
            tasks.create_task(ask())

    assert await stored_reason(database, ask_both) == ("ExceptionGroup", "rate_limit")
    await client.close()
