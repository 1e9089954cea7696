"""Activities over OTLP: each log as a log record, live."""

from agentexec_otel_exporters.otlp.logs import OTLPActivityExporter

__all__ = ["OTLPActivityExporter"]
