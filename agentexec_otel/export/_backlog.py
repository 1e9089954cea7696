"""What was emitted and is not stored yet: in memory up to a bound, beyond it in the spool alone; never out of order.

Every event is appended to the spool first, where there is one. While memory has room it is also queued; beyond that
the writer reads it back from the spool once it has worked the queue off. Where there is no spool, or it is full,
progress is coalesced to the latest line of each activity, and a line in the history says how many were dropped.
Life-cycle events are never dropped.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from queue import Empty, SimpleQueue
from uuid import UUID

from agentexec_otel._model.codec import MalformedEventError, decode, encode
from agentexec_otel._model.event import RUNNING, ActivityEvent
from agentexec_otel._model.ids import uuid7
from agentexec_otel.export._delivery import Entry
from agentexec_otel.export._spool import Position, Spool, SpoolError, SpoolFullError

_logger = logging.getLogger("agentexec_otel.export")


@dataclass(slots=True)
class Job:
    """Something the writer does between batches, or tells that it will not; `None` in the queue ends the writer."""

    run: Callable[[], object]
    give_up: Callable[[], object] = lambda: None


@dataclass(slots=True)
class Intake:
    """How many events came in, and how many of them went nowhere."""

    emitted: int = 0
    dropped: int = 0
    coalesced: int = 0


class Backlog:
    """The queue between producers and one writer.

    Args:
        spool: None keeps everything in memory.
        max_events: How many events may wait in memory.
    """

    def __init__(self, spool: Spool | None, max_events: int) -> None:
        self.spool = spool
        self.intake = Intake()
        self._max = max_events
        self._queue: SimpleQueue[Entry | Job | None] = SimpleQueue()
        # Reentrant: a signal handler may report an activity while the same thread is in here.
        self._lock = threading.RLock()
        # The last record that is, or was, in memory; and where reading back goes on, while the spool alone has some.
        self._queued_to: Position = 0
        self._resume: Position | None = None
        self._jobs = 0
        self._spilled = 0
        self._awaited: dict[Position, Entry] = {}
        self._latest: dict[UUID, tuple[Entry, int]] = {}
        # What may not be dropped, in memory behind lines of the same activity that the spool alone has.
        self._behind: dict[UUID, list[Entry]] = {}

    # -- producers ------------------------------------------------------------------------------------------

    def put(self, entry: Entry) -> bool:
        """Take an event; False where it had to be dropped."""
        with self._lock:
            self.intake.emitted += 1
            if self._behind and entry.event.agent_id in self._behind:
                return self._squeeze(entry)
            if self._latest and entry.event.agent_id in self._latest and not self._unsqueeze(entry.event):
                return self._squeeze(entry)
            entry.position = self._spool(entry.event, not _is_progress(entry.event))
            if self._resume is None and self._queue.qsize() < self._max:
                self._queue.put(entry)
                if entry.position is not None and entry.position > self._queued_to:
                    self._queued_to = entry.position
                return True
            if entry.position is not None:
                self._spill(entry, entry.position)
                return True
            return self._squeeze(entry)

    def put_first(self, entry: Entry) -> None:
        """Take the event that opens an activity, or an attempt: its producer waits for it, so it is not spooled."""
        with self._lock:
            self.intake.emitted += 1
            self._queue.put(entry)

    def put_job(self, job: Job | None) -> None:
        """Have the writer do something behind the events in memory; None ends it."""
        with self._lock:
            self._jobs += 1
        self._queue.put(job)

    def _spool(self, event: ActivityEvent, vital: bool) -> Position | None:
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
        if self.spool is not None and self._resume is None:
            _logger.warning("activity events are kept in memory only from here on: %s", exc)
            self.spool = None

    def _spill(self, entry: Entry, position: Position) -> None:
        if self._resume is None:
            self._resume = self._queued_to
            _logger.warning("more than %d activity events are waiting: the rest waits in the spool", self._max)
        if entry.on_settled is not None:
            self._awaited[position] = entry
        self._spilled += 1

    def _unsqueeze(self, event: ActivityEvent) -> bool:
        """Where the spool has room for `event`, what was squeezed of its activity goes there before it."""
        vital = not _is_progress(event)
        entry, dropped = self._latest.pop(event.agent_id)
        if dropped:
            gap = Entry(_gap(entry.event, dropped))
            if not self._spilled_as(gap, vital):
                self._latest[event.agent_id] = (entry, dropped)
                return False
            self.intake.emitted += 1
        if not self._spilled_as(entry, vital):
            self._latest[event.agent_id] = (entry, 0)
            return False
        return True

    def _spilled_as(self, entry: Entry, vital: bool) -> bool:
        entry.position = self._spool(entry.event, vital)
        if entry.position is not None:
            self._spill(entry, entry.position)
        return entry.position is not None

    def _squeeze(self, entry: Entry) -> bool:
        event = entry.event
        before = self._latest.pop(event.agent_id, None)
        if not _is_progress(event):
            vital = [*self._released(before), entry]
            if self._resume is None and event.agent_id not in self._behind:
                self._put_all(vital)
            else:
                self._behind.setdefault(event.agent_id, []).extend(vital)
            return True
        if before is None and len(self._latest) >= self._max:
            self._count_dropped()
            return False
        if before is not None:
            self.intake.coalesced += 1
            self._count_dropped()
        self._latest[event.agent_id] = (entry, 0 if before is None else before[1] + 1)
        return True

    def _count_dropped(self) -> None:
        self.intake.dropped += 1
        if self.intake.dropped == 1:
            _logger.warning("the queue of activity events is full: only the latest progress line of each is kept")

    def _released(self, squeezed: tuple[Entry, int] | None) -> list[Entry]:
        if squeezed is None:
            return []
        entry, dropped = squeezed
        if not dropped:
            return [entry]
        self.intake.emitted += 1
        return [Entry(_gap(entry.event, dropped)), entry]

    def _put_all(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self._queue.put(entry)

    # -- the writer -----------------------------------------------------------------------------------------

    def take(self, most: int, timeout: float) -> list[Entry | Job | None]:
        """Whatever is waiting, `most` items at the most; waits up to `timeout` seconds for the first one."""
        items = self._queued(most)
        if not items and self._resume is not None:
            items.extend(self._read_back())
        if not items and (self._behind or self._latest):
            self._release_all()
            items = self._queued(most)
        if not items:
            try:
                items = [self._queue.get(timeout=timeout)]
            except Empty:
                return []
            items += self._queued(most - 1)
        jobs = sum(not isinstance(item, Entry) for item in items)
        if jobs:
            with self._lock:
                self._jobs -= jobs
        return items

    def drain(self) -> list[Entry | Job | None]:
        """All that waits in memory, at the end."""
        self._release_all()
        with self._lock:
            self._jobs = 0
        return self._queued(sys.maxsize)

    def _queued(self, most: int) -> list[Entry | Job | None]:
        items: list[Entry | Job | None] = []
        try:
            while len(items) < most:
                items.append(self._queue.get_nowait())
        except Empty:
            pass
        return items

    def _read_back(self) -> list[Entry]:
        with self._lock:
            records = self.spool.read(self._resume or 0) if self.spool is not None else []
            if not records:
                self._resume = None
                self._spilled = 0
                return []
            self._resume = self._queued_to = records[-1][0]
            self._spilled -= len(records)
            entries = [self._awaited.pop(position, None) or self._decoded(position, raw) for position, raw in records]
        return [entry for entry in entries if entry is not None]

    def _decoded(self, position: Position, raw: bytes) -> Entry | None:
        try:
            return Entry(decode(raw), position=position)
        except MalformedEventError:
            self.intake.dropped += 1
            self.done([position])
            return None

    def _release_all(self) -> None:
        with self._lock:
            for entries in self._behind.values():
                self._put_all(entries)
            self._behind.clear()
            squeezed = list(self._latest.values())
            self._latest.clear()
            for one in squeezed:
                self._put_all(self._released(one))

    def done(self, positions: Iterable[Position]) -> None:
        """These are settled; the spool need not keep them."""
        if self.spool is not None:
            self.spool.ack(positions)

    def sync(self) -> None:
        """Have the spool on disk, where it is kept there; one whose disk fails is given up."""
        if self.spool is not None:
            try:
                self.spool.sync()
            except SpoolError as exc:
                self._degrade(exc)

    @property
    def waiting(self) -> int:
        """Events in memory, in the spool alone, and squeezed."""
        behind = sum(map(len, list(self._behind.values())))
        return max(0, self._queue.qsize() - self._jobs) + self._spilled + len(self._latest) + behind

    @property
    def idle(self) -> bool:
        """Whether nothing waits anywhere."""
        return self._queue.empty() and not self.beyond

    @property
    def beyond(self) -> bool:
        """Whether something waits that had no room in the queue."""
        return self._resume is not None or bool(self._latest) or bool(self._behind)

    def counts(self) -> dict[str, int]:
        """The intake counters as plain values."""
        return asdict(self.intake)


def _is_progress(event: ActivityEvent) -> bool:
    """Whether a line may be lost without changing the activity's status, attempt or span."""
    return event.status is RUNNING and event.span is None and event.opening is None


def _gap(event: ActivityEvent, dropped: int) -> ActivityEvent:
    text = f"{dropped} progress {'line was' if dropped == 1 else 'lines were'} dropped here: the queue was full."
    occurred_at_ns = min(event.occurred_at_ns, time.time_ns())
    return event._replace(event_id=uuid7(), message=text, percentage=None, occurred_at_ns=occurred_at_ns)
