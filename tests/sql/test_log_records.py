"""`AGENTEXEC_EVENT_MODE`: lines as log records beside, or instead of, span events."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from opentelemetry._logs import SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider, LogRecordProcessor, ReadableLogRecord, ReadWriteLogRecord
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import agentexec_otel as ax
from agentexec_otel.export import SpanRef
from tests.databases import Database
from tests.sql.rows import event, lines, row, store

pytestmark = [pytest.mark.one_python, pytest.mark.parametrize("database", ["sqlite"], indirect=True)]


@pytest.fixture
def logs() -> InMemoryLogRecordExporter:
    return InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]


@pytest.fixture
def logger_provider(logs: InMemoryLogRecordExporter) -> Iterator[LoggerProvider]:
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(logs))
    yield provider
    provider.shutdown()


def configure(
    database: Database, mode: str, tracer_provider: TracerProvider | None, logger_provider: LoggerProvider | None
) -> None:
    ax.CONF.event_mode = mode  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
    ax.configure(database.url, tracer_provider=tracer_provider, logger_provider=logger_provider)


def told(record: ReadableLogRecord) -> Mapping[str, Any]:
    return record.log_record.attributes or {}


def bodies(logs: InMemoryLogRecordExporter) -> list[Any]:
    return [record.log_record.body for record in logs.get_finished_logs()]


@pytest.mark.parametrize("mode", ["span_event", "log", "both"])
def test_modes(
    database: Database,
    tracer_provider: TracerProvider,
    logger_provider: LoggerProvider,
    span_exporter: InMemorySpanExporter,
    logs: InMemoryLogRecordExporter,
    mode: str,
) -> None:
    """`span_event` makes events only, `log` records only, `both` both; the span and SQL are the same in each mode."""
    configure(database, mode, tracer_provider, logger_provider)
    with ax.activity.run("task") as run:
        run.update("Half way.", 50)
    assert ax.flush()
    (span,) = span_exporter.get_finished_spans()
    expected = ["Waiting to start.", "Task started.", "Half way.", "Task completed successfully."]
    events = [one.attributes["agentexec.log.message"] for one in span.events if one.attributes]
    assert events == ([] if mode == "log" else expected)
    assert bodies(logs) == ([] if mode == "span_event" else expected)
    assert span.attributes is not None
    assert span.attributes["agentexec.status"] == "COMPLETE"
    assert [log.message for log in lines(database.engine, run.agent_id)] == expected


def test_record(
    database: Database,
    tracer_provider: TracerProvider,
    logger_provider: LoggerProvider,
    span_exporter: InMemorySpanExporter,
    logs: InMemoryLogRecordExporter,
) -> None:
    """A record has the event's name, the line's time, text and attributes, and the context of the activity's span."""
    configure(database, "log", tracer_provider, logger_provider)
    before_ns = time.time_ns()
    with ax.activity.run("task") as run:
        run.update("Half way.", 50)
        ax.activity.error(run.agent_id, "Failed.")
    assert ax.flush()
    (span,) = span_exporter.get_finished_spans()
    stored = lines(database.engine, run.agent_id)
    records = [record for record in logs.get_finished_logs() if record.log_record.body != "Waiting to start."]
    assert len(records) == 3
    context = span.get_span_context()
    assert context is not None
    for record, line in zip(records, stored[1:], strict=True):
        log_record = record.log_record
        assert log_record.event_name == "agentexec.activity.log"
        assert (log_record.trace_id, log_record.span_id) == (context.trace_id, context.span_id)
        assert log_record.trace_flags is not None
        assert log_record.trace_flags.sampled
        assert log_record.timestamp is not None
        assert before_ns <= log_record.timestamp <= (log_record.observed_timestamp or 0)
        assert log_record.timestamp // 1000 == round(line.created_at.timestamp() * 1_000_000)
        assert told(record)["agentexec.agent_id"] == str(run.agent_id)
        assert told(record)["agentexec.log.id"] == str(line.event_id)
        assert told(record)["agentexec.log.status"] == str(line.status)
        assert told(record)["agentexec.log.message"] == log_record.body == line.message
        assert told(record).get("agentexec.log.percentage") == line.percentage
        assert record.instrumentation_scope is not None
        assert record.instrumentation_scope.name == "agentexec_otel"
    severities = [record.log_record.severity_number for record in records]
    assert severities == [SeverityNumber.INFO, SeverityNumber.INFO, SeverityNumber.ERROR]


def test_records_are_live(
    database: Database,
    tracer_provider: TracerProvider,
    logger_provider: LoggerProvider,
    logs: InMemoryLogRecordExporter,
) -> None:
    """A record is emitted with its line, not when the span ends; the creator's line is in the creator's context."""
    configure(database, "log", tracer_provider, logger_provider)
    with tracer_provider.get_tracer("test").start_as_current_span("request") as request:
        agent_id = ax.activity.create("task")
    (queued,) = logs.get_finished_logs()
    assert queued.log_record.trace_id == request.get_span_context().trace_id
    ax.activity.update(agent_id, "Working.")
    assert bodies(logs) == ["Waiting to start.", "Working."]


def test_process_that_does_not_hold_the_span(
    database: Database,
    tracer_provider: TracerProvider,
    logger_provider: LoggerProvider,
    span_exporter: InMemorySpanExporter,
    logs: InMemoryLogRecordExporter,
) -> None:
    """Lines of a process whose activity runs elsewhere are records in the context of that span; it opens none."""
    configure(database, "log", tracer_provider, logger_provider)
    agent_id = ax.activity.create("task")
    there = SpanRef("1" * 32, "2" * 16, sampled=True)
    store(database.url, [event(agent_id, span=there)])
    logs.clear()
    ax.activity.update(agent_id, "Told before anything was known.")
    assert ax.flush()
    ax.activity.update(agent_id, "By the creator.")
    ax.configure(database.url, tracer_provider=tracer_provider, logger_provider=logger_provider)
    ax.activity.update(agent_id, "By somebody who looked it up.")
    ax.activity.complete(agent_id)
    assert ax.flush()
    contexts = [
        (f"{record.log_record.trace_id:032x}", f"{record.log_record.span_id:016x}")
        for record in logs.get_finished_logs()[1:]
    ]
    assert contexts == [(there.trace_id, there.span_id)] * 3
    assert span_exporter.get_finished_spans() == ()
    assert row(database.engine, agent_id).span_id == there.span_id


def test_every_line_is_a_record(
    database: Database,
    tracer_provider: TracerProvider,
    logger_provider: LoggerProvider,
    logs: InMemoryLogRecordExporter,
) -> None:
    """Retries and bulk cancellations are lines like others."""
    configure(database, "log", tracer_provider, logger_provider)
    agent_id = ax.activity.create("task")
    ax.activity.error(agent_id, "Failed.")
    ax.activity.retry(agent_id, "Once more.")
    assert ax.activity.cancel_pending() == 1
    assert ax.flush()
    assert bodies(logs) == [log.message for log in lines(database.engine, agent_id)]


class FailingProcessor(LogRecordProcessor):
    """Another library's processor, with a bug."""

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        raise RuntimeError("bug")

    def shutdown(self) -> None:
        """Nothing to release."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


@pytest.mark.parametrize("provider", [None, "failing"])
def test_no_logger_and_a_failing_one(database: Database, provider: str | None) -> None:
    """Without a logger provider, or with one that raises, nothing reaches the run, and SQL is complete."""
    logger_provider = LoggerProvider(shutdown_on_exit=False) if provider else None
    if logger_provider is not None:
        logger_provider.add_log_record_processor(FailingProcessor())
    configure(database, "both", None, logger_provider)
    with ax.activity.run("task") as run:
        run.update("Working.")
    assert ax.flush()
    assert len(lines(database.engine, run.agent_id)) == 4
