"""What a runtime is set up with: checked arguments, the SQL exporter, spools, and providers that send to OTLP."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace

from agentexec_otel._config import CONF
from agentexec_otel._errors import ConfigurationError, ExportError, MissingExtraError
from agentexec_otel._model.text import describe, describe_url
from agentexec_otel._sdk import suppressed_instrumentation
from agentexec_otel.export import ActivityExporter
from agentexec_otel.export.spool import Spool, SpoolUnavailableError, default_directory

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from agentexec_otel.db import Database

_logger = logging.getLogger("agentexec_otel")
_EXPORTER_GROUP = "agentexec_otel_exporter"
SQL: Final = "sql"
_DEFAULT_FILE = "agentexec.db"
_MAKES: Final = {"tracer_provider": "get_tracer", "logger_provider": "get_logger", "meter_provider": "get_meter"}


def new_worker_id() -> str:
    """Names this process in the rows that it runs: host, pid and start time, unique over restarts."""
    return f"{socket.gethostname()[:200]}:{os.getpid()}:{time.time_ns() // 1_000_000:x}"


def checked_exporters(exporters: Sequence[ActivityExporter] | None) -> list[ActivityExporter]:
    """The exporters. Raises `ConfigurationError` for anything that is no list of exporters."""
    if exporters is not None and not hasattr(exporters, "__iter__"):
        raise ConfigurationError(f"exporters is {describe(exporters)}: hand in a list, such as exporters=[exporter]")
    return [_checked(exporter) for exporter in exporters or ()]


def check_hooks(redact: object, span_exporter: object, *providers: object) -> None:
    """Raise `ConfigurationError` for a hook that cannot be called, or an object that is no exporter or provider.

    Args:
        providers: Those of traces, logs and metrics.
    """
    if not (redact is None or callable(redact)):
        raise ConfigurationError(f"redact is {describe(redact)}: hand in a function that takes a text and returns one")
    for (argument, method), provider in zip(_MAKES.items(), providers, strict=True):
        if not (provider is None or callable(getattr(provider, method, None))):
            raise ConfigurationError(
                f"{argument} is {describe(provider)}: hand in a provider of OpenTelemetry, or leave it out"
            )
    if not (span_exporter is None or _is_exporter(span_exporter)):
        raise ConfigurationError(
            f"span_exporter is {describe(span_exporter)}: hand in a SpanExporter of OpenTelemetry, or leave it out"
        )


def _is_exporter(candidate: object) -> bool:
    """Whether the object exports. Its class, in place of an instance, does not."""
    return not isinstance(candidate, type) and callable(getattr(candidate, "export", None))


def _checked(exporter: ActivityExporter) -> ActivityExporter:
    if not _is_exporter(exporter):
        raise ConfigurationError(
            f"{describe(exporter)} is no exporter: hand in an object that has ActivityExporter's methods"
        )
    return exporter


def spool_for(exporter: ActivityExporter) -> Spool | None:
    """A spool for this exporter's events; None if it has none, with one warning if none can be kept."""
    identity = getattr(exporter, "identity", f"{type(exporter).__module__}.{type(exporter).__qualname__}")
    if identity is None or (CONF.spool_dir or "").lower() == "off":
        return None
    try:
        return Spool(
            default_directory(CONF.spool_dir),
            identity=identity,
            durability=CONF.spool_durability,
            max_bytes=CONF.spool_max_bytes,
            reserve_bytes=CONF.spool_max_bytes // 16,
        )
    except SpoolUnavailableError as exc:
        _logger.warning("accepted activity events are kept in memory only: %s", exc)
        return None


def flush_at_exit_of_child(shutdown: Callable[[], bool]) -> None:
    """Register `shutdown` with multiprocessing, whose children end without `atexit`."""
    util = sys.modules.get("multiprocessing.util")
    process = sys.modules.get("multiprocessing.process")
    if util is not None and process is not None and process.parent_process() is not None:
        util.Finalize(None, shutdown, exitpriority=100)


def sql_exporter(database: Database | None, create_tables: bool | None) -> ActivityExporter:
    """The SQL exporter."""
    create = CONF.create_tables if create_tables is None else create_tables
    if database is None:
        database, create = default_database(), create or CONF.database_url is None
    exporter = sql_exporter_class()(database)
    if create:
        try:
            with suppressed_instrumentation():
                exporter.create_tables()
        except ExportError as exc:
            raise ConfigurationError(f"the tables cannot be created: {exc}") from exc
    return exporter  # type: ignore[no-any-return]


def default_database() -> str:
    """The URL for a set-up that names none."""
    return CONF.database_url or f"sqlite:///{Path.cwd() / _DEFAULT_FILE}"


@cache  # Looking through the metadata of all installed packages takes most of the time of `configure()`.
def sql_exporter_class() -> Any:
    """The class of the SQL exporter, found by its entry point: the core does not import it."""
    found = entry_points(group=_EXPORTER_GROUP, name=SQL)
    if not found:
        raise MissingExtraError("storing activities in a database", "agentexec-otel (its exporters)", "all")
    return next(iter(found)).load()


def named_exporters(given: Sequence[ActivityExporter], otlp_endpoint: str | None) -> list[ActivityExporter]:
    """The exporters of ``AGENTEXEC_EXPORTERS`` except SQL, without those that send where a given one does.

    Args:
        otlp_endpoint: As given to `configure`: where the exporter ``otlp`` sends to.

    Raises:
        ConfigurationError: No exporter has such a name, or it cannot be set up.
    """
    made: list[ActivityExporter] = []
    for name in dict.fromkeys(CONF.exporters):
        if name != SQL:
            exporter = _exporter_class(name)(**_endpoint_for(name, otlp_endpoint))
            if not any(_same_destination(exporter, other) for other in (*given, *made)):
                made.append(_checked(exporter))
    return made


def _exporter_class(name: str) -> Any:
    found = entry_points(group=_EXPORTER_GROUP)
    if name not in found.names:
        known = ", ".join(sorted(found.names))
        raise ConfigurationError(f"AGENTEXEC_EXPORTERS names {name!r:.80}, which is no exporter: use {known}")
    return found[name].load()


def _endpoint_for(name: str, otlp_endpoint: str | None) -> dict[str, str]:
    if name != "otlp" or otlp_endpoint is None:
        return {}
    return {"endpoint": f"{otlp_endpoint.rstrip('/')}/v1/logs", "protocol": "http/protobuf"}


def _same_destination(one: ActivityExporter, other: ActivityExporter) -> bool:
    identity = getattr(one, "identity", None)
    return type(one) is type(other) and identity is not None and identity == getattr(other, "identity", None)


# -- a TracerProvider for applications that have none, if they ask for it -----------------------------------------

_set_up: dict[str, trace.TracerProvider] = {}


def set_up_otlp(
    endpoint: str,
    tracer_provider: trace.TracerProvider | None,
    *,
    logs: bool,
    tracked: Callable[[SpanExporter], SpanExporter],
) -> trace.TracerProvider:
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
    exporter = otlp_span_exporter(endpoint)
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(tracked(exporter)))
    trace.set_tracer_provider(provider)
    _set_up[endpoint] = provider
    if logs:
        _set_up_logs(f"{base}/v1/logs")
    return provider


def otlp_span_exporter(endpoint: str) -> SpanExporter:
    """What sends spans to an OTLP/HTTP endpoint."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise MissingExtraError("otlp_endpoint", "opentelemetry-exporter-otlp-proto-http", "otlp") from None
    return OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")


def _set_up_logs(url: str) -> None:
    from opentelemetry._logs import set_logger_provider
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

    provider: Any = LoggerProvider()
    provider.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(endpoint=url)))
    set_logger_provider(provider)
