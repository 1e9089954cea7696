"""Run the Python blocks of a page, in order, in one namespace: `python tests/docs/run_blocks.py docs/page.md`.

A process per page, because a page configures the process-wide runtime as it likes. The network ends at this machine,
and the tables exist in the database that AGENTEXEC_DATABASE_URL names, `docs.db` in the working directory.

Without an argument, serve: read `page<TAB>folder` from stdin, run the page there in a fork of this process, with its
output in `stdout.txt` and `stderr.txt`, and answer with its exit code. That imports the large packages once.
"""

import asyncio
import gc
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from socket import AF_UNIX
from types import ModuleType
from typing import Any

from sqlalchemy import create_engine

import agentexec_otel as ax
from tests.docs.blocks import blocks_of

LARGE = (
    "agentexec_otel.instrumentation.openai_agents",
    "agentexec_otel_exporters.sql",
    "agents.testing",
    "fastapi.testclient",
    "opentelemetry.sdk.trace.export",
)
LOCAL = ("127.", "::1", "localhost")
SECONDS_PER_PAGE = 60


def stay_on_this_machine(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook: refuse to look up or connect to anything but this machine."""
    if event == "socket.getaddrinfo":
        host = str(arguments[0] or "localhost")
    elif event == "socket.connect":
        socket, address = arguments
        host = "localhost" if socket.family == AF_UNIX else str(address[0])
    else:
        return
    if not host.startswith(LOCAL):
        raise PermissionError(f"this page reaches out to {host}")


def create_tables() -> None:
    engine = create_engine(os.environ["AGENTEXEC_DATABASE_URL"])
    ax.Base.metadata.create_all(engine)
    engine.dispose()


def run_page(page: Path) -> None:
    create_tables()
    sys.addaudithook(stay_on_this_machine)
    # Annotations of a page's classes and tools are looked up in the module that they say they come from.
    script = sys.modules["__main__"] = ModuleType("__main__")
    with asyncio.Runner() as runner:
        for block in blocks_of(page):
            if block.language == "python" and block.skip is None:
                block.run(script.__dict__, runner.run)


def asked_for() -> Path | None:
    """Serve until stdin ends, and return None; in the fork for a page, return that page."""
    for package in LARGE:
        import_module(package)
    gc.freeze()  # what is imported here is not garbage in any fork: a fork that looks for some copies all of it
    for request in sys.stdin:
        page, folder = request.rstrip("\n").split("\t")
        child = os.fork()
        if child == 0:
            move_to(Path(folder))
            return Path(page)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()
    return None


def move_to(folder: Path) -> None:
    """Live in that folder from now on; a page that hangs is ended."""
    os.chdir(folder)
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    for descriptor, name in ((0, os.devnull), (1, "stdout.txt"), (2, "stderr.txt")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT, 0o600), descriptor)
    signal.alarm(SECONDS_PER_PAGE)


if __name__ == "__main__":
    asked = Path(sys.argv[1]) if len(sys.argv) > 1 else asked_for()
    if asked is not None:
        run_page(asked)
