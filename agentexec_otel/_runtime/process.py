"""The process-wide set-up: `configure`, and what is asked of whatever was configured."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from opentelemetry import metrics, trace

from agentexec_otel._config import CONF
from agentexec_otel._errors import ConfigurationError
from agentexec_otel._model.event import ActivityEvent
from agentexec_otel._model.results import Ack, ActiveCount, EndedActivity, Ending, ExportResult, StoredActivity
from agentexec_otel._runtime.complaints import forget_complaints
from agentexec_otel._runtime.metrics import instruments
from agentexec_otel._runtime.runtime import Runtime
from agentexec_otel._runtime.setup import (
    SQL,
    check_hooks,
    checked_exporters,
    default_database,
    flush_at_exit_of_child,
    named_exporters,
    otlp_span_exporter,
    set_up_otlp,
    sql_exporter,
    sql_exporter_class,
)
from agentexec_otel.export import ActivityExporter
from agentexec_otel.export.spool import SpoolError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from agentexec_otel.db import Database

_COUNT_SECONDS: Final = 2.0

_runtime: Runtime | None = None
_database: Database | None = None  # what the runtime was set up with
_lock = threading.RLock()  # Guards `_runtime`; held by a first call that configures from the environment, too.


def configure(
    database: Database | None = None,
    *,
    exporters: Sequence[ActivityExporter] | None = None,
    tracer_provider: trace.TracerProvider | None = None,
    logger_provider: Any | None = None,
    meter_provider: metrics.MeterProvider | None = None,
    redact: Callable[[str], str] | None = None,
    span_exporter: SpanExporter | None = None,
    otlp_endpoint: str | None = None,
    create_tables: bool | None = None,
) -> None:
    """Set up where activities are stored and traced. Calling it again flushes and replaces the earlier set-up.

    Args:
        database: A SQLAlchemy URL or engine, sync or async. Default: ``AGENTEXEC_DATABASE_URL``, else the SQLite file
            ``agentexec.db`` in the working directory, whose tables are created.
        exporters: Where events go, instead of a database; with `database`, in addition to it. Those that
            ``AGENTEXEC_EXPORTERS`` names are added. If it names exporters and no database is named, there is none.
        tracer_provider: The OpenTelemetry provider for activity spans. Default: the global one, set now or later.
        logger_provider: The provider for log records (``AGENTEXEC_EVENT_MODE=log`` or ``both``). Default: the global.
        meter_provider: The provider for the writers' metrics. Default: the global one.
        redact: Called with every message before it is queued, stored or traced; returns the text to keep.
        span_exporter: Gets the spans that are replayed. Default: `otlp_endpoint`, else what ``OTEL_TRACES_EXPORTER`` or
            ``OTEL_EXPORTER_OTLP_ENDPOINT`` name.
        otlp_endpoint: For applications without a TracerProvider: sets a global one up that sends to this OTLP/HTTP
            endpoint, such as ``http://localhost:4318``.
        create_tables: Create missing tables. Default: ``AGENTEXEC_CREATE_TABLES``.

    Raises:
        ConfigurationError: the arguments contradict each other or the application's set-up.
        MissingExtraError: a driver or exporter package is not installed.
    """
    global _runtime, _database  # noqa: PLW0603
    check_hooks(redact, span_exporter, tracer_provider, logger_provider, meter_provider)
    sinks = checked_exporters(exporters)
    stores = _stores(database, exporters)
    if stores:
        sinks.insert(0, sql_exporter(database, create_tables))
    if otlp_endpoint is not None:
        logs = CONF.event_mode != "span_event"
        tracer_provider = set_up_otlp(otlp_endpoint, tracer_provider, logs=logs, tracked=tracked)
    sinks += named_exporters(sinks, otlp_endpoint)
    # Built without the lock: providers are code of the application.
    replays_to = span_exporter or (None if otlp_endpoint is None else partial(otlp_span_exporter, otlp_endpoint))
    run_metrics = instruments(meter_provider, health, _count_active)
    flush_at_exit = partial(flush_at_exit_of_child, shutdown)
    runtime = Runtime(sinks, tracer_provider, logger_provider, redact, flush_at_exit, run_metrics.ended, replays_to)
    with _lock:
        if _runtime is not None:
            runtime.take_over(_runtime)
        previous, _runtime = _runtime, runtime
        _database = (default_database() if database is None else database) if stores else None
    # Handlers run last in, first out: ours must end spans before the provider that was set up earlier goes.
    atexit.unregister(shutdown)
    atexit.register(shutdown)
    if previous is not None:
        previous.stop(CONF.shutdown_timeout)


def tracked(exporter: SpanExporter) -> SpanExporter:
    """Return an exporter that passes spans on to this one, and states on rows which spans of activities were exported.

    With it `ax.replay` finds the spans whose export has failed for good, too. Wrap it before the first activity ends.
    """
    from agentexec_otel._runtime.span_exporters import TrackedSpanExporter

    return TrackedSpanExporter(exporter, _spans_reported)


def _spans_reported(spans: Sequence[tuple[UUID, str]], exported: bool) -> None:
    if _runtime is not None:
        active().spans_reported(spans, exported=exported)


def _stores(database: Database | None, exporters: Sequence[ActivityExporter] | None) -> bool:
    """Whether activities are stored in SQL: if a database is named, or neither it nor an exporter is."""
    if database is not None or SQL in CONF.exporters:
        return True
    return exporters is None and (CONF.database_url is not None or not CONF.exporters)


def is_configured() -> bool:
    """Whether `configure` was called, here or in the process that this one was forked from."""
    return _runtime is not None


def configured_database() -> Database:
    """The database that activities are stored in, as `configure` was given it.

    Raises:
        ConfigurationError: `configure` was not called, or was given exporters only, and ``AGENTEXEC_DATABASE_URL`` is
            not set.
    """
    if _runtime is None and CONF.database_url is not None:
        return CONF.database_url
    if _database is None:
        raise ConfigurationError(
            "no database is configured: call ax.configure(engine_or_url), or set AGENTEXEC_DATABASE_URL"
        )
    return _database


def tracer_provider() -> trace.TracerProvider | None:
    """The provider that `configure` was given. None stands for the global one."""
    return None if _runtime is None else _runtime.tracer_provider


def active() -> Runtime:
    """The runtime. The first call sets it up from the environment if `configure` was not called."""
    runtime = _runtime
    if runtime is None:
        return _configured_from_environment()
    if runtime.pid != os.getpid():
        _after_fork_in_child()  # A fork by C code calls no hooks.
    return runtime


def active_in_session() -> Runtime:
    """The runtime of a call with a session. Without any set-up it only writes rows."""
    is_set_up = _runtime is not None or CONF.database_url is not None or SQL in CONF.exporters
    return active() if is_set_up else _unconfigured()


class UnconfiguredRuntime(Runtime):
    """Writes rows in sessions of the caller. Nothing follows a commit: no span, no view, no other exporter.

    Its events name no worker: without a writer thread a lease could not be extended, and the activity would be lost.
    """

    def __init__(self) -> None:
        super().__init__((), None, None, None)
        self._session_store = sql_exporter_class().session_store()

    def event(self, *args: Any, **kwargs: Any) -> ActivityEvent:
        """As `Runtime.event`, without a worker."""
        return super().event(*args, **kwargs)._replace(worker_id=None)

    def committed_creation(self, event: ActivityEvent) -> None:
        """Do nothing."""

    def committed(self, event: ActivityEvent, stored: StoredActivity, result: ExportResult) -> None:
        """Do nothing."""

    def retried(self, events: Sequence[ActivityEvent], results: Sequence[ExportResult]) -> dict[UUID, int]:
        """The attempts that were opened."""
        return {
            event.agent_id: result.attempt
            for event, result in zip(events, results, strict=True)
            if isinstance(result, Ack)
        }

    def ended_together(self, ended: Sequence[EndedActivity], ending: Ending) -> None:
        """Do nothing."""

    def has_pending(self, agent_id: UUID) -> bool:
        """False: nothing waits."""
        return False


_unconfigured = cache(UnconfiguredRuntime)


def _configured_from_environment() -> Runtime:
    with _lock:
        if _runtime is None and CONF.database_url is None and not CONF.exporters:
            raise ConfigurationError(
                "agentexec-otel is not set up: call ax.configure(engine_or_url), or set AGENTEXEC_DATABASE_URL"
            )
        if _runtime is None:
            configure()
        return _runtime  # type: ignore[return-value]


def flush(timeout: float = 5.0) -> bool:
    """Wait until everything reported so far is stored, and on its span. True if that took at most `timeout` seconds."""
    return active().flush(timeout) if _runtime is not None else True


def shutdown(timeout: float | None = None) -> bool:
    """Flush, end the spans of activities that have ended, and stop the writers. Idempotent.

    Afterwards life-cycle calls store nothing and raise nothing (`create` does), until `configure` is called again.

    Args:
        timeout: Seconds. Default: ``AGENTEXEC_SHUTDOWN_TIMEOUT``.

    Returns:
        True if everything was stored in time.
    """
    runtime = active() if _runtime is not None else None
    return runtime.shutdown(CONF.shutdown_timeout if timeout is None else timeout) if runtime is not None else True


def health() -> dict[str, Any]:
    """The state of the writers: ``ok``, and per exporter what is pending, what is in trouble, and its counters.

    Values are plain; nothing in it is secret. ``durability`` is ``process``, ``disk`` or ``memory``.
    """
    if _runtime is None:
        return {"configured": False, "ok": False, "reaped": 0, "exporters": []}
    return _runtime.health()


def recover(timeout: float = 60.0, *, dead_letters: bool = False) -> int:
    """Deliver what dead processes left in the spool. Every process does the same at its start and every minute.

    Args:
        timeout: Seconds at the most.
        dead_letters: Deliver the events among the dead letters, too, after what they were refused for is mended. Those
            that are refused again become dead letters again.

    Returns:
        How many events were replayed; some of them may have been stored before.

    Raises:
        ConfigurationError: The SDK is not set up, or the dead letters cannot be read or spooled; then they stay.
    """
    try:
        return active().recover(timeout, dead_letters=dead_letters)
    except (OSError, SpoolError) as exc:
        raise ConfigurationError(f"the dead letters cannot be replayed: {exc}") from exc


def _count_active() -> Sequence[ActiveCount]:
    """For the gauges: read by the writer, within two seconds."""
    runtime = _runtime
    return () if runtime is None or runtime.pid != os.getpid() else runtime.count_active(_COUNT_SECONDS)


def reset_for_tests() -> None:
    """Forget the set-up without waiting long; what `agentexec_otel.testing` uses between tests."""
    global _runtime, _database  # noqa: PLW0603  # as `configure` does
    shutdown(1.0)
    _runtime = _database = None
    forget_complaints()


def _after_fork_in_child() -> None:
    global _lock  # noqa: PLW0603  # a thread that does not exist here may have held it
    _lock = threading.RLock()
    if _runtime is not None:
        _runtime.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
