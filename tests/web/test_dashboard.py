"""The dashboard over HTTP: the page, its files, and the status API below any path."""

import asyncio
import gzip
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import httpx
import pytest
from fastapi import FastAPI, HTTPException, Request
from starlette.applications import Starlette
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.routing import Mount

import agentexec_otel as ax
from tests.databases import Database

pytestmark = [pytest.mark.one_python, pytest.mark.parametrize("database", ["sqlite"], indirect=True)]

Application: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
DETAIL = "activities/00000000-0000-0000-0000-000000000001"


@asynccontextmanager
async def client_of(app: Application, base: str = "", root_path: str = "") -> AsyncGenerator[httpx.AsyncClient]:
    """A client, as of a server that is told a root path."""
    transport = httpx.ASGITransport(app, root_path=root_path)
    async with httpx.AsyncClient(transport=transport, base_url=f"http://test{base}") as client:
        yield client


@pytest.fixture
def dashboard(database: Database) -> Application:
    """Open to everybody."""
    return ax.web.dashboard(authorize=ax.web.public, database=database.engine)


# -- where it is mounted -------------------------------------------------------------------------------------------


def in_fastapi(dashboard: Application) -> Application:
    """As users of FastAPI do."""
    app = FastAPI()
    app.mount("/agents", dashboard)
    return app


def in_starlette(dashboard: Application) -> Application:
    """Two mounts deep."""
    return Starlette(routes=[Mount("/tools", routes=[Mount("/agents", app=dashboard)])])


def by_root_path(dashboard: Application) -> Application:
    """An application of ASGI 3 that dispatches by itself: the path stays whole."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await dashboard({**scope, "root_path": f"{scope['root_path']}/agents"}, receive, send)

    return app


def by_cutting(dashboard: Application) -> Application:
    """As many do: the path is cut as well."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"].removeprefix(f"{scope['root_path']}/agents")
        await dashboard({**scope, "path": path, "root_path": f"{scope['root_path']}/agents"}, receive, send)

    return app


def as_litestar(dashboard: Application) -> Application:
    """As a mount of Litestar: the path is cut without a word, and ends with a slash."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"].removeprefix(f"{scope['root_path']}/agents").rstrip("/")
        await dashboard({**scope, "path": f"{path}/", "root_path": ""}, receive, send)

    return app


def outer_path_left_out(dashboard: Application) -> Application:
    """A server that names its root path, and leaves it out of the path, with a mount of Starlette."""
    app = in_fastapi(dashboard)

    async def server(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "root_path": "/proxy"}, receive, send)

    return server


def alone(dashboard: Application) -> Application:
    """Not mounted."""
    return dashboard


@pytest.mark.parametrize(
    ("mounted", "base", "root_path"),
    [
        (in_fastapi, "/agents", ""),
        (in_fastapi, "/proxy/agents", "/proxy"),
        (in_starlette, "/tools/agents", ""),
        (by_root_path, "/agents", ""),
        (by_root_path, "/proxy/agents", "/proxy"),
        (by_cutting, "/agents", ""),
        (as_litestar, "/agents", ""),
        (by_cutting, "/proxy/agents", "/proxy"),
        (outer_path_left_out, "/agents", ""),
        (alone, "", ""),
        (alone, "/proxy", "/proxy"),
        (alone, "", "/"),
        (alone, "", "/proxy"),
    ],
)
async def test_below_any_path(
    dashboard: Application, mounted: Callable[[Application], Application], base: str, root_path: str
) -> None:
    """The page finds its files and the status API by relative addresses, whatever stands before the mount path."""
    async with client_of(mounted(dashboard), base, root_path) as client:
        for page in ("", DETAIL):
            shown = await client.get(f"/{page}")
            assert (shown.status_code, shown.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
            (found,) = re.findall(r'<base href="([^"]+)">', shown.text)
            root = shown.request.url.join(found)
            assert str(root) == f"http://test{base}/"
            for path in (*re.findall(r'(?:src|href)="(assets/[^"]+)"', shown.text), "api/activities", "api/session"):
                assert (await client.get(root.join(path))).status_code == 200, path
        for path in ("nothing", "api/nothing", "assets/nothing", "assets/../_dashboard.py", "activities/1/2"):
            refused = await client.get(f"/{path}")
            assert (refused.status_code, refused.json()["status"]) == (404, 404), path


@pytest.mark.parametrize(
    ("mounted", "path", "root_path"),
    [
        (in_fastapi, "/agents", ""),
        (in_starlette, "/tools/agents", ""),
        (by_root_path, "/proxy/agents", "/proxy"),
        (by_cutting, "/agents", ""),
        (as_litestar, "/agents", ""),
        (alone, "/proxy", "/proxy"),
    ],
)
async def test_missing_slash(
    dashboard: Application, mounted: Callable[[Application], Application], path: str, root_path: str
) -> None:
    """Without its slash, the mount path is redirected to with it, the query included."""
    async with client_of(mounted(dashboard), "", root_path) as client:
        redirect = await client.get(f"{path}?status=ERROR")
        assert redirect.status_code == 307
        there = redirect.request.url.join(redirect.headers["Location"])
        assert str(there) == f"http://test{path}/?status=ERROR"
        assert (await client.get(there)).status_code == 200


# -- headers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", DETAIL, "assets/app.js", "api/session", "api/nothing", "nothing", "api/events"])
async def test_security_headers(dashboard: Application, path: str) -> None:
    """Every response has them: pages, files, JSON, errors and streams."""
    first: dict[str, str] = {}
    received = iter([{"type": "http.request"}])

    async def send(message: Any) -> None:
        first.update({name.decode(): value.decode() for name, value in message.get("headers", ())})

    async def receive() -> Any:
        while not first:
            if request := next(received, None):
                return request
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}  # ends a stream

    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": f"/{path}", "query_string": b"", "headers": []}
    await dashboard(scope, receive, send)
    policy = dict(part.split(" ", 1) for part in first["content-security-policy"].split("; "))
    assert policy.pop("default-src") == policy.pop("form-action") == "'none'"
    assert set(policy.values()) == {"'self'"}
    assert {"script-src", "style-src", "img-src", "connect-src", "base-uri", "frame-ancestors"} == set(policy)
    assert first["x-content-type-options"] == "nosniff"
    assert first["referrer-policy"] == "same-origin"


async def test_nothing_inline(dashboard: Application) -> None:
    """The policy allows no inline script or style, and the page has none."""
    async with client_of(dashboard) as client:
        page = (await client.get("/")).text
    assert re.findall(r"<script(?![^>]* src=)|<style| style=| on\w+=|https?:", page) == []


async def test_caching(dashboard: Application) -> None:
    """The page is not stored. A file is, for ever, if its address names its version, and is sent compressed."""
    async with client_of(dashboard) as client:
        page = await client.get("/")
        assert page.headers["Cache-Control"] == "no-store"
        weight = len(gzip.compress(page.content))
        for path in re.findall(r'(?:src|href)="(assets/[^"]+)"', page.text):
            file = await client.get(path, headers={"Accept-Encoding": "br, gzip"})
            assert file.headers["Cache-Control"] == "public, max-age=31536000, immutable"
            assert (file.headers["Content-Encoding"], file.headers["Vary"]) == ("gzip", "Accept-Encoding")
            plain = await client.get(path, headers={"Accept-Encoding": "identity"})
            assert "Content-Encoding" not in plain.headers
            assert plain.content == file.content
            other = await client.get(f"{path.partition('?')[0]}?of-another-version")
            assert other.headers["Cache-Control"] == "no-cache"
            weight += len(gzip.compress(file.content))
    assert weight < 60_000


async def test_methods(dashboard: Application) -> None:
    """HEAD is GET without the body; anything else is refused."""
    async with client_of(dashboard) as client:
        for path in ("/", f"/{DETAIL}", "/assets/app.css"):
            assert (await client.head(path)).headers == (await client.get(path)).headers
            refused = await client.post(path)
            assert (refused.status_code, refused.headers["Content-Type"]) == (405, "application/problem+json")


# -- who may see it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [HTTPException, StarletteHTTPException])
async def test_refused_page(database: Database, error: type[StarletteHTTPException]) -> None:
    """`authorize` is asked for the page as for the API: it refuses, or sends the browser to where one logs in."""
    asked: list[str] = []

    async def authorize(request: Request) -> ax.web.Scope | None:
        asked.append(request.url.path)
        if request.headers.get("Accept", "").startswith("text/html"):
            raise error(303, headers={"Location": "/login"})
        if "Authorization" not in request.headers:
            raise error(401, "Who are you?", {"WWW-Authenticate": "Basic"})
        return None

    app = FastAPI()
    app.mount("/agents", ax.web.dashboard(authorize=authorize, database=database.engine))
    async with client_of(app, "/agents") as client:
        for path in ("/", f"/{DETAIL}", "/api/activities"):
            unknown = await client.get(path)
            assert (unknown.status_code, unknown.headers["WWW-Authenticate"]) == (401, "Basic")
            assert unknown.json()["detail"] == "Who are you?"
            refused = await client.get(path, headers={"Authorization": "Basic eDp5"})
            assert (refused.status_code, refused.headers["Content-Type"]) == (403, "application/problem+json")
            sent = await client.get(path, headers={"Accept": "text/html,*/*"})
            assert (sent.status_code, sent.headers["Location"]) == (303, "/login")
            assert "<title>" not in unknown.text + refused.text + sent.text
            assert asked[-3:] == [f"/agents{path}"] * 3


async def test_title_is_text(database: Database) -> None:
    """A title is shown as it is, whatever is in it."""
    title = "</title><script>{base}{version}"
    async with client_of(ax.web.dashboard(authorize=ax.web.public, database=database.engine, title=title)) as client:
        page = (await client.get("/")).text
    assert "<title>&lt;/title&gt;&lt;script&gt;{base}{version}</title>" in page


async def test_actions_of_the_application(database: Database) -> None:
    """Retry and cancel are those of the router."""
    ax.configure(database.url)
    agent_id = await ax.activity.aio.create("research")
    await ax.activity.aio.error(agent_id, "no answer")
    ax.flush()
    retried: list[str] = []
    app = ax.web.dashboard(
        authorize=ax.web.public, database=database.engine, on_retry=lambda item: retried.append(item.agent_type)
    )
    async with client_of(app) as client:
        assert (await client.get("/api/session")).json()["may_retry"] is True
        assert (await client.post(f"/api/activities/{agent_id}/retry")).status_code == 403
        again = await client.post(f"/api/activities/{agent_id}/retry", headers={"X-AgentExec-Action": "test"})
    assert (again.json(), retried) == ({"attempt": 2}, ["research"])
