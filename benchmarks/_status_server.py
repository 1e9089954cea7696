"""The server of the benchmark of viewers: ``python -m benchmarks._status_server URL``. Prints its port."""

from __future__ import annotations

import socket
import sys
import time
from typing import Any

import psutil  # type: ignore[import-untyped]
import uvicorn
from fastapi import FastAPI
from sqlalchemy import create_engine, event

import agentexec_otel as ax
from benchmarks._databases import LOG


def main(url: str) -> None:
    """Serve until SIGTERM."""
    engine = create_engine(url, pool_size=20)
    counts = {"statements": 0, "feeds": 0}

    @event.listens_for(engine, "before_cursor_execute")
    def count(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        counts["statements"] += 1
        counts["feeds"] += f"WHERE {LOG}.id > " in statement

    app = FastAPI()
    app.include_router(ax.web.router(authorize=ax.web.public, database=engine))

    @app.get("/figures")
    async def figures() -> dict[str, float]:
        return {**counts, "rss": psutil.Process().memory_info().rss, "cpu": time.process_time()}

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off")).run(sockets=[listening])


if __name__ == "__main__":
    main(*sys.argv[1:])
