"""Ours beside other tracing libraries, instrumented in every order.

`start` prints JSON: what is wrong, by order. A process of its own, since libraries patch the SDK and some cannot be
taken off again.
"""

import asyncio
import itertools
import json
import logging
import tempfile
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import UUID

import agents
from agents import Runner
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity.schemas import ActivityDetailSchema
from tests.e2e.scripted import agent, call, say

PRELOADED = ("agents", "agents.testing", "opentelemetry.sdk.trace.export", "sqlalchemy.orm")
OURS = "ours"
EXPECTED = [("Bad", "ERROR"), ("Plain", "COMPLETE"), ("Streamed", "COMPLETE"), ("Traced", "COMPLETE")]


class _Logfire:
    """Which can be put on only."""

    def instrument(self, **_: Any) -> None:
        import logfire

        logfire.configure(send_to_logfire=False, console=False)
        logfire.instrument_openai_agents()

    def uninstrument(self) -> None:
        """Nothing."""


def _instrumentor(library: str) -> Any:
    if library == OURS:
        return ax.AgentExecInstrumentor()
    if library == "logfire":
        return _Logfire()
    name = {
        "openinference": "openinference.instrumentation.openai_agents",
        "official": "opentelemetry.instrumentation.genai.openai_agents",
    }[library]
    return import_module(name).OpenAIAgentsInstrumentor()


async def play() -> None:
    """A run, a stream, a trace around two runs, and one that fails; each in a context of its own, and left clean."""
    await Runner.run(agent(call("fails"), say("done"), name="Plain"), "go")
    async for _ in Runner.run_streamed(agent(call("fails"), say("done"), name="Streamed"), "go").stream_events():
        pass
    with agents.trace("Traced"):
        await Runner.run(agent(call("fails"), say("done")), "go")
        await asyncio.gather(Runner.run(agent(call("broken")), "go"), return_exceptions=True)
    await asyncio.gather(Runner.run(agent(call("broken"), name="Bad"), "go"), return_exceptions=True)


async def _leaves() -> str | None:
    """What is the current span after a trace; other libraries together leave theirs behind, which is not our doing."""
    with agents.trace("Leaving"):
        await Runner.run(agent(say("done")), "go")
    return getattr(trace.get_current_span(), "name", None)


class _Database:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._seen: set[UUID] = set()

    def new(self) -> list[ActivityDetailSchema]:
        """The activities since the last call."""
        assert ax.flush(10)
        with Session(self._engine) as session:
            ids = [item.agent_id for item in ax.activity.list(session, page_size=100).items]
            found = [ax.activity.detail(session, each, include_late=True) for each in ids if each not in self._seen]
        self._seen.update(ids)
        return [each for each in found if each is not None]


def _wrong(found: list[ActivityDetailSchema], spans: InMemorySpanExporter) -> list[str]:
    wrong: list[str] = []
    ended = sorted((each.agent_type, each.status.value) for each in found)
    if ended != EXPECTED:
        wrong.append(f"activities: {ended}")
    wrong += [
        f"{each.agent_type} tells of {told} failures"
        for each in found
        if (told := [line.message for line in each.logs].count("fails failed")) != (each.agent_type != "Bad")
    ]
    finished = spans.get_finished_spans()
    ours = sorted(
        span.name for span in finished if span.instrumentation_scope and span.instrumentation_scope.name == ax.__name__
    )
    if ours != [name for name, _ in EXPECTED]:
        wrong.append(f"our spans: {ours}")
    return wrong


def start(*others: str) -> None:
    """Instrument, play, uninstrument and play again, in every order."""
    warnings.simplefilter("ignore")
    logging.getLogger("opentelemetry.instrumentation.instrumentor").setLevel(logging.ERROR)  # "already instrumented"
    provider = TracerProvider()
    spans = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    verdicts: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        engine = create_engine(f"sqlite:///{Path(folder) / 'activities.db'}")
        ax.CONF.spool_dir = "off"
        ax.configure(engine, create_tables=True, tracer_provider=provider)
        database = _Database(engine)
        for order in itertools.permutations([OURS, *others]):
            agents.set_trace_processors([])
            for library in order:
                _instrumentor(library).instrument(tracer_provider=provider)
            _instrumentor(OURS).instrument()
            asyncio.run(play())
            wrong = _wrong(database.new(), spans)
            _instrumentor(OURS).uninstrument()
            theirs = asyncio.run(_leaves())
            _instrumentor(OURS).instrument()
            if theirs is None and (left := asyncio.run(_leaves())) is not None:
                wrong.append(f"left current: {left}")
            database.new()
            for library in [*order[1:], order[0]]:
                _instrumentor(library).uninstrument()
            asyncio.run(play())
            wrong += [f"uninstrumented, but tracked: {each.agent_type}" for each in database.new()]
            spans.clear()
            verdicts[", ".join(order)] = wrong
        ax.shutdown()
        engine.dispose()
    print(json.dumps(verdicts))
