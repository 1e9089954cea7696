"""One span per activity, in the application's own tracing. What the row says of it is tested in tests/sql."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import UUID

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import agentexec_otel as ax
from agentexec_otel._runtime import live as live_module
from agentexec_otel._runtime import process
from agentexec_otel._runtime.live import LiveActivity
from agentexec_otel.activity.models import Activity, Status
from agentexec_otel.export import Ending, Outcome, SpanRef
from agentexec_otel_exporters.sql import SQLExporter
from tests.sql.rows import event, opening


def the_span(exporter: InMemorySpanExporter, name: str = "task") -> ReadableSpan:
    assert ax.flush()
    (span,) = [span for span in exporter.get_finished_spans() if span.name == name]
    return span


def attributes(span: ReadableSpan) -> Mapping[str, Any]:
    return span.attributes or {}


def id_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def trace_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.trace_id


def lines_of(span: ReadableSpan) -> list[tuple[Any, Any]]:
    told = [one.attributes or {} for one in span.events if one.name == "agentexec.activity.log"]
    return [(one["agentexec.log.status"], one["agentexec.log.message"]) for one in told]


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Where `spans` stores activities."""
    return f"sqlite:///{tmp_path / 'test.db'}"


@pytest.fixture
def elsewhere(url: str) -> Iterator[SQLExporter]:
    """The store as another process uses it, beside this one's spans."""
    exporter = SQLExporter(url)
    yield exporter
    exporter.shutdown(1.0)


def test_a_life_is_one_span(spans: InMemorySpanExporter) -> None:
    """Named by the type, from its creation to its end, with all lines as events at their own times, and the totals."""
    with ax.activity.run("task", metadata={"tenant": "acme"}) as run:
        run.update("Half way.", 50)
        run.record_usage(10, 20)
    span = the_span(spans)
    assert lines_of(span) == [
        ("QUEUED", "Waiting to start."),
        ("RUNNING", "Task started."),
        ("RUNNING", "Half way."),
        ("COMPLETE", "Task completed successfully."),
    ]
    times = [one.timestamp for one in span.events]
    assert times == sorted(times)
    assert span.start_time == times[0]
    assert span.end_time == times[-1]
    assert (span.parent, span.kind, span.links) == (None, SpanKind.INTERNAL, ())
    assert span.status.status_code is StatusCode.UNSET
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == "agentexec_otel"
    told = dict(attributes(span))
    assert told.pop("agentexec.agent_id") == str(run.agent_id)
    assert told.pop("agentexec.queue.duration") == (times[1] - times[0]) / 1e9
    assert told == {
        "agentexec.agent_type": "task",
        "agentexec.attempt": 1,
        "agentexec.metadata.tenant": "acme",
        "agentexec.status": "COMPLETE",
        "agentexec.percentage": 100,
        "agentexec.log.count": 4,
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": "task",
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 20,
    }
    assert span.events[2].attributes is not None
    assert span.events[2].attributes["agentexec.log.percentage"] == 50
    ids = [one.attributes["agentexec.log.id"] for one in span.events if one.attributes]
    assert len({UUID(str(one)) for one in ids}) == 4


def test_run_is_the_current_span(spans: InMemorySpanExporter, tracer_provider: TracerProvider) -> None:
    """Inside `run()` child spans nest under the activity; behind it the caller's span is current again."""
    tracer = tracer_provider.get_tracer("test")
    with tracer.start_as_current_span("outside") as outside:
        with ax.activity.run("task") as run:
            inside = trace.get_current_span()
            with ax.activity.run(run.agent_id):
                assert trace.get_current_span() is inside
                with tracer.start_as_current_span("child"):
                    pass
            assert trace.get_current_span() is inside
        assert trace.get_current_span() is outside
        with pytest.raises(ZeroDivisionError), ax.activity.run("failing"):
            _ = 1 / 0
        assert trace.get_current_span() is outside
    span, child = the_span(spans), the_span(spans, "child")
    assert child.parent is not None
    assert child.parent.span_id == id_of(span)
    assert span.parent is not None
    assert span.parent.span_id == outside.get_span_context().span_id
    assert span.links == ()


def test_bare_update_attaches_nothing(spans: InMemorySpanExporter) -> None:
    """`update` outside of `run()` makes the span, and leaves the caller's context as it was."""
    agent_id = ax.activity.create("task")
    before = trace.get_current_span()
    ax.activity.update(agent_id, "Working.")
    assert trace.get_current_span() is before
    ax.activity.complete(agent_id)
    assert len(lines_of(the_span(spans))) == 3


def test_update_from_anywhere_reaches_the_span(spans: InMemorySpanExporter) -> None:
    """A thread without any context reports on the same span."""
    with ax.activity.run("task") as run:
        thread = Thread(target=ax.activity.update, args=(run.agent_id, "From a thread."))
        thread.start()
        thread.join()
    assert ("RUNNING", "From a thread.") in lines_of(the_span(spans))


def test_parent_and_link(spans: InMemorySpanExporter, tracer_provider: TracerProvider) -> None:
    """The creator's span is the parent, the worker's current one is linked; alone, the worker's is the parent."""
    tracer = tracer_provider.get_tracer("test")
    with tracer.start_as_current_span("request") as request:
        both, same = ax.activity.create("both"), ax.activity.create("same")
        with ax.activity.run(same):
            pass
    alone = ax.activity.create("alone")
    with tracer.start_as_current_span("worker") as worker:
        for agent_id in (both, alone):
            with ax.activity.run(agent_id):
                pass
    found = {name: the_span(spans, name) for name in ("both", "alone", "same")}
    parents = {name: span.parent and span.parent.span_id for name, span in found.items()}
    links = {name: [link.context.span_id for link in span.links] for name, span in found.items()}
    here, there = request.get_span_context().span_id, worker.get_span_context().span_id
    assert parents == {"both": here, "alone": there, "same": here}
    assert links == {"both": [there], "alone": [], "same": []}
    assert trace_of(found["both"]) == request.get_span_context().trace_id


def test_queue_wait_is_visible(spans: InMemorySpanExporter) -> None:
    """The span starts when the activity was created, and the first RUNNING line says when work began."""
    agent_id = ax.activity.create("task")
    Event().wait(0.05)
    with ax.activity.run(agent_id):
        pass
    span = the_span(spans)
    assert span.start_time == span.events[0].timestamp
    assert span.events[1].timestamp - span.events[0].timestamp >= 50_000_000


@pytest.mark.parametrize("option", [False, True])
def test_status_of_the_span(
    spans: InMemorySpanExporter,
    tracer_provider: TracerProvider,
    monkeypatch: pytest.MonkeyPatch,
    option: bool,
    url: str,
) -> None:
    """ERROR is an error with a description and a type; COMPLETE is unset, and so is CANCELED unless told otherwise."""
    monkeypatch.setattr(ax.CONF, "canceled_is_error", option)
    ax.configure(url, tracer_provider=tracer_provider)
    with pytest.raises(TimeoutError), ax.activity.run("failed"):
        raise TimeoutError("too slow")
    ax.activity.cancel(ax.activity.create("canceled"), "Not needed.")
    ax.activity.complete(ax.activity.create("complete"))
    failed, canceled = the_span(spans, "failed"), the_span(spans, "canceled")
    assert (failed.status.status_code, failed.status.description) == (StatusCode.ERROR, "Task failed: too slow")
    assert attributes(failed)["error.type"] == "TimeoutError"
    assert attributes(failed)["agentexec.reason"] == "timeout"
    assert canceled.status.status_code is (StatusCode.ERROR if option else StatusCode.UNSET)
    assert (attributes(canceled)["agentexec.status"], attributes(canceled)["agentexec.reason"]) == (
        "CANCELED",
        "canceled",
    )
    assert the_span(spans, "complete").status.status_code is StatusCode.UNSET


def test_ended_without_running(spans: InMemorySpanExporter) -> None:
    """An activity that never ran gets its span when it ends, with QUEUED and the end in it, whoever ends it."""
    for name, end in (("cancel", ax.activity.cancel), ("complete", ax.activity.complete), ("error", ax.activity.error)):
        end(ax.activity.create(name))
        assert [status for status, _ in lines_of(the_span(spans, name))] == ["QUEUED", the_status(name)]
    ax.activity.create("swept")
    assert ax.activity.cancel_pending() == 1
    swept = the_span(spans, "swept")
    assert [status for status, _ in lines_of(swept)] == ["QUEUED", "CANCELED"]
    assert attributes(swept)["agentexec.status"] == "CANCELED"


def test_retried_before_the_span_of_its_end(spans: InMemorySpanExporter, elsewhere: SQLExporter) -> None:
    """Ended in bulk, and retried before the writer came to its span: the new attempt is left alone, and has its own."""
    agent_id = ax.activity.create("task")
    ending = Ending(Status.CANCELED, "Task canceled.", Outcome(reason="canceled"))
    ended = elsewhere.end_where(None, [Activity.agent_id == agent_id], ending)
    assert [(one.agent_id, one.attempt) for one in ended] == [(agent_id, 1)]
    assert ax.activity.retry(agent_id) == 2
    process.active().ended_together(ended, ending)
    assert ax.flush()
    assert spans.get_finished_spans() == ()
    with ax.activity.run(agent_id):
        pass
    assert attributes(the_span(spans))["agentexec.status"] == "COMPLETE"


def the_status(verb: str) -> str:
    return {"cancel": "CANCELED", "complete": "COMPLETE", "error": "ERROR"}[verb]


@pytest.mark.parametrize("lines", [1, 150])
def test_attempt_is_a_new_span(spans: InMemorySpanExporter, lines: int) -> None:
    """A retry is a span of its own, from its own QUEUED on, linked to the last one; however long that one was."""
    agent_id = ax.activity.create("task")
    for number in range(lines):
        ax.activity.update(agent_id, f"Line {number}.")
    ax.activity.error(agent_id, "Failed.")
    first = the_span(spans)
    spans.clear()
    assert ax.activity.retry(agent_id, "Once more.") == 2
    with ax.activity.run(agent_id):
        pass
    second = the_span(spans)
    assert [link.context.span_id for link in second.links] == [id_of(first)]
    assert id_of(second) != id_of(first)
    assert [message for _, message in lines_of(second)][:2] == ["Once more.", "Task started."]
    assert attributes(second)["agentexec.attempt"] == 2
    assert first.end_time is not None
    assert second.start_time is not None
    assert second.start_time >= first.end_time


def test_span_keeps_what_the_sdk_keeps(spans: InMemorySpanExporter) -> None:
    """Of 300 lines the span has the SDK's last 128; nobody else's limit is touched."""
    with ax.activity.run("task") as run:
        for number in range(300):
            run.update(f"Line {number}.")
    span = the_span(spans)
    assert len(span.events) == 128
    assert attributes(span)["agentexec.log.count"] == 303
    assert lines_of(span)[-2:] == [("RUNNING", "Line 299."), ("COMPLETE", "Task completed successfully.")]


# -- what other processes do --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [Status.CANCELED, Status.ERROR, Status.COMPLETE])
def test_end_elsewhere_closes_the_span(spans: InMemorySpanExporter, status: Status, elsewhere: SQLExporter) -> None:
    """Ended by somebody else, the span here ends as soon as the writer sees it, with the winner's status and reason."""
    with ax.activity.run("task") as run:
        run.update("Working.", 30)
        assert ax.flush()
        elsewhere.export([event(run.agent_id, status, "By another.", outcome=Outcome("x.Error", "guardrail_input"))])
        assert not spans.get_finished_spans()
        run.update("Did not hear of it.", 40)
        span = the_span(spans)
        assert run.canceled is (status is Status.CANCELED)
    assert attributes(span)["agentexec.status"] == str(status)
    assert (attributes(span)["error.type"], attributes(span)["agentexec.reason"]) == ("x.Error", "guardrail_input")
    assert span.status.status_code is (StatusCode.ERROR if status is Status.ERROR else StatusCode.UNSET)
    assert "Did not hear" not in str(span.status.description), "a progress line is no description of an error"
    assert len([one for one in spans.get_finished_spans() if one.name == "task"]) == 1


def test_span_that_lost_is_never_exported(spans: InMemorySpanExporter, elsewhere: SQLExporter) -> None:
    """Where the row names another process's span by the time ours is offered, ours is dropped, at its end too."""
    agent_id = ax.activity.create("task")
    elsewhere.export([event(agent_id, span=SpanRef("1" * 32, "2" * 16, sampled=True))])
    ax.activity.update(agent_id, "Also here.")
    assert ax.flush()
    ax.activity.complete(agent_id)
    assert ax.flush()
    assert spans.get_finished_spans() == ()


def test_span_of_another_process_is_not_opened_again(spans: InMemorySpanExporter, elsewhere: SQLExporter) -> None:
    """A process that meets an activity whose row names a span opens none for it."""
    created = opening()
    agent_id = created.agent_id
    elsewhere.export([created, event(agent_id, span=SpanRef("1" * 32, "2" * 16, sampled=True))])
    with ax.activity.run(agent_id):
        assert not trace.get_current_span().is_recording()
    assert ax.flush()
    assert spans.get_finished_spans() == ()


def test_start_that_came_late_has_one_span(spans: InMemorySpanExporter, elsewhere: SQLExporter) -> None:
    """Canceled in bulk by another process while our start was on its way: either our span is the one, or theirs."""
    agent_id = ax.activity.create("task")
    ending = Ending(Status.CANCELED, "Task canceled.", Outcome(reason="canceled"))
    assert len(elsewhere.end_where(None, [Activity.agent_id == agent_id], ending)) == 1
    ax.activity.update(agent_id, "Did not hear of it.")
    assert ax.flush()
    theirs = SpanRef("1" * 32, "2" * 16, sampled=True)
    named_theirs = agent_id in elsewhere.attach_spans([(agent_id, 1, theirs)])
    assert len(spans.get_finished_spans()) == (0 if named_theirs else 1)
    ax.activity.complete(agent_id)
    assert ax.flush()
    assert len(spans.get_finished_spans()) == (0 if named_theirs else 1)


def test_second_retry_takes_no_span_away(
    spans: InMemorySpanExporter, tracer_provider: TracerProvider, url: str
) -> None:
    """A double click: the retry that comes second is refused, and the attempt of the first loses nothing."""
    entered, gate = Event(), Event()

    def slow(text: str) -> str:
        if text == "Second click.":
            entered.set()
            gate.wait(10)
        return text

    ax.configure(url, tracer_provider=tracer_provider, redact=slow)
    agent_id = ax.activity.create("task")
    ax.activity.error(agent_id)
    the_span(spans)
    spans.clear()
    refused: list[ax.ActivityStateError] = []

    def click() -> None:
        try:
            ax.activity.retry(agent_id, "Second click.")
        except ax.ActivityStateError as exc:
            refused.append(exc)

    second = Thread(target=click)
    second.start()
    assert entered.wait(5)
    assert ax.activity.retry(agent_id, "First click.") == 2
    with ax.activity.run(agent_id) as run:
        gate.set()
        second.join()
        assert len(refused) == 1
        run.update("Working.")
    span = the_span(spans)
    assert ("RUNNING", "Working.") in lines_of(span)
    assert attributes(span)["agentexec.status"] == "COMPLETE"


def test_what_runs_is_not_forgotten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """However many activities a process has seen since, and without tracing, its lease is extended while one runs."""
    monkeypatch.setattr(live_module, "MAX_KNOWN", 20)
    ax.configure(f"sqlite:///{tmp_path / 'test.db'}", create_tables=True)
    silent = ax.activity.create("silent")
    ax.activity.update(silent, "Thinking.")
    short = [ax.activity.create("short") for _ in range(50)]
    for agent_id in short:
        ax.activity.complete(agent_id)
    known = process.active().live
    assert [(live.agent_id, live.attempt) for live in known.running()] == [(silent, 1)]
    assert sum(known.get(agent_id) is not None for agent_id in short) < 25
    assert ax.activity.complete(silent)


def test_looking_for_what_to_forget_is_rare(monkeypatch: pytest.MonkeyPatch, spans: InMemorySpanExporter) -> None:
    """With more activities running than a process remembers of others, a new one costs no look at all of them."""
    looks: list[LiveActivity] = []

    def look(live: LiveActivity) -> bool:
        looks.append(live)
        return False

    monkeypatch.setattr(LiveActivity, "is_idle", property(look))
    monkeypatch.setattr(live_module, "MAX_KNOWN", 20)
    for _ in range(60):
        ax.activity.update(ax.activity.create("task"), "Thinking.")
    assert len(process.active().live.running()) == 60
    assert len(looks) < 60 * 60 / 2
