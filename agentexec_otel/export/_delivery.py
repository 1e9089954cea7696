"""One batch to one exporter: tried until every event is settled, by class of failure."""

from __future__ import annotations

import logging
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from agentexec_otel._errors import (
    ActivityNotStoredError,
    ExportError,
    MisconfiguredExportError,
    PoisonExportError,
    TransientExportError,
    guarded,
)
from agentexec_otel._model.event import ActivityEvent, Status
from agentexec_otel._model.ids import uuid7
from agentexec_otel._model.results import Ack, ExportResult, Reject, Retry
from agentexec_otel.export._protocol import ActivityExporter

_logger = logging.getLogger("agentexec_otel.export")

FIRST_BACKOFF = 0.05
LONGEST_BACKOFF = 2.0
MISCONFIGURED_BACKOFF = 30.0
UNKNOWN_TRIES = 3
SLOW = 1.0
_FEW = 16

_ANSWERS = {Ack, Retry, Reject}


class ClosingError(Exception):
    """The processor is shutting down; what is not settled stays with it."""


@dataclass(slots=True)
class Entry:
    """An event on its way, where the spool has it, and how the one who waits for it is told."""

    event: ActivityEvent
    on_settled: Callable[[ExportResult], None] | None = None
    on_trouble: Callable[[BaseException], None] | None = None
    withdrawn: bool = False
    uncertain: bool = False
    position: int | None = None


@dataclass(slots=True)
class Settled:
    """What became of the events that the writer took."""

    replayed: int = 0
    committed: int = 0
    duplicate: int = 0
    late: int = 0
    dead_lettered: int = 0
    rejected: int = 0
    withdrawn: int = 0

    def count(self, ack: Ack) -> None:
        """Count what is stored."""
        if ack.duplicate:
            self.duplicate += 1
        else:
            self.committed += 1
        if ack.late:
            self.late += 1


def _backoffs() -> Iterator[float]:
    """50 ms doubling to 2 s, each with up to half of it taken off at random."""
    wait = FIRST_BACKOFF
    while True:
        yield wait * random.uniform(0.5, 1.0)  # noqa: S311
        wait = min(wait * 2, LONGEST_BACKOFF)


@dataclass(slots=True)
class _Tries:
    """How long one batch has been trying: failures of an unknown kind, and the waits to come."""

    unknown: int = 0
    backoffs: Iterator[float] = field(default_factory=_backoffs)


@dataclass(slots=True)
class Delivery:
    """Delivers batches in order. `pause(seconds)` sleeps and is true when the processor wants to stop."""

    exporter: ActivityExporter
    settled: Callable[[Entry, ExportResult], None]
    withdrawn: Callable[[Entry], None]
    pause: Callable[[float], bool]
    clock: Callable[[], float] = time.monotonic
    outage_since: float | None = field(default=None, init=False)
    last_error: str | None = field(default=None, init=False)
    refused: bool = field(default=False, init=False)
    retries: int = field(default=0, init=False)
    _reported_at: float = field(default=float("-inf"), init=False)
    _most: int = field(default=sys.maxsize, init=False)

    def deliver(self, batch: Sequence[Entry], *, replay: bool = False) -> None:
        """Return when every entry is settled.

        Where a failure took its time, the batch may be too much for the exporter's deadline: it goes on in halves, and
        the parts grow again while that works.

        Raises:
            ClosingError: the processor stops; unsettled entries were not stored, as far as we know.
        """
        tries = _Tries()
        pending = self._wanted(batch)
        while pending:
            part, rest = pending[: self._most], pending[self._most :]
            again, wait = self._try(part, pending, tries, replay)
            again = self._wanted(again)
            if again:
                replay = True
                self.retries += 1
                if self.pause(wait):
                    raise ClosingError
            pending = self._wanted([*again, *rest])

    def _try(self, part: list[Entry], pending: list[Entry], tries: _Tries, replay: bool) -> tuple[list[Entry], float]:
        """Export a part of what is pending. Returns what is to be tried again, and in how many seconds."""
        began = self.clock()
        try:
            results = self._export(part, replay)
        except TransientExportError as exc:
            if exc.sent:
                self._doubt(part)
            self._trouble(exc, pending)
            if self.clock() - began >= SLOW:
                self._most = max(_FEW, len(part) // 2)
            return part, next(tries.backoffs)
        except MisconfiguredExportError as exc:
            self._trouble(exc, pending)
            return part, MISCONFIGURED_BACKOFF
        except PoisonExportError as exc:
            self._bisect(part, exc)
            return [], 0.0
        except BaseException as exc:  # noqa: BLE001  # an exporter may raise anything, and loses nothing by it
            tries.unknown += 1
            self._doubt(part)
            self._trouble(exc, pending)
            if tries.unknown < UNKNOWN_TRIES:
                return part, next(tries.backoffs)
            self._bisect(part, exc)
            return [], 0.0
        self._recovered()
        if len(part) >= self._most:
            self._most = min(self._most + self._most // 8, sys.maxsize)
        return self._settle(part, results)

    def _export(self, pending: Sequence[Entry], replay: bool) -> Sequence[ExportResult]:
        results = self.exporter.export([entry.event for entry in pending], replay=replay)
        if len(results) != len(pending) or not {type(one) for one in results} <= _ANSWERS:
            raise ExportError(f"{type(self.exporter).__name__}.export() must answer each event: Ack, Retry or Reject")
        return results

    def _doubt(self, pending: Sequence[Entry]) -> None:
        """The answer may have been lost behind a commit."""
        for entry in pending:
            entry.uncertain = True

    def _wanted(self, entries: Sequence[Entry]) -> list[Entry]:
        """Without those that were withdrawn. One that may have been stored all the same is taken back instead."""
        wanted: list[Entry] = []
        for entry in entries:
            if entry.withdrawn and not entry.uncertain:
                self.withdrawn(entry)
                continue
            if entry.withdrawn and entry.event.opening is not None:
                entry.event = withdrawal(entry.event)
                entry.on_settled = entry.on_trouble = None
            wanted.append(entry)
        return wanted

    def _settle(self, pending: Sequence[Entry], results: Sequence[ExportResult]) -> tuple[list[Entry], float]:
        again: list[Entry] = []
        wait = 0.0
        for entry, result in zip(pending, results, strict=True):
            if isinstance(result, Retry):
                again.append(entry)
                wait = max(wait, result.after)
            else:
                self.settled(entry, result)
        return again, wait

    def _bisect(self, pending: Sequence[Entry], exc: BaseException) -> None:
        if len(pending) == 1:
            reason = describe(exc)
            self.settled(pending[0], Reject(reason))
            return
        middle = len(pending) // 2
        self.deliver(pending[:middle], replay=True)
        self.deliver(pending[middle:], replay=True)

    def _trouble(self, exc: BaseException, pending: Sequence[Entry]) -> None:
        now = self.clock()
        if self.outage_since is None:
            self.outage_since = now
            _logger.warning("storing activity events is failing and will be retried: %s", describe(exc))
            self._reported_at = now
        elif isinstance(exc, MisconfiguredExportError) and now - self._reported_at >= 60:
            _logger.error("activity events are kept, but cannot be stored: %s", describe(exc))
            self._reported_at = now
        self.last_error, self.refused = describe(exc), isinstance(exc, MisconfiguredExportError)
        for entry in pending:
            if entry.on_trouble is not None:
                with guarded("telling a producer"):
                    entry.on_trouble(exc)

    @property
    def outage_seconds(self) -> float:
        """How long storing has been failing; 0 while it works."""
        return 0.0 if self.outage_since is None else self.clock() - self.outage_since

    def _recovered(self) -> None:
        if self.outage_since is not None:
            _logger.warning("activity events are stored again, after %.1f s", self.clock() - self.outage_since)
            self.outage_since = self.last_error = None
            self.refused = False


def withdrawal(event: ActivityEvent, attempt: int | None = None) -> ActivityEvent:
    """What takes back an event that may have been committed after its producer was told that it was not.

    The activity that it created is removed. A retry cannot be undone: the attempt that it opened is canceled.
    """
    if event.opening is not None:
        return event._replace(opening=None, withdraws=True)
    text = "Given up: stored too late."
    now_ns = time.time_ns()
    return ActivityEvent(
        uuid7(now_ns), event.agent_id, Status.CANCELED, text, None, now_ns, attempt=attempt, expects_row=True
    )


def describe(exc: BaseException) -> str:
    """What may be said of a failure: exporters word theirs safely, anybody else's text may hold data."""
    return str(exc) if isinstance(exc, ExportError) else type(exc).__name__


class Storing:
    """An event whose producer waits until it is stored, and withdraws it after too long.

    Args:
        emit: Takes the event that takes back one that was committed after its producer had given up.

    Attributes:
        future: The exporter's answer; a `MisconfiguredExportError` as soon as the destination refuses us.
        trouble: What the last try met, for the producer's exception.
    """

    def __init__(self, event: ActivityEvent, emit: Callable[[ActivityEvent], object]) -> None:
        self.future: Future[ExportResult] = Future()
        self.entry = Entry(event, self._settled, self._troubled)
        self.trouble: str | None = None
        self._emit = emit

    def withdraw(self) -> ExportResult | None:
        """Stop waiting. The result, if it has come at the last moment; otherwise the event is not to be stored."""
        if not self.future.cancel() and self.future.exception() is None:
            return self.future.result()
        self.entry.withdrawn = True
        return None

    def abandon(self) -> None:
        """The producer is gone: take the event back if it is stored already."""
        self._take_back(self.withdraw())

    def failure(self, timeout: float, outage: str | None) -> ActivityNotStoredError:
        """The producer's exception.

        Args:
            outage: Why the exporter cannot store at present, if so.
        """
        why = self.trouble or f"no commit within {timeout:g} s"
        if outage is not None and outage not in why:
            why = f"{why}: {outage}"
        return ActivityNotStoredError(f"the activity {self.entry.event.agent_id} could not be stored: {why}")

    def _settled(self, result: ExportResult) -> None:
        if not self.entry.withdrawn and self.future.set_running_or_notify_cancel():
            self.future.set_result(result)
        else:
            self._take_back(result)

    def _take_back(self, result: ExportResult | None) -> None:
        if isinstance(result, Ack):
            self._emit(withdrawal(self.entry.event, result.attempt))

    def _troubled(self, exc: BaseException) -> None:
        self.trouble = describe(exc)
        waited_for = not self.entry.withdrawn and isinstance(exc, MisconfiguredExportError)
        if waited_for and self.future.set_running_or_notify_cancel():
            self.entry.withdrawn = True
            self.future.set_exception(exc)
