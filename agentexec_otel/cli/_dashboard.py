"""`agentexec-otel dashboard`, and the dashboard beside a program."""

from __future__ import annotations

import errno
import os
import secrets
import select
import socket
import subprocess
import sys
import time
import webbrowser
from collections.abc import Collection
from contextlib import suppress
from importlib.util import find_spec
from ipaddress import ip_address
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlencode

import typer

import agentexec_otel as ax
from agentexec_otel.cli._guard import LOOPBACK, ASGIApp, Guard
from agentexec_otel.cli._options import Database, existing_url, shown_url
from agentexec_otel.cli._output import console, interruptible, note, print_text

if TYPE_CHECKING:
    import uvicorn

_HOST: Final = "127.0.0.1"
PORT: Final = 8180
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # compared
"""The hosts that mean all addresses of a machine, with an address to connect to."""
_POLL_SECONDS: Final = 0.5


def dashboard(
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen at. If others can reach it, a token is required, and made if none is given.",
            metavar="HOST",
        ),
    ] = _HOST,
    port: Annotated[
        int, typer.Option("--port", "-p", min=0, max=65_535, help="0 for any free port.", metavar="PORT")
    ] = PORT,
    read_only: Annotated[bool, typer.Option("--read-only", help="Refuse to cancel activities.")] = False,
    token: Annotated[
        str | None,
        typer.Option(help="Required from each client. Default: $AGENTEXEC_DASHBOARD_TOKEN.", show_default=False),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Another host name to answer to, such as a proxy's. Can be given several times.", metavar="NAME"
        ),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    database: Database = None,
) -> None:
    """Serve a page that shows activities live, until Ctrl-C.

    Only this machine can open it, unless --host says otherwise.
    """
    url = existing_url(database)
    application = _application(url, read_only=read_only)
    ax.db.rights(url)  # Raises if there are no tables, or those of another version.
    token = token or ax.CONF.dashboard_token or (None if _is_loopback(host) else secrets.token_urlsafe(24))
    listening = _bind(host, port, "--port")
    address = _address(listening, host, token)
    print_text(f"Dashboard of {shown_url(url)}{', read-only' if read_only else ''}. Ctrl-C ends it.")
    console().print(address, soft_wrap=True)
    if open_browser:
        Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    with interruptible():
        _serve(_guarded(application, host, allowed_host or (), token), listening)


def serve_beside(database: str, port: int) -> None:
    """Serve the dashboard in a process of its own until this process ends, whatever it becomes.

    The new process is no child of this one, so that a program does not meet it in ``os.wait()``, and Ctrl-C in the
    terminal is for the program alone.
    """
    if not hasattr(os, "fork"):
        raise ax.ConfigurationError("--dashboard does not work on this system: start agentexec-otel dashboard as well")
    _application(database, read_only=False)  # Raises, before the program starts.
    try:
        listening = _bind(_HOST, port, "--dashboard-port")
    except ax.ConfigurationError as exc:
        note(f"agentexec-otel: no dashboard: {exc}")
        return
    # Not from the working directory, whose modules are the program's.
    command = [sys.executable, "-P", "-m", "agentexec_otel.cli._dashboard", str(listening.fileno()), str(os.getpid())]
    if (child := os.fork()) == 0:
        try:
            subprocess.Popen(  # noqa: S603
                command,
                env={**os.environ, "AGENTEXEC_DATABASE_URL": database},
                pass_fds=[listening.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    address = _address(listening, _HOST, ax.CONF.dashboard_token)
    console(err=True).print(f"agentexec-otel: dashboard at {address}", soft_wrap=True)


def _address(listening: socket.socket, host: str, token: str | None) -> str:
    """What to open in a browser on this machine."""
    shown = _EVERYWHERE.get(host, host)
    query = "" if token is None else f"?{urlencode({'token': token})}"
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{listening.getsockname()[1]}/{query}"


def _application(database: str, *, read_only: bool) -> ASGIApp:
    if find_spec("uvicorn") is None:
        raise ax.MissingExtraError("the dashboard", "uvicorn", "web")
    scope = ax.web.Scope(may_act=not read_only)
    return ax.web.dashboard(authorize=lambda _: scope, database=database)


def _guarded(application: ASGIApp, host: str, allowed: Collection[str], token: str | None) -> Guard:
    names = {*LOOPBACK, host, *allowed}
    if host in _EVERYWHERE:
        names |= {socket.gethostname(), socket.getfqdn()}
    return Guard(application, names, any_address=host in _EVERYWHERE, token=token)


# -- the server -----------------------------------------------------------------------------------------------------


def _bind(host: str, port: int, option: str) -> socket.socket:
    """Listen. A connection waits from now on until it is served. Raises ConfigurationError, which names the option."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise ax.ConfigurationError(f"port {port} of {host} is in use: name another one with {option}") from None
        raise ax.ConfigurationError(f"port {port} of {host} cannot be opened: {exc.strerror or exc}") from None


def _is_loopback(host: str) -> bool:
    """Whether only this machine can connect to the host."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _serve(application: ASGIApp, listening: socket.socket, *, beside: int | None = None) -> None:
    """Serve until SIGINT or SIGTERM, or until the process `beside` has ended. Open streams end within a second."""
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
    if beside is not None:
        Thread(target=_stop_after, args=(beside, server), daemon=True).start()
    server.run(sockets=[listening])


def _stop_after(pid: int, server: uvicorn.Server) -> None:
    _wait_for_exit(pid)
    server.should_exit = True


def _wait_for_exit(pid: int) -> None:
    """Return when a process has ended, which need not be a child of this one."""
    if sys.platform == "linux":
        with suppress(OSError):  # It has ended, or the kernel cannot do this.
            ended = os.pidfd_open(pid)
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


if __name__ == "__main__":
    descriptor, program = map(int, sys.argv[1:])
    _serve(
        _guarded(_application(str(ax.CONF.database_url), read_only=False), _HOST, (), ax.CONF.dashboard_token),
        socket.socket(fileno=descriptor),
        beside=program,
    )
