"""A TracerProvider for applications that have none, when they ask for it by name."""

from __future__ import annotations

from typing import Any

from opentelemetry import trace

from agentexec_otel._errors import ConfigurationError, MissingExtraError

_set_up: dict[str, trace.TracerProvider] = {}


def set_up_otlp(endpoint: str, tracer_provider: trace.TracerProvider | None, *, logs: bool) -> trace.TracerProvider:
    """Make the global TracerProvider (and LoggerProvider, with `logs`) send to an OTLP/HTTP endpoint.

    Raises:
        ConfigurationError: the application has a provider already; it is never replaced.
    """
    if tracer_provider is None and (ours := _set_up.get(endpoint)) is not None:
        return ours
    if tracer_provider is not None or not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        raise ConfigurationError(
            "otlp_endpoint was given, but the application has a TracerProvider already: add an OTLP"
            " span processor to that one, and leave otlp_endpoint out"
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise MissingExtraError("otlp_endpoint", "opentelemetry-exporter-otlp-proto-http", "otlp") from None
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    base = endpoint.rstrip("/")
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{base}/v1/traces")))
    trace.set_tracer_provider(provider)
    _set_up[endpoint] = provider
    if logs:
        _set_up_logs(f"{base}/v1/logs")
    return provider


def _set_up_logs(url: str) -> None:
    from opentelemetry._logs import set_logger_provider
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

    provider: Any = LoggerProvider()
    provider.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(endpoint=url)))
    set_logger_provider(provider)
