"""Signs of life: this worker's leases are extended, and others' expired ones are swept. On the writer's thread."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress

from agentexec_otel._config import CONF
from agentexec_otel._errors import ExportError
from agentexec_otel._model.event import Outcome, Status
from agentexec_otel._runtime.spans import ActivitySpans
from agentexec_otel.export import ActivityStore, Ending

_CHUNK = 500
_LOOK_INTERVAL = 0.5
_AWAY = 2.5
"""A tick comes about once a second: behind a longer silence we were stuck, or frozen."""


def lost_ending() -> Ending:
    """How an activity ends whose worker is gone."""
    return Ending(Status.ERROR, CONF.activity_message_lost, Outcome(error_type="WorkerLost", reason="lost"))


class Liveness:
    """Called about once a second; does its work when it is due."""

    def __init__(
        self,
        store: ActivityStore,
        spans: ActivitySpans,
        worker_id: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._spans = spans
        self._worker_id = worker_id
        self._clock = clock
        self._heartbeat_due = clock() + _heartbeat_interval()
        self._look_due = 0.0
        self._ticked_at = clock()
        self._sweep_due = 0.0
        self._wait_a_lease()
        self.reaped = 0

    def tick(self) -> None:
        """Extend leases and sweep, where it is time. A database that is away is asked again the next time."""
        now = self._clock()
        if now - self._ticked_at > max(CONF.lease_seconds / 3, _AWAY):
            self._wait_a_lease()
        self._ticked_at = now
        try:
            if now >= self._look_due:
                self._look_due = now + _LOOK_INTERVAL
                self._look()
            if now >= self._heartbeat_due:
                self._heartbeat_due = now + _heartbeat_interval()
                self.heartbeat()
            if CONF.sweep_interval and now >= self._sweep_due:
                self._sweep_due = now + CONF.sweep_interval * random.uniform(0.8, 1.2)  # noqa: S311
                self._sweep()
        except ExportError:
            self._wait_a_lease()
        self._ticked_at = self._clock()

    def _wait_a_lease(self) -> None:
        """Whoever was cut off himself, or has just come, cannot tell whether the others were lost or cut off, too."""
        spread = random.uniform(0, min(CONF.sweep_interval, CONF.lease_seconds / 3))  # noqa: S311
        self._sweep_due = self._clock() + CONF.lease_seconds + spread

    def _look(self) -> None:
        """Learn soon what others have ended of what a block here runs: a canceled run stops at its next step."""
        owned = sorted(self._spans.owned())
        for start in range(0, len(owned), _CHUNK):
            self._spans.seen(self._store.standing(owned[start : start + _CHUNK]))

    def heartbeat(self) -> None:
        """Extend the leases of what runs here, and learn what others have ended."""
        running, owned = self._spans.running(), self._spans.owned()
        for start in range(0, len(running), _CHUNK):
            chunk = running[start : start + _CHUNK]
            self._spans.seen(self._store.heartbeat(self._worker_id(), chunk, owned=owned.intersection(chunk)))

    def _sweep(self) -> None:
        ending = lost_ending()
        ended = self._store.reap(None, ending)
        self.reaped += len(ended)
        if ended:
            self._spans.ended(ended, ending, time.time_ns())

    def release(self) -> None:
        """Going in good order: activities without a block that owns them are not lost, others may go on with them."""
        with suppress(ExportError):
            spans = self._spans.unowned()
            unowned = list(spans)
            for start in range(0, len(unowned), _CHUNK):
                chunk = unowned[start : start + _CHUNK]
                dropped = {span for agent_id in chunk if (span := spans[agent_id]) is not None}
                self._store.release(self._worker_id(), chunk, spans=dropped)


def _heartbeat_interval() -> float:
    return min(CONF.heartbeat_interval, CONF.lease_seconds / 3)
