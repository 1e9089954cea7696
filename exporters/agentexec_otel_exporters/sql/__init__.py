"""Activities in SQL: the live exporter, and the span exporter for spans from elsewhere."""

from agentexec_otel_exporters.sql._exporter import SQLExporter
from agentexec_otel_exporters.sql._span_exporter import SQLSpanExporter

__all__ = ["SQLExporter", "SQLSpanExporter"]
