"""Where replayed spans go: to the exporter of `configure`, else to those that the environment names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from agentexec_otel._errors import ConfigurationError, guarded
from agentexec_otel._sdk import load_span_exporters, span_exporter_names, suppressed_instrumentation

_OURS = "agentexec_sql"
"""Fills the rows from which the spans are replayed."""


def names_exporter() -> bool:
    """Whether the environment names an exporter for spans."""
    try:
        return bool(_names())
    except RuntimeError:
        return True  # Opening it reports the reason.


def open_exporters() -> list[SpanExporter]:
    """The exporters that the environment names.

    Raises:
        ConfigurationError: It names none, or one that is not installed.
    """
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


class Destination:
    """Exports spans. Not for several threads at once.

    Args:
        open_: Opens the exporters, at the first export.
        is_borrowed: They are the application's, which closes them.
    """

    def __init__(self, open_: Callable[[], list[SpanExporter]], *, is_borrowed: bool = False) -> None:
        self._open = open_
        self._is_borrowed = is_borrowed
        self._exporters: list[SpanExporter] = []

    def open(self) -> None:
        """Open the exporters, if that is not done. Raises as `open_exporters`."""
        if not self._exporters:
            self._exporters = self._open()

    def export(self, spans: Sequence[ReadableSpan]) -> bool:
        """Hand the spans to each exporter. True if all of them succeed."""
        self.open()
        with suppressed_instrumentation():
            results = [_is_exported(exporter, spans) for exporter in self._exporters]
        return all(results)

    def close(self) -> None:
        """Shut the exporters down, unless they are borrowed."""
        exporters, self._exporters = self._exporters, []
        for exporter in () if self._is_borrowed else exporters:
            with guarded("closing an exporter of spans"):
                exporter.shutdown()


def _is_exported(exporter: SpanExporter, spans: Sequence[ReadableSpan]) -> bool:
    with guarded("exporting the spans of activities again"):
        return exporter.export(spans) is SpanExportResult.SUCCESS
    return False
