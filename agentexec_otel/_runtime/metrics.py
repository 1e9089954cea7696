"""OpenTelemetry metrics: the writers' counters, the runs that this process has ended, and those that are active."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, Generic, TypeVar
from weakref import WeakValueDictionary

from opentelemetry import metrics

from agentexec_otel._errors import guarded
from agentexec_otel._model import attributes as semconv
from agentexec_otel._model.results import ActiveCount, AttemptEnd

Health = Callable[[], dict[str, Any]]
CountActive = Callable[[], Sequence[ActiveCount]]
_T = TypeVar("_T")

_OUTCOMES: Final = (
    "emitted", "replayed", "committed", "duplicate", "late", "coalesced", "dropped", "damaged", "dead_lettered",
    "rejected", "withdrawn", "retried",
)  # fmt: skip
_MOST_TYPES: Final = 100
_OTHER_TYPES: Final = "other"
_SECONDS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 21_600, 86_400)
_TOKENS: Final = tuple(4**exponent for exponent in range(14))
"""As the semantic conventions advise for ``gen_ai.client.token.usage``."""

# By identity: Logfire's cannot be hashed.
_providers: WeakValueDictionary[int, metrics.MeterProvider] = WeakValueDictionary()
_run_metrics: dict[int, RunMetrics] = {}
_GLOBAL: Final = 0
"""Key of the global provider, which may be set, and so be another object, later."""


def instruments(provider: metrics.MeterProvider | None, health: Health, count_active: CountActive) -> RunMetrics:
    """Create the instruments, once for each provider. Returns those that count runs.

    Args:
        health: The state of the writers. Called once for each collection, as `count_active`.
        count_active: Reads from the store how many activities are active.
    """
    used = provider if provider is not None else metrics.get_meter_provider()
    key = id(used)
    if provider is None and _GLOBAL in _run_metrics:
        return _run_metrics[_GLOBAL]
    if _providers.get(key) is not used:
        meter = metrics.get_meter(semconv.SCOPE, meter_provider=provider)
        _create_counters(meter, health)
        _providers[key], _run_metrics[key] = used, RunMetrics(meter, count_active)
    if provider is None:
        _run_metrics[_GLOBAL] = _run_metrics[key]
    return _run_metrics[key]


class _Collected(Generic[_T]):
    """Calls `read` once for each collection, in which the SDK asks each instrument once."""

    def __init__(self, read: Callable[[], Sequence[_T]]) -> None:
        self._read = read
        self._found: Sequence[_T] = ()
        self._readers: set[str] | None = None

    def read(self, instrument: str) -> Sequence[_T]:
        if self._readers is None or instrument in self._readers:  # It has been asked before: the next collection.
            self._found = self._read()
            self._readers = set()
        self._readers.add(instrument)
        return self._found


def _create_counters(meter: metrics.Meter, health: Health) -> None:
    """Their only attributes are the exporter and the outcome."""
    read = _Collected[dict[str, Any]](lambda: health()["exporters"]).read

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


class RunMetrics:
    """Counts the attempts that this process has ended, and observes the activities of all processes.

    The first 100 types have their names in the attributes; the others are ``other``.
    """

    def __init__(self, meter: metrics.Meter, count_active: CountActive) -> None:
        self._counts = _Collected(count_active)
        self._types: set[str] = set()
        self._ended = meter.create_counter(semconv.METRIC_ENDED, "{activity}", "Attempts that have ended")
        seconds = partial(meter.create_histogram, unit="s", explicit_bucket_boundaries_advisory=_SECONDS)
        self._duration = seconds(semconv.METRIC_DURATION, description="From the start of an attempt to its end")
        self._queued = seconds(
            semconv.METRIC_QUEUE_DURATION, description="From the creation of an activity to its start"
        )
        self._tokens = meter.create_histogram(
            semconv.METRIC_TOKENS,
            "{token}",
            "Tokens that an attempt has used",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )
        meter.create_observable_gauge(
            semconv.METRIC_ACTIVE,
            [self._active],
            "{activity}",
            "Activities that are QUEUED or RUNNING, of all processes",
        )
        meter.create_observable_gauge(
            semconv.METRIC_WAITING, [self._waiting], "{activity}", "Activities that wait, such as for an approval"
        )

    def ended(self, end: AttemptEnd) -> None:
        """Count an attempt that this process has ended."""
        with guarded("counting an activity that has ended"):
            agent_type = self._type(end.agent_type)
            attributes = {semconv.AGENT_TYPE: agent_type, semconv.STATUS: end.status.value}
            if end.outcome.reason is not None:
                attributes[semconv.REASON] = end.outcome.reason
            self._ended.add(1, attributes)
            if end.duration_seconds is not None:
                self._duration.record(end.duration_seconds, attributes)
            if end.queued_seconds is not None:
                self._queued.record(end.queued_seconds, {semconv.AGENT_TYPE: agent_type})
            self._count_tokens(end, agent_type)

    def _count_tokens(self, end: AttemptEnd, agent_type: str) -> None:
        attributes = {semconv.AGENT_TYPE: agent_type}
        if end.outcome.model is not None:
            attributes[semconv.MODEL] = end.outcome.model
        for kind, tokens in (("input", end.outcome.input_tokens), ("output", end.outcome.output_tokens)):
            if tokens is not None:
                self._tokens.record(tokens, {**attributes, semconv.TOKEN_TYPE: kind})

    def _type(self, agent_type: str) -> str:
        if agent_type not in self._types:
            if len(self._types) >= _MOST_TYPES:
                return _OTHER_TYPES
            self._types.add(agent_type)
        return agent_type

    def _active(self, options: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
        counts = Counter[tuple[str, str]]()
        for one in self._counts.read("active"):
            counts[self._type(one.agent_type), one.status.value] += one.activities
        return [
            metrics.Observation(count, {semconv.AGENT_TYPE: agent_type, semconv.STATUS: status})
            for (agent_type, status), count in counts.items()
        ]

    def _waiting(self, options: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
        counts = Counter[str]()
        for one in self._counts.read("waiting"):
            if one.waiting:
                counts[self._type(one.agent_type)] += one.waiting
        return [metrics.Observation(count, {semconv.AGENT_TYPE: name}) for name, count in counts.items()]
