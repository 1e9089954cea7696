"""How long a log takes from `update()` to the viewers of the status API, and what they cost the server."""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import agentexec_otel as ax
from benchmarks._context import Context, Scale
from benchmarks._databases import Database
from benchmarks._measure import Row, Section, Table, Target, percentile


@dataclass(frozen=True, slots=True)
class Load:
    """What is measured. `rate` is in logs per second."""

    viewers: int
    activities: int
    logs: int
    rate: int = 200
    flood: int = 20_000


_LOADS: Final = {
    Scale.SMOKE: Load(10, 5, 100, flood=1_000),
    Scale.QUICK: Load(100, 20, 1_000),
    Scale.FULL: Load(500, 50, 4_000),
}
_UNREAD: Final = 50
_LIST_PAUSE: Final = 0.1
_PATIENCE: Final = 300.0
_POLLS_PER_SECOND: Final = 20
"""The status API polls every 50 ms at most."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One run: milliseconds from call to client and of a list, and what the server did per second."""

    waits: list[float]
    lists: list[float]
    feeds: float
    statements: float
    cpu: float


def run(context: Context) -> Section:
    """Measure on every database."""
    return Section(
        "viewers", "Viewers of the status API", [_table(context, database) for database in context.databases]
    )


def _table(context: Context, database: Database) -> Table:
    load = context.pick(_LOADS)
    step = context.track(f"viewers {database.kind}", 3)
    database.reset()
    with _server(database) as port:
        step("one viewer")
        one = asyncio.run(_measure(database, port, Load(1, load.activities, load.logs // 4)))
        step(f"{load.viewers} viewers")
        many = asyncio.run(_measure(database, port, load))
        before = asyncio.run(_figures(port))["rss"] / 2**20
        step("viewers that read nothing")
        after = asyncio.run(_flood(database, port, load.flood)) / 2**20
    title = f"{database.title}, {load.viewers} viewers of {load.activities} activities at {load.rate} logs/s"
    rows = [
        Row("call to client, p50: one viewer", "ms", [statistics.median(one.waits)]),
        Row("call to client, p50", "ms", [statistics.median(many.waits)], [statistics.median(one.waits)]),
        Row("call to client, p99: one viewer", "ms", [percentile(one.waits, 0.99)]),
        Row(
            "call to client, p99", "ms", [percentile(many.waits, 0.99)], [percentile(one.waits, 0.99)],
            Target(1_000, of="value"),
        ),
        Row("list meanwhile, p50", "ms", [statistics.median(many.lists)], [statistics.median(one.lists)]),
        Row(
            "list meanwhile, p99", "ms", [percentile(many.lists, 0.99)], [percentile(one.lists, 0.99)],
            Target(300, of="value"),
        ),
        Row("queries of the feed", "/s", [many.feeds], [one.feeds], Target(_POLLS_PER_SECOND, of="value")),
        Row("statements, lists included", "/s", [many.statements], [one.statements]),
        Row("CPU time of the server", "% of a core", [many.cpu], [one.cpu]),
        Row("memory of the server", "MiB", [before]),
        Row(f"memory, {_UNREAD} viewers that read nothing", "MiB", [after], [before], Target(1.5)),
    ]  # fmt: skip
    notes = [
        "One run; the percentiles are those of all logs at all viewers, and of all lists.",
        "Each viewer gets each log of its activity once, in order: checked.",
        f"Those that read nothing are sent {load.flood:,} logs at full speed.",
        "Server, producer, viewers and database share the machine's cores.",
    ]
    return Table(title, "one viewer", rows, notes)


@contextmanager
def _server(database: Database) -> Generator[int]:
    command = [sys.executable, "-m", "benchmarks._status_server", database.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.terminate()


def _create(database: Database, number: int) -> list[UUID]:
    ax.configure(database.url)
    created = [ax.activity.create("bench") for _ in range(number)]
    ax.shutdown(30.0)
    return created


async def _produce(database: Database, logs: int, rate: int, ids: list[UUID]) -> None:
    arguments = ("-m", "benchmarks._log_producer", database.url, str(logs), str(rate), *map(str, ids))
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments)
    assert await process.wait() == 0


# -- viewers that read -------------------------------------------------------------------------------------------


async def _measure(database: Database, port: int, load: Load) -> Figures:
    ids = _create(database, load.activities)
    waits: list[float] = []
    lists: list[float] = []
    async with asyncio.timeout(_PATIENCE):
        ready = asyncio.Semaphore(0)
        viewers = [asyncio.create_task(_view(port, ids[at % len(ids)], ready, waits)) for at in range(load.viewers)]
        for _ in viewers:
            await ready.acquire()
        producing = asyncio.create_task(_produce(database, load.logs, load.rate, ids))
        while not waits:  # noqa: ASYNC110
            await asyncio.sleep(_LIST_PAUSE)
        before, began = await _figures(port), time.monotonic()
        asking = asyncio.create_task(_list(port, lists))
        await producing
        after, seconds = await _figures(port), time.monotonic() - began
        asking.cancel()
        each = await asyncio.gather(*viewers)
    logs = load.logs // load.activities + 3  # queued, ready, complete
    assert all(seen == list(range(1, logs + 1)) for seen in each), "a viewer has missed a log, or has got one twice"
    spent = {name: (after[name] - before[name]) / seconds for name in after}
    return Figures(waits, lists, spent["feeds"], spent["statements"], 100 * spent["cpu"])


async def _view(port: int, agent_id: UUID, ready: asyncio.Semaphore, waits: list[float]) -> list[int]:
    """Follow an activity to its end. Return the ids of its events."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_request(f"/activities/{agent_id}/events"))
    seen: list[int] = []
    while not (line := await reader.readline()).startswith(b"event: end"):
        assert line, "the stream was cut"
        if line.startswith(b"id: "):
            seen.append(int(line[4:]))
            if len(seen) == 1:
                ready.release()
        elif b'"sent at ' in line:
            sent_at = int(line.partition(b'"sent at ')[2].partition(b'"')[0])
            waits.append((time.time_ns() - sent_at) / 1e6)
    writer.close()
    return seen


async def _list(port: int, waits: list[float]) -> None:
    while True:
        began = time.perf_counter()
        page = await _get(port, "/activities?page_size=50")
        assert page["items"]
        waits.append((time.perf_counter() - began) * 1e3)
        await asyncio.sleep(_LIST_PAUSE)


async def _figures(port: int) -> dict[str, float]:
    figures: dict[str, float] = await _get(port, "/figures")
    return figures


async def _get(port: int, path: str) -> Any:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_request(path))
    answer = await reader.read()
    writer.close()
    return json.loads(answer.partition(b"\r\n\r\n")[2])


def _request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()


# -- viewers that read nothing -----------------------------------------------------------------------------------


async def _flood(database: Database, port: int, logs: int) -> float:
    """Bytes of the server's memory after so many logs were sent to viewers that read nothing."""
    ids = _create(database, 1)
    unread = [socket.socket() for _ in range(_UNREAD)]
    for one in unread:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        one.connect(("127.0.0.1", port))
        one.sendall(_request(f"/activities/{ids[0]}/events"))
    async with asyncio.timeout(_PATIENCE):
        ready, waits = asyncio.Semaphore(0), list[float]()
        reading = asyncio.create_task(_view(port, ids[0], ready, waits))
        await ready.acquire()
        await _produce(database, logs, 0, ids)
        assert await reading == list(range(1, logs + 4)), "the viewer that reads has missed a log"
    rss = (await _figures(port))["rss"]
    for one in unread:
        one.close()
    return rss
