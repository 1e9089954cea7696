"""The process-wide wiring: which exporters, which tracer, and how the pieces call each other."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from opentelemetry import metrics, trace

from agentexec_otel._config import CONF
from agentexec_otel._errors import ActivityNotFoundError, ActivityNotStoredError, ConfigurationError, ExportError
from agentexec_otel._model import attributes as semconv
from agentexec_otel._model.event import RUNNING, ActivityEvent, Opening, Outcome, Status
from agentexec_otel._model.ids import uuid7
from agentexec_otel._model.text import clean_percentage, prepare_message
from agentexec_otel._runtime.live import LiveActivity
from agentexec_otel._runtime.liveness import Liveness
from agentexec_otel._runtime.log_records import log_record_sink
from agentexec_otel._runtime.lookups import Lookups
from agentexec_otel._runtime.metrics import register
from agentexec_otel._runtime.parts import (
    Worker,
    check_hooks,
    checked_exporters,
    flush_at_exit_of_child,
    spool_for,
    sql_exporter,
)
from agentexec_otel._runtime.spans import ActivitySpans
from agentexec_otel.export import Ack, ActivityExporter, ActivityProcessor, ActivityStore, Ending

if TYPE_CHECKING:
    from agentexec_otel._runtime.parts import Database

_logger = logging.getLogger("agentexec_otel")
_T = TypeVar("_T")


class Runtime:
    """Exporters, spans and settings of this process.

    The first exporter decides what an activity's status is; where it is an `ActivityStore`, the life-cycle API also
    reads through it.
    """

    def __init__(
        self,
        exporters: Sequence[ActivityExporter],
        tracer_provider: trace.TracerProvider | None,
        logger_provider: Any | None,
        redact: Callable[[str], str] | None,
    ) -> None:
        first = exporters[0] if exporters else None
        self.store: ActivityStore | None = first if isinstance(first, ActivityStore) else None
        self.redact = redact
        self.successor: Runtime | None = None  # for who has this one in hand while it is replaced
        self.pid = os.getpid()
        self._worker = Worker()
        self.spans = ActivitySpans(
            trace.get_tracer(semconv.SCOPE, tracer_provider=tracer_provider),
            self.store,
            span_events=CONF.event_mode != "log",
            log_sink=log_record_sink(logger_provider) if CONF.event_mode != "span_event" else None,
            canceled_is_error=CONF.canceled_is_error,
        )
        self.processors = [
            ActivityProcessor(
                exporter,
                on_start=lambda: flush_at_exit_of_child(shutdown),
                spool=spool_for(exporter),
                max_queue_size=CONF.max_queue_size,
                max_batch_size=CONF.max_batch_size,
                on_settled=self.spans.settled if exporter is first else None,
                on_idle=self._tick if exporter is first else None,
            )
            for exporter in exporters
        ]
        self.liveness = Liveness(self.store, self.spans, self._worker.id) if self.store is not None else None
        self.lookups = Lookups(self.processors[0], self.store.lookup_many) if self.store is not None else None
        self._standings = Lookups(self.processors[0], self.store.standing) if self.store is not None else None
        for processor in self.processors:
            processor.start_if_needed()

    def worker_id(self) -> str:
        """What names this process in the rows it runs."""
        return self._worker.id()

    def _tick(self) -> None:
        if self.liveness is not None:
            self.liveness.tick()

    @property
    def primary(self) -> ActivityProcessor:
        """The processor whose exporter decides."""
        if self.successor is not None:
            return self.successor.primary
        if not self.processors:
            raise ConfigurationError("no exporter is configured: call ax.configure() with a database or with exporters")
        return self.processors[0]

    @property
    def needed_store(self) -> ActivityStore:
        """The store, for calls that cannot do without one."""
        if self.store is None:
            raise ConfigurationError("this call needs a database: call ax.configure(engine_or_url)")
        return self.store

    @property
    def needed_standings(self) -> Lookups[Ack]:
        """Where activities stand, for those who wait for their end."""
        if self._standings is None:
            raise ConfigurationError("this call needs a database: call ax.configure(engine_or_url)")
        return self._standings

    def ask(self, work: Callable[[], _T]) -> _T:
        """Have the writer do `work`, and wait for it as long as `create` would.

        Raises:
            ActivityNotStoredError: the database does not answer, or refuses.
        """
        try:
            return self.primary.call(work, CONF.create_timeout)
        except TimeoutError:
            why = self.primary.last_error or f"the database did not answer within {CONF.create_timeout:g} s"
            raise ActivityNotStoredError(why) from None
        except ExportError as exc:
            raise ActivityNotStoredError(str(exc)) from exc

    def event(
        self,
        agent_id: UUID,
        status: Status,
        message: object,
        percentage: object = None,
        *,
        live: LiveActivity | None = None,
        opening: Opening | None = None,
        outcome: Outcome | None = None,
        reopens: bool = False,
    ) -> ActivityEvent:
        """A new event, its text cleaned and redacted and its percentage checked."""
        cleaned, complaint = clean_percentage(percentage)
        if complaint is not None:
            _complain(complaint)
        now_ns = time.time_ns()
        return ActivityEvent(
            uuid7(now_ns),
            agent_id,
            status,
            prepare_message(message, CONF.message_limit, self.redact),
            cleaned,
            now_ns,
            live.attempt if live is not None and not reopens else None,
            opening,
            None,
            outcome,
            self._worker.id(self.pid) if status is RUNNING else None,
            live is not None and not live.opening_pending,
            reopens,
        )

    def find(self, agent_id: UUID, *, waits: bool = True) -> LiveActivity:
        """The activity; its row is read once where this process has not seen it, or where it has ended.

        On an event loop the row is read by the writer instead of here, so an unknown id is only logged.

        Args:
            waits: False leaves reading the row of one that has ended to the writer: whoever goes on reporting is not
                held up by each line.

        Raises:
            ActivityNotFoundError: there is no such activity.
        """
        live = self._known(agent_id, waits=waits)
        if live is not None:
            return live
        store = self.store
        if store is None or on_event_loop():
            return self.spans.unresolved(agent_id)
        try:
            stored = self.primary.call(lambda: store.lookup(agent_id), self._patience())
        except (TimeoutError, ExportError):
            return self.spans.unresolved(agent_id)
        if stored is None:
            raise ActivityNotFoundError(agent_id)
        return self.spans.adopt(stored)

    async def find_async(self, agent_id: UUID) -> LiveActivity:
        """As `find`, on an event loop, without a thread: the writer reads the row for all that wait, meanwhile."""
        live = self._known(agent_id)
        if live is not None:
            return live
        if self.lookups is None:
            return self.spans.unresolved(agent_id)
        try:
            reading = asyncio.wrap_future(self.lookups.soon(agent_id))
            self.primary.nudge()
            stored = await asyncio.wait_for(reading, self._patience())
        except (TimeoutError, ExportError):
            return self.spans.unresolved(agent_id)
        if stored is None:
            raise ActivityNotFoundError(agent_id)
        return self.spans.adopt(stored)

    def _patience(self) -> float:
        """How long a row is waited for, which is read behind the events that are queued."""
        return 0.0 if self.primary.refused else CONF.lookup_timeout

    def _known(self, agent_id: UUID, *, waits: bool = True) -> LiveActivity | None:
        live = self.spans.known(agent_id)
        if live is not None and live.unknown:
            self.spans.forget(agent_id)
            raise ActivityNotFoundError(agent_id)
        if live is None:
            return None
        if not live.over:
            return live
        self.spans.forget(agent_id)  # Somebody may have retried it meanwhile.
        return None if waits else self.spans.unresolved(agent_id)

    def emit(self, event: ActivityEvent) -> bool:
        """To every exporter; False where the first one had to drop it."""
        if self.successor is not None:
            return self.successor.emit(event)
        accepted = not self.processors or self.processors[0].emit(event)
        if len(self.processors) > 1:
            self.emit_to_others(event)
        return accepted

    def emit_to_others(self, event: ActivityEvent) -> None:
        """To the exporters behind the first, which got the event in another way."""
        for processor in (self.successor or self).processors[1:]:
            processor.emit(event)

    def ended(self, activities: Sequence[tuple[UUID, int]], ending: Ending) -> None:
        """Have the spans follow what a bulk call has ended: each with its attempt."""
        if activities:
            now_ns = time.time_ns()
            self.primary.call_soon(lambda: self.spans.ended(activities, ending, now_ns))

    def flush(self, timeout: float) -> bool:
        """Wait until everything emitted so far is settled, within `timeout` seconds over all exporters."""
        deadline = time.monotonic() + timeout
        done = [one.force_flush(max(0.0, deadline - time.monotonic())) for one in self.processors]
        return all(done)

    def stop(self, timeout: float) -> bool:
        """Flush and stop the writers, within `timeout` seconds over all exporters; activities go on."""
        deadline = time.monotonic() + timeout
        done = [one.shutdown(max(0.0, deadline - time.monotonic())) for one in self.processors]
        return all(done)

    def shutdown(self, timeout: float) -> bool:
        """As `stop`, and let go of the activities that run here."""
        deadline = time.monotonic() + timeout
        if self.liveness is not None and self.processors[0].running and self.processors[0].last_error is None:
            with suppress(TimeoutError, ExportError):
                if self.primary.force_flush(timeout / 2):  # A line that came behind would take its lease anew.
                    self.primary.call(self.liveness.release, timeout / 4)
        done = self.stop(max(0.0, deadline - time.monotonic()))
        self.spans.close()
        return done


def on_event_loop() -> bool:
    """Whether blocking here would stall a running asyncio event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


_complaints: set[str] = set()


def _complain(text: str) -> None:
    if text not in _complaints and len(_complaints) < 1000:
        _complaints.add(text)
        _logger.warning(text)


_runtime: Runtime | None = None
_lock = threading.RLock()


def configure(
    database: Database | None = None,
    *,
    exporters: Sequence[ActivityExporter] | None = None,
    tracer_provider: trace.TracerProvider | None = None,
    logger_provider: Any | None = None,
    meter_provider: metrics.MeterProvider | None = None,
    redact: Callable[[str], str] | None = None,
    otlp_endpoint: str | None = None,
    create_tables: bool | None = None,
) -> None:
    """Say where activities are stored and traced. Calling it again flushes and replaces what was set up before.

    Args:
        database: A SQLAlchemy URL or engine, sync or async. Default: ``AGENTEXEC_DATABASE_URL``, else the SQLite file
            ``agentexec.db`` in the working directory, whose tables are created.
        exporters: Where events go, instead of a database; with `database`, in addition to it.
        tracer_provider: The OpenTelemetry provider for activity spans. Default: the global one, set now or later.
        logger_provider: The provider for log records (``AGENTEXEC_EVENT_MODE=log`` or ``both``). Default: the global.
        meter_provider: The provider for the writers' metrics. Default: the global one.
        redact: Called with every message before it is queued, stored or traced; returns the text to keep.
        otlp_endpoint: For applications without a TracerProvider: sets a global one up that sends to this OTLP/HTTP
            endpoint, such as ``http://localhost:4318``.
        create_tables: Create missing tables. Default: ``AGENTEXEC_CREATE_TABLES``.

    Raises:
        ConfigurationError: the arguments contradict each other or the application's set-up.
        MissingExtraError: a driver or exporter package is not installed.
    """
    global _runtime
    check_hooks(redact, tracer_provider=tracer_provider, logger_provider=logger_provider, meter_provider=meter_provider)
    sinks = checked_exporters(exporters)
    if database is not None or exporters is None:
        sinks.insert(0, sql_exporter(database, create_tables))
    if otlp_endpoint is not None:
        from agentexec_otel._runtime.otlp import set_up_otlp

        tracer_provider = set_up_otlp(otlp_endpoint, tracer_provider, logs=CONF.event_mode != "span_event")
    with _lock:
        runtime = Runtime(sinks, tracer_provider, logger_provider, redact)
        if _runtime is not None:
            runtime.spans.take_over(_runtime.spans)
            _runtime.successor = runtime
        previous, _runtime = _runtime, runtime
    register(meter_provider, health)
    # Handlers run last in, first out: ours must end spans before the provider that was set up earlier goes.
    atexit.unregister(shutdown)
    atexit.register(shutdown)
    if previous is not None:
        previous.stop(CONF.shutdown_timeout)


def is_configured() -> bool:
    """Whether `configure` was called, here or in the process that this one was forked from."""
    return _runtime is not None


def active() -> Runtime:
    """The runtime; set up from ``AGENTEXEC_DATABASE_URL`` at the first call where nobody has."""
    runtime = _runtime
    if runtime is None:
        return _configured_from_environment()
    if runtime.pid != os.getpid():
        _after_fork_in_child()  # A fork by C code calls no hooks.
    return runtime


def _configured_from_environment() -> Runtime:
    with _lock:
        if _runtime is None and CONF.database_url is None:
            raise ConfigurationError(
                "agentexec-otel is not set up: call ax.configure(engine_or_url), or set AGENTEXEC_DATABASE_URL"
            )
        if _runtime is None:
            configure()
        return _runtime  # type: ignore[return-value]


def flush(timeout: float = 5.0) -> bool:
    """Wait until every event emitted so far is stored. True where it is, within `timeout` seconds."""
    return active().flush(timeout) if _runtime is not None else True


def shutdown(timeout: float | None = None) -> bool:
    """Flush, end the spans of activities that have ended, and stop the writers. Idempotent.

    Afterwards life-cycle calls store nothing and raise nothing (`create` does), until `configure` is called again.

    Args:
        timeout: Seconds. Default: ``AGENTEXEC_SHUTDOWN_TIMEOUT``.

    Returns:
        True where everything was stored in time.
    """
    runtime = active() if _runtime is not None else None
    return runtime.shutdown(CONF.shutdown_timeout if timeout is None else timeout) if runtime is not None else True


def health() -> dict[str, Any]:
    """What the writers are doing: ``ok``, and one entry per exporter with what is pending, in trouble and counted.

    Values are plain; nothing in it is secret. ``durability`` is ``process``, ``disk`` or ``memory``.
    """
    if _runtime is None:
        return {"configured": False, "ok": False, "reaped": 0, "exporters": []}
    exporters = [processor.health() for processor in _runtime.processors]
    reaped = _runtime.liveness.reaped if _runtime.liveness is not None else 0
    ok = all(one["last_error"] is None for one in exporters)
    worker_id = _runtime.worker_id()
    return {"configured": True, "ok": ok, "worker_id": worker_id, "reaped": reaped, "exporters": exporters}


def recover(timeout: float = 60.0) -> int:
    """Deliver what dead processes left in the spool, now; every process also does it at its start and every minute.

    Args:
        timeout: Seconds at the most.

    Returns:
        How many events were replayed; some of them may have been stored before.
    """
    return sum(processor.replay(timeout) for processor in active().processors)


def reset_for_tests() -> None:
    """Forget the set-up without waiting long; what `agentexec_otel.testing` uses between tests."""
    global _runtime  # noqa: PLW0603  # as `configure` does
    shutdown(1.0)
    _runtime = None
    _complaints.clear()


def _after_fork_in_child() -> None:
    global _lock  # noqa: PLW0603  # a thread that is not here any more may have held it
    _lock = threading.RLock()
    if _runtime is not None:
        _runtime.pid = os.getpid()
        _runtime.spans.reset_after_fork()
        for processor in _runtime.processors:
            processor.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
