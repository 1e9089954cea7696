"""Exporting activity events: the plug-in protocol and the processor that guarantees delivery."""

from agentexec_otel._errors import ExportError, MisconfiguredExportError, PoisonExportError, TransientExportError
from agentexec_otel._event import ActivityEvent, Opening, Outcome, SpanRef
from agentexec_otel.export._processor import ActivityProcessor
from agentexec_otel.export._protocol import (
    Ack,
    ActivityExporter,
    ActivityStore,
    Ending,
    ExportResult,
    Reject,
    Retry,
    StoredActivity,
)

__all__ = [
    "Ack",
    "ActivityEvent",
    "ActivityExporter",
    "ActivityProcessor",
    "ActivityStore",
    "Ending",
    "ExportError",
    "ExportResult",
    "MisconfiguredExportError",
    "Opening",
    "Outcome",
    "PoisonExportError",
    "Reject",
    "Retry",
    "SpanRef",
    "StoredActivity",
    "TransientExportError",
]
