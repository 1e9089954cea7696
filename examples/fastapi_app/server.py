"""The web server, and the worker processes beside it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import uvicorn

from fastapi_app.main import app  # with it the pool, which creates the tables
from fastapi_app.settings import engine, settings


def serve(host: str, port: int, number_of_workers: int) -> None:
    """Serve until SIGINT or SIGTERM, or until the workers have ended."""
    server = uvicorn.Server(uvicorn.Config(app, host, port, log_level="warning", access_log=False))
    # The port comes first: who finds it taken must not cancel what the other one is working on.
    with server.config.bind_socket() as socket, workers(server, number_of_workers) as where:
        socket.listen()  # a browser may connect from here on, and waits
        host, port = socket.getsockname()[:2]
        print(f"http://{host}:{port}  ({engine.dialect.name}, {where}). Stop with Ctrl-C.", flush=True)
        server.run([socket])


@contextmanager
def workers(server: uvicorn.Server, number: int) -> Generator[str]:
    """Worker processes, where there is a broker; gives how tasks are run. The server stops when they do."""
    if settings.broker is None:
        yield "tasks run in this process"
        return
    program = Path(sys.executable).with_name("agentexec-otel")
    process = subprocess.Popen([program, "worker", "fastapi_app.tasks:pool", "--workers", str(number)])

    def stop_with_it() -> None:
        process.wait()
        server.should_exit = True

    threading.Thread(target=stop_with_it, daemon=True).start()
    try:
        yield f"{number} worker processes"
    finally:
        process.terminate()
        while process.poll() is None:
            with suppress(KeyboardInterrupt):  # the workers got it, too, and let their tasks finish
                process.wait()
