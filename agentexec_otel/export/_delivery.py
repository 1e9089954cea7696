"""One batch to one exporter: tried until every event is settled, by class of failure."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from agentexec_otel._errors import ExportError, MisconfiguredExportError, PoisonExportError, TransientExportError
from agentexec_otel._event import ActivityEvent, Status
from agentexec_otel._guard import guarded
from agentexec_otel._ids import uuid7
from agentexec_otel.export._protocol import Ack, ActivityExporter, ExportResult, Reject, Retry

_logger = logging.getLogger("agentexec_otel.export")

FIRST_BACKOFF = 0.05
LONGEST_BACKOFF = 2.0
MISCONFIGURED_BACKOFF = 30.0
UNKNOWN_TRIES = 3

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
class Delivery:
    """Delivers batches in order. `pause(seconds)` sleeps and is true when the processor wants to stop."""

    exporter: ActivityExporter
    settled: Callable[[Entry, ExportResult], None]
    withdrawn: Callable[[Entry], None]
    pause: Callable[[float], bool]
    clock: Callable[[], float] = time.monotonic
    outage_since: float | None = field(default=None, init=False)
    last_error: str | None = field(default=None, init=False)
    retries: int = field(default=0, init=False)
    _reported_at: float = field(default=float("-inf"), init=False)

    def deliver(self, batch: Sequence[Entry], *, replay: bool = False) -> None:
        """Return when every entry is settled.

        Raises:
            ClosingError: the processor stops; unsettled entries were not stored, as far as we know.
        """
        backoffs = _backoffs()
        unknown = 0
        pending = self._wanted(batch)
        while pending:
            try:
                results = self._export(pending, replay)
            except TransientExportError as exc:
                self._doubt(pending)
                self._trouble(exc, pending)
                wait = next(backoffs)
            except MisconfiguredExportError as exc:
                self._trouble(exc, pending)
                wait = MISCONFIGURED_BACKOFF
            except PoisonExportError as exc:
                self._bisect(pending, exc)
                return
            except BaseException as exc:  # noqa: BLE001  # an exporter may raise anything, and loses nothing by it
                unknown += 1
                self._doubt(pending)
                self._trouble(exc, pending)
                if unknown >= UNKNOWN_TRIES:
                    self._bisect(pending, exc)
                    return
                wait = next(backoffs)
            else:
                self._recovered()
                pending, wait = self._settle(pending, results)
            replay = True
            pending = self._wanted(pending)
            if pending:
                self.retries += 1
                if self.pause(wait):
                    raise ClosingError
                pending = self._wanted(pending)

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
        """Without those nobody wants any more. One that may have been stored all the same is ended instead."""
        wanted: list[Entry] = []
        for entry in entries:
            if entry.withdrawn and not entry.uncertain:
                self.withdrawn(entry)
                continue
            if entry.withdrawn and entry.event.opening is not None:
                entry.event = given_up(entry.event)
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
        self.last_error = describe(exc)
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
            self.outage_since = None
            self.last_error = None


def given_up(event: ActivityEvent) -> ActivityEvent:
    """Ends an activity whose row may have been committed after its creator had been told that it was not."""
    text = "Given up: stored too late."
    return ActivityEvent(
        uuid7(), event.agent_id, Status.CANCELED, text, None, time.time_ns(), attempt=event.attempt, expects_row=True
    )


def describe(exc: BaseException) -> str:
    """What may be said of a failure: exporters word theirs safely, anybody else's text may hold data."""
    return str(exc) if isinstance(exc, ExportError) else type(exc).__name__


def _backoffs() -> Iterator[float]:
    """50 ms doubling to 2 s, each with up to half of it taken off at random."""
    wait = FIRST_BACKOFF
    while True:
        yield wait * random.uniform(0.5, 1.0)  # noqa: S311
        wait = min(wait * 2, LONGEST_BACKOFF)
