"""Exporting activity events: the plug-in protocol and the processor that guarantees delivery."""

from agentexec_otel._errors import ExportError, MisconfiguredExportError, PoisonExportError, TransientExportError
from agentexec_otel._model.event import ActivityEvent, Opening, Outcome, SpanRef
from agentexec_otel._model.results import (
    Ack,
    ActiveCount,
    AttemptEnd,
    EndedActivity,
    Ending,
    ExportResult,
    Refusal,
    Reject,
    Retry,
    StoredActivity,
)
from agentexec_otel._model.span import SpanOfAttempt, StoredSpan
from agentexec_otel.export._processor import ActivityProcessor
from agentexec_otel.export._protocol import ActivityExporter, ActivityStore, SessionStore, SpanStore

__all__ = [
    "Ack",
    "ActiveCount",
    "ActivityEvent",
    "ActivityExporter",
    "ActivityProcessor",
    "ActivityStore",
    "AttemptEnd",
    "EndedActivity",
    "Ending",
    "ExportError",
    "ExportResult",
    "MisconfiguredExportError",
    "Opening",
    "Outcome",
    "PoisonExportError",
    "Refusal",
    "Reject",
    "Retry",
    "SessionStore",
    "SpanOfAttempt",
    "SpanRef",
    "SpanStore",
    "StoredActivity",
    "StoredSpan",
    "TransientExportError",
]
