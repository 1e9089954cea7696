"""Durable lines per second through the processor, against the raw driver loading the same rows."""

from __future__ import annotations

import cProfile
import gc
import io
import pstats
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import agentexec_otel as ax
from agentexec_otel._model.event import ActivityEvent
from agentexec_otel.export import ActivityProcessor
from agentexec_otel_exporters.sql import SQLExporter
from benchmarks._activities import ACTIVITY_COLUMNS, LOG_COLUMNS, live_events, rows_of
from benchmarks._context import Context, Scale
from benchmarks._databases import ACTIVITY, LOG, Database
from benchmarks._measure import Listing, Row, Section, Table, Target, interleaved, seconds
from benchmarks.caller import agentexec_url, ask_agentexec

_LEAST: Final = 0.5
_LEAST_PUBLIC: Final = 0.22
_SHARE: Final = {Scale.SMOKE: 100, Scale.QUICK: 5, Scale.FULL: 1}
_BATCH: Final = ax.CONF.max_batch_size


@dataclass(frozen=True, slots=True)
class _Shape:
    activities: int
    logs: int
    at_once: bool

    def __str__(self) -> str:
        order = "all at the same time" if self.at_once else "one after the other"
        return f"{self.activities:,} activities x {self.logs:,} logs, {order}"


_SHAPES: Final = (_Shape(1_000, 10, False), _Shape(1_000, 10, True), _Shape(100, 1_000, False))


def run(context: Context) -> Section:
    """Measure every shape on every database, and say where the time goes."""
    blocks: list[Table | Listing] = []
    for database in context.databases:
        for shape in _SHAPES:
            logs = max(2, shape.logs // context.pick(_SHARE)) if shape.logs > 10 else shape.logs
            activities = max(2, shape.activities // context.pick(_SHARE)) if shape.logs <= 10 else shape.activities
            if context.scale is Scale.SMOKE:
                activities, logs = 4, 5
            blocks.append(_table(context, database, _Shape(activities, logs, shape.at_once)))
        blocks += [_public_table(context, database), _profile(database, context)]
    return Section("ingest", "Ingest", blocks)


def _table(context: Context, database: Database, shape: _Shape) -> Table:
    lines = shape.activities * shape.logs
    cases: dict[str, Callable[[], float]] = {
        "raw driver, one transaction": partial(_raw, database, shape, 0),
        f"raw driver, {_BATCH} rows per transaction": partial(_raw, database, shape, _BATCH),
        "through the processor": partial(_processor, database, shape),
    }
    if context.agentexec is not None and shape.at_once is False and shape.logs <= 10:
        cases["agentexec"] = partial(_agentexec, context, context.agentexec, database)
    steps = context.track(f"ingest {database.kind}, {shape}", context.runs * len(cases))
    found = interleaved(cases, context.runs, steps)
    driver = "COPY" if database.kind == "postgres" else "executemany"
    return Table(
        f"{database.title}, {shape}, {lines:,} lines",
        f"{driver} of the same rows into the same tables, one transaction",
        list(_rows(found)),
    )


def _public_table(context: Context, database: Database) -> Table:
    shape = _Shape(4, 5, at_once=False) if context.scale is Scale.SMOKE else _Shape(100, 200, at_once=False)
    cases = {
        "raw driver, one transaction": partial(_raw, database, shape, 0),
        "update()": partial(_public, database, shape),
    }
    found = interleaved(cases, context.runs, context.track(f"ingest {database.kind}, update()", context.runs * 2))
    raw, public = found.values()
    return Table(
        f"{database.title}, create(), update() for each line, flush(): {shape}",
        "the raw driver loading the same rows into the same tables, one transaction",
        [
            Row("raw driver, one transaction", "lines/s", raw),
            Row("from update() to the commit", "lines/s", public, raw, Target(_LEAST_PUBLIC, at_least=True)),
        ],
    )


def _rows(found: dict[str, list[float]]) -> Iterator[Row]:
    raw = next(iter(found.values()))
    for name, rates in found.items():
        target = Target(_LEAST, at_least=True) if name == "through the processor" else None
        yield Row(name, "lines/s", rates, None if rates is raw else raw, target)
    if "agentexec" in found:
        yield Row(
            "through the processor, by agentexec",
            "lines/s",
            found["through the processor"],
            found["agentexec"],
            Target(10, at_least=True),
        )


def _raw(database: Database, shape: _Shape, batch: int) -> float:
    events = live_events(shape.activities, shape.logs, at_once=shape.at_once)
    activities, logs = rows_of(events, database)
    database.reset()

    def load() -> None:
        database.load(ACTIVITY, ACTIVITY_COLUMNS, activities, batch)
        database.load(LOG, LOG_COLUMNS, logs, batch)

    return len(events) / _timed(load)


def _processor(database: Database, shape: _Shape) -> float:
    events = live_events(shape.activities, shape.logs, at_once=shape.at_once)
    database.reset()
    return len(events) / _timed(lambda: _deliver(database, events))


def _timed(work: Callable[[], object]) -> float:
    # The rows and events that were made for it are no garbage that either of them would have had to look through.
    gc.collect()
    gc.freeze()
    try:
        return seconds(work)
    finally:
        gc.unfreeze()


def _deliver(database: Database, events: list[ActivityEvent]) -> None:
    processor = ActivityProcessor(SQLExporter(database.url), max_queue_size=len(events) + 1, max_batch_size=_BATCH)
    for each in events:
        processor.emit(each)
    stored = processor.force_flush(600.0)
    processor.shutdown()
    assert stored, "the events were not stored in time"


def _public(database: Database, shape: _Shape) -> float:
    """As an application does it: create(), then update() for each line, then flush()."""
    database.reset()
    before = ax.CONF.max_queue_size
    ax.CONF.max_queue_size = shape.activities * shape.logs + 16
    ax.configure(database.url)
    try:
        began = time.perf_counter()
        for _ in range(shape.activities):
            agent_id = ax.activity.create("bench")
            for number in range(1, shape.logs):
                ax.activity.update(agent_id, "Analyzing what competitors do", number * 100 // shape.logs)
        assert ax.flush(600.0), "the events were not stored in time"
        return shape.activities * shape.logs / (time.perf_counter() - began)
    finally:
        ax.shutdown(30.0)
        ax.CONF.max_queue_size = before


def _agentexec(context: Context, python: str, database: Database) -> float:
    activities = context.pick({Scale.SMOKE: 1, Scale.QUICK: 5})
    answer = ask_agentexec(python, "ingest", agentexec_url(database, context.folder), activities, 10)
    return float(answer["rows"])


def _profile(database: Database, context: Context) -> Listing:
    """Where the writer's time goes: its functions by their own time, for the shape with the most to update."""
    share = context.pick(_SHARE)
    events = live_events(max(4, 1_000 // share), 10, at_once=True)
    database.reset()
    exporter = SQLExporter(database.url)
    exporter.load([events[0].agent_id])  # connects
    profile = cProfile.Profile()

    def write() -> None:
        profile.enable()
        for start in range(0, len(events), _BATCH):
            exporter.export(events[start : start + _BATCH])
        profile.disable()

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    exporter.shutdown(5.0)
    text = io.StringIO()
    stats = pstats.Stats(profile, stream=text).strip_dirs().sort_stats("tottime")
    stats.print_stats(12)
    body = [line.rstrip() for line in text.getvalue().splitlines() if line.strip()]
    return Listing(f"Where the writer's time goes, {database.title}, 1,000 x 10 at the same time", "\n".join(body))
