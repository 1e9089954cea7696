"""Serves an ASGI application until a signal stops it."""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
import time
from collections.abc import Callable
from ipaddress import ip_address
from threading import Thread
from typing import TYPE_CHECKING, Final

import agentexec_otel as ax
from agentexec_otel.cli._guard import ASGIApp

if TYPE_CHECKING:
    import uvicorn

EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # compared
"""The hosts that mean all addresses of a machine, with an address to connect to."""
_POLL_SECONDS: Final = 0.5


def bind(host: str, port: int, option: str) -> socket.socket:
    """Listen. A connection waits from now on until it is served. Raises ConfigurationError, which names the option."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise ax.ConfigurationError(f"port {port} of {host} is in use: name another one with {option}") from None
        raise ax.ConfigurationError(f"port {port} of {host} cannot be opened: {exc.strerror or exc}") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to the host."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def url_of(listening: socket.socket, host: str) -> str:
    """The address to open in a browser on this machine."""
    shown = EVERYWHERE.get(host, host)
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{listening.getsockname()[1]}/"


def serve(application: ASGIApp, listening: socket.socket, *, until: Callable[[], object] | None = None) -> None:
    """Serve until SIGINT or SIGTERM, or until the function returns. Open streams end within a second."""
    import uvicorn

    config = uvicorn.Config(
        application,
        log_config=None,
        log_level="critical",
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    if until is not None:
        Thread(target=_stop_after, args=(until, server), daemon=True).start()
    server.run(sockets=[listening])


def _stop_after(until: Callable[[], object], server: uvicorn.Server) -> None:
    until()
    server.should_exit = True


def wait_for_exit(pid: int) -> None:
    """Return when a process has ended, which need not be a child of this one."""
    if sys.platform == "linux":
        try:
            ended = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        except OSError:  # of a kernel without it
            pass
        else:
            select.select([ended], [], [])
            os.close(ended)
            return
    while _is_running(pid):
        time.sleep(_POLL_SECONDS)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
