"""Spans and what is around them: no provider, a late one, a dropping one, and those with bugs."""

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import UUID, uuid4

import pytest
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

import agentexec_otel as ax
from agentexec_otel._runtime.live import MAX_KNOWN, LiveActivities
from agentexec_otel.activity.models import Status
from agentexec_otel.export import ActiveCount, ActivityStore, EndedActivity, Ending, SpanRef, StoredActivity
from tests.databases import Database
from tests.sql.recorder import Recorder
from tests.sql.rows import row, stored_activity

pytestmark = pytest.mark.one_python


def test_sampler_that_drops(database: Database) -> None:
    """Not sampled: no span is exported, and SQL is complete all the same."""
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    ax.configure(database.url, tracer_provider=provider)
    with ax.activity.run("task") as run:
        assert run.update("Working.")
        assert not trace.get_current_span().is_recording()
        assert trace.get_current_span().get_span_context().is_valid
    stored = row(database.engine, run.agent_id)
    assert (stored.status, stored.last_seq, stored.sampled) == (Status.COMPLETE, 4, False)
    assert stored.span_id is not None


def test_no_provider(database: Database) -> None:
    """Without any provider everything else works, and no span is named."""
    ax.configure(database.url)
    with ax.activity.run("task") as run:
        assert run.update("Working.")
    stored = row(database.engine, run.agent_id)
    assert (stored.status, stored.last_seq) == (Status.COMPLETE, 4)
    assert (stored.trace_id, stored.span_id, stored.sampled) == (None, None, None)


LATE_PROVIDER = """
import sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
import agentexec_otel as ax

ax.configure(sys.argv[1], create_tables=True)
before = ax.activity.create("before")
during = ax.activity.create("during")
ax.activity.update(during, "Working.")
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
with ax.activity.run("after"):
    pass
with ax.activity.run(before):
    pass
ax.activity.complete(during)
assert ax.shutdown()
assert trace.get_tracer_provider() is provider
print([(span.name, len(span.events)) for span in exporter.get_finished_spans()])
"""


def test_provider_that_is_set_later(tmp_path: Path) -> None:
    """The global provider is used also where the application sets it after `ax.configure()`, and is never replaced.

    An activity that has run before that gets its span, with all its lines, when it ends.
    """
    command = [sys.executable, "-c", LATE_PROVIDER, f"sqlite:///{tmp_path}/x.db"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.stdout == "[('after', 3), ('before', 3), ('during', 3)]\n", result.stderr


LEAVING = """
import sys
from opentelemetry.sdk.trace import TracerProvider
import agentexec_otel as ax

ax.configure(sys.argv[1], tracer_provider=TracerProvider())
agent_id = ax.activity.create("handed over")
ax.activity.update(agent_id, "Asking for an approval.", percentage=40)
print(agent_id)
"""


def test_span_of_an_activity_that_is_handed_over(
    database: Database, tracer_provider: TracerProvider, spans: InMemorySpanExporter
) -> None:
    """A process that goes in good order takes its open span with it: whoever goes on opens another, with all lines."""
    command = [sys.executable, "-c", LEAVING, database.url]
    left = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    agent_id = UUID(left.stdout.strip())
    assert row(database.engine, agent_id).span_id is None
    ax.configure(database.url, tracer_provider=tracer_provider)
    assert ax.activity.update(agent_id, "Approved.", percentage=60)
    assert ax.activity.complete(agent_id)
    assert ax.flush()
    (span,) = spans.get_finished_spans()
    messages = [(event.attributes or {})["agentexec.log.message"] for event in span.events]
    assert messages[1:3] == ["Asking for an approval.", "Approved."]
    assert len(messages) == 4
    stored = row(database.engine, agent_id)
    assert span.context is not None
    assert stored.span_id == f"{span.context.span_id:016x}"
    (link,) = span.links
    previous = (stored.trace_context or {})["agentexec.previous_span"]
    assert f"{link.context.trace_id:032x}-{link.context.span_id:016x}" in previous
    waited = (span.attributes or {})["agentexec.queue.duration"]
    assert isinstance(waited, float)
    assert waited < 10


class FailingProcessor(SpanProcessor):
    """Another library's span processor, with a bug."""

    def __init__(self, where: str) -> None:
        self.where = where

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if self.where == "start":
            raise RuntimeError("bug")

    def on_end(self, span: ReadableSpan) -> None:
        if self.where == "end":
            raise RuntimeError("bug")


@pytest.mark.parametrize("where", ["start", "end"])
def test_span_processor_that_raises(tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture) -> None:
    """A span processor that raises never reaches the run, nor fills the log with each line; SQL is complete."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(FailingProcessor(where))
    ax.configure(f"sqlite:///{tmp_path}/x.db", tracer_provider=provider, create_tables=True)
    with ax.activity.run("task") as run:
        for _ in range(20):
            assert run.update("Working.")
    assert ax.flush()
    assert 1 <= len([record for record in caplog.records if "span failed" in record.message]) <= 2
    ax.activity.cancel(ax.activity.create("other"))
    ax.activity.create("swept")
    assert ax.activity.cancel_pending() == 1
    found = stored_activity(f"sqlite:///{tmp_path}/x.db", run.agent_id)
    assert found is not None
    assert found.status is Status.COMPLETE
    assert ax.health()["exporters"][0]["pending"] == 0


class BrokenPropagator(TextMapPropagator):
    """The application's propagator, with a bug."""

    @property
    def fields(self) -> set[str]:
        return set()

    def inject(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("bug")

    def extract(self, *args: Any, **kwargs: Any) -> Context:
        raise RuntimeError("bug")


@pytest.fixture
def broken_propagator() -> Iterator[None]:
    """A global propagator that raises."""
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(BrokenPropagator())
    yield
    propagate.set_global_textmap(before)


def test_propagator_that_raises(spans: InMemorySpanExporter, broken_propagator: None, tmp_path: Path) -> None:
    """A global propagator with a bug costs the trace context, not the activity."""
    with ax.activity.run("task") as run:
        run.update("Working.")
    assert ax.flush()
    found = stored_activity(f"sqlite:///{tmp_path}/test.db", run.agent_id)
    assert found is not None
    assert found.status is Status.COMPLETE


def test_baggage_stays_out_of_the_rows(
    spans: InMemorySpanExporter, tracer_provider: TracerProvider, tmp_path: Path
) -> None:
    """The row has the creator's traceparent; baggage, which strangers may have sent, is not stored."""
    from opentelemetry import baggage, context

    token = context.attach(baggage.set_baggage("secret", "canary"))
    try:
        with tracer_provider.get_tracer("test").start_as_current_span("request") as request:
            agent_id = ax.activity.create("task")
    finally:
        context.detach(token)
    found = stored_activity(f"sqlite:///{tmp_path}/test.db", agent_id)
    assert found is not None
    assert found.opening.trace_context is not None
    assert "canary" not in str(found.opening.trace_context)
    assert f"{request.get_span_context().span_id:016x}" in found.opening.trace_context["traceparent"]


# -- bounds -------------------------------------------------------------------------------------------------------


class SlowStore(Recorder):
    """A store that is slow to answer: it waits for the gate."""

    def load(self, agent_ids: Sequence[UUID], *, history: bool = True) -> Mapping[UUID, StoredActivity]:
        self.reading.set()
        self.answers.wait(10)
        return {}

    def __init__(self) -> None:
        super().__init__()
        self.reading, self.answers = Event(), Event()

    def attach_spans(self, spans: Sequence[tuple[UUID, int, SpanRef]]) -> set[UUID]:
        return {agent_id for agent_id, _, _ in spans}

    def end_lost(self, ending: Ending) -> Sequence[EndedActivity]:
        return []

    def count_active(self) -> Sequence[ActiveCount]:
        return []

    def extend_leases(self, worker_id: str, agent_ids: Sequence[UUID], **_: Any) -> Mapping[UUID, StoredActivity]:
        return {}

    def release(self, worker_id: str, agent_ids: Sequence[UUID], **_: Any) -> None:
        """Nothing is held."""


def test_nobody_waits_for_a_look_up(tracer_provider: TracerProvider) -> None:
    """While a row is read from a database that hangs, other activities are reported, and their spans open."""
    store = SlowStore()
    assert isinstance(store, ActivityStore)
    ax.configure(exporters=[store], tracer_provider=tracer_provider)
    known = ax.activity.create("task")
    answers: list[BaseException] = []

    def ask() -> None:
        try:
            ax.activity.update(uuid4(), "Is there such a row?")
        except ax.ActivityNotFoundError as exc:
            answers.append(exc)

    asking = Thread(target=ask)
    asking.start()
    assert store.reading.wait(5)
    began = time.monotonic()
    assert ax.activity.update(known, "Not held up.")
    took = time.monotonic() - began
    store.answers.set()
    asking.join()
    assert took < 0.5
    assert len(answers) == 1


def test_abandoned_activities_are_forgotten() -> None:
    """What a process keeps of activities that it does not end is bounded."""
    known = LiveActivities()
    ids = [uuid4() for _ in range(2 * MAX_KNOWN + 5_000)]
    for agent_id in ids:
        known.join(agent_id)
    assert sum(known.get(agent_id) is not None for agent_id in ids) <= MAX_KNOWN + 1
    assert known.get(ids[-1]) is not None
