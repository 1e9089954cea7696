"""Replay spans to an exporter that encodes them for OTLP: ``python -m benchmarks._replayed URL [CREATED_BEFORE]``.

Prints how many spans there were, the seconds, and the peak of this process's memory in MiB before and after.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Sequence
from datetime import datetime

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

import agentexec_otel as ax


class Encoder(SpanExporter):
    """Makes the bytes that an exporter would send."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        encode_spans(spans).SerializeToString()
        return SpanExportResult.SUCCESS


def peak() -> float:
    """The most memory that this process has had so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(url: str, before: str | None = None) -> None:
    """Replay, and print the figures as JSON."""
    ax.CONF.sweep_interval = 0
    ax.configure(url, span_exporter=Encoder())
    ax.replay(dry_run=True)
    first, began = peak(), time.perf_counter()
    spans = ax.replay(created_before=None if before is None else datetime.fromisoformat(before))
    print(json.dumps({"spans": spans, "seconds": time.perf_counter() - began, "before": first, "peak": peak()}))
    ax.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
