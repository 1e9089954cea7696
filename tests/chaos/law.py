"""The conservation law of the writers' counters, read through `ax.health()` and through the OpenTelemetry metrics."""

import time
from typing import Any

from opentelemetry.sdk.metrics.export import InMemoryMetricReader

import agentexec_otel as ax

IN = ("emitted", "replayed")
OUT = ("committed", "duplicate", "dropped", "damaged", "dead_lettered", "rejected", "withdrawn")


def imbalance(counts: dict[str, Any]) -> int:
    """What went in, less what came out and what is pending."""
    return int(sum(counts[name] for name in IN) - sum(counts[name] for name in OUT) - counts["pending"])


def assert_conserved(health: dict[str, Any], metrics: dict[str, int] | None = None) -> None:
    """No event is unaccounted for, in what one process says."""
    assert health["exporters"], health
    for one in health["exporters"]:
        assert imbalance(one) == 0, one
    if metrics is not None:
        assert imbalance(metrics) == 0, metrics
        assert {name: metrics[name] for name in (*IN, *OUT)} == {
            name: sum(one[name] for one in health["exporters"]) for name in (*IN, *OUT)
        }


def settled(timeout: float = 10.0) -> dict[str, Any]:
    """This process's health once nothing moves, with the law kept."""
    deadline = time.monotonic() + timeout
    while any(imbalance(one) for one in ax.health()["exporters"]) and time.monotonic() < deadline:
        time.sleep(0.02)
    health = ax.health()
    assert_conserved(health)
    return health


def metric_values(reader: InMemoryMetricReader) -> dict[str, int]:
    """The events by outcome, and those pending, as a metrics backend would get them."""
    values: dict[str, int] = {}
    data = reader.get_metrics_data()
    for resource in data.resource_metrics if data is not None else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    attributes = point.attributes or {}
                    if metric.name == "agentexec.exporter.events":
                        name = str(attributes["agentexec.outcome"])
                    elif metric.name == "agentexec.exporter.pending":
                        name = "pending"
                    else:
                        continue
                    values[name] = values.get(name, 0) + int(getattr(point, "value", 0))
    return values
