"""The crash-safe local spool of one exporter."""

from agentexec_otel.export.spool.directory import SpoolError, SpoolFullError, SpoolUnavailableError, default_directory
from agentexec_otel.export.spool.journal import Position
from agentexec_otel.export.spool.segment import Orphan
from agentexec_otel.export.spool.spool import Spool

__all__ = [
    "Orphan",
    "Position",
    "Spool",
    "SpoolError",
    "SpoolFullError",
    "SpoolUnavailableError",
    "default_directory",
]
