"""Run by another interpreter, which has agentexec installed: prints what was measured there as JSON.

    python _agentexec.py version
    python _agentexec.py update URL CALLS
    python _agentexec.py ingest URL ACTIVITIES LOGS

It imports nothing of this package. agentexec 0.3 is asynchronous, 0.1 takes a session; both are served.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import statistics
import sys
import time
from importlib.metadata import version
from typing import Any

_ASYNC_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql+psycopg": "postgresql+psycopg"}


async def _prepared(url: str) -> Any:
    """The activity module of agentexec, its tables created."""
    agentexec = importlib.import_module("agentexec")
    driver, _, rest = url.partition("://")
    if inspect.iscoroutinefunction(agentexec.activity.update):
        from sqlalchemy.ext.asyncio import create_async_engine

        engine = create_async_engine(f"{_ASYNC_DRIVERS[driver]}://{rest}")
        importlib.import_module("agentexec.core.db").configure_engine(engine)
        async with engine.begin() as connection:
            await connection.run_sync(agentexec.Base.metadata.create_all)
    else:
        from sqlalchemy import create_engine

        engine_0_1 = create_engine(url)
        importlib.import_module("agentexec.core.db").set_global_session(engine_0_1)
        agentexec.Base.metadata.create_all(engine_0_1)
    return agentexec.activity


async def _done(answer: Any) -> Any:
    return await answer if inspect.isawaitable(answer) else answer


async def measure_update(url: str, calls: int) -> dict[str, Any]:
    """Microseconds per call: CPU time of the calling thread, wall time."""
    activity = await _prepared(url)
    agent_id = await _done(activity.create("bench", "Waiting to start."))
    await _done(activity.update(agent_id, "Warm"))
    walls: list[int] = []
    began = time.thread_time_ns()
    for _ in range(calls):
        start = time.perf_counter_ns()
        await _done(activity.update(agent_id, "Analyzing competitors and writing the summary now", 50))
        walls.append(time.perf_counter_ns() - start)
    cpu = (time.thread_time_ns() - began) / calls
    walls.sort()
    return {"cpu": cpu / 1e3, "p50": statistics.median(walls) / 1e3, "p99": walls[int(0.99 * calls)] / 1e3}


async def measure_ingest(url: str, activities: int, logs: int) -> dict[str, Any]:
    """Durable log rows per second."""
    activity = await _prepared(url)
    began = time.perf_counter()
    for _ in range(activities):
        agent_id = await _done(activity.create("bench", "Waiting to start."))
        for number in range(1, logs):
            await _done(activity.update(agent_id, "Analyzing what competitors do", 100 * number // logs))
    return {"rows": activities * logs / (time.perf_counter() - began)}


def main(what: str, *arguments: str) -> None:
    """Measure, and print."""
    if what == "version":
        answer: dict[str, Any] = {"version": version("agentexec")}
    elif what == "update":
        answer = asyncio.run(measure_update(arguments[0], int(arguments[1])))
    else:
        answer = asyncio.run(measure_ingest(arguments[0], int(arguments[1]), int(arguments[2])))
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
