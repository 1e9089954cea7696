"""A TracerProvider for applications that have none, when they ask for it by name."""

from __future__ import annotations

from typing import Any

from opentelemetry import trace

from agentexec_otel._errors import ConfigurationError, MissingExtraError
from agentexec_otel._model.text import describe_url

_set_up: dict[str, trace.TracerProvider] = {}


def set_up_otlp(endpoint: str, tracer_provider: trace.TracerProvider | None, *, logs: bool) -> trace.TracerProvider:
    """Make the global TracerProvider (and LoggerProvider, with `logs`) send to an OTLP/HTTP endpoint.

    Raises:
        ConfigurationError: no such URL; or the application has a provider already, which is never replaced.
    """
    base = endpoint.rstrip("/")
    if not base.startswith(("http://", "https://")) or base.endswith(("/v1/traces", "/v1/logs")):
        raise ConfigurationError(
            f"otlp_endpoint is {describe_url(endpoint)}: write it like http://localhost:4318, the path is added to it"
        )
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
