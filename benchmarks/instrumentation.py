"""What `AgentExecInstrumentor` adds to a run of twenty turns, in CPU time."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
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
        cases: dict[str, Callable[[], tuple[float, float]]] = {
            "plain": partial(_play, runs),
            "instrumented": partial(_play_instrumented, runs),
            "no lines": partial(_play_instrumented, runs, "off"),
        }
        found = interleaved(cases, context.runs, context.track("instrumentation", context.runs * len(cases)))
    finally:
        ax.shutdown(30.0)
    loop = {name: [values[0] for values in measured] for name, measured in found.items()}
    process = {name: [values[1] for values in measured] for name, measured in found.items()}
    rows = [
        Row("no instrumentation, the run's own thread", "ms", loop["plain"]),
        Row("instrumented", "ms", loop["instrumented"], loop["plain"], Target(_MOST)),
        Row("instrumented, AGENTEXEC_PROGRESS=off", "ms", loop["no lines"], loop["plain"], Target(_MOST)),
        Row("no instrumentation, the whole process", "ms", process["plain"]),
        Row("instrumented, with the writer's thread and its commits", "ms", process["instrumented"], process["plain"]),
    ]
    notes = [
        f"A scripted model answers at once, the tool does nothing: {_TURNS} turns take as long as the SDK itself does.",
        "The writer works beside the run, while a real one waits for its model.",
    ]
    return Table(f"CPU time of a run of {_TURNS} turns, mean of {runs}", "no instrumentation", rows, notes)


def _play_instrumented(runs: int, progress: Any = "steps") -> tuple[float, float]:
    with _instrumented():
        before, ax.CONF.progress = ax.CONF.progress, progress
        try:
            return _play(runs)
        finally:
            ax.CONF.progress = before


@contextmanager
def _instrumented() -> Generator[None]:
    instrumentor = ax.AgentExecInstrumentor()
    instrumentor.instrument()
    try:
        yield
    finally:
        instrumentor.uninstrument()


def _play(runs: int) -> tuple[float, float]:
    """Milliseconds of CPU per run: of the thread that runs the event loop, and of the process until all is stored."""
    from agents import Runner

    agents = [_agent() for _ in range(runs)]

    async def play() -> None:
        for agent in agents:
            await Runner.run(agent, "go", max_turns=_TURNS)

    gc.collect()
    process, thread = time.process_time(), time.thread_time()
    asyncio.run(play())
    thread = time.thread_time() - thread
    assert ax.flush(60)
    return thread / runs * 1e3, (time.process_time() - process) / runs * 1e3


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
