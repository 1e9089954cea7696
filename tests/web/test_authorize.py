"""What a scope hides and refuses, over every endpoint and stream."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from uuid import UUID

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.routing import APIRoute

import agentexec_otel as ax
from agentexec_otel.activity import aio
from tests.databases import Database
from tests.sql.rows import row
from tests.web.conftest import ACT, Serve

pytestmark = [
    pytest.mark.one_python,
    pytest.mark.parametrize("database", ["sqlite"], indirect=True),
]
synchronously = pytest.mark.parametrize("serve", ["sync"], indirect=True)

Scope = ax.web.Scope
TENANT = {"tenant": "acme"}
SCOPES = {
    "none": None,
    "other": Scope({"tenant": "other"}, may_act=True),
    "read-only": Scope(TENANT),
    "hidden": Scope(TENANT, may_act=True, may_see_content=False),
}
OURS, THEIRS = UUID(int=1), UUID(int=2)


@dataclass(frozen=True)
class Row:
    """An endpoint in the matrix.

    Attributes:
        changes: It needs `may_act` and the header.
        shows: Whether a scope that sees all of the tenant's finds the message of its activity in the answer.
        endless: It is a stream that does not end.
    """

    changes: bool = False
    shows: bool = True
    endless: bool = False
    query: dict[str, str] = field(default_factory=dict[str, str])
    body: dict[str, str] | None = None


CHANGE = Row(changes=True, shows=False)
MANY = Row(changes=True, shows=False, query={"all": "true"})
MATRIX = {
    "GET /session": Row(shows=False),
    "GET /activities": Row(),
    "GET /activities/{agent_id}": Row(),
    "GET /activities/{agent_id}/logs": Row(),
    "GET /activities/{agent_id}/events": Row(),
    "POST /activities/{agent_id}/agui": Row(body={"threadId": "t", "runId": "r"}),
    "GET /events": Row(endless=True, query={"after": ""}),
    "GET /stats": Row(shows=False),
    "POST /activities/{agent_id}/cancel": CHANGE,
    "POST /activities/{agent_id}/retry": CHANGE,
    "POST /cancel": MANY,
    "POST /retry": MANY,
}
CHANGES = [name for name, one in MATRIX.items() if one.changes]


def authorize(request: Request) -> ax.web.Scope | None:
    """The scope that the request names."""
    return SCOPES[request.headers["X-Scope"]]


@pytest.fixture
async def client(database: Database) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a real server, on which two tenants have an activity that has ended as ERROR."""
    ax.configure(database.url)
    for agent_id, tenant in ((OURS, "acme"), (THEIRS, "other")):
        await aio.create("research", agent_id=agent_id, metadata={"tenant": tenant, "note": f"private to {tenant}"})
        await aio.error(agent_id, f"private to {tenant}")
    ax.flush()
    app = FastAPI()
    app.include_router(ax.web.router(authorize=authorize, database=database.engine, on_retry=lambda item: None))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as opened:
        yield opened
    server.should_exit = True
    await asyncio.wait_for(serving, 5)


async def answer(client: httpx.AsyncClient, name: str, scope: str, until: UUID = OURS) -> tuple[int, str]:
    """Status and body; of a stream without an end, up to the event of an activity."""
    method, path = name.split()
    one = MATRIX[name]
    sent = client.stream(
        method,
        path.format(agent_id=OURS),
        params=one.query,
        json=one.body,
        headers={"X-Scope": scope, **ACT},
    )
    body = ""
    async with sent as response:
        async for part in response.aiter_text():
            body += part
            if one.endless and str(until) in body:
                break
    return response.status_code, body


def test_every_endpoint_is_in_the_matrix(database: Database) -> None:
    """A new endpoint needs a row."""
    routes = ax.web.router(authorize=ax.web.public, on_retry=print).routes
    found = [f"{method} {one.path}" for one in routes if isinstance(one, APIRoute) for method in one.methods or ()]
    assert sorted(found) == sorted(MATRIX)


@pytest.mark.parametrize("name", MATRIX)
async def test_scopes(client: httpx.AsyncClient, database: Database, name: str) -> None:
    """No scope is refused; another tenant's does not exist; a reader changes nothing; hidden content is not sent."""
    one = MATRIX[name]
    assert (await answer(client, name, "none"))[0] == 403

    status, body = await answer(client, name, "other", until=THEIRS)
    assert status == (404 if "agent_id" in name else 200)
    assert "acme" not in body
    assert status == 404 or str(OURS) not in body

    status, body = await answer(client, name, "read-only")
    assert status == (403 if one.changes else 200)
    assert ("private to acme" in body) == one.shows
    assert "private to other" not in body
    assert str(THEIRS) not in body
    assert row(database.engine, OURS).attempt == 1

    status, body = await answer(client, name, "hidden")
    assert status == 200
    assert "private" not in body
    assert "acme" not in body


@pytest.mark.parametrize("name", CHANGES)
async def test_change_needs_the_header(client: httpx.AsyncClient, database: Database, name: str) -> None:
    """A form or a script of another site cannot send the header."""
    refused = await client.post(
        name.split()[1].format(agent_id=OURS), params=MATRIX[name].query, headers={"X-Scope": "hidden"}
    )
    assert (refused.status_code, "X-AgentExec-Action" in refused.text) == (403, True)
    assert row(database.engine, OURS).attempt == 1


@pytest.mark.parametrize("name", MATRIX)
@synchronously
async def test_exception_of_the_application(serve: Serve, name: str) -> None:
    """An exception that `authorize` raises is the answer."""

    async def unknown(request: Request) -> None:
        raise HTTPException(401, "Who are you?", {"WWW-Authenticate": "Bearer"})

    method, path = name.split()
    client = serve(authorize=unknown, on_retry=print)
    found = await client.request(method, path.format(agent_id=OURS), json=MATRIX[name].body, headers=ACT)
    assert (found.status_code, found.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert found.json()["detail"] == "Who are you?"


def always(scope: ax.web.Scope | None) -> Callable[[Request], ax.web.Scope | None]:
    """An authorization that gives every request this scope."""
    return lambda request: scope


@pytest.mark.parametrize(
    ("scope", "may_act", "may_see_content", "may_retry"),
    [
        (Scope(may_act=True), True, True, True),
        (Scope(), False, True, False),
        (Scope(may_act=True, may_see_content=False), True, False, True),
    ],
    ids=["all", "read-only", "hidden"],
)
@synchronously
async def test_session(
    serve: Serve, scope: ax.web.Scope, may_act: bool, may_see_content: bool, may_retry: bool
) -> None:
    """A client can ask what it may do."""
    expected = {
        "may_act": may_act,
        "may_see_content": may_see_content,
        "may_retry": may_retry,
        "version": ax.__version__,
    }
    assert (await serve(authorize=always(scope), on_retry=print).get("/session")).json() == expected
    without = await serve(authorize=always(scope)).get("/session")
    assert without.json() == {**expected, "may_retry": False}


@pytest.mark.parametrize("path", ["/activities", "/stats", "/events"])
@pytest.mark.parametrize("query", ["text=private", "metadata=note=private", "error_type=RuntimeError"])
async def test_hidden_content_is_not_found_by_guessing(client: httpx.AsyncClient, path: str, query: str) -> None:
    """Filters that would reveal hidden content are refused."""
    refused = await client.get(f"{path}?{query}", headers={"X-Scope": "hidden"})
    assert (refused.status_code, "filter by messages" in refused.text) == (403, True)


async def test_tenant_cannot_be_changed(client: httpx.AsyncClient) -> None:
    """A request cannot ask for another tenant than that of its scope."""
    scope = {"X-Scope": "read-only"}
    refused = await client.get("/activities?metadata=tenant=other", headers=scope)
    assert (refused.status_code, "another 'tenant'" in refused.text) == (403, True)
    allowed = await client.get("/activities?metadata=note=private+to+acme", headers=scope)
    assert (allowed.status_code, len(allowed.json()["items"])) == (200, 1)
