"""One writer thread per exporter, which commits events in groups, without a timer.

While a transaction is in flight, the next batch fills. An event that finds the writer idle is committed at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from agentexec_otel._errors import ActivityNotStoredError, MisconfiguredExportError, guarded
from agentexec_otel._model.event import ActivityEvent
from agentexec_otel._model.results import Ack, ExportResult, Reject
from agentexec_otel._sdk import suppressed_instrumentation
from agentexec_otel.export._backlog import Backlog, Job
from agentexec_otel.export._dead_letters import keep_dead_letter, keep_message
from agentexec_otel.export._delivery import ClosingError, Delivery, DeliveryCounts, Entry, Storing
from agentexec_otel.export._protocol import ActivityExporter
from agentexec_otel.export._replay import Replay
from agentexec_otel.export.spool import Spool

_logger = logging.getLogger("agentexec_otel.export")
_T = TypeVar("_T")

HOUSEKEEPING_INTERVAL = 1.0
_CLOSED = "the writer has been shut down"


class ActivityProcessor:
    """Hands activity events to one exporter, in order, from a writer thread of its own.

    Args:
        exporter: Where the events go.
        spool: Keeps accepted events if this process dies. None keeps them in memory.
        max_queue_size: Number of events waiting in memory. Further ones wait in the spool. Without a spool, progress
            logs are coalesced and counted; life-cycle events never are.
        max_batch_size: Events per `ActivityExporter.export` call.
        on_acknowledged: Called on the writer thread with each event and the exporter's final answer.
        on_start: Called before the writer starts, once in each process.
        on_idle: Called on the writer thread about once a second while the exporter answers.
    """

    def __init__(
        self,
        exporter: ActivityExporter,
        *,
        spool: Spool | None = None,
        max_queue_size: int = 10_000,
        max_batch_size: int = 5_000,
        on_acknowledged: Callable[[ActivityEvent, ExportResult], None] | None = None,
        on_start: Callable[[], None] | None = None,
        on_idle: Callable[[], None] | None = None,
    ) -> None:
        self.exporter = exporter
        self._spool = spool
        self._max_queue_size = max_queue_size
        self._max_batch_size = max_batch_size
        self._on_acknowledged = on_acknowledged
        self._on_start = on_start
        self._on_idle = on_idle
        self._closed = False
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()  # Held while the writer starts and while shutdown() begins.
        self._backlog = Backlog(self._spool, self._max_queue_size)
        self._thread: threading.Thread | None = None
        self._deadline: float | None = None  # The writer is to end, by then at the latest.
        self._nudge = threading.Event()
        self._in_flight = 0
        self._positions: list[int] = []  # In the spool, of what is acknowledged in this batch.
        self._counts = DeliveryCounts()
        self._delivery = Delivery(self.exporter, self._acknowledge, self._drop, self._pause)
        self._replay = Replay(self._spool)

    # -- producers ------------------------------------------------------------------------------------------

    def emit(self, event: ActivityEvent) -> bool:
        """Take an event and return at once. False if it was dropped: progress, with no room anywhere."""
        if self._thread is None or self._pid != os.getpid():
            self.start()
        return not self._closed and self._backlog.put(Entry(event))

    def submit(self, event: ActivityEvent, *, refusable: bool = False) -> Future[ExportResult]:
        """Take an event. The future resolves to the exporter's answer, and cannot be canceled.

        Args:
            refusable: The exporter may refuse the event: that is not logged, and the event is not kept.
        """
        return self._submit(event, self._ready().put, refusable)

    def offer(self, event: ActivityEvent) -> Future[ExportResult]:
        """Like `submit`, for an event that is of no use without this process: it is not spooled."""
        future = self._submit(event, self._ready().put_unspooled, refusable=True)
        self._nudge.set()
        return future

    def _submit(self, event: ActivityEvent, put: Callable[[Entry], object], refusable: bool) -> Future[ExportResult]:
        future: Future[ExportResult] = Future()
        future.set_running_or_notify_cancel()
        if self._closed:
            future.set_result(Reject(_CLOSED))
        else:
            put(Entry(event, future.set_result, (lambda exc: None) if refusable else None))
        return future

    def store(self, event: ActivityEvent, timeout: float) -> ExportResult:
        """Take an event and wait for the exporter's answer. Withdraw the event if there is none in time.

        Raises:
            ActivityNotStoredError: No answer within `timeout` seconds, or the destination refuses us.
        """
        storing = self._begin_store(event)
        try:
            return storing.future.result(timeout)
        except (TimeoutError, MisconfiguredExportError):
            return storing.give_up(timeout, self.last_error)
        except BaseException:  # such as Ctrl-C, or what a signal handler raises
            storing.abandon()
            raise

    async def store_async(self, event: ActivityEvent, timeout: float) -> ExportResult:
        """Like `store`, on an event loop."""
        storing = self._begin_store(event)
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(storing.future)), timeout)
        except (TimeoutError, MisconfiguredExportError):
            return storing.give_up(timeout, self.last_error)
        except asyncio.CancelledError:
            storing.abandon()
            raise

    def _begin_store(self, event: ActivityEvent) -> Storing:
        if self._closed:
            raise ActivityNotStoredError(f"the activity {event.agent_id} could not be stored: ax.shutdown() was called")
        storing = Storing(event, self.emit)
        self._ready().put_unspooled(storing.entry)
        self._nudge.set()
        return storing

    def call(self, work: Callable[[], _T], timeout: float) -> _T:
        """Run `work` on the writer thread, after the events that wait in memory. It is canceled if that takes too long.

        Raises:
            TimeoutError: Not done within `timeout` seconds. Exceptions of `work` are passed on.
        """
        future: Future[_T] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as exc:  # noqa: BLE001  # passed on to the caller
                    future.set_exception(exc)

        def give_up() -> None:
            if future.set_running_or_notify_cancel():
                future.set_exception(TimeoutError(_CLOSED))

        self.call_soon(run, give_up)
        self._nudge.set()
        try:
            return future.result(timeout)
        finally:
            future.cancel()

    def call_soon(self, work: Callable[[], object], give_up: Callable[[], object] = lambda: None) -> None:
        """Run `work` on the writer thread, after the events that wait in memory. Does not wait.

        Args:
            give_up: Called instead if the writer ends before that.
        """
        if self._closed:
            give_up()
        else:
            self._ready().put_job(Job(work, give_up))

    def nudge(self) -> None:
        """Wake the writer if it is sleeping between retries."""
        self._nudge.set()

    # -- health ---------------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Number of events without a final answer."""
        return self._backlog.waiting + self._in_flight

    @property
    def last_error(self) -> str | None:
        """Why storing is failing. None while events are being stored."""
        return self._delivery.last_error

    def health(self) -> dict[str, Any]:
        """What the writer is doing, as plain values.

        ``emitted`` + ``replayed`` = ``committed`` + ``duplicate`` + ``dropped`` + ``dead_lettered`` + ``rejected``
        + ``withdrawn`` + ``pending``, whenever nothing moves.
        """
        spool = self._backlog.spool
        return {
            "exporter": type(self.exporter).__name__,
            "durability": spool.durability if spool is not None else "memory",
            "pending": self.pending,
            "spool_bytes": spool.size() if spool is not None else 0,
            "outage_seconds": self._delivery.outage_seconds,
            "last_error": self.last_error,
            "retried": self._delivery.retries,
            **asdict(self._backlog.intake),
            **asdict(self._counts),
        }

    # -- start, flush and shutdown --------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether it was shut down."""
        return self._closed

    @property
    def running(self) -> bool:
        """Whether the writer has been started in this process."""
        return self._thread is not None and self._pid == os.getpid() and not self._closed

    def start(self) -> None:
        """Start the writer before the first event. It also delivers what dead processes left."""
        if self._pid != os.getpid():
            self.after_fork_in_child()
        with self._lock:
            if self._thread is None and not self._closed:
                if self._on_start is not None:
                    self._on_start()
                thread = threading.Thread(target=self._run, name="agentexec-writer", daemon=True)
                try:
                    thread.start()
                except RuntimeError as exc:  # no more threads, or the interpreter is shutting down
                    _logger.warning("the activity writer cannot be started, events wait: %s", exc)
                    return
                self._thread = thread

    def start_if_needed(self) -> None:
        """Start the writer before the first event if dead processes have left events to deliver."""
        if self._spool is not None and self._spool.size():
            self.start()

    def replay(self, timeout: float) -> int:
        """Deliver what dead processes left in the spool, within `timeout` seconds. Returns the number of events."""
        before = self._counts.replayed
        deadline = time.monotonic() + timeout
        self.call_soon(self._replay.now)
        with suppress(TimeoutError):
            while self.call(lambda: self._replay.pending, max(0.0, deadline - time.monotonic())):
                time.sleep(0.01)
        return self._counts.replayed - before

    def force_flush(self, timeout: float = 30.0) -> bool:
        """Wait until everything emitted so far has a final answer. False if that takes over `timeout` seconds."""
        deadline = time.monotonic() + timeout
        if self._thread is None or self._closed:
            return self._backlog.idle
        try:
            # Twice: what the writer itself emits while it delivers the others comes after the first round.
            return self._flush_until(deadline) and self._flush_until(deadline)
        except Exception as exc:  # noqa: BLE001  # whatever an exporter's force_flush raises
            _logger.debug("flushing failed: %s", type(exc).__name__)
            return False

    def _flush_until(self, deadline: float) -> bool:
        while True:
            left = max(0.0, deadline - time.monotonic())
            flushed, is_overflowing = self.call(partial(self._flush, left), left)
            if not is_overflowing:
                return flushed

    def _flush(self, timeout: float) -> tuple[bool, bool]:
        # Asked on the writer's thread: what was queued before is delivered by now, and nothing is in flight.
        return bool(self.exporter.force_flush(timeout)), self._backlog.is_overflowing

    def shutdown(self, timeout: float = 5.0) -> bool:
        """Flush within `timeout` seconds and stop. Idempotent. False if events were left unstored."""
        with self._lock:
            if self._closed:
                return True
            self._closed = True
        deadline = time.monotonic() + timeout
        thread = self._thread
        if thread is not None and self._pid == os.getpid():
            self._deadline = deadline
            self._backlog.put_job(Job(lambda: None))  # Wakes the writer.
            self._nudge.set()
            thread.join(timeout)
        left = self.pending
        if left:
            self._report_left(left)
        with guarded("shutting an exporter down"):
            self.exporter.shutdown(max(0.0, deadline - time.monotonic()))
        if self._spool is not None:
            self._spool.close()
        return left == 0

    def _report_left(self, left: int) -> None:
        what, be, were = (f"{left} activity events", "are", "were") if left > 1 else ("1 activity event", "is", "was")
        where = f"{were} lost" if self._spool is None else f"{be} kept in {self._spool.path} for the next start"
        print(f"agentexec-otel: {what} {were} not stored in time and {where}", file=sys.stderr)  # noqa: T201

    # -- the writer -----------------------------------------------------------------------------------------

    def _ready(self) -> Backlog:
        if not self.running:
            self.start()
        return self._backlog

    def after_fork_in_child(self) -> None:
        """Start anew. What was queued, spooled and connected belongs to the parent."""
        self._reset()
        after_fork = getattr(self.exporter, "after_fork_in_child", None)
        if after_fork is not None:
            after_fork()

    def _run(self) -> None:
        with suppressed_instrumentation():
            while not self._is_done():
                try:
                    wait = 0.0 if self._replay.pending else HOUSEKEEPING_INTERVAL
                    self._work(self._backlog.take(self._max_batch_size, wait))
                    if not self._is_done():
                        self._housekeep()
                except ClosingError:
                    break
                except BaseException as exc:  # noqa: BLE001  # every producer relies on this thread
                    _logger.error("the activity writer continues after %s", type(exc).__name__)
            self._abandon()

    def _is_done(self) -> bool:
        deadline = self._deadline
        return deadline is not None and (self._backlog.idle or time.monotonic() >= deadline)

    def _abandon(self) -> None:
        """Answer everyone who waits for a writer that ends."""
        for item in self._backlog.drain():
            if isinstance(item, Job):
                item.give_up()
                continue
            self._in_flight += 1
            if item.on_result is not None:
                item.on_result(Reject(_CLOSED))

    def _work(self, items: list[Entry | Job]) -> None:
        self._in_flight += sum(isinstance(item, Entry) for item in items)
        jobs = [item for item in items if isinstance(item, Job)]
        batch: list[Entry] = []
        try:
            for item in items:
                if isinstance(item, Entry):
                    batch.append(item)
                    continue
                self._deliver(batch)
                batch = []
                with guarded("a job of the writer"):
                    jobs.pop(0).run()
            self._deliver(batch)
        except ClosingError:
            for job in jobs:
                job.give_up()
            raise

    def _deliver(self, batch: list[Entry], *, replay: bool = False) -> None:
        if not batch:
            return
        try:
            self._delivery.deliver(batch, replay=replay)
        finally:
            positions, self._positions = self._positions, []
            if positions:
                self._backlog.ack(positions)
            self._backlog.sync()

    def _housekeep(self) -> None:
        if chunk := self._replay.next_chunk():
            self._counts.replayed += len(chunk)
            self._in_flight += len(chunk)
            self._deliver(chunk, replay=True)
        if self._on_idle is not None:
            with guarded("the writer's housekeeping"):
                self._on_idle()

    def _acknowledge(self, entry: Entry, result: ExportResult) -> None:
        self._in_flight -= 1
        if entry.position is not None:
            self._positions.append(entry.position)
        if isinstance(result, Ack):
            self._counts.add(result)
        elif isinstance(result, Reject):
            self._reject(entry, result)
        if self._on_acknowledged is not None:
            with guarded("following up a stored event"):
                self._on_acknowledged(entry.event, result)
        if entry.on_result is not None:
            with guarded("notifying a producer"):
                entry.on_result(result)

    def _reject(self, entry: Entry, result: Reject) -> None:
        if entry.abandoned:
            self._counts.withdrawn += 1  # There was no row to end.
        elif entry.on_failure is not None:
            self._counts.rejected += 1  # The producer raises an exception.
        else:
            self._counts.dead_lettered += 1
            keep_dead_letter(self._dead_letters, entry.event, result.reason)

    @property
    def _dead_letters(self) -> Path | None:
        """The folder for what can never be stored."""
        return self._spool.path if self._spool is not None else None

    def keep_message(self, message: str, reason: str) -> None:
        """Keep a message of a task queue that no worker can run with the dead letters, and log the reason."""
        keep_message(self._dead_letters, message, reason)

    def _drop(self, entry: Entry) -> None:
        self._in_flight -= 1
        self._counts.withdrawn += 1

    def _pause(self, seconds: float) -> bool:
        """Sleep between tries. During shutdown: sleep briefly, and return True after the deadline."""
        end = time.monotonic() + seconds
        while self._deadline is None and not self._nudge.is_set() and time.monotonic() < end:
            self._nudge.wait(min(0.1, max(0.0, end - time.monotonic())))
            self._backlog.sync()
        if self._deadline is None:
            self._nudge.clear()
            return False
        time.sleep(min(seconds, 0.05))
        return time.monotonic() >= self._deadline
