"""The dashboard: a page, its files, and the status API below ``api/``."""

from __future__ import annotations

import gzip
import hashlib
import html
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote

import starlette.types as asgi
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy import URL, Engine
from starlette.exceptions import HTTPException

import agentexec_otel as ax
from agentexec_otel.web._problems import ProblemRoute, problem
from agentexec_otel.web._retry import OnRetry
from agentexec_otel.web._router import router
from agentexec_otel.web._scope import Authorize, scope_of

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from agentexec_otel import Pool

__all__ = ["dashboard"]

_STATIC: Final = Path(__file__).parent / "static"
_TYPES: Final = {
    "app.js": "text/javascript",
    "app.css": "text/css",
    "favicon.svg": "image/svg+xml",
    "favicon-live.svg": "image/svg+xml",
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'self'; form-action 'none'; frame-ancestors 'self'"
)
_SECURITY: Final = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
)
_READ: Final = ["GET", "HEAD"]


def dashboard(
    *,
    authorize: Authorize,
    database: str | URL | Engine | AsyncEngine | None = None,
    on_retry: OnRetry | None = None,
    pool: Pool | None = None,
    title: str = "Agents",
) -> asgi.ASGIApp:
    """Return an ASGI application with the dashboard, to mount below any path of any ASGI application.

    Args:
        authorize: As for `router`; asked for the page as well.
        database: As for `router`.
        on_retry: As for `router`.
        pool: As for `router`.
        title: The title of the page.

    Raises:
        ConfigurationError: The page has not been built.
        ValueError: Both `on_retry` and `pool` are given.
    """
    pages = _Pages(authorize, title)
    views = APIRouter(route_class=ProblemRoute)
    views.api_route("/", methods=_READ)(pages.page)
    views.api_route("/activities/{agent_id}", methods=_READ)(pages.page)
    views.api_route("/assets/{name}", methods=_READ)(pages.asset)
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    app.include_router(views)
    app.include_router(router(authorize=authorize, database=database, on_retry=on_retry, pool=pool), prefix="/api")
    app.exception_handler(HTTPException)(_problem_of)
    return _Mounted(app)


# -- the page and its files ----------------------------------------------------------------------------------------


class _Asset(NamedTuple):
    content: bytes
    compressed: bytes


class _Pages:
    def __init__(self, authorize: Authorize, title: str) -> None:
        try:
            page = (_STATIC / "index.html").read_text(encoding="utf-8")
            self._assets = {name: _asset(name) for name in _TYPES}
        except FileNotFoundError:
            raise ax.ConfigurationError("the dashboard has not been built in this checkout: run make ui") from None
        contents = b"".join(asset.content for asset in self._assets.values())
        self._version: Final = hashlib.blake2b(contents, digest_size=6).hexdigest()
        self._page: Final = page.replace("{version}", self._version)
        self._title: Final = html.escape(title)
        self._authorize: Final = authorize

    async def page(self, request: Request) -> Response:
        await scope_of(self._authorize, request)
        # Relative, so that the page works below any mount path and behind any proxy.
        base = "../" if "agent_id" in request.path_params else "./"
        page = self._page.replace("{base}", base).replace("{title}", self._title)
        return Response(page, media_type="text/html", headers={"Cache-Control": "no-store"})

    async def asset(self, request: Request, name: str) -> Response:
        if name not in self._assets:
            raise HTTPException(404)
        asset = self._assets[name]
        # During a rolling deployment, a page of another version may ask for its own.
        is_current = request.url.query == self._version
        caching = "public, max-age=31536000, immutable" if is_current else "no-cache"
        headers = {"Cache-Control": caching, "Vary": "Accept-Encoding"}
        if "gzip" not in request.headers.get("Accept-Encoding", ""):
            return Response(asset.content, headers=headers, media_type=_TYPES[name])
        headers["Content-Encoding"] = "gzip"
        return Response(asset.compressed, headers=headers, media_type=_TYPES[name])


def _asset(name: str) -> _Asset:
    content = (_STATIC / name).read_bytes()
    return _Asset(content, gzip.compress(content, mtime=0))


async def _problem_of(request: Request, exc: Exception) -> Response:
    """Of a path that is not there, a method that is not allowed, or Starlette's exception of the application."""
    if not isinstance(exc, HTTPException):
        raise exc
    return problem(exc.status_code, str(exc.detail), headers=exc.headers)


# -- below any path ------------------------------------------------------------------------------------------------


class _Mounted:
    """Adds the security headers to each response, and a slash to the mount path."""

    def __init__(self, app: asgi.ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        async def send_secured(message: asgi.Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_SECURITY]}
            await send(message)

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        root = str(scope.get("root_path", "")).rstrip("/")
        path = _path_below(root, scope)
        shown = _shown_path(scope)
        if not shown.endswith("/"):
            path = path.rstrip("/")  # Litestar adds one
            if not path and shown:
                await _with_slash(shown, scope)(scope, receive, send_secured)
                return
        await self._app({**scope, "path": root + (path or "/"), "root_path": root}, receive, send_secured)


def _path_below(root: str, scope: asgi.Scope) -> str:
    """The path without ``root_path``. ASGI has it in the path; some applications leave it out, or a part of it."""
    path, outer = str(scope["path"]), str(scope.get("app_root_path", ""))  # the latter is Starlette's
    for prefix in (root, root.removeprefix(outer)):
        if path == prefix or path.startswith(f"{prefix}/"):
            return path[len(prefix) :]
    return path


def _shown_path(scope: asgi.Scope) -> str:
    """The path that the browser has asked for, or the part of it that a proxy has left, as it is in an address."""
    raw = scope.get("raw_path")
    return raw.decode("latin-1") if isinstance(raw, bytes) else quote(str(scope["path"]))


def _with_slash(shown: str, scope: asgi.Scope) -> Response:
    """A redirect to the same address with a slash. It is relative, as a proxy may have cut the path."""
    query = scope.get("query_string", b"").decode("latin-1")
    return RedirectResponse(f"./{shown.rpartition('/')[2]}/{'?' if query else ''}{query}")
