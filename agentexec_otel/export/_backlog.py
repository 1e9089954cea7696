"""Events that were emitted and are not stored yet, in order.

Each event is appended to the spool first, if there is one. While the queue has room, the event is queued as well. After
that, the writer reads it back from the spool. If the spool is full or missing, events are held in memory after all
others until the writer has taken those: life-cycle events without a limit, but of progress only the latest log of each
activity. A log in the history then says how many were dropped.

A signal handler may raise in the middle of a call of a producer. CPython runs handlers after a call, at the end of a
loop, and at the start of a function, and nowhere else. So an event is counted and queued by statements without a call
between them: it is both, or neither.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from uuid import UUID

from agentexec_otel._model.codec import MalformedEventError, decode, encode
from agentexec_otel._model.event import RUNNING, ActivityEvent
from agentexec_otel._model.ids import uuid7
from agentexec_otel.export._delivery import Entry
from agentexec_otel.export.spool import Position, Spool, SpoolError, SpoolFullError

_logger = logging.getLogger("agentexec_otel.export")


@dataclass(slots=True)
class Job:
    """Work for the writer between batches. It calls `give_up` instead of `run` if it ends first."""

    run: Callable[[], object]
    give_up: Callable[[], object] = lambda: None


@dataclass(slots=True)
class Intake:
    """Number of events that came in, and of those that were dropped, or are unreadable in the spool."""

    emitted: int = 0
    dropped: int = 0
    coalesced: int = 0
    damaged: int = 0


class Backlog:
    """The queue between producers and one writer.

    Args:
        spool: None keeps everything in memory.
        max_events: Number of events that the queue in memory holds.
    """

    def __init__(self, spool: Spool | None, max_events: int) -> None:
        self.spool = spool
        self.intake = Intake()
        self.restored = 0  # Number of files of the spool.
        self._restoring_fails = False
        self._max = max_events
        self._queue: SimpleQueue[Entry | Job] = SimpleQueue()
        # Guards what is below, and the order of appends to the spool. Held while the spool writes or reads a record.
        # Reentrant: a signal handler may report an activity while the same thread is in here.
        self._lock = threading.RLock()
        self._jobs = 0
        # Number of events that the spool alone has. Their positions are after `_queued_to`, up to `_spilled_to`.
        self._spilled = 0
        self._queued_to: Position = 0
        self._spilled_to: Position = 0
        self._awaited: dict[Position, Entry] = {}
        # Events without room elsewhere, each with the number of progress logs that it has replaced.
        self._held: list[tuple[Entry, int]] = []
        # Index in `_held` of the progress log that the next one of its activity replaces.
        self._latest: dict[UUID, int] = {}

    # -- producers ------------------------------------------------------------------------------------------

    def put(self, entry: Entry) -> bool:
        """Take an event. False if it is progress that a later log of its activity may replace, or is dropped."""
        with self._lock:
            progress = _is_progress(entry.event)
            held = self._held
            position = None if held and progress else self._append(entry.event, not progress)
            try:
                if not held and not self._is_spilling and self._queue.qsize() < self._max:
                    if position is not None and position > self._queued_to:
                        self._queued_to = position
                    entry.position = position
                    self.intake.emitted += 1
                    self._queue.put(entry)
                elif not held and position is not None:
                    self._spill(entry, position)
                else:
                    self._hold(entry, position, progress)
                    return not progress
            except BaseException:
                if position is not None and entry.position is None:  # Interrupted before it was taken.
                    self.ack([position])
                raise
            return True

    def put_unspooled(self, entry: Entry) -> None:
        """Queue an event that opens an activity or an attempt. Its producer waits for it, so it is not spooled."""
        with self._lock:
            self.intake.emitted += 1
            self._queue.put(entry)

    def put_job(self, job: Job) -> None:
        """Have the writer do something after the events in memory."""
        with self._lock:
            self._jobs += 1
            self._queue.put(job)

    def _append(self, event: ActivityEvent, vital: bool) -> Position | None:
        if self.spool is None:
            return None
        try:
            return self.spool.append(encode(event), vital=vital)
        except SpoolFullError:
            return None
        except (SpoolError, MalformedEventError) as exc:
            self._degrade(exc)
            return None

    def _degrade(self, exc: Exception) -> None:
        if self.spool is not None and not self._is_spilling:
            _logger.warning("activity events are kept in memory only from here on: %s", exc)
            self.spool = None

    def _spill(self, entry: Entry, position: Position) -> None:
        if not self._is_spilling:
            _logger.warning("more than %d activity events are waiting: the rest waits in the spool", self._max)
        if entry.on_result is not None:
            self._awaited[position] = entry
        entry.position = position
        if position > self._spilled_to:
            self._spilled_to = position
        self._spilled += 1
        self.intake.emitted += 1

    def _hold(self, entry: Entry, position: Position | None, progress: bool) -> None:
        agent_id = entry.event.agent_id
        latest = self._latest.get(agent_id) if progress else self._latest.pop(agent_id, None)
        if not progress or (latest is None and len(self._latest) < self._max):
            index = len(self._held)
            entry.position = position
            self.intake.emitted += 1
            self._held.append((entry, 0))
            if progress:
                self._latest[agent_id] = index
            return
        if self.intake.dropped == 0:
            _logger.warning("the queue of activity events is full: only the latest progress line of each is kept")
        if latest is not None:
            self._held[latest] = (entry, self._held[latest][1] + 1)
            self.intake.coalesced += 1
        self.intake.dropped += 1
        self.intake.emitted += 1

    # -- the writer -----------------------------------------------------------------------------------------

    def take(self, most: int, timeout: float) -> list[Entry | Job]:
        """Return what is waiting, at most `most` items. Waits up to `timeout` seconds for the first one."""
        if self.is_overflowing:
            with self._lock:
                if self._queue.empty() and not self._read_back():
                    self._release()
        try:
            items = [self._queue.get(timeout=timeout)]
        except Empty:
            return []
        items += self._queued(most - 1)
        if jobs := sum(isinstance(item, Job) for item in items):
            with self._lock:
                self._jobs -= jobs
        return items

    def drain(self) -> list[Entry | Job]:
        """Return everything that waits in memory, when the writer ends."""
        with self._lock:
            self._release()
            self._jobs = 0
        return self._queued(sys.maxsize)

    def _queued(self, most: int) -> list[Entry | Job]:
        items: list[Entry | Job] = []
        try:
            while len(items) < most:
                items.append(self._queue.get_nowait())
        except Empty:
            pass
        return items

    def _read_back(self) -> bool:
        """Move the next events into the queue, if the spool alone has them."""
        if not self._is_spilling:
            return False
        # What was appended after the spilled records is in memory.
        read = self.spool.read(self._queued_to) if self.spool is not None else []
        records = {position: payload for position, payload in read if position <= self._spilled_to}
        self._queued_to = max(records, default=self._spilled_to)
        # The producer's own entry is in memory: its record may be damaged.
        awaited = [position for position in self._awaited if position <= self._queued_to]
        positions = sorted({*records, *awaited})
        for position in positions:
            try:
                entry = self._awaited.pop(position, None)
                self._queue.put(entry or Entry(decode(records[position]), position=position))
            except MalformedEventError:
                self._count_damaged(1)
                self.ack([position])
        self._spilled -= len(positions)
        if not self._is_spilling:
            # Fewer were read than were spilled: damage. More: an interrupted `put` could not take its record back.
            self._count_damaged(max(0, self._spilled))
            self.intake.emitted += max(0, -self._spilled)
            self._spilled = 0
        return bool(positions)

    def _count_damaged(self, lost: int) -> None:
        self.intake.damaged += lost
        if lost:
            _logger.error("%d activity events are lost: their records in the spool are damaged", lost)

    def _release(self) -> None:
        """Move the held events into the queue."""
        held, self._held = self._held, []
        self._latest.clear()
        for entry, dropped in held:
            if dropped:
                self.intake.emitted += 1
                self._queue.put(Entry(_gap(entry.event, dropped)))
            self._queue.put(entry)
            self._queued_to = max(self._queued_to, entry.position or 0)

    def ack(self, positions: Iterable[Position]) -> None:
        """Acknowledge events: the spool need not keep them."""
        if self.spool is not None:
            self.spool.ack(positions)

    def sync(self) -> None:
        """Bring the spool to the disk, if its durability requires that. Stop using it if its disk fails."""
        if self.spool is not None:
            try:
                self.spool.sync()
            except SpoolError as exc:
                self._degrade(exc)

    def restore(self) -> None:
        """Write the spool's files again if something has removed them."""
        if self.spool is None:
            return
        try:
            restored = self.spool.restore()
        except SpoolError as exc:
            if not self._restoring_fails:
                _logger.warning("the spool %s was removed, its events are in memory only: %s", self.spool.path, exc)
            self._restoring_fails = True
            return
        self._restoring_fails = False
        self.restored += restored
        if restored:
            _logger.warning("%d files of the spool %s were removed, and are written again", restored, self.spool.path)

    @property
    def waiting(self) -> int:
        """Number of events in memory and in the spool alone."""
        return max(0, self._queue.qsize() - self._jobs) + self._spilled + len(self._held)

    @property
    def idle(self) -> bool:
        """Whether neither events nor jobs are waiting."""
        return self._queue.empty() and not self.is_overflowing

    @property
    def is_overflowing(self) -> bool:
        """Whether events wait that had no room in the queue."""
        return self._is_spilling or bool(self._held)

    @property
    def _is_spilling(self) -> bool:
        return self._queued_to < self._spilled_to


def _is_progress(event: ActivityEvent) -> bool:
    """Whether the event may be lost without changing the activity's status, attempt or span."""
    return event.status is RUNNING and event.opening is None and not (event.starts or event.claims)


def _gap(event: ActivityEvent, dropped: int) -> ActivityEvent:
    text = f"{dropped} progress {'line was' if dropped == 1 else 'lines were'} dropped here: the queue was full."
    return event._replace(event_id=uuid7(), message=text, percentage=None)
