"""The writers' counters as OpenTelemetry metrics: what `health()` returns, read once when the SDK collects."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final
from weakref import WeakValueDictionary

from opentelemetry import metrics

from agentexec_otel._model import attributes as semconv

Health = Callable[[], dict[str, Any]]

_OUTCOMES: Final = (
    "emitted", "replayed", "committed", "duplicate", "late", "coalesced", "dropped", "damaged", "dead_lettered",
    "rejected", "withdrawn", "retried",
)  # fmt: skip
# By identity: Logfire's cannot be hashed.
_registered: WeakValueDictionary[int, metrics.MeterProvider] = WeakValueDictionary()
_registered_globally = False


class _Collections:
    """Reads `health` once for each collection, in which the SDK asks each instrument once."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._exporters: list[dict[str, Any]] = []
        self._readers: set[str] | None = None

    def read(self, instrument: str) -> list[dict[str, Any]]:
        if self._readers is None or instrument in self._readers:  # It has been asked before: the next collection.
            self._exporters = self._health()["exporters"]
            self._readers = set()
        self._readers.add(instrument)
        return self._exporters


def register(provider: metrics.MeterProvider | None, health: Health) -> None:
    """Create the instruments, once for each provider. Their only attributes are the exporter and the outcome."""
    global _registered_globally  # noqa: PLW0603  # the global provider may be set, and so be another object, later
    used = provider if provider is not None else metrics.get_meter_provider()
    if _registered.get(id(used)) is used or (provider is None and _registered_globally):
        return
    _registered_globally = _registered_globally or provider is None
    _registered[id(used)] = used
    meter = metrics.get_meter(semconv.SCOPE, meter_provider=provider)

    read = _Collections(health).read

    def events(options: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
        for one in read("events"):
            for outcome in _OUTCOMES:
                yield metrics.Observation(one[outcome], _attributes(one, outcome))

    def gauge(field: str) -> Callable[[metrics.CallbackOptions], Iterable[metrics.Observation]]:
        def observe(options: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
            return [metrics.Observation(one[field], _attributes(one)) for one in read(field)]

        return observe

    meter.create_observable_counter(
        semconv.METRIC_EVENTS, [events], "{event}", "Activity events by what became of them"
    )
    meter.create_observable_gauge(
        semconv.METRIC_PENDING, [gauge("pending")], "{event}", "Events that are not stored yet"
    )
    meter.create_observable_gauge(semconv.METRIC_SPOOL, [gauge("spool_bytes")], "By", "Size of the spool's files")
    meter.create_observable_gauge(semconv.METRIC_OUTAGE, [gauge("outage_seconds")], "s", "How long storing has failed")


def _attributes(exporter: dict[str, Any], outcome: str | None = None) -> dict[str, str]:
    attributes = {semconv.METRIC_EXPORTER: str(exporter["exporter"])}
    return attributes if outcome is None else {**attributes, semconv.METRIC_OUTCOME: outcome}
