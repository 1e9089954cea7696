"""How long a line takes from `update()` in one process until another process can read it."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from uuid import UUID

import agentexec_otel as ax
from agentexec_otel._model.ids import uuid7
from benchmarks._activities import ACTIVITY_COLUMNS, LOG_COLUMNS
from benchmarks._context import Context, Scale
from benchmarks._databases import ACTIVITY, LOG, Database
from benchmarks._measure import Row, Section, Table, Target, interleaved, percentile

_LINES: Final = {Scale.SMOKE: 5, Scale.QUICK: 50, Scale.FULL: 150}
_PAUSE: Final = 0.01
_MOST: Final = 3.0
_SYNCED: Final = "the raw driver with its default, synchronous FULL"


@dataclass(frozen=True, slots=True)
class Latency:
    """One run, in milliseconds."""

    p50: float
    p99: float


def run(context: Context) -> Section:
    """Measure on every database."""
    return Section(
        "live", "Live: from update() until another process reads it", [_table(context, d) for d in context.databases]
    )


def _table(context: Context, database: Database) -> Table:
    database.reset()
    lines = context.pick(_LINES)
    ax.configure(database.url)
    try:
        with Reader(database) as reader, closing(database.connect()) as connection:
            # The raw rows belong to another activity, which the SDK never writes to.
            other = _activity(database, connection)
            agent_id = ax.activity.create("bench")
            ax.activity.update(agent_id, "The span is open from here on")
            ax.flush(30.0)
            cases: dict[str, Callable[[], Latency]] = {
                "one INSERT and COMMIT by the raw driver": partial(
                    measure_latency, reader, partial(_insert, database, connection, other), _raw_id(other), lines
                ),
                **_synced(database, connection, reader, other, lines),
                "update()": partial(
                    measure_latency, reader, partial(ax.activity.update, agent_id), row_id_of(database, agent_id), lines
                ),
            }
            steps = context.track(f"live {database.kind}", context.runs * len(cases))
            found = interleaved(cases, context.runs, steps)
    finally:
        ax.shutdown(30.0)
    return Table(
        f"{database.title}, one line every {_PAUSE * 1e3:g} ms",
        "the raw INSERT into the same log table, read by the same reader",
        list(_rows(found)),
        ["The reader polls with a raw SELECT over its own connection and sleeps 0.2 ms in between."],
    )


def _rows(found: dict[str, list[Latency]]) -> list[Row]:
    raw, *_, ours = found.values()
    synced = found.get(_SYNCED)
    rows: list[Row] = []
    for figure in ("p50", "p99"):
        for name, latencies in found.items():
            values = [getattr(latency, figure) for latency in latencies]
            base = None if latencies is raw else [getattr(latency, figure) for latency in raw]
            target = Target(_MOST) if latencies is ours and figure == "p50" else None
            rows.append(Row(f"{name}: {figure}", "ms", values, base, target))
            if latencies is ours and synced is not None:
                rows.append(
                    Row(f"{name}, by {_SYNCED}: {figure}", "ms", values, [getattr(one, figure) for one in synced])
                )
    return rows


def _synced(
    database: Database, connection: Any, reader: Reader, other: dict[str, Any], lines: int
) -> dict[str, Callable[[], Latency]]:
    """SQLite again with the driver's own default, which waits for the disk at every COMMIT."""
    if database.kind != "sqlite":
        return {}

    def measure() -> Latency:
        connection.execute("PRAGMA synchronous = FULL")
        try:
            return measure_latency(reader, partial(_insert, database, connection, other), _raw_id(other), lines)
        finally:
            connection.execute("PRAGMA synchronous = NORMAL")

    return {_SYNCED: measure}


def measure_latency(reader: Reader, write: Callable[[str], object], row_id: object, lines: int) -> Latency:
    reader.watch(row_id, lines)
    for _ in range(lines):
        time.sleep(_PAUSE)
        write(f"sent at {time.time_ns()}")
    waits = [nanoseconds / 1e6 for nanoseconds in reader.waits()]
    return Latency(statistics.median(waits), percentile(waits, 0.99))


# -- the raw writer -----------------------------------------------------------------------------------------------


def _activity(database: Database, connection: Any) -> dict[str, Any]:
    """A new activity row for the raw driver; returns what its next log row needs."""
    row_id = uuid7()
    now = "2026-01-01 00:00:00.000000"
    values = (row_id, uuid7(), "raw", now, now, "RUNNING", None, 0, 1, now, None)
    row = [database.value(value) for value in values]
    database.load_in(connection, ACTIVITY, ACTIVITY_COLUMNS, [row])
    connection.commit()
    return {"row_id": database.value(row_id), "seq": 0}


def _raw_id(other: dict[str, Any]) -> object:
    return other["row_id"]


def _insert(database: Database, connection: Any, other: dict[str, Any], message: str) -> None:
    other["seq"] += 1
    statement = _INSERTS[database.kind]
    late = 0 if database.kind == "sqlite" else False
    now = "2026-01-01 00:00:00.000000"
    values = (other["row_id"], message, "RUNNING", 50, now, other["seq"], database.value(uuid7()), 1, late)
    connection.execute(statement, values)
    connection.commit()


def _insert_statement(place: str) -> str:
    return f"INSERT INTO {LOG} ({', '.join(LOG_COLUMNS)}) VALUES ({', '.join([place] * len(LOG_COLUMNS))})"


_INSERTS: Final = {"sqlite": _insert_statement("?"), "postgres": _insert_statement("%s")}


def row_id_of(database: Database, agent_id: UUID) -> object:
    with closing(database.connect()) as connection:
        found = connection.execute(
            database.sql(f"SELECT id FROM {ACTIVITY} WHERE agent_id = ?"), (database.value(agent_id),)
        )
        return found.fetchone()[0]


# -- the reader, in a process of its own --------------------------------------------------------------------------


class Reader:
    """A process that polls the log of one activity and notes when it first saw each line."""

    def __init__(self, database: Database) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks._reader", database.kind, database.dsn, LOG],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=30.0)

    def watch(self, row_id: object, lines: int) -> None:
        """Look for so many new lines of that activity; returns once the reader polls."""
        self._tell({"row_id": str(row_id), "lines": lines})
        self._answer()

    def waits(self) -> list[int]:
        """Nanoseconds from sending to seeing, line by line."""
        waits: list[int] = self._answer()
        return waits

    def _tell(self, order: dict[str, object]) -> None:
        assert self._process.stdin is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())
