"""The verbs by which everything else reports: create, find, record, end, retry, claim; and what follows from them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import UUID

from opentelemetry import trace

from agentexec_otel._config import CONF
from agentexec_otel._errors import (
    ActivityNotFoundError,
    ActivityNotStoredError,
    ConfigurationError,
    ExportError,
)
from agentexec_otel._model import attributes as semconv
from agentexec_otel._model.event import QUEUED, RUNNING, ActivityEvent, Opening, Outcome, Status
from agentexec_otel._model.ids import uuid7
from agentexec_otel._model.results import (
    Ack,
    ActiveCount,
    AttemptEnd,
    EndedActivity,
    Ending,
    ExportResult,
    StoredActivity,
)
from agentexec_otel._model.text import MESSAGE_LIMIT, NAME_LIMIT, clean_percentage, prepare_message
from agentexec_otel._model.waiting import sentence, waiting_for
from agentexec_otel._runtime.complaints import complain
from agentexec_otel._runtime.event_loop import on_event_loop
from agentexec_otel._runtime.following import Following, in_context
from agentexec_otel._runtime.limits import countdown
from agentexec_otel._runtime.live import LiveActivity
from agentexec_otel._runtime.liveness import Liveness
from agentexec_otel._runtime.reader import Reader, RowUnavailableError
from agentexec_otel._runtime.replay import Progress, Replay
from agentexec_otel._runtime.setup import new_worker_id, spool_for
from agentexec_otel._runtime.spans import ActivityTracer, log_record_sink, span_style
from agentexec_otel.export import ActivityExporter, ActivityProcessor, ActivityStore, SessionStore

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

_T = TypeVar("_T")

_NO_DATABASE: Final = "this call needs a database: call ax.configure(engine_or_url)"


class Runtime:
    """Exporters, tracing and live activities of this process.

    The first exporter decides what an activity's status is; if it is an `ActivityStore`, rows are read from it, too.
    """

    def __init__(
        self,
        exporters: Sequence[ActivityExporter],
        tracer_provider: trace.TracerProvider | None,
        logger_provider: Any | None,
        redact: Callable[[str], str] | None,
        on_start: Callable[[], None] | None = None,
        on_ended: Callable[[AttemptEnd], None] = lambda _: None,
        span_exporter: SpanExporter | Callable[[], SpanExporter] | None = None,
    ) -> None:
        first = exporters[0] if exporters else None
        self._first = first
        self._store = first if isinstance(first, ActivityStore) else None
        self._session_store: SessionStore | None = first if isinstance(first, SessionStore) else None
        self.redact: Final = redact
        self.tracer_provider: Final = tracer_provider
        self._successor: Runtime | None = None  # of a caller that has this one in hand while it is replaced
        self.pid = os.getpid()
        self._worker_id = new_worker_id()
        self._order = threading.RLock()  # Guards that all exporters get events in one order; only they are called.
        self._tracer = ActivityTracer(
            trace.get_tracer(semconv.SCOPE, tracer_provider=tracer_provider),
            span_style(),
            log_record_sink(logger_provider) if CONF.event_mode != "span_event" else None,
        )
        self._emits_records = self._tracer.log_sink is not None
        self._replay = Replay(first, partial(self._have_writer_do, seconds=60), tracer_provider, span_exporter)
        self._following = Following(
            self._store, self._tracer, self._to_others, self._call_soon, on_ended, self._replay.orphaned
        )
        self.live = self._following.live
        self._processors = [
            ActivityProcessor(
                exporter,
                on_start=on_start,
                spool=spool_for(exporter),
                max_queue_size=CONF.max_queue_size,
                max_batch_size=CONF.max_batch_size,
                on_acknowledged=self._following.acknowledged if exporter is first else None,
                on_idle=self._tick if exporter is first else None,
            )
            for exporter in exporters
        ]
        self._behind_first = self._processors[1:]
        self._reader = Reader(self._processors[0], self._store) if self._store is not None else None
        self._liveness = Liveness(self._store, self._following, self.worker_id) if self._store is not None else None
        for processor in self._processors:
            processor.start_if_needed()

    # -- what it has --------------------------------------------------------------------------------------------

    def worker_id(self) -> str:
        """Names this process in the rows that it runs."""
        return self._worker_id

    @property
    def session_store(self) -> SessionStore:
        """What writes in a session of the caller. Raises `ConfigurationError` if the first exporter does not."""
        if self._session_store is None:
            raise ConfigurationError(_NO_DATABASE)
        return self._session_store

    @property
    def has_store(self) -> bool:
        """Whether rows can be read."""
        return self._store is not None

    @property
    def in_trouble(self) -> str | None:
        """Why events cannot be stored at present; None while they are stored."""
        return self._primary.last_error

    @property
    def is_closed(self) -> bool:
        """Whether it was shut down."""
        return self._primary.closed

    @property
    def _primary(self) -> ActivityProcessor:
        """The processor whose exporter decides."""
        if self._successor is not None:
            return self._successor._primary
        if not self._processors:
            raise ConfigurationError("no exporter is configured: call ax.configure() with a database or with exporters")
        return self._processors[0]

    @property
    def _others(self) -> Sequence[ActivityProcessor]:
        return (self._successor or self)._behind_first

    # -- events -------------------------------------------------------------------------------------------------

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
    ) -> ActivityEvent:
        """A new event about the attempt that `live` is of; its text is cleaned and redacted, its percentage checked."""
        cleaned, complaint = clean_percentage(percentage)
        if complaint is not None:
            complain(complaint)
        now_ns = time.time_ns()
        return ActivityEvent(
            uuid7(now_ns),
            agent_id,
            status,
            prepare_message(message, CONF.message_limit, self.redact),
            cleaned,
            now_ns - now_ns % 1000,  # as rows have it, so that a span is equal to the one rebuilt from its row
            None if live is None else live.attempt,
            opening,
            None,
            outcome,
            self._worker_id if status is RUNNING else None,
            live is not None and not live.may_lack_row,
        )

    # -- create -------------------------------------------------------------------------------------------------

    def create(self, event: ActivityEvent) -> ExportResult:
        """Store the event that creates an activity, and wait for its commit.

        Raises:
            ActivityNotStoredError: not committed within ``AGENTEXEC_CREATE_TIMEOUT`` seconds; it is withdrawn.
        """
        return self._created(event, self._primary.store(event, CONF.create_timeout))

    async def create_async(self, event: ActivityEvent) -> ExportResult:
        """As `create`, on an event loop: many that wait at once share a transaction."""
        return self._created(event, await self._primary.store_async(event, CONF.create_timeout))

    def _created(self, event: ActivityEvent, result: ExportResult) -> ExportResult:
        if isinstance(result, Ack):
            self.committed_creation(event)
        return result

    def committed_creation(self, event: ActivityEvent) -> None:
        """An activity was created with this event, and its row is committed."""
        live = self.live.create(event)  # First: what follows is code of the application, which may report on it.
        self._to_others(event)
        self._following.emit_record(event, live)

    def create_soon(self, event: ActivityEvent, *, may_exist: bool = False) -> Future[ExportResult]:
        """Create an activity without waiting; the future resolves when its row is committed.

        Args:
            may_exist: There may be one with this ``agent_id`` already; logs then belong to its current attempt.
        """
        live = self.live.create(event, attempt=None if may_exist else 1, committed=False)
        self._following.emit_record(event, live)
        with self._in_order():
            self._to_others(event)
            return self._primary.submit(event, refusable=may_exist)

    def created_elsewhere(self, event: ActivityEvent) -> LiveActivity:
        """The view of an activity whose creating event has come with a message."""
        return self.live.create(event)

    # -- find ---------------------------------------------------------------------------------------------------

    def known(self, agent_id: UUID) -> LiveActivity | None:
        """The view of an activity that this process has seen. Does no I/O."""
        return self.live.get(agent_id)

    def find(self, agent_id: UUID, *, join: bool = False) -> LiveActivity:
        """The view of an activity; its row is read once if this process has not seen it.

        Waits up to ``AGENTEXEC_LOOKUP_TIMEOUT`` seconds; not at all on an event loop, where the writer reads the row
        with the first event, and an unknown id is only logged.

        Args:
            join: Join the current attempt: the row is read again, unless a block of this process runs the activity.

        Raises:
            ActivityNotFoundError: there is no such activity.
        """
        live = self._known(agent_id)
        if live is not None and not join and (live.opening is not None or not live.is_fresh):
            return live
        if self._reader is None or on_event_loop() or (live is not None and not self._is_outdated(live, join)):
            return self.live.join(agent_id)
        try:
            stored = self._reader.get(agent_id, CONF.lookup_timeout)
        except RowUnavailableError:
            return self.live.join(agent_id)
        return self._found(agent_id, stored, None if join else live)

    async def find_async(self, agent_id: UUID, *, join: bool = False) -> LiveActivity:
        """As `find`, on an event loop: the writer reads the rows of all that wait together."""
        live = self._known(agent_id)
        if self._reader is None or (live is not None and not self._is_outdated(live, join)):
            return self.live.join(agent_id)
        try:
            stored = await self._reader.get_async(agent_id, CONF.lookup_timeout)
        except RowUnavailableError:
            return self.live.join(agent_id)
        return self._found(agent_id, stored, None if join else live)

    def _known(self, agent_id: UUID) -> LiveActivity | None:
        live = self.live.get(agent_id)
        if live is not None and live.is_unknown:
            self.live.forget(agent_id)
            raise ActivityNotFoundError(agent_id)
        return live

    @staticmethod
    def _is_outdated(live: LiveActivity, join: bool) -> bool:
        """Whether the row of an activity that is known here has to be read."""
        return live.owner is None and not live.may_lack_row if join else live.is_fresh

    def _found(self, agent_id: UUID, stored: StoredActivity | None, live: LiveActivity | None) -> LiveActivity:
        """The view as the row has it; `live` stays at its attempt, without it the current attempt is joined."""
        if stored is None:
            self.live.forget(agent_id)
            raise ActivityNotFoundError(agent_id)
        if live is None:
            return self.live.adopt(stored)
        live.resolve(stored)
        return live

    def assume(self, agent_id: UUID) -> LiveActivity:
        """A view of whichever attempt is current of an activity that is not known here, and whose row may be absent."""
        return self.live.join_next(agent_id, may_lack_row=True)

    def forget(self, live: LiveActivity) -> None:
        """Read the activity's row again at the next call."""
        self.live.forget(live.agent_id)

    def adopt(self, stored: StoredActivity) -> LiveActivity:
        """The view of the attempt that a row is at, which is joined."""
        return self.live.adopt(stored)

    def read(self, agent_id: UUID, seconds: float) -> StoredActivity | None:
        """The row; None if there is none, or if there is no database. Blocks for at most that many seconds.

        Raises:
            RowUnavailableError: the database has not answered in time, or is known to be away.
        """
        return None if self._reader is None else self._reader.get(agent_id, seconds)

    async def read_async(self, agent_id: UUID, seconds: float | None, *, history: bool = True) -> StoredActivity | None:
        """As `read`, on an event loop; None waits for as long as it takes."""
        return None if self._reader is None else await self._reader.get_async(agent_id, seconds, history=history)

    # -- record and end -----------------------------------------------------------------------------------------

    def record(
        self, live: LiveActivity, status: Status, message: object, percentage: object = None, *, reported: bool = False
    ) -> bool:
        """Add a log to the attempt that the view is of. False if it may be dropped: no room.

        Args:
            reported: The application or the agent has said it, not the instrumentation.
        """
        event = self.event(live.agent_id, status, message, percentage, live=live)
        return self._emit(self._mirror_on(live, event, reported=reported), live)

    def wait(
        self, live: LiveActivity, for_: object, items: object, message: str | None, *, reported: bool = False
    ) -> bool:
        """Have the attempt wait: no lease runs until the next log of a worker. Returns as `record`.

        Args:
            message: Default: a sentence of `for_` and `items`.

        Raises:
            ValueError: as `waiting_for`.
        """
        waiting = waiting_for(for_, items, time.time_ns(), self.redact)
        text = sentence(waiting) if message is None else message
        event = self.event(live.agent_id, RUNNING, text, live=live)._replace(waiting=waiting)
        return self._emit(self._mirror_on(live, event, reported=reported), live)

    def end(
        self,
        live: LiveActivity,
        status: Status,
        message: object,
        percentage: object = None,
        outcome: Outcome | None = None,
        *,
        of_current: bool = False,
    ) -> Future[ExportResult]:
        """End the attempt that the view is of; the future resolves when the log is committed, late or not.

        Args:
            of_current: End whichever attempt is the current one.
        """
        event = self.event(live.agent_id, status, message, percentage, live=live, outcome=outcome)
        if of_current:
            event = event._replace(attempt=None)
        event = self._mirror_on(live, event)
        with self._in_order():
            self._to_others(event, live)
            future = self._primary.submit(self._for_first(event, live))
        self._stop_if_canceled(live, event)  # Not sooner: what the block says in leaving comes second.
        if self._primary.closed:
            self._following.end_spans()  # The row cannot answer any more: what was reported last is how it ended.
        return future

    def end_attempt(self, live: LiveActivity, message: str, outcome: Outcome | None, queued: str) -> None:
        """The attempt has failed with `message`, and its engine tries again: the next one is announced, QUEUED."""
        failed = self.event(live.agent_id, RUNNING, message, live=live)
        self._emit(self._mirror_on(live, failed), live)
        self.live.forget(live.agent_id)
        self._primary.call_soon(lambda: self._following.follow_up(live.end_attempt(failed, outcome), None))
        self.announce(live.agent_id, (live.attempt or 1) + 1, queued)

    def announce(self, agent_id: UUID, attempt: int, message: str) -> Future[ExportResult]:
        """Open this attempt, QUEUED, unless the activity has ended. Not spooled: its start opens it, too."""
        queued = self.event(agent_id, Status.QUEUED, message)._replace(attempt=attempt, claims=True)
        future = self._primary.offer(queued)
        self._to_others_if_stored(queued, future)
        return future

    def keep_message(self, message: str, reason: str) -> None:
        """Keep a message of a task queue that no worker can run with the dead letters, and log the reason."""
        redacted = prepare_message(message, MESSAGE_LIMIT, self.redact)
        self._primary.keep_message(redacted, prepare_message(reason, NAME_LIMIT, self.redact))

    def claim(self, live: LiveActivity, message: str) -> Future[ExportResult]:
        """Start the attempt as the only worker: refused (`Refusal.STARTED`) if another one has, or if it has ended."""
        started = self.event(live.agent_id, RUNNING, message, live=live)._replace(claims=True)
        started = self._mirror_on(live, started)
        future = self._primary.offer(self._for_first(started, live))
        self._to_others_if_stored(started, future, live)
        return future

    def retry(self, agent_id: UUID, message: object) -> ExportResult:
        """Open the next attempt of an activity that has ended, and wait for the commit; decided under its row lock.

        Raises:
            ActivityNotStoredError: not committed within ``AGENTEXEC_CREATE_TIMEOUT`` seconds.
        """
        event = self.retrying(agent_id, message)
        result = self._primary.store(event, CONF.create_timeout)
        self.retried([event], [result])
        return result

    def retrying(self, agent_id: UUID, message: object) -> ActivityEvent:
        """An event that opens the next attempt, and is refused if the activity has not ended."""
        return self._reopening(agent_id, message, None)._replace(claims=True)

    def requeue(self, agent_id: UUID, message: object, percentage: object = None) -> Future[ExportResult]:
        """Report QUEUED: opens and joins the next attempt if the activity has ended, otherwise only a log."""
        event = self._reopening(agent_id, message, percentage)
        live = self.live.get(agent_id)
        if live is not None and live.status.terminal:
            self.live.join_next(agent_id)
        self._following.emit_record(event)
        with self._in_order():
            self._to_others(event)
            return self._primary.submit(event)

    def _reopening(self, agent_id: UUID, message: object, percentage: object) -> ActivityEvent:
        return self.event(agent_id, Status.QUEUED, message, percentage)._replace(reopens=True, expects_row=True)

    def _stop_if_canceled(self, live: LiveActivity, event: ActivityEvent) -> None:
        """Stop the block that runs the attempt, if this event of this process has canceled it."""
        if event.status is Status.CANCELED and live.ending is not None and live.ending.event_id == event.event_id:
            self._following.follow_up(None, live.on_cancel)

    def _mirror_on(self, live: LiveActivity, event: ActivityEvent, *, reported: bool = False) -> ActivityEvent:
        """Have the view follow an event of this process; the event with the span that it has started."""
        starts = event.status is RUNNING and live.status is QUEUED
        start = live.record(event, reported=reported)
        if start is not None or starts:
            ref = None if start is None else self._following.start_span(live, start)
            event = event._replace(span=ref, starts=event.status is RUNNING)
        if self._emits_records:
            self._following.emit_record(event, live)
        return event

    # -- to the exporters ---------------------------------------------------------------------------------------

    def _emit(self, event: ActivityEvent, live: LiveActivity) -> bool:
        if self._successor is not None:
            return self._successor._emit(event, live)
        if not self._behind_first:
            return not self._processors or self._processors[0].emit(self._for_first(event, live))
        with self._order:
            accepted = self._processors[0].emit(self._for_first(event, live))
            self._to_others(event, live)
        return accepted

    def _in_order(self) -> threading.RLock:
        return (self._successor or self)._order

    def _to_others(self, event: ActivityEvent, live: LiveActivity | None = None) -> None:
        """Give an event to the exporters behind the first, with the span that it belongs to."""
        others = self._others
        if others:
            event = event if live is None else in_context(event, live)
            for processor in others:
                processor.emit(event)

    def _for_first(self, event: ActivityEvent, live: LiveActivity) -> ActivityEvent:
        """The event as the first exporter gets it: a store has the type and the span on the row."""
        return event if self._store is not None else in_context(event, live)

    def _to_others_if_stored(
        self, event: ActivityEvent, answer: Future[ExportResult], live: LiveActivity | None = None
    ) -> None:
        def pass_on(done: Future[ExportResult]) -> None:
            if isinstance(done.result(), Ack):
                self._to_others(event, live)

        if self._others:
            answer.add_done_callback(pass_on)

    # -- many at once -------------------------------------------------------------------------------------------

    def end_together(self, ending: Ending, end: Callable[[], Sequence[EndedActivity]]) -> int:
        """Have the writer end activities by `end`, in transactions of its own; how many were changed.

        Raises:
            ActivityNotStoredError: the database does not answer, or refuses.
        """

        def work() -> Sequence[EndedActivity]:
            ended = end()
            if self._others:  # They get these events before any that the caller reports next.
                self._following.ended_together(ended, ending)
            return ended

        ended = self._have_writer_do(work)
        if ended and not self._others:
            self._primary.call_soon(lambda: self._following.ended_together(ended, ending))
        return len(ended)

    def end_lost(self, ending: Ending) -> int:
        """End every activity whose lease has expired; how many were changed. Raises as `end_together`."""
        if self._store is None:
            raise ConfigurationError(_NO_DATABASE)
        return self.end_together(ending, partial(self._store.end_lost, ending))

    def count_active(self, timeout: float) -> Sequence[ActiveCount]:
        """What is QUEUED or RUNNING in the store. Nothing if there is none, or if it has not answered in time."""
        if self._store is None or self.is_closed or self.in_trouble is not None:
            return ()
        with suppress(TimeoutError, ExportError):
            return self._primary.call(self._store.count_active, timeout)
        return ()

    def ended_together(self, ended: Sequence[EndedActivity], ending: Ending) -> None:
        """Follow what a session has ended and committed."""
        if not ended:
            return
        follow = partial(self._following.ended_together, ended, ending)
        if self._others and not on_event_loop():
            with suppress(TimeoutError, ExportError):
                self._primary.call(follow, CONF.lookup_timeout)
        else:
            self._primary.call_soon(follow)

    def _have_writer_do(self, work: Callable[[], _T], seconds: float | None = None) -> _T:
        timeout = seconds or CONF.create_timeout
        try:
            return self._primary.call(work, timeout)
        except TimeoutError:
            why = self._primary.last_error or f"the database did not answer within {timeout:g} s"
            raise ActivityNotStoredError(why) from None
        except ExportError as exc:
            raise ActivityNotStoredError(str(exc)) from exc

    def retry_where(
        self, criteria: Sequence[Any], message: object, most: int
    ) -> tuple[Sequence[UUID], dict[UUID, int]]:
        """Have the writer open the next attempt of up to `most` activities that meet the criteria, in one transaction.

        Returns:
            The activities that it found, in ascending order, and the attempts that it opened.

        Raises:
            ActivityNotStoredError: the database does not answer, or refuses.
        """

        def work() -> tuple[Sequence[UUID], dict[UUID, int]]:
            found = self.session_store.find_where(None, criteria, most)
            events = [self.retrying(agent_id, message) for agent_id in found]
            results = self._first.export(events) if self._first is not None and events else ()
            return found, self.retried(events, results)

        return self._have_writer_do(work)

    def retried(self, events: Sequence[ActivityEvent], results: Sequence[ExportResult]) -> dict[UUID, int]:
        """Follow events of `retrying` that were stored; the attempts that they have opened."""
        opened: dict[UUID, int] = {}
        for event, result in zip(events, results, strict=True):
            if isinstance(result, Ack):
                opened[event.agent_id] = result.attempt
                # Decided: another exporter may not have seen the end of the attempt before.
                self._to_others(event._replace(attempt=result.attempt, claims=False))
                self._following.emit_record(event)
                self.live.join(event.agent_id, result.attempt)
        return opened

    def exists(self, criteria: Sequence[Any]) -> bool:
        """Whether an activity meets the criteria, also after the events that wait. Raises as `end_together`."""
        return bool(self._have_writer_do(partial(self.session_store.find_where, None, criteria, 1)))

    # -- in a session -------------------------------------------------------------------------------------------

    def committed(self, event: ActivityEvent, stored: StoredActivity, result: ExportResult) -> None:
        """Follow an event that a session has written and committed.

        Args:
            stored: The row before the event.
        """
        if event.reopens:
            self.retried([event], [result])
            return
        live = self.live.adopt(stored)
        mirrored = self._mirror_on(live, event, reported=True)
        self._to_others(mirrored, live)
        self._stop_if_canceled(live, event)
        if mirrored.span is not None:
            self._primary.call_soon(lambda: self._following.name_spans([live]))
        self._following.acknowledged([mirrored], result)

    def has_pending(self, agent_id: UUID) -> bool:
        """Whether events of this activity may wait to be stored."""
        live = self.live.get(agent_id)
        return live.is_pending if live is not None else self._primary.pending > 0  # It may have been forgotten.

    # -- spans of attempts that have ended ----------------------------------------------------------------------

    def replay(self, criteria: Sequence[Any], batch_size: int, progress: Progress | None, dry_run: bool) -> int:
        """What `ax.replay` does, for the spans that meet the criteria."""
        return self._replay.run(criteria, batch_size, progress, dry_run)

    def spans_reported(self, spans: Sequence[tuple[UUID, str]], *, exported: bool) -> None:
        """A tracked exporter has exported these spans, or failed to."""
        self._following.hand_over.report(spans, exported=exported)

    def _tick(self) -> None:
        self._following.hand_over.work()
        if self._liveness is not None:
            self._liveness.tick()

    # -- the end ------------------------------------------------------------------------------------------------

    def start_writer(self) -> None:
        """Start the writer now: a worker with nothing to do still ends what the one before it has lost."""
        self._primary.start()

    def recover(self, timeout: float, *, dead_letters: bool = False) -> int:
        """What `ax.recover` does."""
        return sum(processor.replay(timeout, dead_letters=dead_letters) for processor in self._processors)

    def health(self) -> dict[str, Any]:
        """What `ax.health` returns."""
        exporters = [processor.health() for processor in self._processors]
        return {
            "configured": True,
            "ok": all(one["last_error"] is None for one in exporters),
            "worker_id": self.worker_id(),
            "reaped": self._liveness.reaped if self._liveness is not None else 0,
            "exporters": exporters,
        }

    def flush(self, timeout: float) -> bool:
        """Wait until everything reported so far is stored, and on its span, within `timeout` seconds altogether."""
        left = countdown(timeout)
        done = [one.force_flush(left()) for one in self._processors]
        self._following.hand_over.finish(left())
        return self._following.mirror.drain(left()) and all(done)

    def _call_soon(self, work: Callable[[], object], give_up: Callable[[], object] = lambda: None) -> None:
        self._primary.call_soon(work, give_up)

    def flush_first(self, timeout: float) -> bool:
        """As `flush`, for the exporter that decides."""
        return self._primary.force_flush(timeout)

    def stop(self, timeout: float) -> bool:
        """Flush and stop the writers, within `timeout` seconds altogether; activities continue."""
        left = countdown(timeout)
        done = [one.shutdown(left()) for one in self._processors]
        self._following.hand_over.end_unclaimed()
        return all(done)

    def shutdown(self, timeout: float) -> bool:
        """As `stop`, and release the activities that run here.

        A tenth of the time is kept for ending spans: if the writer needs it all, a process that exits would lose them.
        """
        for_spans = timeout / 10
        left = countdown(timeout - for_spans)
        if self._liveness is not None and self._primary.running and self._primary.last_error is None:
            with suppress(TimeoutError, ExportError):
                if self._primary.force_flush(timeout / 2):  # An event that came behind would take its lease again.
                    self._primary.call(self._liveness.release, timeout / 4)
                    self._replay.finish(self._following, left() / 2)
        done = self.stop(left())
        self._following.end_spans()
        self._following.mirror.stop(left() + for_spans)
        return done

    def take_over(self, previous: Runtime) -> None:
        """Continue with the activities that run while the set-up is replaced.

        Both know them from here on: what the previous one's writer has still to store may be their end.
        """
        self._following.take_over(previous._following)
        self.live = self._following.live
        previous._successor = self

    def after_fork_in_child(self) -> None:
        """Activities, spans, queues and connections are the parent's."""
        self.pid, self._worker_id = os.getpid(), new_worker_id()  # A forked child is another worker.
        self._order = threading.RLock()
        self._replay.reset()
        self._following.after_fork_in_child()
        if self._reader is not None:
            self._reader.reset()
        for processor in self._processors:
            processor.after_fork_in_child()
