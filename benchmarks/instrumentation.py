"""What `AgentExecInstrumentor` adds to a run of twenty turns, in CPU time."""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import agentexec_otel as ax
from benchmarks._context import Context, Scale
from benchmarks._databases import Database
from benchmarks._measure import Row, Section, Table, Target, interleaved

if TYPE_CHECKING:
    from agents import Agent

_TURNS: Final = 20
_RUNS: Final = {Scale.SMOKE: 2, Scale.QUICK: 20, Scale.FULL: 40}
_MOST: Final = 1.05
_PAUSE: Final = 0.02

_Measured = tuple[float, float]
"""Milliseconds of CPU per run: of the thread that runs the event loop, and of the whole process."""


def run(context: Context) -> Section:
    """Measure on SQLite, where the writer's thread has the most to do."""
    return Section("instrumentation", "Instrumented runs", [_table(context, context.databases[0])])


def _table(context: Context, database: Database) -> Table:
    import agents

    database.reset()
    ax.configure(database.url)
    agents.set_trace_processors([])
    runs = context.pick(_RUNS)
    try:
        with _instrumented():
            _play(1)  # warm
        _play(1)
        cases: dict[str, Callable[[], _Measured]] = {
            "plain": partial(_play, runs),
            "instrumented": partial(_play_instrumented, runs),
            "no lines": partial(_play_instrumented, runs, "off"),
            "bare": partial(_play_beside_bare_commits, runs, database),
        }
        if hasattr(os, "sched_setaffinity"):
            cases["plain, one core"] = partial(_on_one_core, partial(_play, runs))
            cases["instrumented, one core"] = partial(_on_one_core, partial(_play_instrumented, runs))
        found = interleaved(cases, context.runs, context.track("instrumentation", context.runs * len(cases)))
    finally:
        ax.shutdown(30.0)
    loop = {name: [values[0] for values in measured] for name, measured in found.items()}
    process = {name: [values[1] for values in measured] for name, measured in found.items()}
    rows = [
        Row("no instrumentation, the run's own thread", "ms", loop["plain"]),
        Row("instrumented", "ms", loop["instrumented"], loop["plain"], Target(_MOST)),
        Row("instrumented, AGENTEXEC_PROGRESS=off", "ms", loop["no lines"], loop["plain"], Target(_MOST)),
        Row("no instrumentation, beside a bare thread that commits", "ms", loop["bare"], loop["plain"]),
        Row("no instrumentation, the whole process", "ms", process["plain"]),
        Row("instrumented, with the writer's thread and its commits", "ms", process["instrumented"], process["plain"]),
    ]
    if "plain, one core" in loop:
        plain, ours = loop["plain, one core"], loop["instrumented, one core"]
        rows.append(Row("no instrumentation, all on one core", "ms", plain))
        rows.append(Row("instrumented, all on one core", "ms", ours, plain, Target(_MOST)))
    notes = [
        f"A scripted model answers at once, the tool does nothing: {_TURNS} turns take as long as the SDK itself does.",
        "The writer works beside the run, while a real one waits for its model.",
        f"The bare thread inserts a row by sqlite3 and commits, every {_PAUSE * 1e3:g} ms: about twice in a run.",
    ]
    return Table(f"CPU time of a run of {_TURNS} turns, median of {runs}", "no instrumentation", rows, notes)


def _play_instrumented(runs: int, progress: Any = "steps") -> _Measured:
    with _instrumented():
        before, ax.CONF.progress = ax.CONF.progress, progress
        try:
            return _play(runs)
        finally:
            ax.CONF.progress = before


def _play_beside_bare_commits(runs: int, database: Database) -> _Measured:
    """What any thread costs that writes to SQLite meanwhile: the interpreter lock goes to and fro between two cores."""
    stop = threading.Event()
    thread = threading.Thread(target=_commit_until, args=(stop, database))
    thread.start()
    try:
        return _play(runs)
    finally:
        stop.set()
        thread.join()


def _commit_until(stop: threading.Event, database: Database) -> None:
    with closing(database.connect()) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS bare (id INTEGER PRIMARY KEY, message TEXT)")
        while not stop.wait(_PAUSE):
            connection.execute("INSERT INTO bare (message) VALUES ('Analyzing what competitors do')")
            connection.commit()


def _on_one_core(play: Callable[[], _Measured]) -> _Measured:
    cores = os.sched_getaffinity(0)
    _move(set(sorted(cores)[-1:]))
    try:
        return play()
    finally:
        _move(cores)


def _move(cores: set[int]) -> None:
    for thread in threading.enumerate():
        if thread.native_id is not None:
            os.sched_setaffinity(thread.native_id, cores)


@contextmanager
def _instrumented() -> Generator[None]:
    instrumentor = ax.AgentExecInstrumentor()
    instrumentor.instrument()
    try:
        yield
    finally:
        instrumentor.uninstrument()


def _play(runs: int) -> _Measured:
    from agents import Runner

    agents = [_agent() for _ in range(runs)]
    took: list[float] = []

    async def play() -> None:
        for agent in agents:
            began = time.thread_time()
            await Runner.run(agent, "go", max_turns=_TURNS)
            took.append(time.thread_time() - began)

    gc.collect()
    process = time.process_time()
    asyncio.run(play())
    assert ax.flush(60)
    return statistics.median(took) * 1e3, (time.process_time() - process) / runs * 1e3


def _agent() -> Agent[Any]:
    from agents import Agent, function_tool
    from agents.testing import ScriptedModel, assistant_message, function_call

    async def look_up(topic: str) -> str:
        """Look something up."""
        return topic

    calls = [[function_call("look_up", {"topic": "tea"}, call_id=str(turn))] for turn in range(_TURNS - 1)]
    return Agent(
        name="Agent", model=ScriptedModel([*calls, [assistant_message("done")]]), tools=[function_tool(look_up)]
    )
