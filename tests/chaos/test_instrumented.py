"""Instrumented drivers make no spans of our own writes, and no span of a span."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import create_engine, text

import agentexec_otel as ax
from agentexec_otel.testing import InMemoryActivityExporter
from agentexec_otel_exporters.sql import SQLSpanExporter
from tests.chaos.journal import history
from tests.databases import Database

pytestmark = pytest.mark.one_python

INSTRUMENTORS = {
    "opentelemetry.instrumentation.sqlalchemy": "SQLAlchemyInstrumentor",
    "opentelemetry.instrumentation.psycopg": "PsycopgInstrumentor",
    "opentelemetry.instrumentation.sqlite3": "SQLite3Instrumentor",
}


@pytest.fixture
def instrumented(tracer_provider: TracerProvider) -> Iterator[TracerProvider]:
    """Everything that can be instrumented is."""
    with ExitStack() as stack:
        for module, name in INSTRUMENTORS.items():
            instrumentor: Any = getattr(pytest.importorskip(module, reason=f"{module} is not installed"), name)()
            # The SQLAlchemy instrumentor says that it does not know SQLAlchemy 2.1.
            instrumentor.instrument(skip_dep_check=True, tracer_provider=tracer_provider)
            stack.callback(instrumentor.uninstrument)
        yield tracer_provider


@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
def test_our_writes_make_no_spans(
    database: Database, instrumented: TracerProvider, span_exporter: InMemorySpanExporter
) -> None:
    """A whole life, with look-ups, heartbeats and a sweep: the one span is the activity's. The application's own
    statements do make spans, so the instrumentors were at work."""
    ax.configure(database.url, tracer_provider=instrumented)
    with ax.activity.run("task") as run:
        run.update("half way", 50)
    ax.activity.reap()
    ax.activity.cancel_pending()
    assert ax.flush()
    time.sleep(1.5)
    assert [span.name for span in span_exporter.get_finished_spans()] == ["task"]
    engine = create_engine(database.url)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    engine.dispose()
    assert len(span_exporter.get_finished_spans()) > 1


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_the_span_exporter_makes_no_spans_of_its_own(
    database: Database, instrumented: TracerProvider, span_exporter: InMemorySpanExporter
) -> None:
    """Spans stored through the SQL span exporter, on an instrumented driver: none leads to another."""
    instrumented.add_span_processor(SimpleSpanProcessor(SQLSpanExporter(database.url)))
    ax.configure(exporters=[InMemoryActivityExporter()], tracer_provider=instrumented)
    with ax.activity.run("task") as run:
        run.update("half way", 50)
    assert ax.flush()
    time.sleep(1.0)
    assert [span.name for span in span_exporter.get_finished_spans()] == ["task"]
    assert [text for _, text in history(database.engine)[run.agent_id]][1:] == [
        "Task started.",
        "half way",
        "Task completed successfully.",
    ]
