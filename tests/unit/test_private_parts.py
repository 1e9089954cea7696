"""The private parts of OpenTelemetry that `agentexec_otel._sdk` uses: a release without one fails here, by its name.

Those of the Agents SDK, of taskiq and Celery and of the database drivers have such a test beside the tests of their
users: `test_openai_agents_sdk.py`, `test_tasks_sdk.py` and `tests/sql/test_sdk.py`.
"""

from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

import pytest
from opentelemetry import context, trace
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor, SpanExporter, SpanExportResult

from agentexec_otel import _sdk


def started(limits: SpanLimits) -> trace.Span:
    """A span of the SDK with these limits."""
    return TracerProvider(span_limits=limits, shutdown_on_exit=False).get_tracer("test").start_span("span")


def test_context_has_suppress_instrumentation_key() -> None:
    """`opentelemetry.context._SUPPRESS_INSTRUMENTATION_KEY` is there."""
    assert hasattr(context, "_SUPPRESS_INSTRUMENTATION_KEY")


def test_exporters_of_the_sdk_suppress_by_that_key() -> None:
    """The SDK suppresses instrumentation around its exporters as we do around ours."""
    seen: list[bool] = []

    class Exporter(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            seen.append(_sdk.instrumentation_is_suppressed())
            return SpanExportResult.SUCCESS

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(Exporter()))
    provider.get_tracer("test").start_span("span").end()
    assert (seen, _sdk.instrumentation_is_suppressed()) == ([True], False)
    with _sdk.suppressed_instrumentation():
        assert _sdk.instrumentation_is_suppressed()


def test_span_has_limits() -> None:
    """`opentelemetry.sdk.trace.Span._limits` is there."""
    assert isinstance(getattr(started(SpanLimits()), "_limits", None), SpanLimits)


@pytest.mark.parametrize("most", [0, 3, 1000])
def test_limits_of_a_span_have_max_events(most: int) -> None:
    """`SpanLimits.max_events` is the number of events that the span keeps."""
    span: Any = started(SpanLimits(max_events=most))
    assert _sdk.max_span_events(span) == most
    for _ in range(most + 1):
        span.add_event("event")
    assert len(span.events) == most


def test_default_number_of_span_events() -> None:
    """`DEFAULT_SPAN_EVENTS` is what a span of the SDK keeps, and what is assumed of one that does not say."""
    assert SpanLimits().max_events == _sdk.DEFAULT_SPAN_EVENTS
    assert _sdk.max_span_events(trace.INVALID_SPAN) == _sdk.DEFAULT_SPAN_EVENTS


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({}, []),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318"}, []),
        ({"OTEL_TRACES_EXPORTER": "console, zipkin"}, ["console", "zipkin"]),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, ["otlp_proto_http"]),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ["otlp_proto_grpc"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x/v1/traces"}, None),
    ],
    ids=["nothing", "none", "named", "http", "grpc", "endpoint"],
)
def test_span_exporters_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], names: list[str] | None
) -> None:
    """`opentelemetry.sdk._configuration` names them. Without a protocol, the OTLP exporter that is installed."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = _sdk.span_exporter_names()
    if names is None:
        assert len(found) == 1
        assert entry_points(group="opentelemetry_traces_exporter", name=found[0])
    else:
        assert found == names


def test_span_exporters_are_loaded() -> None:
    """By their entry points, as the SDK does."""
    (console,) = _sdk.load_span_exporters(["console"])
    assert isinstance(console, ConsoleSpanExporter)
    with pytest.raises(RuntimeError, match="unheard_of"):
        _sdk.load_span_exporters(["unheard_of"])


def test_provider_has_span_limits() -> None:
    """`TracerProvider._span_limits` is there; another implementation's are those of the environment."""
    limits = SpanLimits(max_events=7)
    assert _sdk.span_limits(TracerProvider(span_limits=limits, shutdown_on_exit=False)) is limits
    assert _sdk.span_limits(trace.NoOpTracerProvider()).max_events == _sdk.DEFAULT_SPAN_EVENTS
