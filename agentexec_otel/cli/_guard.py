"""What stands before the dashboard of the command: the names it answers to, and its token."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, Collection, Iterable, MutableMapping
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qsl, quote, urlencode

_Message: TypeAlias = MutableMapping[str, Any]
_Receive: TypeAlias = Callable[[], Awaitable[_Message]]
_Send: TypeAlias = Callable[[_Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[_Message, _Receive, _Send], Awaitable[None]]

LOOPBACK: Final = frozenset(("localhost", "127.0.0.1", "::1"))
_SECURITY: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """An ASGI application that hands on only the requests that are allowed.

    A request to another host name is refused: after DNS rebinding, the page of a foreign site would send one. With a
    token, a request needs it: as ``Authorization: Bearer``, as a cookie, or as ``?token=``, which sets the cookie.

    Args:
        application: What is guarded.
        hosts: The host names that are allowed.
        any_address: Whether an IP address is allowed as well, which no rebound name is.
        token: None: no request needs one.
    """

    def __init__(
        self, application: ASGIApp, hosts: Collection[str], *, any_address: bool = False, token: str | None = None
    ) -> None:
        self._application = application
        self._hosts = frozenset(host.lower() for host in hosts)
        self._any_address = any_address
        self._token = token

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = _host_name(headers.get("host", ""))
        if not self._is_allowed(host):
            words = f"This dashboard does not answer to the host name {host!r}: allow it with --allowed-host."
            await _send_problem(send, HTTPStatus.MISDIRECTED_REQUEST, words)
        elif self._token is None or self._has_token(scope, headers):
            await self._application(scope, receive, send)
        elif self._is_token(dict(_query(scope)).get("token", "")):
            await self._send_cookie(scope, send)
        else:
            words = "Open the address that the command has printed, which has the token, or send it as a bearer token."
            await _send_problem(send, HTTPStatus.UNAUTHORIZED, words, [("WWW-Authenticate", "Bearer")])

    def _is_allowed(self, host: str) -> bool:
        return host in self._hosts or (self._any_address and _is_address(host))

    def _is_token(self, given: str) -> bool:
        return self._token is not None and hmac.compare_digest(given.encode(), self._token.encode())

    def _has_token(self, scope: _Message, headers: dict[str, str]) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(given.strip()):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(_cookie_name(scope))
        except CookieError:
            return False
        return cookie is not None and self._is_token(cookie.value)

    async def _send_cookie(self, scope: _Message, send: _Send) -> None:
        """Set the cookie, and redirect to the same address without the token."""
        cookie = SimpleCookie({_cookie_name(scope): self._token or ""})
        for name, value in (("path", "/"), ("httponly", True), ("samesite", "Strict")):
            cookie[_cookie_name(scope)][name] = value
        cookie[_cookie_name(scope)]["secure"] = scope["scheme"] == "https"
        query = urlencode([(name, value) for name, value in _query(scope) if name != "token"])
        target = f"./{quote(scope['path'].rpartition('/')[2])}{'?' if query else ''}{query}"
        headers = [("Location", target), ("Set-Cookie", cookie.output(header="").strip())]
        await _send(send, HTTPStatus.SEE_OTHER, b"", headers)


def _is_address(host: str) -> bool:
    """Whether it is an IP address, and no name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _host_name(header: str) -> str:
    """The name without the port, in lower case."""
    host = header.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].removesuffix(".")


def _cookie_name(scope: _Message) -> str:
    """Cookies of one host are sent to all its ports."""
    server = scope.get("server")
    return f"agentexec-dashboard-{server[1] if server else ''}"


def _query(scope: _Message) -> list[tuple[str, str]]:
    return parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)


async def _send_problem(send: _Send, status: HTTPStatus, detail: str, headers: Iterable[tuple[str, str]] = ()) -> None:
    """As the status API has them: problem details."""
    body = {"type": "about:blank", "title": status.phrase, "status": status.value, "detail": detail}
    await _send(send, status, json.dumps(body).encode(), [("Content-Type", "application/problem+json"), *headers])


async def _send(send: _Send, status: HTTPStatus, body: bytes, headers: Iterable[tuple[str, str]]) -> None:
    every = [*headers, *_SECURITY.items(), ("Content-Length", str(len(body)))]
    encoded = [(name.lower().encode(), value.encode("latin-1")) for name, value in every]
    await send({"type": "http.response.start", "status": status.value, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
