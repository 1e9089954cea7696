"""How fast spans are replayed, and how much memory that takes."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from typing import Any, Final

from benchmarks._activities import History
from benchmarks._context import Context, Scale
from benchmarks._databases import ACTIVITY, Database
from benchmarks._measure import Row, Section, Table, Target

_ACTIVITIES: Final = {Scale.SMOKE: 200, Scale.QUICK: 10_000, Scale.FULL: 100_000, Scale.MILLION: 1_000_000}
_LOGS: Final = 3
_MOST_MEMORY: Final = 1.25


def run(context: Context) -> Section:
    """Measure on every database."""
    tables = [_table(context, database) for database in context.databases]
    return Section("replay", "Spans replayed from rows", tables)


def _table(context: Context, database: Database) -> Table:
    history = History(context.pick(_ACTIVITIES), _LOGS)
    step = context.track(f"replay {database.kind}", 3)
    step("loading")
    database.reset()
    history.load(database)
    with closing(database.connect()) as connection:
        connection.execute(
            f"UPDATE {ACTIVITY} SET span_id = substr(trace_id, 17), sampled = true WHERE trace_id <> '{0:032x}'"
        )
        connection.commit()
    database.optimize()
    step("a tenth")
    tenth = _replayed(database, history.created_at(history.activities // 10).isoformat())
    step("the others")
    rest = _replayed(database)
    rows = [
        Row("spans a second", "1/s", [_rate(rest)], [_rate(tenth)]),
        Row("peak memory of the process", "MiB", [rest["peak"]], [tenth["peak"]], Target(_MOST_MEMORY)),
        Row("memory that the replay took", "MiB", [max(0.1, rest["peak"] - rest["before"])]),
    ]
    note = f"Encoded for OTLP, and sent nowhere. {_LOGS} logs each; 500 spans a batch."
    return Table(f"{database.title}, {rest['spans']:,} spans", f"{tenth['spans']:,} spans", rows, [note])


def _rate(found: dict[str, Any]) -> float:
    return float(found["spans"] / found["seconds"])


def _replayed(database: Database, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks._replayed", database.url, *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=7_200,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found
