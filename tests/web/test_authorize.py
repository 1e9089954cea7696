"""What a scope hides and refuses, over every endpoint."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import HTTPException, Request

import agentexec_otel as ax
from agentexec_otel.activity import aio
from tests.web.conftest import ACT, Serve

pytestmark = [
    pytest.mark.one_python,
    pytest.mark.parametrize("database", ["sqlite"], indirect=True),
    pytest.mark.parametrize("serve", ["sync"], indirect=True),
]

Scope = ax.web.Scope
TENANT = {"tenant": "acme"}
READS = ["/activities", "/activities/{id}", "/activities/{id}?logs=false", "/activities/{id}/logs", "/stats"]
CHANGES = ["/activities/{id}/cancel", "/activities/{id}/retry", "/cancel?all=true", "/retry?all=true"]


def always(scope: ax.web.Scope | None) -> Callable[[Request], ax.web.Scope | None]:
    """An authorization that gives every request this scope."""
    return lambda request: scope


async def an_activity() -> str:
    """One that has ended with a message and an error, of the tenant acme."""
    agent_id = await aio.create("research", metadata={"tenant": "acme", "note": "private note"})
    await aio.error(agent_id, "private failure")
    ax.flush()
    return str(agent_id)


async def answer(serve: Serve, authorize: Any, path: str, **headers: str) -> tuple[int, str]:
    """Status and body of a request, a POST where the path changes something."""
    agent_id = await an_activity()
    client = serve(authorize=authorize, on_retry=print)
    method = "POST" if path in CHANGES else "GET"
    found = await client.request(method, path.format(id=agent_id), headers=headers)
    return found.status_code, found.text


@pytest.mark.parametrize("path", READS + CHANGES)
async def test_no_scope(serve: Serve, path: str) -> None:
    """None refuses the request; an exception of the application is its answer."""

    async def unknown(request: Request) -> None:
        raise HTTPException(401, "Who are you?", {"WWW-Authenticate": "Bearer"})

    assert (await answer(serve, always(None), path, **ACT))[0] == 403
    status, body = await answer(serve, unknown, path, **ACT)
    assert (status, "Who are you?" in body) == (401, True)


@pytest.mark.parametrize("path", READS + CHANGES)
async def test_another_tenant(serve: Serve, path: str) -> None:
    """For another tenant the activity does not exist."""
    scope = Scope({"tenant": "other"}, may_act=True)
    status, body = await answer(serve, always(scope), path, **ACT)
    if "{id}" in path:
        assert status == 404
    else:
        assert status == 200
        assert any(nothing in body for nothing in ('"items":[]', '"canceled":0', '"attempts":{}', '"total":0'))


@pytest.mark.parametrize("path", READS + CHANGES)
async def test_read_only(serve: Serve, path: str) -> None:
    """A scope that may not act reads, and changes nothing."""
    status, _ = await answer(serve, always(Scope(TENANT)), path, **ACT)
    assert status == (403 if path in CHANGES else 200)


@pytest.mark.parametrize(
    ("scope", "may_act", "may_see_content", "may_retry"),
    [
        (Scope(may_act=True), True, True, True),
        (Scope(), False, True, False),
        (Scope(may_act=True, may_see_content=False), True, False, True),
    ],
)
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


@pytest.mark.parametrize("path", CHANGES)
async def test_change_needs_the_header(serve: Serve, path: str) -> None:
    """A form or a script of another site cannot send the header."""
    status, body = await answer(serve, ax.web.public, path)
    assert (status, "X-AgentExec-Action" in body) == (403, True)


@pytest.mark.parametrize("path", READS)
async def test_hidden_content(serve: Serve, path: str) -> None:
    """Messages, errors and metadata are not sent."""
    scope = Scope(TENANT, may_see_content=False)
    status, body = await answer(serve, always(scope), path)
    assert status == 200
    assert "private" not in body
    assert "acme" not in body


@pytest.mark.parametrize("query", ["text=private", "metadata=note=private+note", "error_type=RuntimeError"])
async def test_hidden_content_is_not_found_by_guessing(serve: Serve, query: str) -> None:
    """Filters that would reveal hidden content are refused."""
    scope = Scope(may_see_content=False)
    status, body = await answer(serve, always(scope), f"/activities?{query}")
    assert (status, "filter by messages" in body) == (403, True)


async def test_tenant_cannot_be_changed(serve: Serve) -> None:
    """A request cannot ask for another tenant than that of its scope."""
    scope = Scope(TENANT)
    status, body = await answer(serve, always(scope), "/activities?metadata=tenant=other")
    assert (status, "another 'tenant'" in body) == (403, True)
    status, body = await answer(serve, always(scope), "/activities?metadata=note=private+note")
    assert (status, "private failure" in body) == (200, True)
