"""`SQLSpanExporter`: activity spans of other processes and providers, from their ends into the tables."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from typing import Any
from uuid import UUID, uuid4

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import Engine
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel._model.mapping import log_attributes, opening_attributes
from agentexec_otel._model.span import EventName
from agentexec_otel.activity.models import Status
from agentexec_otel.export import Opening
from agentexec_otel.testing import InMemoryActivityExporter
from agentexec_otel_exporters.sql import SQLSpanExporter
from tests.databases import Database
from tests.sql.rows import count_rows, gap_free, lines, row, store
from tests.sql.rows import event as line

pytestmark = pytest.mark.one_python


@pytest.fixture
def elsewhere(tracer_provider: TracerProvider) -> None:
    """The SDK as another process has it: with tracing, and without this database."""
    ax.configure(exporters=[InMemoryActivityExporter()], tracer_provider=tracer_provider)


@pytest.fixture
def to_sql(database: Database) -> Iterator[SQLSpanExporter]:
    exporter = SQLSpanExporter(database.url)
    yield exporter
    exporter.shutdown()


def ended(exporter: InMemorySpanExporter) -> Sequence[ReadableSpan]:
    """The spans that have ended so far, as another process's exporter gets them."""
    assert ax.flush()
    found = exporter.get_finished_spans()
    exporter.clear()
    return found


def run_once(*messages: str, agent_id: UUID | None = None) -> UUID:
    with ax.activity.run("task", agent_id=agent_id, metadata={"tenant": "acme"}) as run:
        for message in messages:
            run.update(message, 50)
        run.record_usage(7, 9)
    return run.agent_id


@pytest.mark.parametrize("name", ["log", "message"])
def test_logs_are_found_whatever_their_events_are_called(
    database: Database, tracer_provider: TracerProvider, span_exporter: InMemorySpanExporter, name: EventName
) -> None:
    """By the attributes of the events (``AGENTEXEC_EVENT_NAME``)."""
    ax.CONF.event_name = name
    ax.configure(exporters=[InMemoryActivityExporter()], tracer_provider=tracer_provider)
    agent_id = run_once("Half way.")
    exporter = SQLSpanExporter(database.engine)
    assert exporter.export(ended(span_exporter)) is SpanExportResult.SUCCESS
    exporter.shutdown()
    assert [line.message for line in lines(database.engine, agent_id)] == [
        "Waiting to start.",
        "Task started.",
        "Half way.",
        "Task completed successfully.",
    ]


def test_found_by_name(database: Database, tracer_provider: TracerProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter `agentexec_sql` of OpenTelemetry's entry points needs nothing but the environment's URL."""
    monkeypatch.setattr(ax.CONF, "database_url", database.url)
    (entry_point,) = entry_points(group="opentelemetry_traces_exporter", name="agentexec_sql")
    exporter: SpanExporter = entry_point.load()()
    tracer_provider.add_span_processor(BatchSpanProcessor(exporter))
    ax.configure(exporters=[InMemoryActivityExporter()], tracer_provider=tracer_provider)
    with tracer_provider.get_tracer("test").start_as_current_span("request") as request:
        agent_id = run_once("Half way.")
    with pytest.raises(ZeroDivisionError), ax.activity.run("failing") as failing:
        _ = 1 / 0
    assert ax.flush()
    assert tracer_provider.force_flush()
    stored, logs = row(database.engine, agent_id), lines(database.engine, agent_id)
    assert (stored.agent_type, stored.status, stored.metadata_) == ("task", Status.COMPLETE, {"tenant": "acme"})
    assert (stored.latest_percentage, stored.input_tokens, stored.output_tokens) == (100, 7, 9)
    assert [log.message for log in logs] == [
        "Waiting to start.", "Task started.", "Half way.", "Task completed successfully.",
    ]  # fmt: skip
    assert gap_free(logs)
    assert stored.created_at == logs[0].created_at
    assert stored.trace_id == f"{request.get_span_context().trace_id:032x}"
    assert stored.sampled
    failed = row(database.engine, failing.agent_id)
    assert (failed.status, failed.error_type, failed.reason) == (Status.ERROR, "ZeroDivisionError", "other")
    assert count_rows(database.engine) == (2, 7)


def test_beside_the_live_path(database: Database, tracer_provider: TracerProvider, to_sql: SQLSpanExporter) -> None:
    """In the same process and database as the live exporter it stores nothing twice."""
    tracer_provider.add_span_processor(SimpleSpanProcessor(to_sql))
    ax.configure(database.url, tracer_provider=tracer_provider)
    agent_id = run_once("Half way.")
    canceled = ax.activity.create("canceled")
    assert ax.activity.cancel(canceled)
    assert ax.flush()
    assert count_rows(database.engine) == (2, 6)
    assert gap_free(lines(database.engine, agent_id))
    assert row(database.engine, canceled).status is Status.CANCELED
    assert not any(log.late for log in lines(database.engine, agent_id))


@pytest.mark.usefixtures("elsewhere")
def test_delivered_again(database: Database, span_exporter: InMemorySpanExporter, to_sql: SQLSpanExporter) -> None:
    """Exported three times, in batches or alone, a span is stored once."""
    ids = [run_once() for _ in range(3)]
    spans = ended(span_exporter)
    for batch in (spans, spans[::-1], spans[1:2]):
        assert to_sql.export(batch) is SpanExportResult.SUCCESS
    assert count_rows(database.engine) == (3, 9)
    assert all(gap_free(lines(database.engine, agent_id)) for agent_id in ids)


@pytest.mark.usefixtures("elsewhere")
def test_lines_beyond_the_sdk_limit(
    database: Database, span_exporter: InMemorySpanExporter, to_sql: SQLSpanExporter
) -> None:
    """What the SDK has dropped from a long run is not there; what is left makes an activity that has ended."""
    agent_id = run_once(*(f"Line {number}." for number in range(300)))
    assert to_sql.export(ended(span_exporter)) is SpanExportResult.SUCCESS
    stored = row(database.engine, agent_id)
    assert (stored.status, stored.last_seq, stored.agent_type) == (Status.COMPLETE, 128, "task")
    assert lines(database.engine, agent_id)[-2].message == "Line 299."


@pytest.mark.usefixtures("elsewhere")
def test_spans_of_others(
    database: Database, tracer_provider: TracerProvider, span_exporter: InMemorySpanExporter
) -> None:
    """Spans that are no activity's are passed over; for them alone no database is asked, and none needs to be there."""
    with tracer_provider.get_tracer("another").start_as_current_span(
        "GET /", attributes={"agentexec.agent_id": "x"}
    ) as span:
        span.add_event("agentexec.activity.log", {"agentexec.log.id": "y"})
    others = ended(span_exporter)
    nowhere = SQLSpanExporter()
    assert nowhere.export(others) is SpanExportResult.SUCCESS
    assert nowhere.export([]) is SpanExportResult.SUCCESS
    agent_id = run_once()
    to_sql = SQLSpanExporter(database.engine)
    assert to_sql.export([*others, *ended(span_exporter), *others]) is SpanExportResult.SUCCESS
    to_sql.shutdown()
    nowhere.shutdown()
    assert count_rows(database.engine) == (1, 3)
    assert row(database.engine, agent_id).status is Status.COMPLETE


@pytest.mark.usefixtures("elsewhere")
def test_poison_harms_nobody_else(
    database: Database, tracer_provider: TracerProvider, span_exporter: InMemorySpanExporter, to_sql: SQLSpanExporter
) -> None:
    """A span that the database refuses is FAILURE, and the others of its batch are stored."""
    good = [run_once(), run_once()]
    foreign, far_away_ns = line(uuid4(), Status.COMPLETE), 10**22
    with tracer_provider.get_tracer("another").start_as_current_span("foreign") as span:
        span.set_attributes(opening_attributes(foreign.agent_id, Opening("foreign"), 1))
        span.add_event("agentexec.activity.log", log_attributes(foreign), far_away_ns)
    good.append(run_once())
    assert to_sql.export(ended(span_exporter)) is SpanExportResult.FAILURE
    assert count_rows(database.engine) == (3, 9)
    assert all(row(database.engine, agent_id).status is Status.COMPLETE for agent_id in good)


ODD_METADATA: list[tuple[dict[str, Any], dict[str, Any] | None]] = [
    ({"k": float("nan")}, {"k": "NaN"}),
    ({"k": "a\x00b"}, {"k": "a\u2400b"}),
    ({"k": "\ud800"}, {"k": "\ufffd"}),
    ({"k": ("a", "b")}, {"k": ["a", "b"]}),
    ({f"k{number}": number for number in range(65)}, None),
    ({"k": "x" * 100_000}, None),
]


@pytest.mark.parametrize(("given", "kept"), ODD_METADATA)
def test_metadata_that_no_column_takes(
    database: Database,
    tracer_provider: TracerProvider,
    span_exporter: InMemorySpanExporter,
    to_sql: SQLSpanExporter,
    given: dict[str, Any],
    kept: dict[str, Any] | None,
) -> None:
    """Attributes that a stranger has set are stored as `create` would, and break nobody's metadata filter."""
    told = line(uuid4(), Status.COMPLETE)
    with tracer_provider.get_tracer("another").start_as_current_span("foreign") as span:
        span.set_attributes(opening_attributes(told.agent_id, Opening("foreign"), 1))
        span.set_attributes({f"agentexec.metadata.{key}": value for key, value in given.items()})
        span.add_event("agentexec.activity.log", log_attributes(told))
    assert to_sql.export(span_exporter.get_finished_spans()) is SpanExportResult.SUCCESS
    assert row(database.engine, told.agent_id).metadata_ == kept
    with Session(database.engine) as session:
        assert ax.activity.list(session, metadata_filter={"k": "another"}).total == 0


@pytest.mark.usefixtures("elsewhere")
def test_end_that_comes_late(database: Database, span_exporter: InMemorySpanExporter, to_sql: SQLSpanExporter) -> None:
    """A span whose activity was ended in the database meanwhile is kept as late, and changes no status."""
    agent_id = run_once()
    store(database.url, [line(agent_id, Status.CANCELED)])
    assert to_sql.export(ended(span_exporter)) is SpanExportResult.SUCCESS
    stored = row(database.engine, agent_id)
    assert (stored.status, stored.agent_type) == (Status.CANCELED, "task")
    assert [log.late for log in lines(database.engine, agent_id)] == [False, True, True, True]


@pytest.mark.usefixtures("elsewhere")
def test_no_tables(empty: Engine, span_exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without tables it is FAILURE and no exception; with `create_tables` it makes them."""
    agent_id = run_once()
    spans = ended(span_exporter)
    refused = SQLSpanExporter(empty)
    assert refused.export(spans) is SpanExportResult.FAILURE
    refused.shutdown()
    monkeypatch.setattr(ax.CONF, "create_tables", True)
    making = SQLSpanExporter(empty)
    assert making.export(spans) is SpanExportResult.SUCCESS
    making.shutdown()
    with Session(empty) as session:
        found = ax.activity.detail(session, agent_id)
        assert found is not None
        assert found.status is Status.COMPLETE


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    "url",
    [
        None,
        "nonsense",
        "postgresql+psycopg://127.0.0.1:1/x",
        "mysql+pymysql://root@127.0.0.1:1/x",
        "sqlite:////no/such/folder/x.db",
    ],
)
def test_database_that_is_away(
    url: str | None, span_exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the database is away, or none is named, it is FAILURE, one line in the log, and no exception."""
    run_once()
    exporter = SQLSpanExporter(url)
    assert exporter.export(ended(span_exporter)) is SpanExportResult.FAILURE
    exporter.shutdown()
    exporter.shutdown()
    assert exporter.force_flush()
    assert len([record for record in caplog.records if record.name == "agentexec_otel.export"]) == 1


AUTO_INSTRUMENTED = """
import sys
from opentelemetry.sdk._configuration import _OTelSDKConfigurator
_OTelSDKConfigurator().configure(auto_instrumentation_version="test")
import agentexec_otel as ax
from agentexec_otel.testing import InMemoryActivityExporter
ax.configure(exporters=[InMemoryActivityExporter()])
with ax.activity.run("task", agent_id=sys.argv[1]):
    pass
"""


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_by_the_environment_alone(database: Database) -> None:
    """`OTEL_TRACES_EXPORTER=agentexec_sql` is all that auto-instrumentation needs."""
    agent_id = uuid4()
    environment = {
        **os.environ,
        "OTEL_TRACES_EXPORTER": "agentexec_sql",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "AGENTEXEC_DATABASE_URL": database.url,
    }
    command = [sys.executable, "-c", AUTO_INSTRUMENTED, str(agent_id)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    assert row(database.engine, agent_id).status is Status.COMPLETE, result.stderr
