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
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from itertools import takewhile
from typing import Any, TypeVar, cast

from agentexec_otel._errors import ActivityNotStoredError, MisconfiguredExportError, guarded
from agentexec_otel._model.codec import encode
from agentexec_otel._model.event import ActivityEvent
from agentexec_otel._model.results import Ack, ExportResult, Reject, Retry
from agentexec_otel._sdk import suppressed_instrumentation
from agentexec_otel.export._backlog import Backlog, Job
from agentexec_otel.export._dead_letters import keep_dead_letter, keep_message, taking_events
from agentexec_otel.export._delivery import Answered, ClosingError, Delivery, DeliveryCounts, Entry, Storing
from agentexec_otel.export._protocol import ActivityExporter
from agentexec_otel.export._replay import Replay
from agentexec_otel.export.spool import Spool

_logger = logging.getLogger("agentexec_otel.export")
_T = TypeVar("_T")

HOUSEKEEPING_INTERVAL = 1.0
_CUT_SECONDS = 0.1
FIRST_BACKOFF = 0.05
LONGEST_BACKOFF = 5.0
_CLOSED = "the writer has been shut down"


class ActivityProcessor:
    """Hands activity events to one exporter, in order, from a writer thread of its own.

    Args:
        exporter: Where the events go.
        spool: Keeps accepted events if this process dies. None keeps them in memory.
        max_queue_size: Number of events waiting in memory. Further ones wait in the spool. Without a spool, progress
            logs are coalesced and counted; life-cycle events never are.
        max_batch_size: Events per `ActivityExporter.export` call.
        on_acknowledged: Called on the writer thread with the exporter's final answer, and the events that it is for:
            one, or consecutive ones of the same attempt.
        on_start: Called before the writer starts, once in each process.
        on_idle: Called on the writer thread about once a second while the exporter answers.

    Attributes:
        closed: Whether it was shut down.
    """

    def __init__(
        self,
        exporter: ActivityExporter,
        *,
        spool: Spool | None = None,
        max_queue_size: int = 10_000,
        max_batch_size: int = 5_000,
        on_acknowledged: Callable[[Sequence[ActivityEvent], ExportResult], None] | None = None,
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
        self.closed = False
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()  # Held while the writer starts and while shutdown() begins.
        self._backlog = Backlog(self._spool, self._max_queue_size)
        self._thread: threading.Thread | None = None
        self._deadline: float | None = None  # The writer is to end, by then at the latest.
        self._nudge = threading.Event()
        # What the writer has taken, up to what it works on. An unexpected exception leaves the rest here.
        self._taken: deque[Entry | Job] = deque()
        self._in_flight = 0
        self._positions: list[int] = []  # In the spool, of what was answered and is still to be acknowledged there.
        self._counts = DeliveryCounts()
        self._delivery = Delivery(self.exporter, self._acknowledge, self._drop, self._pause)
        self._replay = Replay(self._spool)

    # -- producers ------------------------------------------------------------------------------------------

    def emit(self, event: ActivityEvent) -> bool:
        """Take an event and return at once. False if it may be dropped: progress, with no room anywhere."""
        if self._thread is None or self._pid != os.getpid():
            self.start()
        return not self.closed and self._backlog.put(Entry(event))

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
        if self.closed:
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
        if self.closed:
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
        if self.closed:
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

        ``emitted`` + ``replayed`` = ``committed`` + ``duplicate`` + ``dropped`` + ``damaged`` + ``dead_lettered``
        + ``rejected`` + ``withdrawn`` + ``pending``, whenever nothing moves.
        """
        spool = self._backlog.spool
        intake, counts = asdict(self._backlog.intake), asdict(self._counts)
        # A damaged record of a dead process was an event that came in and is lost.
        intake["damaged"] += self._replay.damaged
        counts["replayed"] += self._replay.damaged
        return {
            "exporter": type(self.exporter).__name__,
            "durability": spool.durability if spool is not None and spool.is_intact else "memory",
            "pending": self.pending,
            "spool_bytes": spool.size() if spool is not None else 0,
            "spool_restored": self._backlog.restored,
            "outage_seconds": self._delivery.outage_seconds,
            "last_error": self.last_error,
            "retried": self._delivery.retries,
            **intake,
            **counts,
        }

    # -- start, flush and shutdown --------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the writer has been started in this process."""
        return self._thread is not None and self._pid == os.getpid() and not self.closed

    def start(self) -> None:
        """Start the writer before the first event. It also delivers what dead processes left."""
        if self._pid != os.getpid():
            self.after_fork_in_child()
        with self._lock:
            if self._thread is None and not self.closed:
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

    def replay(self, timeout: float, *, dead_letters: bool = False) -> int:
        """Deliver what dead processes left in the spool, within `timeout` seconds. Returns the number of events.

        Args:
            dead_letters: Try the events among the dead letters once more. Those that are refused become dead letters
                again.

        Raises:
            SpoolError, OSError: The dead letters cannot be read, or not be spooled. They stay.
        """
        if dead_letters and self._spool is not None:
            with taking_events(self._spool.path) as events:
                self._spool.leave(map(encode, events))
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
        if self._thread is None or self.closed:
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
            if self.closed:
                return True
            self.closed = True
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
        if thread is not None and self._pid == os.getpid():
            # The exporter may have cut the writer's connection just now. What the writer then clears up would race the
            # exit handler of `weakref`, which iterates over a dict of all threads.
            thread.join(_CUT_SECONDS)
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
        if not self._is_the_writer():
            return
        backoff = FIRST_BACKOFF
        reported = set[object]()
        with suppressed_instrumentation():
            while not self._is_done():
                try:
                    self._step()
                    backoff = FIRST_BACKOFF
                except ClosingError:
                    break
                except BaseException as exc:  # noqa: BLE001  # every producer relies on this thread
                    _report_once(exc, reported)
                    self._nudge.wait(backoff if self._deadline is None else FIRST_BACKOFF)
                    self._nudge.clear()
                    backoff = min(2 * backoff, LONGEST_BACKOFF)
            self._abandon()

    def _is_the_writer(self) -> bool:
        """Whether this thread is the writer. Not if `start` was interrupted, and has started another one since."""
        with self._lock:
            self._thread = self._thread or threading.current_thread()
            return self._thread is threading.current_thread()

    def _step(self) -> None:
        is_resuming = bool(self._taken)
        if not is_resuming:
            wait = 0.0 if self._replay.pending else HOUSEKEEPING_INTERVAL
            self._take(self._backlog.take(self._max_batch_size, wait))
        self._work(replay=is_resuming)
        if not self._is_done():
            self._housekeep()

    def _is_done(self) -> bool:
        deadline = self._deadline
        is_idle = self._backlog.idle and not self._taken
        return deadline is not None and (is_idle or time.monotonic() >= deadline)

    def _abandon(self) -> None:
        """Answer everyone who waits for a writer that ends."""
        for job in self._taken:
            if isinstance(job, Job):
                job.give_up()
        for item in self._backlog.drain():
            if isinstance(item, Job):
                item.give_up()
                continue
            self._in_flight += 1
            if item.on_result is not None:
                item.on_result(Reject(_CLOSED))

    def _take(self, items: Sequence[Entry | Job]) -> None:
        self._in_flight += sum(isinstance(item, Entry) for item in items)
        self._taken.extend(items)

    def _work(self, *, replay: bool = False) -> None:
        """Deliver the events and run the jobs that were taken, in order."""
        while self._taken:
            batch = cast("list[Entry]", list(takewhile(_is_entry, self._taken)))
            self._deliver([entry for entry in batch if not entry.answered], replay=replay)
            for _ in batch:
                self._taken.popleft()
            if self._taken:
                with guarded("a job of the writer"):
                    cast("Job", self._taken.popleft()).run()

    def _deliver(self, batch: list[Entry], *, replay: bool) -> None:
        if not batch and not self._positions:
            return
        try:
            self._delivery.deliver(batch, replay=replay)
        finally:
            if self._positions:
                self._backlog.ack(self._positions)
                self._positions = []
            self._backlog.sync()

    def _housekeep(self) -> None:
        self._backlog.restore()
        if chunk := self._replay.next_chunk():
            self._counts.replayed += len(chunk)
            self._take(chunk)
            self._work(replay=True)
        if self._on_idle is not None:
            with guarded("the writer's housekeeping"):
                self._on_idle()

    def _acknowledge(self, answered: Sequence[Answered]) -> None:
        for entries, result in _runs(answered):
            for entry in entries:
                entry.answered = True
            self._in_flight -= len(entries)
            self._positions += [entry.position for entry in entries if entry.position is not None]
            if isinstance(result, Ack):
                self._counts.add(result, len(entries))
            elif isinstance(result, Reject):
                for entry in entries:
                    self._reject(entry, result)
            if self._on_acknowledged is not None:
                with guarded("following up stored events"):
                    self._on_acknowledged([entry.event for entry in entries], result)
            for entry in entries:
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
            keep_dead_letter(self._spool, entry.event, result.reason)

    def keep_message(self, message: str, reason: str) -> None:
        """Keep a message of a task queue that no worker can run with the dead letters, and log the reason."""
        keep_message(self._spool, message, reason)

    def _drop(self, entry: Entry) -> None:
        entry.answered = True
        self._in_flight -= 1
        self._counts.withdrawn += 1

    def _pause(self, seconds: float) -> bool:
        """Sleep between tries. During shutdown: sleep briefly, and return True after the deadline."""
        end = time.monotonic() + seconds
        while self._deadline is None and not self._nudge.is_set() and time.monotonic() < end:
            self._nudge.wait(min(0.1, max(0.0, end - time.monotonic())))
            self._backlog.restore()
            self._backlog.sync()
        if self._deadline is None:
            self._nudge.clear()
            return False
        time.sleep(min(seconds, 0.05))
        return time.monotonic() >= self._deadline


def _is_entry(item: Entry | Job) -> bool:
    return isinstance(item, Entry)


def _report_once(exc: BaseException, reported: set[object]) -> None:
    raised_at = traceback.extract_tb(exc.__traceback__)[-1]
    origin = type(exc), raised_at.filename, raised_at.lineno
    if origin not in reported:
        reported.add(origin)
        _logger.error("the activity writer tries again after an unexpected exception", exc_info=exc)


def _runs(answered: Sequence[Answered]) -> Iterator[tuple[list[Entry], ExportResult]]:
    """Group consecutive events of one attempt that have got the same answer."""
    run: list[Entry] = []
    answer: ExportResult = Retry()
    for entry, result in answered:
        if run and not (result is answer and _same_attempt(entry.event, run[-1].event)):
            yield run, answer
            run = []
        run.append(entry)
        answer = result
    if run:
        yield run, answer


def _same_attempt(event: ActivityEvent, other: ActivityEvent) -> bool:
    # By their numbers: UUIDs are slow to compare.
    return event.agent_id.int == other.agent_id.int and event.attempt == other.attempt
