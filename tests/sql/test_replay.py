"""Spans that no process has exported are rebuilt from their rows and logs, and exported once."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import Engine, select, update

import agentexec_otel as ax
from agentexec_otel.activity.models import Activity, Status
from tests.databases import Database

WORKER = "agentexec.worker_id"


@pytest.fixture
def replayed(database: Database, tracer_provider: TracerProvider) -> InMemorySpanExporter:
    """Where replayed spans end up; the SDK is set up on the test's database."""
    exporter = InMemorySpanExporter()
    ax.configure(database.url, tracer_provider=tracer_provider, span_exporter=exporter)
    return exporter


def plain(span: ReadableSpan) -> dict[str, Any]:
    """Everything of a span, but for the resource, which is the provider's."""
    parent, context = span.parent, span.get_span_context()
    assert context is not None
    return {
        "name": span.name,
        "kind": span.kind,
        "context": (context.trace_id, context.span_id, context.trace_flags, context.trace_state, context.is_remote),
        "parent": None if parent is None else (parent.trace_id, parent.span_id, parent.trace_flags, parent.is_remote),
        "times": (span.start_time, span.end_time),
        "attributes": dict(span.attributes or {}),
        "events": [(event.name, dict(event.attributes or {}), event.timestamp) for event in span.events],
        "links": [(link.context.trace_id, link.context.span_id, dict(link.attributes or {})) for link in span.links],
        "status": (span.status.status_code, span.status.description),
        "dropped": (span.dropped_attributes, span.dropped_events, span.dropped_links),
        "scope": span.instrumentation_scope,
    }


def forget_exports(engine: Engine) -> None:
    """As if the processes had been killed before they exported anything."""
    with engine.begin() as connection:
        connection.execute(update(Activity).values(span_exported_at=None, lease_expires_at=None))


def rows(engine: Engine) -> dict[UUID, Any]:
    with engine.connect() as connection:
        return {row.agent_id: row for row in connection.execute(select(Activity.__table__))}


def activity_spans(exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if "agentexec.agent_id" in (span.attributes or {})]


# -- span, rows, span ---------------------------------------------------------------------------------------------

Log = tuple[str, int | None]
End = tuple[str, str, int | None]


class Attempt(NamedTuple):
    """One attempt: whether it runs at all, what it reports, how it ends, and the seconds between its logs."""

    runs: bool
    logs: list[Log]
    end: End
    gap: float
    has_worker_span: bool


class Scenario(NamedTuple):
    name: str
    metadata: dict[str, Any] | None
    has_creator: bool
    attempts: list[Attempt]


texts = st.text(max_size=40)
percentages = st.none() | st.integers(0, 100)
attempts = st.builds(
    Attempt,
    st.booleans(),
    st.lists(st.tuples(texts, percentages), max_size=4)
    | st.integers(120, 140).map(lambda count: [(f"log {number}", number % 101) for number in range(count)]),
    st.tuples(st.sampled_from(["complete", "error", "cancel", "fail"]), texts, percentages),
    st.floats(0, 100_000),
    st.booleans(),
)
scenarios = st.builds(
    Scenario,
    st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=1, max_size=30),
    st.none()
    | st.dictionaries(
        st.sampled_from(["tenant", "user", "deep"]),
        st.booleans() | st.integers(-(2**53), 2**53) | texts | st.lists(st.integers(0, 9), max_size=3),
        max_size=3,
    ),
    st.booleans(),
    st.lists(attempts, min_size=1, max_size=3),
)


class Clock:
    """The system's clock, some seconds ahead."""

    def __init__(self) -> None:
        self.real: Callable[[], int] = time.time_ns
        self.ahead_ns = 0

    def __call__(self) -> int:
        return self.real() + self.ahead_ns


def play(scenario: Scenario, tracer: trace.Tracer, clock: Clock) -> UUID:
    """Report what the scenario says, as an application would."""
    creator: AbstractContextManager[Any] = nullcontext()
    if scenario.has_creator:
        creator = tracer.start_as_current_span("request")
    with creator:
        agent_id = ax.activity.create(scenario.name, metadata=scenario.metadata)
    for number, attempt in enumerate(scenario.attempts):
        if number:
            ax.activity.retry(agent_id)
        within: AbstractContextManager[Any] = nullcontext()
        if attempt.has_worker_span:
            within = tracer.start_as_current_span("worker")
        with within:
            play_attempt(agent_id, attempt, clock)
        assert ax.flush()
    return agent_id


def play_attempt(agent_id: UUID, attempt: Attempt, clock: Clock) -> None:
    ending, message, percentage = attempt.end
    if not attempt.runs:
        end(agent_id, "cancel" if ending == "fail" else ending, message, percentage)
        return
    if ending == "fail":
        with suppress(TimeoutError), ax.activity.run(agent_id) as run:
            for text, value in attempt.logs:
                run.update(text, value)
            run.record_usage(input_tokens=7, output_tokens=3, requests=2, model="large")
            clock.ahead_ns += int(attempt.gap * 1e9)
            raise TimeoutError(message)
        return
    for text, value in [("begins", None), *attempt.logs]:
        clock.ahead_ns += int(attempt.gap * 1e9 / 10)
        ax.activity.update(agent_id, text, value)
    end(agent_id, ending, message, percentage)


def end(agent_id: UUID, how: str, message: str, percentage: int | None) -> None:
    if how == "complete":
        ax.activity.complete(agent_id, message, 100 if percentage is None else percentage)
    elif how == "error":
        ax.activity.error(agent_id, message, percentage)
    else:
        ax.activity.cancel(agent_id, message)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@settings(max_examples=25, phases=(Phase.explicit, Phase.reuse, Phase.generate), suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(scenario=scenarios)
def test_a_rebuilt_span_equals_the_live_one(
    scenario: Scenario,
    database: Database,
    tracer_provider: TracerProvider,
    span_exporter: InMemorySpanExporter,
    replayed: InMemorySpanExporter,
) -> None:
    """Ids, parent, links, times, name, attributes, events, status, and what was dropped. The replayed span of the last
    attempt names its worker besides."""
    span_exporter.clear()
    replayed.clear()
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time_ns", clock)
        agent_id = play(scenario, tracer_provider.get_tracer("application"), clock)
    forget_exports(database.engine)
    assert ax.replay(agent_id=agent_id) == 1
    live = [span for span in activity_spans(span_exporter) if span.attributes["agentexec.agent_id"] == str(agent_id)]
    assert len(live) == len(scenario.attempts)
    (again,) = map(plain, activity_spans(replayed))
    expected = plain(live[-1])
    ran = rows(database.engine)[agent_id].worker_id
    if ran is not None:
        assert again["attributes"].pop(WORKER) == ran
    assert again == expected
