"""What the tests run in other processes. Arguments and results are pickled, so they are plain values."""

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import Any
from uuid import UUID

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import agentexec_otel as ax

_barrier: Any = None
_spans = InMemorySpanExporter()
_tracers: list[trace.Tracer] = []
_runs: dict[UUID, ax.activity.ActivityRun] = {}
_changed: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class SpanView:
    """An exported span as plain values. `events` are (timestamp, attributes), `links` span ids."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str | None
    start_ns: int
    end_ns: int
    status: str
    description: str | None
    attributes: dict[str, Any]
    events: list[tuple[int, dict[str, Any]]]
    links: list[str]


def begin(barrier: Any) -> None:
    """What a peer does first."""
    global _barrier
    _barrier = barrier


def pid() -> int:
    """Which process this is."""
    return os.getpid()


def meet() -> None:
    """Wait for the other peer."""
    _barrier.wait(30)


def configure(url: str, *, traced: bool = False, settings: dict[str, Any] | None = None) -> None:
    """Set the SDK up on a database, with a tracer provider of its own where `traced`."""
    for name, default in _changed.items():
        setattr(ax.CONF, name, default)
    _changed.clear()
    for name, value in (settings or {}).items():
        _changed[name] = getattr(ax.CONF, name)
        setattr(ax.CONF, name, value)
    provider: TracerProvider | None = None
    _tracers.clear()
    _spans.clear()
    if traced:
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(_spans))
        _tracers.append(provider.get_tracer("test"))
    ax.configure(url, tracer_provider=provider)


def stop() -> bool:
    """Flush and let go of the database."""
    return ax.shutdown(5.0)


def create_under_span(task: str) -> tuple[UUID, SpanView]:
    """Create an activity inside a span, as a request handler does."""
    with _tracers[0].start_as_current_span("POST /runs"):
        agent_id = ax.activity.create(task)
    return agent_id, finished_spans()[-1]


def create(task: str) -> UUID:
    """`ax.activity.create`."""
    return ax.activity.create(task)


def call(name: str, *args: Any, **kwargs: Any) -> Any:
    """Any function of `ax.activity` by its name."""
    return getattr(ax.activity, name)(*args, **kwargs)


def cancel_and_retry(agent_id: UUID) -> int:
    """Cancel and retry at once; the number of the new attempt."""
    ax.activity.cancel(agent_id)
    return ax.activity.retry(agent_id)


def run_to_the_end(agent_id: UUID, lines: Sequence[str] = (), *, under: str | None = None) -> bool:
    """Run an activity in a block with a child span, and tell whether the block owned it."""
    with _under(under), ax.activity.run(agent_id) as run:
        owner = run.owner
        with _tracers[0].start_as_current_span("child") if _tracers else _nothing():
            for line in lines:
                run.update(line)
    return owner


def enter(agent_id: UUID) -> None:
    """Enter a block of the activity, and stay inside of it."""
    run = _runs[agent_id] = ax.activity.run(agent_id)
    run.__enter__()


def report(agent_id: UUID, line: str) -> bool:
    """One line from inside the block; returns whether the block knows that it was canceled, once it is stored."""
    run = _runs[agent_id]
    run.update(line)
    ax.flush()
    return bool(run.canceled)


def knows_of_cancel(agent_id: UUID) -> bool:
    """Whether the block knows that it was canceled."""
    return _runs[agent_id].canceled


def leave(agent_id: UUID) -> None:
    """Leave the block normally."""
    _runs.pop(agent_id).__exit__(None, None, None)


def end_each(agent_ids: Sequence[UUID], verb: str) -> list[bool]:
    """End one activity after the other with `complete`, `cancel` or `error`, in step with the other peer."""
    results: list[bool] = []
    for agent_id in agent_ids:
        meet()
        results.append(getattr(ax.activity, verb)(agent_id))
    return results


def update_many(agent_id: UUID, label: str, count: int, threads: int) -> None:
    """Lines from several threads at once, in step with the other peer."""
    meet()

    def work(thread: int) -> None:
        for number in range(count):
            ax.activity.update(agent_id, f"{label} {thread} {number}", percentage=number % 101)

    workers = [Thread(target=work, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    ax.flush(30.0)


def cancel_pending_together(url: str, in_session: bool) -> int:
    """`cancel_pending` at the same moment as the other peer, with or without a session."""
    from sqlalchemy import create_engine
    from sqlalchemy.orm import Session

    engine = create_engine(url)
    meet()
    if not in_session:
        return ax.activity.cancel_pending()
    with Session(engine) as session:
        return ax.activity.cancel_pending(session)


def start_together(agent_id: UUID) -> None:
    """Run an activity from its RUNNING on, at the same moment as the other peer."""
    meet()
    ax.activity.update(agent_id, f"started by {os.getpid()}")
    ax.flush()
    meet()
    ax.activity.complete(agent_id)
    ax.flush()


def finished_spans() -> list[SpanView]:
    """The spans that this process has exported since it was configured."""
    ax.flush()
    return [view(span) for span in _spans.get_finished_spans()]


def view(span: ReadableSpan) -> SpanView:
    """A span as plain values."""
    context = span.get_span_context()
    assert context is not None
    assert span.start_time is not None
    assert span.end_time is not None
    return SpanView(
        span.name,
        f"{context.trace_id:032x}",
        f"{context.span_id:016x}",
        None if span.parent is None else f"{span.parent.span_id:016x}",
        span.start_time,
        span.end_time,
        span.status.status_code.name,
        span.status.description,
        dict(span.attributes or {}),
        [(event.timestamp, dict(event.attributes or {})) for event in span.events],
        [f"{link.context.span_id:016x}" for link in span.links],
    )


@contextmanager
def _nothing() -> Generator[None]:
    yield


@contextmanager
def _under(name: str | None) -> Generator[None]:
    if name is None:
        yield
        return
    with _tracers[0].start_as_current_span(name):
        yield


def life(url: str, *, drop: bool = False) -> tuple[ax.activity.Status, int | None, int] | None:
    """A whole life in tables that are created for it; or, with `drop`, the end of these tables."""
    from sqlalchemy import create_engine
    from sqlalchemy.orm import Session

    engine = create_engine(url)
    if drop:
        ax.Base.metadata.drop_all(engine)
        return None
    ax.configure(url, create_tables=True)
    with ax.activity.run("task") as run:
        run.update("half", 50)
    assert ax.shutdown()
    with Session(engine) as session:
        found = ax.activity.detail(session, run.agent_id)
    assert found is not None
    return found.status, found.latest_percentage, len(found.logs)


def names_in_metadata() -> list[str]:
    """The names of our tables, indexes and constraints."""
    names: list[str] = []
    for table in ax.Base.metadata.tables.values():
        names.append(table.name)
        names += [str(one.name) for one in table.indexes]
        names += [str(one.name) for one in table.constraints if one.name is not None]
    return names
