"""An activity's OpenTelemetry side: its span is started and ended here, its logs become span events or log records.

Code of the application runs in here: samplers, propagators, span processors, log record processors. So nothing in here
is called under a lock of ours, and what is not called by the application itself runs in a thread of its own (see
`Mirror`), in a context without suppressed instrumentation: the providers of Logfire and OpenInference drop spans that
start or end under it.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from opentelemetry import propagate, trace
from opentelemetry.context import Context, get_current

from agentexec_otel._config import CONF
from agentexec_otel._errors import guarded
from agentexec_otel._model import attributes as semconv
from agentexec_otel._model.event import ActivityEvent, SpanRef
from agentexec_otel._model.mapping import record_attributes, severity_of, span_ref_of, traceparent_of
from agentexec_otel._model.span import SpanStart, SpanStyle, end_attributes, is_error, span_events, start_attributes
from agentexec_otel._runtime.live import ClosingSpan
from agentexec_otel._sdk import instrumentation_is_suppressed, max_span_events

_T = TypeVar("_T")

LogSink = Callable[[ActivityEvent, Context], None]


def span_style() -> SpanStyle:
    """How spans are written, by the settings of this process."""
    return SpanStyle(
        has_events=CONF.event_mode != "log",
        event_name=CONF.event_name,
        has_usage=CONF.span_usage,
        canceled_is_error=CONF.canceled_is_error,
        levels=CONF.span_levels,
    )


class ActivityTracer:
    """Starts and ends the spans of activities, and emits their logs as log records.

    Args:
        style: How spans are written.
        log_sink: Emits logs as log records; None emits none.
    """

    def __init__(self, tracer: trace.Tracer, style: SpanStyle, log_sink: LogSink | None) -> None:
        self._tracer = tracer
        self._style = style
        self.log_sink: Final = log_sink

    def start(self, about: SpanStart) -> tuple[trace.Span | None, SpanRef | None, int | None]:
        """The span, its identity, and how many logs it keeps; no span if there is no tracer provider.

        Its parent is the creator's span, else the current one; if both exist, the current one is linked.
        """
        if instrumentation_is_suppressed():
            return contextvars.Context().run(self._start, about)
        return self._start(about)

    def _start(self, about: SpanStart) -> tuple[trace.Span | None, SpanRef | None, int | None]:
        carrier = dict(about.opening.trace_context or {})
        previous = span_ref_of(carrier.pop(semconv.PREVIOUS_SPAN, ""))
        carrier.pop(semconv.WORKER_SPAN, None)
        parent = propagate.extract(carrier, context=Context())
        here = trace.get_current_span().get_span_context()
        links = [] if previous is None else [trace.Link(_span_context(previous))]
        creator = trace.get_current_span(parent).get_span_context()
        started_in = None
        if here.is_valid and here.span_id != creator.span_id:
            started_in = traceparent_of(here.trace_id, here.span_id, here.trace_flags)
            if creator.is_valid:
                links.append(trace.Link(here))
        if not creator.is_valid:
            parent, creator = get_current(), here
        span = self._tracer.start_span(
            about.opening.agent_type,
            context=parent,
            attributes=start_attributes(about),
            links=links,
            start_time=about.start_time_ns,
        )
        context = span.get_span_context()
        if not context.is_valid or context.span_id == creator.span_id:
            return None, None, None  # No provider: the API returns the parent.
        ref = SpanRef(f"{context.trace_id:032x}", f"{context.span_id:016x}", context.trace_flags.sampled, started_in)
        return span, ref, max_span_events(span) if self._style.has_events and span.is_recording() else 0

    def emit_record(self, event: ActivityEvent, span: trace.Span | None, ref: SpanRef | None) -> None:
        """Emit a log as a log record in the context of the activity's span, if log records are wanted."""
        if self.log_sink is not None:
            emit = partial(self.log_sink, event, _context_of(span, ref))
            contextvars.Context().run(emit) if instrumentation_is_suppressed() else emit()

    def end(self, closing: ClosingSpan) -> None:
        """Put the logs on the span and end it, with the status that the row has."""
        span, end, _ = closing
        if span.is_recording():
            for name, attributes, timestamp_ns in span_events(end, self._style):
                span.add_event(name, attributes, timestamp_ns)
            span.set_attributes(end_attributes(end, self._style))
            if is_error(end, self._style):
                span.set_status(trace.Status(trace.StatusCode.ERROR, end.description))
        span.end(end.end_time_ns)


def _span_context(ref: SpanRef) -> trace.SpanContext:
    """The span's identity as OpenTelemetry has it."""
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if ref.sampled else trace.TraceFlags.DEFAULT)
    return trace.SpanContext(int(ref.trace_id, 16), int(ref.span_id, 16), is_remote=True, trace_flags=flags)


def _context_of(span: trace.Span | None, ref: SpanRef | None) -> Context:
    """The context of an activity's span, open here or elsewhere; the current one if it has none."""
    if span is not None:
        return trace.set_span_in_context(span)
    if ref is not None:
        return trace.set_span_in_context(trace.NonRecordingSpan(_span_context(ref)))
    return get_current()


def log_record_sink(provider: Any | None) -> LogSink | None:
    """Emits logs as LogRecords with the event name ``agentexec.activity.log``.

    None if this version of opentelemetry-api has no logs API, which is marked experimental.
    """
    try:
        from opentelemetry._logs import LogRecord, SeverityNumber, get_logger
    except ImportError:
        return None
    logger = get_logger(semconv.SCOPE, logger_provider=provider)

    def emit(event: ActivityEvent, context: Context) -> None:
        severity = severity_of(event.status)
        logger.emit(
            LogRecord(
                timestamp=event.occurred_at_ns,
                observed_timestamp=time.time_ns(),
                context=context,
                severity_number=SeverityNumber[severity],
                severity_text=severity,
                body=event.message,
                attributes=record_attributes(event),
                event_name=semconv.LOG_EVENT,
            )
        )

    return emit


def start_daemon(run: Callable[[], object], name: str) -> threading.Thread | None:
    """Start a thread. None if the interpreter is on its way out: it starts no more."""
    thread = threading.Thread(target=run, name=name, daemon=True)
    with suppress(RuntimeError):
        thread.start()
        return thread
    return None


def in_clean_context(work: Callable[[], _T]) -> _T:
    """Do `work` in an empty context: the writer's own suppresses instrumentation."""
    return contextvars.Context().run(work)


class Mirror:
    """A thread that does the application's part of what the writer has decided: ending spans, above all.

    A span processor that takes seconds, such as one that exports each span at once, delays neither the commit of
    other activities' logs nor a caller. The thread is started with the first job.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget what waits: in a forked child it is the parent's."""
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()  # Guards the start of the thread; nothing else is called under it.

    def do(self, what: str, job: Callable[[], object]) -> None:
        """Do `job` soon, behind those that wait; `what` names it if it fails."""
        self._jobs.put(partial(_guarded, what, job))
        if self._thread is None:
            with self._starting:
                self._thread = self._thread or start_daemon(self._run, "agentexec-mirror")

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def drain(self, timeout: float) -> bool:
        """Wait until what was given so far is done, `timeout` seconds at most. True if it is."""
        if self._thread is None:  # There was no job, or the interpreter is on its way out.
            with suppress(Empty):
                while True:
                    job = self._jobs.get_nowait()
                    if job is not None:
                        job()
            return True
        done = threading.Event()
        self._jobs.put(done.set)
        return done.wait(timeout)

    def stop(self, timeout: float) -> None:
        """As `drain`, and end the thread; the next job starts another."""
        self.drain(timeout)
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)


def _guarded(what: str, job: Callable[[], object]) -> None:
    with guarded(what):
        job()
