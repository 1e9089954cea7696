"""End-to-end tests run on SQLite, with a tracer provider of their own."""

import asyncio
from collections.abc import Iterator

import agents
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import agentexec_otel as ax
from tests.databases import Database
from tests.e2e.instrumented import processors


@pytest.fixture
def no_uploads() -> Iterator[None]:
    """The Agents SDK keeps its own traces to itself."""
    agents.set_tracing_disabled(True)
    yield
    agents.set_tracing_disabled(False)


@pytest.fixture
def instrumented(database: Database, spans: InMemorySpanExporter) -> Iterator[None]:
    """Runs of the Agents SDK are tracked, and its own traces go nowhere else."""
    before = processors()
    agents.set_trace_processors([])
    instrumentor = ax.AgentExecInstrumentor()
    instrumentor.instrument()
    yield
    instrumentor.uninstrument()
    agents.set_trace_processors(list(before))


@pytest.fixture
def default_loop() -> Iterator[None]:
    """A default event loop for `Runner.run_sync`, which leaves the one that it uses open."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()
