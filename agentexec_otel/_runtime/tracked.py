"""A span exporter that reports which spans of activities were exported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from uuid import UUID

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from agentexec_otel._errors import guarded
from agentexec_otel._model import attributes as semconv
from agentexec_otel._runtime.hand_over import trackers

Report = Callable[[Sequence[tuple[UUID, str]], bool], object]


class TrackedSpanExporter(SpanExporter):
    """Passes spans on, and reports those of activities.

    Args:
        report: Called after each export with ``agent_id`` and span id of each, and whether it succeeded.
    """

    def __init__(self, exporter: SpanExporter, report: Report) -> None:
        self._exporter = exporter
        self._report = report
        trackers.add(self)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export the spans."""
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            with guarded("reporting which spans of activities were exported"):
                found = [ref for span in spans if (ref := _ref(span)) is not None]
                if found:
                    self._report(found, result is SpanExportResult.SUCCESS)
        return result

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush the exporter."""
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self) -> None:
        """Shut the exporter down."""
        trackers.discard(self)
        self._exporter.shutdown()


def _ref(span: ReadableSpan) -> tuple[UUID, str] | None:
    scope, context = span.instrumentation_scope, span.get_span_context()
    if scope is None or scope.name != semconv.SCOPE or context is None:
        return None
    agent_id = (span.attributes or {}).get(semconv.AGENT_ID)
    return (UUID(agent_id), f"{context.span_id:016x}") if isinstance(agent_id, str) else None
