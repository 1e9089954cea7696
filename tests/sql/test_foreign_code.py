"""Code of the application: never called under a lock of ours, nor with instrumentation suppressed.

Span processors, samplers, log record processors and `redact` belong to the application. They may call us back from any
thread. Logfire and OpenInference drop a span that starts or ends while instrumentation is suppressed.
"""

import asyncio
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from threading import Thread
from typing import Any
from uuid import UUID

import pytest
from openinference.instrumentation import TracerProvider as OpenInferenceProvider
from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.sdk._logs import LoggerProvider, LogRecordProcessor, ReadWriteLogRecord
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes
from sqlalchemy import update
from sqlalchemy.orm import Session

import agentexec_otel as ax
from tests.databases import Database
from tests.sql import remote
from tests.sql.processes import Peer
from tests.sql.rows import eventually

pytestmark = [pytest.mark.one_python, pytest.mark.parametrize("database", ["sqlite"], indirect=True)]

Provide = Callable[[SpanProcessor], Any]


# -- every way in which an activity's span starts and ends ----------------------------------------------------------


class Ways:
    """Start and end activities in every way. Each has the name of its way as `agent_type`.

    Attributes:
        expected: How many spans each way makes.
    """

    def __init__(self, database: Database, other: Peer) -> None:
        self._engine = database.engine
        self._other = other
        other.call(remote.configure, database.url)
        self.expected = Counter[str]()

    def all(self) -> None:
        """Go every way, one after the other."""
        for way in (
            self.run, self.complete, self.complete_in_session, self.cancel_elsewhere, self.cancel_queued,
            self.cancel_what_another_created, self.cancel_pending_of_running, self.cancel_pending_of_queued,
            self.cancel_pending_in_session, self.reap, self.retry, self.unknown_on_event_loop,
        ):  # fmt: skip
            name = way.__name__
            way(name)
            self.expected[name] += 1
        assert ax.flush()

    def run(self, name: str) -> None:
        with ax.activity.run(name) as run:
            run.update("Working.")

    def complete(self, name: str) -> None:
        assert ax.activity.complete(self._started(name))

    def complete_in_session(self, name: str) -> None:
        agent_id = self._started(name)
        with Session(self._engine) as session:
            assert ax.activity.complete(agent_id, session=session)

    def cancel_elsewhere(self, name: str) -> None:
        with ax.activity.run(name) as run:
            assert ax.flush()
            assert self._other.call(remote.call, "cancel", run.agent_id)
            assert eventually(lambda: run.canceled)

    def cancel_queued(self, name: str) -> None:
        assert ax.activity.cancel(ax.activity.create(name))

    def cancel_what_another_created(self, name: str) -> None:
        assert ax.activity.cancel(self._other.call(remote.create, name))

    def cancel_pending_of_running(self, name: str) -> None:
        self._started(name)
        assert ax.activity.cancel_pending(agent_type=name) == 1

    def cancel_pending_of_queued(self, name: str) -> None:
        ax.activity.create(name)
        assert ax.activity.cancel_pending(agent_type=name) == 1

    def cancel_pending_in_session(self, name: str) -> None:
        ax.activity.create(name)
        with Session(self._engine) as session:
            assert ax.activity.cancel_pending(session, agent_type=name) == 1

    def reap(self, name: str) -> None:
        self._started(name)
        expired = update(ax.activity.Activity).where(ax.activity.Activity.agent_type == name)
        with self._engine.begin() as connection:
            connection.execute(expired.values(lease_expires_at=datetime.now(UTC) - timedelta(minutes=1)))
        assert ax.activity.reap() == 1

    def retry(self, name: str) -> None:
        with ax.activity.run(name) as run:
            pass
        assert ax.activity.retry(run.agent_id) == 2
        with ax.activity.run(run.agent_id):
            pass
        self.expected[name] += 1

    def unknown_on_event_loop(self, name: str) -> None:
        agent_id = self._other.call(remote.create, name)

        async def report() -> None:
            ax.activity.update(agent_id, "Working.")
            ax.activity.complete(agent_id)

        asyncio.run(report())

    def _started(self, name: str) -> UUID:
        agent_id = ax.activity.create(name)
        assert ax.activity.update(agent_id, "Working.")
        assert ax.flush()
        return agent_id


# -- providers that drop a span under suppression -------------------------------------------------------------------


class _Checking(SpanProcessor):
    """Passes a span on unless instrumentation is suppressed at its start or its end."""

    def __init__(self, behind: SpanProcessor) -> None:
        self._behind = behind
        self._started = set[ReadableSpan]()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if is_instrumentation_enabled():
            self._started.add(span)

    def on_end(self, span: ReadableSpan) -> None:
        started = any(one.context == span.context for one in self._started)
        if started and is_instrumentation_enabled():
            self._behind.on_end(span)


def checking(behind: SpanProcessor) -> TracerProvider:
    """The SDK's provider, with a processor that looks at both moments."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(_Checking(behind))
    return provider


def logfire(behind: SpanProcessor) -> Any:
    """The provider of Logfire, which is not the global one here, and sends nothing."""
    import logfire as package

    propagator = propagate.get_global_textmap()
    with warnings.catch_warnings(action="ignore"):
        instance = package.configure(
            local=True, send_to_logfire=False, console=False, metrics=False, additional_span_processors=[behind]
        )
    propagate.set_global_textmap(propagator)  # Its own is global, and warns of each trace context in other tests.
    return instance.config.get_tracer_provider()


def openinference(behind: SpanProcessor) -> OpenInferenceProvider:
    """The provider of OpenInference."""
    provider = OpenInferenceProvider(shutdown_on_exit=False)
    provider.add_span_processor(behind)
    return provider


@pytest.mark.parametrize("provide", [checking, logfire, openinference])
def test_every_span_arrives(database: Database, peers: tuple[Peer, Peer], provide: Provide) -> None:
    """A provider that drops spans under suppression gets every activity's span, whichever way it starts and ends."""
    exported = InMemorySpanExporter()
    ax.configure(database.url, tracer_provider=provide(SimpleSpanProcessor(exported)))
    ways = Ways(database, peers[0])
    ways.all()
    eventually(lambda: len(exported.get_finished_spans()) >= ways.expected.total(), 2.0)
    assert Counter(span.name for span in exported.get_finished_spans()) == ways.expected


# -- hooks that call us back ----------------------------------------------------------------------------------------


class Hooks(SpanProcessor, LogRecordProcessor, Sampler):
    """Every hook that an application can hand us.

    Attributes:
        suppressed: The hooks that were called with instrumentation suppressed.
        stuck: The hooks in which a call of ours, in another thread, did not return within a second.
    """

    def __init__(self, *, call_back: bool) -> None:
        self._call_back = call_back
        self._spares: list[UUID] = []
        self._called = set[str]()
        self.suppressed: list[str] = []
        self.stuck: list[str] = []

    def begin(self) -> None:
        """Watch from now on. A hook that calls back reports on a spare activity, whose first log opens a span, too."""
        self._spares = [ax.activity.create("spare") for _ in range(100)]

    def _within(self, hook: str, of: object, agent_id: UUID | None = None) -> None:
        name = f"{hook} of {of}"
        if of in ("spare", "From a hook.") or name in self._called or not self._spares:
            return
        self._called.add(name)
        if not is_instrumentation_enabled():
            self.suppressed.append(name)
        if not self._call_back or len(self.stuck) > 2:  # Each of them takes a second.
            return
        for one in (agent_id, self._spares.pop()):
            if one is not None:
                thread = Thread(target=ax.activity.update, args=(one, "From a hook."), daemon=True)
                thread.start()
                thread.join(1.0)
                if thread.is_alive():
                    self.stuck.append(f"{name}, with {'itself' if one == agent_id else 'another activity'}")

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self._within("on_start", span.name, _agent_id(span.attributes))

    def on_end(self, span: ReadableSpan) -> None:
        self._within("on_end", span.name, _agent_id(span.attributes))

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        record = log_record.log_record
        self._within("on_emit", record.body, _agent_id(record.attributes))

    def redact(self, message: str) -> str:
        """The hook of `ax.configure()`."""
        self._within("redact", message)
        return message

    def should_sample(
        self, parent_context: Context | None, trace_id: int, name: str, kind: SpanKind | None = None,
        attributes: Attributes = None, links: Sequence[Link] | None = None, trace_state: TraceState | None = None,
    ) -> SamplingResult:  # fmt: skip
        self._within("should_sample", name, _agent_id(attributes))
        return ALWAYS_ON.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        return "hooks"

    def shutdown(self) -> None:
        """Nothing to release."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


@pytest.fixture
def install(database: Database) -> Iterator[Callable[[Hooks, SpanProcessor], None]]:
    """Configure the SDK with these hooks, and have logs as span events and as log records."""
    loggers = LoggerProvider(shutdown_on_exit=False)

    def configure(hooks: Hooks, behind: SpanProcessor) -> None:
        tracers = TracerProvider(sampler=hooks, shutdown_on_exit=False)
        tracers.add_span_processor(hooks)
        tracers.add_span_processor(behind)
        loggers.add_log_record_processor(hooks)
        ax.CONF.event_mode = "both"
        ax.configure(database.url, tracer_provider=tracers, logger_provider=loggers, redact=hooks.redact)

    yield configure
    loggers.shutdown()


def test_hooks_are_called_unsuppressed(
    database: Database, peers: tuple[Peer, Peer], install: Callable[[Hooks, SpanProcessor], None]
) -> None:
    """No hook of the application is called with instrumentation suppressed: a client that it uses can be traced."""
    hooks = Hooks(call_back=False)
    install(hooks, SimpleSpanProcessor(InMemorySpanExporter()))
    hooks.begin()
    Ways(database, peers[0]).all()
    ax.shutdown()
    assert not hooks.suppressed


def test_hooks_that_call_back(
    database: Database, peers: tuple[Peer, Peer], install: Callable[[Hooks, SpanProcessor], None]
) -> None:
    """A hook may call `ax.activity.update()` in another thread and wait for it, of the same activity or another one.

    It would never return if we called the hook under a lock. There is still one span for each attempt.
    """
    hooks, exported = Hooks(call_back=True), InMemorySpanExporter()
    install(hooks, SimpleSpanProcessor(exported))
    hooks.begin()
    ways = Ways(database, peers[0])
    ways.all()
    assert not hooks.stuck
    eventually(lambda: len(exported.get_finished_spans()) >= ways.expected.total(), 2.0)
    assert Counter(span.name for span in exported.get_finished_spans()) == ways.expected


def _agent_id(attributes: Mapping[str, Any] | None) -> UUID | None:
    found = (attributes or {}).get("agentexec.agent_id")
    return None if found is None else UUID(str(found))
