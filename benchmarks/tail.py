"""How long a log takes from `update()` until `agentexec-otel tail` prints it."""

from __future__ import annotations

import json
import queue
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

import agentexec_otel as ax
from benchmarks._context import Context, Scale
from benchmarks._databases import LOG, Database
from benchmarks._measure import Row, Section, Table, Target, interleaved, percentile

_COMMAND: Final = Path(sys.executable).with_name("agentexec-otel")
_LOGS: Final = {Scale.SMOKE: 3, Scale.QUICK: 20, Scale.FULL: 60}
_POLL_SECONDS: Final = 0.2
_MOST_MS: Final = 300.0
_PATIENCE: Final = 60.0

_Printed = queue.SimpleQueue[tuple[str, int]]
"""Messages, and when they were seen, in nanoseconds."""


@dataclass(frozen=True, slots=True)
class Latency:
    """One run, in milliseconds."""

    p50: float
    p99: float


def run(context: Context) -> Section:
    """Measure on every database."""
    tables = [_table(context, database) for database in context.databases]
    return Section("tail", "tail: from update() until it is printed", tables)


def _table(context: Context, database: Database) -> Table:
    database.reset()
    ax.configure(database.url)
    try:
        agent_id = ax.activity.create("bench")
        logs = context.pick(_LOGS)
        cases: dict[str, Callable[[], Latency]] = {
            "by hand": lambda: _measure(_polled(database), agent_id, logs),
            "tail ID": lambda: _measure(_tailed(database, str(agent_id)), agent_id, logs),
            "tail": lambda: _measure(_tailed(database), agent_id, logs),
        }
        found = interleaved(cases, context.runs, context.track(f"tail {database.kind}", context.runs * len(cases)))
    finally:
        ax.shutdown(30.0)
    rows = [
        Row(
            f"{name}: {figure}",
            "ms",
            [getattr(one, figure) for one in latencies],
            None if name == "by hand" else [getattr(one, figure) for one in found["by hand"]],
            None if name == "by hand" or figure == "p50" else Target(_MOST_MS, of="value"),
        )
        for figure in ("p50", "p99")
        for name, latencies in found.items()
    ]
    return Table(f"{database.title}, one log at a time", f"a SELECT every {_POLL_SECONDS:g} s by hand", rows)


def _measure(printing: AbstractContextManager[_Printed], agent_id: UUID, logs: int) -> Latency:
    with printing as printed:
        _wait_until_it_prints(printed, agent_id)
        waits: list[float] = []
        for _ in range(logs):
            time.sleep(random.uniform(_POLL_SECONDS, 2 * _POLL_SECONDS))
            sent_at = time.time_ns()
            ax.activity.update(agent_id, f"sent at {sent_at}")
            waits.append((_seen_at(printed, f"sent at {sent_at}") - sent_at) / 1e6)
    return Latency(statistics.median(waits), percentile(waits, 0.99))


def _wait_until_it_prints(printed: _Printed, agent_id: UUID) -> None:
    deadline = time.monotonic() + _PATIENCE
    while printed.empty():
        assert time.monotonic() < deadline, "nothing is printed"
        ax.activity.update(agent_id, "Is it there?")
        time.sleep(_POLL_SECONDS)


def _seen_at(printed: _Printed, message: str) -> int:
    while True:
        found, at = printed.get(timeout=_PATIENCE)
        if found == message:
            return at


@contextmanager
def _tailed(database: Database, *arguments: str) -> Generator[_Printed]:
    """What the command prints."""
    printed: _Printed = queue.SimpleQueue()
    command = [str(_COMMAND), "tail", *arguments, "--json", "--database", database.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        reader = threading.Thread(target=_read, args=(process.stdout, printed), daemon=True)
        reader.start()
        yield printed
        process.terminate()
        reader.join(_PATIENCE)


def _read(lines: Iterable[str], printed: _Printed) -> None:
    for line in lines:
        at = time.time_ns()
        printed.put((json.loads(line)["message"], at))


@contextmanager
def _polled(database: Database) -> Generator[_Printed]:
    """What a loop of our own finds."""
    printed: _Printed = queue.SimpleQueue()
    stopped = threading.Event()
    poller = threading.Thread(target=_poll, args=(database, printed, stopped), daemon=True)
    poller.start()
    yield printed
    stopped.set()
    poller.join(_PATIENCE)


def _poll(database: Database, printed: _Printed, stopped: threading.Event) -> None:
    statement = database.sql(f"SELECT id, message FROM {LOG} WHERE id > ? ORDER BY id")
    with closing(database.connect()) as connection:
        last = max((row_id for row_id, _ in connection.execute(statement, (0,)).fetchall()), default=0)
        while not stopped.wait(_POLL_SECONDS):
            for row_id, message in connection.execute(statement, (last,)).fetchall():
                printed.put((message, time.time_ns()))
                last = row_id
            connection.rollback()
