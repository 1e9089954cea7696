"""Spans of ended attempts, made again from their rows and logs by the code that makes them live."""

from __future__ import annotations

import contextvars
from dataclasses import replace
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import attach
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from agentexec_otel._errors import ConfigurationError
from agentexec_otel._model import attributes as semconv
from agentexec_otel._model.mapping import span_ref_of
from agentexec_otel._model.span import StoredSpan
from agentexec_otel._runtime.live import ClosingSpan
from agentexec_otel._runtime.spans import ActivityTracer, span_style
from agentexec_otel._sdk import span_limits

_OF_A_PROCESS: Final = ("container.", "faas.", "host.", "k8s.", "os.", "process.", "service.instance.")
"""Resource attributes that say where a process runs: the one that replays is not the one that ran the activity."""


class SpanRebuilder:
    """Makes spans that have ended, each with the identity that its row names. Not for several threads at once.

    Args:
        provider: The provider of the activities' spans: its service, and its limits, are those of the rebuilt spans.
    """

    def __init__(self, provider: trace.TracerProvider) -> None:
        self._ids = _StoredIds()
        limits = span_limits(provider)
        self.max_logs: Final = limits.max_events if span_style().has_events else 0
        own = TracerProvider(
            sampler=ALWAYS_ON,
            resource=_service_of(provider),
            id_generator=self._ids,
            span_limits=limits,
            shutdown_on_exit=False,
        )
        self._tracer = ActivityTracer(own.get_tracer(semconv.SCOPE), span_style(), None)

    def rebuild(self, stored: StoredSpan) -> ReadableSpan:
        """Return the span. Raises `ConfigurationError` if ``OTEL_SDK_DISABLED`` is set."""
        # In an empty context, as the only span of which the worker's is current.
        return contextvars.Context().run(self._rebuild, stored)

    def _rebuild(self, stored: StoredSpan) -> ReadableSpan:
        traceparent = stored.ref.started_in or ""
        if (started_in := span_ref_of(traceparent)) is not None:
            flags = trace.TraceFlags(int(traceparent[-2:], 16))
            here = trace.SpanContext(int(started_in.trace_id, 16), int(started_in.span_id, 16), False, flags)
            attach(trace.set_span_in_context(trace.NonRecordingSpan(here)))
        self._ids.trace_id, self._ids.span_id = int(stored.ref.trace_id, 16), int(stored.ref.span_id, 16)
        span, ref, _ = self._tracer.start(stored.start)
        if ref is not None and ref.trace_id != stored.ref.trace_id:
            # The application's tracer had begun another trace than its parent's.
            start = replace(stored.start, opening=replace(stored.start.opening, trace_context=None))
            span, ref, _ = contextvars.Context().run(self._tracer.start, start)
        if not isinstance(span, ReadableSpan):
            raise ConfigurationError("spans cannot be replayed: the SDK of OpenTelemetry is switched off")
        if stored.worker_id is not None:
            span.set_attribute(semconv.WORKER_ID, stored.worker_id)
        self._tracer.end(ClosingSpan(span, stored.end, None))
        return span


class _StoredIds(RandomIdGenerator):
    """Generates the ids that it was given."""

    trace_id = 0
    span_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id


def _service_of(provider: Any) -> Resource:
    """The resource of a provider, without what identifies its process."""
    found = getattr(provider, "resource", None)
    resource = found if isinstance(found, Resource) else Resource.create()
    kept = {name: value for name, value in resource.attributes.items() if not name.startswith(_OF_A_PROCESS)}
    return Resource(kept, resource.schema_url)
