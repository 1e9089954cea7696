"""What `update()` costs the one who calls it."""

from __future__ import annotations

import gc
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import make_url

import agentexec_otel as ax
from benchmarks._context import Context, Scale
from benchmarks._databases import Database
from benchmarks._measure import Row, Section, Table, Target, interleaved, percentile

_BARE: Final = "span.add_event"
_MESSAGE: Final = "Analyzing competitors and writing the summary now"
_MOST: Final = 3.0
_MOST_P99: Final = 15.0
_MOST_CPU: Final = 8.0
_CALLS: Final = {Scale.SMOKE: 50, Scale.QUICK: 1_000, Scale.FULL: 2_000}
_PACED: Final = {Scale.SMOKE: 20, Scale.QUICK: 300, Scale.FULL: 1_000}
_SCRIPT: Final = Path(__file__).with_name("_agentexec.py")


@dataclass(frozen=True, slots=True)
class Cost:
    """One run, in microseconds per call: wall time, and CPU time of the calling thread, and of all until the commit."""

    cpu: float
    p50: float
    p99: float
    with_writer: float = 0.0


def run(context: Context) -> Section:
    """Measure on every database, calls in a tight loop and a thousand per second."""
    tables: list[Table] = []
    for database in context.databases:
        database.reset()
        with _Subjects(database, context.folder) as subjects:
            tables += [_table(context, database, subjects, pace) for pace in (_tight, _paced)]
    return Section("caller", "What update() costs its caller", tables)


def _table(context: Context, database: Database, subjects: _Subjects, pace: _Pace) -> Table:
    calls = context.pick(_CALLS if pace is _tight else _PACED)
    cases: dict[str, Callable[[], Cost]] = {
        name: partial(_settled, partial(pace, call, calls)) for name, call in subjects.calls.items()
    }
    if context.agentexec is not None and pace is _tight:
        cases[_agentexec_name(context.agentexec)] = partial(_agentexec, context, database)
    rounds = context.runs
    found = interleaved(
        cases, rounds, context.track(f"caller {database.kind} {pace.__name__[1:]}", rounds * len(cases))
    )
    how = f"{calls:,} calls in a loop" if pace is _tight else "1,000 calls per second"
    return Table(
        f"{database.title}, {how}",
        "span.add_event, same attributes, same pace",
        [*_rows(found), *(_marks(found) if pace is _tight else ())],
        [_NOTES[pace]],
    )


def _rows(found: Mapping[str, list[Cost]]) -> list[Row]:
    bare = next(iter(found.values()))
    rows: list[Row] = []
    for figure in ("cpu", "p50", "p99"):
        words = {"cpu": "CPU time of the caller", "p50": "p50", "p99": "p99"}[figure]
        for name, costs in found.items():
            rows.append(
                Row(
                    f"{name}: {words}",
                    "µs",
                    [getattr(cost, figure) for cost in costs],
                    None if costs is bare else [getattr(cost, figure) for cost in bare],
                    Target(_MOST) if name == "update()" and figure in ("cpu", "p50") else None,
                )
            )
    return [row for row in rows if row.values[0] > 0]


def _marks(found: Mapping[str, list[Cost]]) -> Iterator[Row]:
    """What one line costs beside a call of the baseline: its slowest calls, and the CPU time up to its commit."""
    bare, ours = found[_BARE], found["update()"]
    p50, cpu = [cost.p50 for cost in bare], [cost.cpu for cost in bare]
    yield Row("update(): p99, to the baseline's p50", "µs", [one.p99 for one in ours], p50, Target(_MOST_P99))
    label = "update(): CPU time of caller and writer, until the commit"
    yield Row(label, "µs", [one.with_writer for one in ours], cpu, Target(_MOST_CPU))


class _Subjects:
    """The calls to compare; entering configures the SDK, leaving shuts it down."""

    def __init__(self, database: Database, folder: Path) -> None:
        self._database = database
        self._log = folder / "calls.log"
        self._provider = TracerProvider()
        self.calls: dict[str, Callable[[], object]] = {}

    def __enter__(self) -> _Subjects:
        ax.configure(self._database.url, tracer_provider=self._provider)
        agent_id = ax.activity.create("bench")
        ax.activity.update(agent_id, "The span is open from here on")
        span = self._provider.get_tracer("bench").start_span("bench")
        event_id = str(UUID(int=0x019A_0000_0000_7000_8000_0000_0000_0000))
        logger = _file_logger(self._log)

        def add_event() -> None:
            span.add_event(
                "agentexec.activity.log",
                {
                    "agentexec.log.id": event_id,
                    "agentexec.log.status": "RUNNING",
                    "agentexec.log.message": _MESSAGE,
                    "agentexec.log.percentage": 50,
                },
            )

        self.calls = {
            _BARE: add_event,
            "logging.info to a file": lambda: logger.info(_MESSAGE),
            "update()": lambda: ax.activity.update(agent_id, _MESSAGE, 50),
            "update(), id as text": partial(ax.activity.update, str(agent_id), _MESSAGE, 50),
        }
        return self

    def __exit__(self, *_: object) -> None:
        ax.shutdown(30.0)
        logger = _file_logger(None)
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
        self._provider.shutdown()


def _file_logger(path: Path | None) -> logging.Logger:
    logger = logging.getLogger("benchmarks.caller")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    if path is not None:
        handler = logging.FileHandler(path)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        logger.addHandler(handler)
    return logger


_Pace = Callable[[Callable[[], object], int], Cost]


def _tight(call: Callable[[], object], calls: int) -> Cost:
    walls = [0] * calls
    clock = time.perf_counter_ns
    began, began_all = time.thread_time_ns(), time.process_time_ns()
    for number in range(calls):
        start = clock()
        call()
        walls[number] = clock() - start
    cpu = (time.thread_time_ns() - began) / calls
    ax.flush(60.0)
    with_writer = (time.process_time_ns() - began_all) / calls
    return Cost(cpu / 1e3, statistics.median(walls) / 1e3, percentile(walls, 0.99) / 1e3, with_writer / 1e3)


def _paced(call: Callable[[], object], calls: int) -> Cost:
    walls = [0] * calls
    cpu = 0
    due = time.perf_counter()
    for number in range(calls):
        due += 0.001
        time.sleep(max(0.0, due - time.perf_counter()))
        before = time.thread_time_ns()
        start = time.perf_counter_ns()
        call()
        walls[number] = time.perf_counter_ns() - start
        cpu += time.thread_time_ns() - before
    return Cost(cpu / calls / 1e3, statistics.median(walls) / 1e3, percentile(walls, 0.99) / 1e3)


def _settled(measure: Callable[[], Cost]) -> Cost:
    """Start with an empty queue and an idle writer, and without a garbage collection that is due."""
    ax.flush(60.0)
    gc.collect()
    return measure()


_NOTES: Final[dict[_Pace, str]] = {
    _tight: "In a loop the writer's thread wants the interpreter at the same time; CPU time leaves its share out.",
    _paced: "After a sleep caches are cold for everybody, so the baseline is slower here too.",
}


# -- agentexec, in an interpreter of its own ----------------------------------------------------------------------


def _agentexec_name(python: str) -> str:
    return f"agentexec {ask_agentexec(python, 'version')['version']} update()"


def _agentexec(context: Context, database: Database) -> Cost:
    calls = context.pick({Scale.SMOKE: 10, Scale.QUICK: 60})
    answer = ask_agentexec(
        context.agentexec or sys.executable, "update", agentexec_url(database, context.folder), calls
    )
    return Cost(answer["cpu"], answer["p50"], answer["p99"])


def agentexec_url(database: Database, folder: Path) -> str:
    """A place for agentexec's own tables: they have our names, and its prefix misses a foreign key."""
    if database.kind == "sqlite":
        return f"sqlite:///{folder / 'agentexec.db'}"
    with closing(database.connect()) as connection:
        connection.execute("CREATE SCHEMA IF NOT EXISTS other")
        connection.commit()
    return make_url(database.url).update_query_dict({"options": "-csearch_path=other"}).render_as_string(False)


def ask_agentexec(python: str, *arguments: object) -> dict[str, Any]:
    """What `_agentexec.py` measured in the other interpreter; SystemExit with one sentence where it cannot."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "AGENTEXEC"))}
    done = subprocess.run(
        [python, str(_SCRIPT), *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )
    if done.returncode:
        why = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise SystemExit(
            f"agentexec cannot be measured with AGENTEXEC_TEST_BASELINE_PYTHON={python}: {why}. "
            f"Install what it needs: {python} -m pip install agentexec aiosqlite 'psycopg[binary]'"
        )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
