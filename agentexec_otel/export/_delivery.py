"""Delivery of a batch to one exporter. Each event is tried until the exporter has acknowledged or rejected it."""

from __future__ import annotations

import logging
import random
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeAlias

from agentexec_otel._errors import (
    ActivityNotStoredError,
    ExportError,
    MisconfiguredExportError,
    PoisonExportError,
    TransientExportError,
    guarded,
)
from agentexec_otel._model.event import ActivityEvent, late_cancellation
from agentexec_otel._model.results import Ack, ExportResult, Reject, Retry
from agentexec_otel.export._protocol import ActivityExporter

_logger = logging.getLogger("agentexec_otel.export")

FIRST_BACKOFF = 0.05
LONGEST_BACKOFF = 2.0
MISCONFIGURED_BACKOFF = 30.0
UNKNOWN_TRIES = 3
SLOW = 1.0
_FEW = 16
_REPORT_INTERVAL = 60.0


class ClosingError(Exception):
    """The processor is shutting down. The remaining events stay with it."""


@dataclass(slots=True)
class Entry:
    """An event on its way to the exporter.

    Attributes:
        on_result: Called with the exporter's answer.
        on_failure: Called with the exception of each failed try. If set, a rejection is the producer's business, and
            the event is not kept as a dead letter.
        abandoned: The producer has given up, so the event must not be stored.
        maybe_stored: A try failed after the event was sent: the exporter may have stored it.
        position: Where the spool has the event.
        answered: The processor has counted what became of it.
    """

    event: ActivityEvent
    on_result: Callable[[ExportResult], None] | None = None
    on_failure: Callable[[BaseException], None] | None = None
    abandoned: bool = False
    maybe_stored: bool = False
    position: int | None = None
    answered: bool = False


Answered: TypeAlias = tuple[Entry, ExportResult]


@dataclass(slots=True)
class DeliveryCounts:
    """Number of events by what became of them, and of those that were replayed from the spool."""

    replayed: int = 0
    committed: int = 0
    duplicate: int = 0
    late: int = 0
    dead_lettered: int = 0
    rejected: int = 0
    withdrawn: int = 0

    def add(self, ack: Ack, events: int) -> None:
        """Count events that were stored with the same answer."""
        self.duplicate += events * ack.duplicate
        self.committed += events * (not ack.duplicate)
        self.late += events * ack.late


@dataclass(slots=True)
class _Tries:
    """Number of failed tries of one batch, and of those with an exception that is not an `ExportError` of a kind."""

    failed: int = 0
    unknown: int = 0

    def backoff(self) -> float:
        """50 ms, doubled with each failure up to 2 s, less a random part of up to one half."""
        longest = min(LONGEST_BACKOFF, FIRST_BACKOFF * (1 << min(self.failed - 1, 10)))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311


@dataclass(slots=True)
class Delivery:
    """Delivers batches in order.

    Args:
        acknowledge: Called with events and the exporter's final answers, in the order of the events.
        drop: Called with each event that was abandoned before it was sent.
        pause: Sleeps that many seconds. Returns True if the processor wants to stop.
    """

    exporter: ActivityExporter
    acknowledge: Callable[[Sequence[Answered]], None]
    drop: Callable[[Entry], None]
    pause: Callable[[float], bool]
    clock: Callable[[], float] = time.monotonic
    failure: BaseException | None = field(default=None, init=False)
    retries: int = field(default=0, init=False)
    _outage_since: float = field(default=0.0, init=False)
    _reported_at: float = field(default=0.0, init=False)
    # An exporter cuts a try at its deadline. Without smaller batches, one that takes longer would never be stored.
    _max_batch: int = field(default=sys.maxsize, init=False)

    def deliver(self, batch: Sequence[Entry], *, replay: bool = False) -> None:
        """Return after every event was acknowledged, rejected or dropped.

        After a slow failure, the batch continues in halves. The parts grow again while they succeed.

        Raises:
            ClosingError: The processor stops. As far as is known, the remaining events were not stored.
        """
        tries = _Tries()
        pending = self._wanted(batch)
        while pending:
            part, rest = pending[: self._max_batch], pending[self._max_batch :]
            again, wait = self._try(part, pending, tries, replay)
            again = self._wanted(again)
            if again:
                replay = True
                self.retries += 1
                if self.pause(wait):
                    raise ClosingError
            pending = self._wanted([*again, *rest])

    def _try(self, part: list[Entry], pending: list[Entry], tries: _Tries, replay: bool) -> tuple[list[Entry], float]:
        """Export a part of what is pending. Return what to try again, and after how many seconds."""
        began = self.clock()
        try:
            results = self._export(part, replay)
        except PoisonExportError as exc:
            return self._bisect(part, exc)
        except MisconfiguredExportError as exc:
            self._report(exc, pending)
            return part, MISCONFIGURED_BACKOFF
        except BaseException as exc:  # noqa: BLE001  # an exporter may raise anything; no event is lost by it
            is_known = isinstance(exc, TransientExportError)
            is_sent = not isinstance(exc, TransientExportError) or exc.sent
            for entry in part:
                entry.maybe_stored = entry.maybe_stored or is_sent
            self._report(exc, pending)
            tries.failed += 1
            tries.unknown += not is_known
            if is_known and self.clock() - began >= SLOW:
                self._max_batch = max(_FEW, len(part) // 2)
            if tries.unknown >= UNKNOWN_TRIES and not is_known:
                return self._bisect(part, exc)
            asked = exc.after if isinstance(exc, TransientExportError) else 0.0
            return part, max(asked, tries.backoff())
        self._recover()
        if len(part) >= self._max_batch:
            self._max_batch += self._max_batch // 8
        return self._sort(part, results)

    def _export(self, part: Sequence[Entry], replay: bool) -> Sequence[ExportResult]:
        results = self.exporter.export([entry.event for entry in part], replay=replay)
        if len(results) != len(part) or not {type(one) for one in results} <= {Ack, Retry, Reject}:
            raise ExportError(f"{type(self.exporter).__name__}.export() must answer each event: Ack, Retry or Reject")
        return results

    def _wanted(self, entries: Sequence[Entry]) -> list[Entry]:
        """Leave out abandoned events. One that may be stored is replaced by its withdrawal."""
        wanted: list[Entry] = []
        for entry in entries:
            if entry.abandoned and not entry.maybe_stored:
                self.drop(entry)
                continue
            if entry.abandoned and entry.event.opening is not None:
                entry.event = withdrawal(entry.event)
                entry.on_result = entry.on_failure = None
            wanted.append(entry)
        return wanted

    def _sort(self, part: Sequence[Entry], results: Sequence[ExportResult]) -> tuple[list[Entry], float]:
        answered = list(zip(part, results, strict=True))
        self.acknowledge([one for one in answered if not isinstance(one[1], Retry)])
        again = [entry for entry, result in answered if isinstance(result, Retry)]
        return again, max((result.after for result in results if isinstance(result, Retry)), default=0.0)

    def _bisect(self, part: Sequence[Entry], exc: BaseException) -> tuple[list[Entry], float]:
        """Deliver both halves, or reject an event that is alone. Nothing is left to try again."""
        if len(part) == 1:
            self.acknowledge([(part[0], Reject(describe(exc)))])
        else:
            middle = len(part) // 2
            self.deliver(part[:middle], replay=True)
            self.deliver(part[middle:], replay=True)
        return [], 0.0

    def _report(self, exc: BaseException, pending: Sequence[Entry]) -> None:
        now = self.clock()
        if self.failure is None:
            _logger.warning("storing activity events is failing and will be retried: %s", describe(exc))
            self._outage_since = self._reported_at = now
        elif isinstance(exc, MisconfiguredExportError) and now - self._reported_at >= _REPORT_INTERVAL:
            _logger.error("activity events are kept, but cannot be stored: %s", describe(exc))
            self._reported_at = now
        self.failure = exc
        for entry in pending:
            if entry.on_failure is not None:
                with guarded("notifying a producer"):
                    entry.on_failure(exc)

    @property
    def last_error(self) -> str | None:
        """Why storing has been failing. None while it works."""
        return None if self.failure is None else describe(self.failure)

    @property
    def outage_seconds(self) -> float:
        """How long storing has been failing. 0 while it works."""
        return 0.0 if self.failure is None else self.clock() - self._outage_since

    def _recover(self) -> None:
        if self.failure is not None:
            _logger.warning("activity events are stored again, after %.1f s", self.outage_seconds)
            self.failure = None


def withdrawal(event: ActivityEvent, attempt: int | None = None) -> ActivityEvent:
    """The event that takes back one that may have been committed after its producer had given up.

    The activity that it created is removed. A retry cannot be undone: the attempt that it opened is canceled.
    """
    if event.opening is not None:
        return event._replace(opening=None, withdraws=True)
    return late_cancellation(event.agent_id, attempt)


def describe(exc: BaseException) -> str:
    """What may be logged of a failure. Other exceptions than ours may quote data, so only their type is named."""
    return str(exc) if isinstance(exc, ExportError) else type(exc).__name__


class Storing:
    """An event whose producer waits until it is stored, and withdraws it after a timeout.

    Args:
        emit: Takes the event that undoes one that was committed after its producer had given up.

    Attributes:
        future: The exporter's answer, or a `MisconfiguredExportError` as soon as the destination refuses us.
    """

    def __init__(self, event: ActivityEvent, emit: Callable[[ActivityEvent], object]) -> None:
        self.future: Future[ExportResult] = Future()
        self.entry = Entry(event, self._finish, self._fail)
        self._last_failure: BaseException | None = None
        self._emit = emit

    def give_up(self, timeout: float, outage: str | None) -> ExportResult:
        """Stop waiting. Return the result if it has come at the last moment.

        Args:
            outage: Why the exporter cannot store at present, if so.

        Raises:
            ActivityNotStoredError: There is no result, and the event will not be stored.
        """
        if (result := self._stop()) is not None:
            return result
        failure = self._last_failure
        why = f"no commit within {timeout:g} s" if failure is None else describe(failure)
        if outage is not None and outage not in why:
            why = f"{why}: {outage}"
        raise ActivityNotStoredError(
            f"the activity {self.entry.event.agent_id} could not be stored: {why}"
        ) from failure

    def abandon(self) -> None:
        """The producer is gone: take the event back if it is stored already."""
        self._take_back(self._stop())

    def _stop(self) -> ExportResult | None:
        if not self.future.cancel() and self.future.exception() is None:
            return self.future.result()
        self.entry.abandoned = True
        return None

    def _finish(self, result: ExportResult) -> None:
        if not self.entry.abandoned and self.future.set_running_or_notify_cancel():
            self.future.set_result(result)
        else:
            self._take_back(result)

    def _take_back(self, result: ExportResult | None) -> None:
        if isinstance(result, Ack):
            self._emit(withdrawal(self.entry.event, result.attempt))

    def _fail(self, exc: BaseException) -> None:
        self._last_failure = exc
        is_final = not self.entry.abandoned and isinstance(exc, MisconfiguredExportError)
        if is_final and self.future.set_running_or_notify_cancel():
            self.entry.abandoned = True
            self.future.set_exception(exc)
