"""The writers' metrics."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from agentexec_otel._runtime.metrics import instruments
from agentexec_otel.export import ActivityProcessor
from tests.chaos.law import metric_values
from tests.sql.recorder import Recorder


def test_a_collection_reads_health_once() -> None:
    """`health()` looks at the spool's folder: it is read once for all instruments, and anew for each collection."""
    processor = ActivityProcessor(Recorder())
    calls = 0

    def health() -> dict[str, Any]:
        nonlocal calls
        calls += 1
        return {"exporters": [{**processor.health(), "emitted": calls}]}

    reader, other = InMemoryMetricReader(), InMemoryMetricReader()
    provider = MeterProvider([reader, other])
    instruments(provider, health, list)
    for count, one in enumerate([reader, reader, other, reader, other, other], start=1):
        assert metric_values(one)["emitted"] == count
    assert calls == 6
    provider.shutdown()
