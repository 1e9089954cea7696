"""Exporters of spans: those that replayed spans go to, and one that reports what it has exported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from uuid import UUID

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from agentexec_otel._errors import ConfigurationError, guarded
from agentexec_otel._model import attributes as semconv
from agentexec_otel._runtime.hand_over import trackers
from agentexec_otel._sdk import load_span_exporters, span_exporter_names, suppressed_instrumentation

Report = Callable[[Sequence[tuple[UUID, str]], bool], object]

_OURS = "agentexec_sql"
"""Fills the rows from which the spans are replayed."""


def names_exporter() -> bool:
    """Whether the environment names an exporter for spans."""
    try:
        return bool(_names())
    except RuntimeError:
        return True  # Opening it reports the reason.


def open_exporters(given: SpanExporter | Callable[[], SpanExporter] | None) -> list[SpanExporter]:
    """The exporter of `configure`, or what opens it; without one those that the environment names.

    Raises:
        ConfigurationError: It names none, or one that is not installed.
    """
    if given is not None:
        return [given() if callable(given) else given]
    try:
        found = load_span_exporters(_names())
    except (RuntimeError, ImportError) as exc:
        raise ConfigurationError(f"spans cannot be replayed: {exc}") from exc
    if not found:
        raise ConfigurationError(
            "there is nowhere to replay spans to: pass span_exporter= to ax.configure(), or set OTEL_TRACES_EXPORTER or"
            " OTEL_EXPORTER_OTLP_ENDPOINT"
        )
    return found


def _names() -> list[str]:
    return [name for name in span_exporter_names() if name != _OURS]


def export(exporters: Sequence[SpanExporter], spans: Sequence[ReadableSpan]) -> bool:
    """Hand the spans to each exporter. True if all of them succeed."""
    with suppressed_instrumentation():
        results = [_is_exported(exporter, spans) for exporter in exporters]
    return all(results)


def _is_exported(exporter: SpanExporter, spans: Sequence[ReadableSpan]) -> bool:
    with guarded("exporting the spans of activities again"):
        return exporter.export(spans) is SpanExportResult.SUCCESS
    return False


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
