"""Spans that no process has exported are rebuilt from their rows and logs, and exported once."""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import Engine, select, update

import agentexec_otel as ax
from agentexec_otel._model import ids
from agentexec_otel._runtime.liveness import lost_ending
from agentexec_otel._runtime.replay import Replay
from agentexec_otel.activity.models import Activity, Status
from agentexec_otel.export import SpanRef
from agentexec_otel_exporters.sql import SQLExporter, SQLSpanExporter
from tests.databases import Database
from tests.sql.rows import event, eventually, opening

pytestmark = pytest.mark.one_python

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
    st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=1, max_size=30).filter(str.strip),
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
@settings(
    max_examples=25,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)
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
        read, stamps = ids.new_clock(0)  # for this test alone: ids of later tests would be in the future
        patch.setattr(ids, "_read", read)
        patch.setattr(ids, "_stamps", stamps)
        agent_id = play(scenario, tracer_provider.get_tracer("application"), clock)
    forget_exports(database.engine)
    assert ax.replay(agent_id=agent_id) == 1
    live = activity_spans(span_exporter)
    assert len(live) == len(scenario.attempts)
    (again,) = map(plain, activity_spans(replayed))
    expected = plain(live[-1])
    ran = rows(database.engine)[agent_id].worker_id
    if ran is not None:
        assert again["attributes"].pop(WORKER) == ran
    assert again == expected


# -- which process exports a span ---------------------------------------------------------------------------------

DEAD = "dead:1"


def run_by_another(elsewhere: SQLExporter, agent_id: UUID, number: int = 1, *, sampled: bool = True) -> str:
    """Another process runs the activity: its row names that process's span. Returns the span's id."""
    span = SpanRef(f"{number:032x}", f"{number:016x}", sampled)
    elsewhere.export([event(agent_id, message="runs there", span=span, worker_id=DEAD)])
    return span.span_id


def expire_leases(engine: Engine) -> None:
    """The time passes that a worker has to extend its leases."""
    with engine.begin() as connection:
        past = datetime.now(UTC) - timedelta(minutes=5)
        connection.execute(update(Activity).where(Activity.status == Status.RUNNING).values(lease_expires_at=past))


def span_ids(spans: Sequence[ReadableSpan]) -> list[str]:
    return sorted(f"{span.context.span_id:016x}" for span in spans if span.context is not None)


def never_exported(database: Database, elsewhere: SQLExporter, count: int) -> list[UUID]:
    """Activities that have failed in processes that were killed right after."""
    created = [opening() for _ in range(count)]
    elsewhere.export(created)
    for number, one in enumerate(created, 1):
        run_by_another(elsewhere, one.agent_id, number)
    elsewhere.export([event(one.agent_id, Status.ERROR, "failed") for one in created])
    age(database.engine)
    return [one.agent_id for one in created]


def age(engine: Engine) -> None:
    """An hour passes."""
    with engine.begin() as connection:
        connection.execute(update(Activity).values(ended_at=datetime.now(UTC) - timedelta(hours=1)))


def test_lost_workers_are_replayed_by_the_process_that_ends_them(
    database: Database, exporter: SQLExporter, span_exporter: InMemorySpanExporter, replayed: InMemorySpanExporter
) -> None:
    """Ended as lost: their spans are exported by this process, once, with the ids on their rows."""
    ids = [ax.activity.create("task") for _ in range(3)]
    expected = sorted(run_by_another(exporter, agent_id, number) for number, agent_id in enumerate(ids, 1))
    expire_leases(database.engine)
    assert ax.activity.reap() == 3
    assert eventually(lambda: len(replayed.get_finished_spans()) == 3)
    assert eventually(lambda: all(row.span_exported_at for row in rows(database.engine).values()))
    assert span_ids(replayed.get_finished_spans()) == expected
    assert ax.replay() == 0
    for span in replayed.get_finished_spans():
        attributes = dict(span.attributes or {})
        assert (attributes["agentexec.reason"], attributes[WORKER]) == ("lost", DEAD)
        assert span.status.description == "The worker was lost."
        assert [dict(one.attributes or {})["agentexec.log.message"] for one in span.events] == [
            "Waiting to start.",
            "runs there",
            "The worker was lost.",
        ]
    assert span_exporter.get_finished_spans() == ()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_automatic_replay_is_switched_off(
    database: Database, exporter: SQLExporter, replayed: InMemorySpanExporter
) -> None:
    """`AGENTEXEC_REPLAY_LOST=false` leaves it to `ax.replay`."""
    ax.CONF.replay_lost = False
    run_by_another(exporter, ax.activity.create("task"))
    expire_leases(database.engine)
    assert ax.activity.reap() == 1
    assert ax.flush()
    ax.shutdown()
    assert replayed.get_finished_spans() == ()
    ax.configure(database.url, span_exporter=replayed)
    assert ax.replay() == 1


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("ending", ["resumed", "canceled", "bulk"])
def test_a_span_whose_process_died_is_replayed_by_the_one_that_ends_the_activity(
    ending: str, database: Database, exporter: SQLExporter, replayed: InMemorySpanExporter
) -> None:
    """A waiting run that is resumed elsewhere, a cancellation, and a bulk cancellation: one span each, after a lease in
    which the process that has the span does not end it."""
    ax.CONF.lease_seconds = 0.5
    agent_id = ax.activity.create("task")
    expected = run_by_another(exporter, agent_id)
    waiting: dict[str, Any] = {"for": "approval", "since": "2026-01-01T00:00:00+00:00", "items": []}
    exporter.export([event(agent_id, message="waits", waiting=waiting, worker_id=DEAD)])
    if ending == "resumed":
        with ax.activity.run(agent_id) as run:
            run.update("continues here")
    elif ending == "canceled":
        assert ax.activity.cancel(agent_id)
    else:
        assert ax.activity.cancel_pending(agent_type="task") == 1
    assert eventually(replayed.get_finished_spans)
    assert span_ids(replayed.get_finished_spans()) == [expected]
    assert eventually(lambda: rows(database.engine)[agent_id].span_exported_at)


def test_two_processes_replay_at_once(database: Database, exporter: SQLExporter, tmp_path: Path) -> None:
    """Each span is exported by one of them."""
    never_exported(database, exporter, 60)
    exporters = [SQLExporter(database.url) for _ in range(2)]
    replays = [replay_of(one) for one in exporters]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(replay_all, [replay for replay, _ in replays]))
    found = [span_ids(spans.get_finished_spans()) for _, spans in replays]
    assert [len(one) for one in found] == done
    for one in exporters:
        one.shutdown(1)
    assert sum(done) == 60
    assert len({*found[0], *found[1]}) == 60


def replay_all(replay: Replay) -> int:
    return replay.run((), 4, None, dry_run=False)


def replay_of(exporter: SQLExporter) -> tuple[Replay, InMemorySpanExporter]:
    """The replay of another process, and where its spans end up."""
    spans = InMemorySpanExporter()
    return Replay(exporter, lambda work: work(), TracerProvider(shutdown_on_exit=False), spans), spans


def test_a_shutdown_behind_a_claim(database: Database, exporter: SQLExporter) -> None:
    """What was claimed goes to the exporters of that moment: it is not stated to be exported because none are left."""
    never_exported(database, exporter, 3)
    spans = InMemorySpanExporter()

    def call(work: Callable[[], Any]) -> Any:
        done = work()
        replay.reset()  # as `finish` does, it leaves no exporter
        return done

    replay = Replay(exporter, call, TracerProvider(shutdown_on_exit=False), spans)
    assert replay_all(replay) == 3
    assert len(spans.get_finished_spans()) == 3


def test_a_frozen_worker_does_not_export_what_was_replayed(
    database: Database, exporter: SQLExporter, span_exporter: InMemorySpanExporter, replayed: InMemorySpanExporter
) -> None:
    """Another process has ended its activity as lost, and exported the span. When it continues, it ends no span."""
    agent_id = ax.activity.create("task")
    ax.activity.update(agent_id, "freezes now")
    assert ax.flush()
    expire_leases(database.engine)
    assert len(exporter.end_lost(lost_ending())) == 1
    replay, spans = replay_of(exporter)
    assert replay_all(replay) == 1
    ax.activity.update(agent_id, "continues")
    assert ax.flush()
    assert span_exporter.get_finished_spans() == ()
    assert span_ids(spans.get_finished_spans()) == [rows(database.engine)[agent_id].span_id]
    assert ax.replay(agent_id=agent_id) == 0


def test_a_span_that_was_handed_over_is_not_replayed(
    database: Database, span_exporter: InMemorySpanExporter, replayed: InMemorySpanExporter
) -> None:
    """The usual end: the row says so, and `updated_at` does not move. A retry forgets it: the next span is another."""
    agent_id = ax.activity.create("task")
    ax.activity.update(agent_id, "runs")
    ax.activity.complete(agent_id)
    assert ax.flush()
    ended = rows(database.engine)[agent_id]
    assert ended.span_exported_at is not None
    assert ended.lease_expires_at is None
    assert ax.replay(agent_id=agent_id) == 0
    assert len(span_exporter.get_finished_spans()) == 1
    assert ended.updated_at < ended.span_exported_at + timedelta(seconds=1)
    ax.activity.retry(agent_id)
    assert rows(database.engine)[agent_id].span_exported_at is None
    ax.activity.complete(agent_id)
    assert ax.flush()
    assert rows(database.engine)[agent_id].span_exported_at is not None
    assert len(span_exporter.get_finished_spans()) == 2


def test_spans_that_are_not_sampled_are_not_replayed(
    database: Database, exporter: SQLExporter, replayed: InMemorySpanExporter
) -> None:
    """The sampler's decision holds; an activity without a span gets none."""
    for number, sampled in enumerate((True, False), 1):
        agent_id = ax.activity.create("task")
        run_by_another(exporter, agent_id, number, sampled=sampled)
        exporter.export([event(agent_id, Status.COMPLETE, "done")])
    untraced = ax.activity.create("task")
    exporter.export([event(untraced, Status.COMPLETE, "done")])
    age(database.engine)
    assert ax.replay(dry_run=True) == 1
    assert ax.replay() == 1


# -- exporters that report ----------------------------------------------------------------------------------------


class Moody(SpanExporter):
    """Fails for as long as it is told to."""

    def __init__(self) -> None:
        self.fails = True
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self.fails:
            return SpanExportResult.FAILURE
        self.spans += spans
        return SpanExportResult.SUCCESS


def test_a_tracked_exporter_states_what_was_exported(database: Database) -> None:
    """A span whose export fails for good is found by a replay, one that was exported is not."""
    receiver = Moody()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(ax.tracked(receiver)))
    ax.configure(database.url, tracer_provider=provider, span_exporter=receiver)
    lost, found = ax.activity.create("task"), ax.activity.create("task")
    ax.activity.complete(lost)
    assert ax.flush()
    assert eventually(lambda: rows(database.engine)[lost].lease_expires_at is None)
    receiver.fails = False
    ax.activity.complete(found)
    assert ax.flush()
    assert eventually(lambda: rows(database.engine)[found].span_exported_at)
    assert rows(database.engine)[lost].span_exported_at is None
    age(database.engine)
    assert ax.replay() == 1
    assert span_ids(receiver.spans) == sorted(row.span_id for row in rows(database.engine).values())
    provider.shutdown()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_span_on_its_way_is_not_replayed(database: Database) -> None:
    """While a tracked exporter has a span in its queue, a replay leaves it alone; what is exported at exit is stated,
    too, and spans of others pass through."""
    spans = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(ax.tracked(spans), schedule_delay_millis=60_000))
    ax.configure(database.url, tracer_provider=provider, span_exporter=InMemorySpanExporter())
    agent_id = ax.activity.create("task")
    ax.activity.complete(agent_id)
    provider.get_tracer("application").start_span("other").end()
    assert ax.flush()
    assert ax.replay(agent_id=agent_id) == 0
    assert rows(database.engine)[agent_id].lease_expires_at is not None
    assert spans.get_finished_spans() == ()
    ax.shutdown()
    assert sorted(span.name for span in spans.get_finished_spans()) == ["other", "task"]
    assert rows(database.engine)[agent_id].span_exported_at is not None
    provider.shutdown()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_spans_that_were_stored_from_spans_are_not_replayed(
    database: Database, tracer_provider: TracerProvider, span_exporter: InMemorySpanExporter, tmp_path: Path
) -> None:
    """What `SQLSpanExporter` has received was exported."""
    ax.configure(f"sqlite:///{tmp_path}/there.db", create_tables=True, tracer_provider=tracer_provider)
    agent_id = ax.activity.create("task")
    ax.activity.complete(agent_id)
    assert ax.flush()
    exporter = SQLSpanExporter(database.url)
    assert exporter.export(span_exporter.get_finished_spans()) is SpanExportResult.SUCCESS
    exporter.shutdown()
    assert rows(database.engine)[agent_id].span_exported_at is not None


# -- the call -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_what_fails_is_replayed_by_the_next_call(database: Database, exporter: SQLExporter) -> None:
    """The exporter's failure is raised; the spans before it stay exported, the others are free again."""
    receiver = Moody()
    ax.configure(database.url, span_exporter=receiver)
    never_exported(database, exporter, 5)
    with pytest.raises(ax.SpanNotExportedError, match="2 spans were not exported"):
        ax.replay(batch_size=2)
    receiver.fails = False
    seen: list[tuple[int, int]] = []

    def report(done: int, total: int) -> None:
        seen.append((done, total))
        receiver.fails = done == 4

    with pytest.raises(ax.SpanNotExportedError):
        ax.replay(batch_size=2, progress=report)
    assert seen == [(0, 5), (2, 5), (4, 5)]
    receiver.fails = False
    assert ax.replay() == 1
    assert len(span_ids(receiver.spans)) == len(set(span_ids(receiver.spans))) == 5


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_which_are_replayed(database: Database, exporter: SQLExporter, replayed: InMemorySpanExporter) -> None:
    """Filters choose; what has just ended is left to its process, unless it is named."""
    first, *_ = never_exported(database, exporter, 3)
    with database.engine.begin() as connection:
        connection.execute(update(Activity).values(ended_at=datetime.now(UTC)).where(Activity.agent_id == first))
    assert ax.replay(dry_run=True) == 2
    assert ax.replay(created_before=datetime.now(UTC) - timedelta(days=1)) == 0
    assert ax.replay(agent_type="another") == 0
    assert ax.replay(agent_id=first) == 1
    assert ax.replay() == 2
    with pytest.raises(ValueError, match="batch_size"):
        ax.replay(batch_size=0)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_where_spans_go(
    database: Database, exporter: SQLExporter, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without `span_exporter`, to what the environment names; without that, nowhere, and the error says so."""
    never_exported(database, exporter, 1)
    ax.configure(database.url)
    with pytest.raises(ax.ConfigurationError, match="OTEL_TRACES_EXPORTER"):
        ax.replay()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "unheard_of")
    with pytest.raises(ax.ConfigurationError, match="unheard_of"):
        ax.replay()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "agentexec_sql")
    with pytest.raises(ax.ConfigurationError, match="nowhere"):
        ax.replay()
    with pytest.raises(ax.ConfigurationError, match="span_exporter"):
        ax.configure(database.url, span_exporter=InMemorySpanExporter)  # type: ignore[arg-type]
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console,agentexec_sql")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    ax.configure(database.url)
    assert ax.replay() == 1
    printed = json.loads(capfd.readouterr().out)
    assert printed["context"]["span_id"] == f"0x{1:016x}"
    resource = printed["resource"]["attributes"]
    assert resource["service.name"] == "shop"
    assert not [name for name in resource if name.startswith(("process.", "service.instance."))]
