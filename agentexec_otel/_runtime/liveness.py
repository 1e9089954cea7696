"""Leases: those of this worker are extended, expired ones of others are swept. On the writer's thread."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from agentexec_otel._config import CONF
from agentexec_otel._errors import ExportError
from agentexec_otel._model.event import Outcome, Status
from agentexec_otel._model.results import Ending
from agentexec_otel._runtime.following import Following
from agentexec_otel._runtime.limits import chunks
from agentexec_otel.export import ActivityStore

_POLL_INTERVAL: Final = 0.5
_STALLED: Final = 2.5
"""A tick comes about once a second: after a longer silence this process was stuck, or frozen."""


def lost_ending() -> Ending:
    """How an activity ends whose worker is lost."""
    return Ending(Status.ERROR, CONF.activity_message_lost, Outcome(error_type="WorkerLost", reason="lost"))


class Liveness:
    """Called about once a second; does its work when it is due."""

    def __init__(
        self,
        store: ActivityStore,
        following: Following,
        worker_id: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._following = following
        self._worker_id = worker_id
        self._clock = clock
        self._heartbeat_due = clock() + _heartbeat_interval()
        self._poll_due = 0.0
        self._ticked_at = clock()
        self._sweep_due = 0.0
        self._postpone_sweep()
        self.reaped = 0

    def tick(self) -> None:
        """Extend leases and sweep, if due. If the database is away, it is asked again at the next tick."""
        now = self._clock()
        if now - self._ticked_at > max(CONF.lease_seconds / 3, _STALLED):
            self._postpone_sweep()
        self._ticked_at = now
        try:
            if now >= self._poll_due:
                self._poll_due = now + _POLL_INTERVAL
                self._poll()
            if now >= self._heartbeat_due:
                self._heartbeat_due = now + _heartbeat_interval()
                self.heartbeat()
            if CONF.sweep_interval and now >= self._sweep_due:
                self._sweep_due = now + CONF.sweep_interval * random.uniform(0.8, 1.2)  # noqa: S311
                self._sweep()
        except ExportError:
            self._postpone_sweep()
        self._ticked_at = self._clock()

    def _postpone_sweep(self) -> None:
        """Wait for a lease: a process that was cut off, or is new, cannot tell lost workers from ones cut off, too."""
        spread = random.uniform(0, min(CONF.sweep_interval, CONF.lease_seconds / 3))  # noqa: S311
        self._sweep_due = self._clock() + CONF.lease_seconds + spread

    def _poll(self) -> None:
        """Learn soon what other processes have ended of what blocks here run, so that a canceled run stops."""
        for chunk in chunks(sorted(self._following.live.with_blocks())):
            for stored in self._store.load(chunk, history=False).values():
                self._following.heard(stored)

    def heartbeat(self) -> None:
        """Extend the leases of what runs here, and learn what other processes have ended."""
        running = ((live, live.attempt) for live in self._following.live.running())
        for chunk in chunks((live, attempt) for live, attempt in running if attempt is not None):
            attempts = {live.agent_id: attempt for live, attempt in chunk}
            owned = {live.agent_id for live, _ in chunk if live.owner is not None}
            for stored in self._store.extend_leases(self._worker_id(), attempts, owned=owned).values():
                self._following.heard(stored)

    def _sweep(self) -> None:
        ending = lost_ending()
        ended = self._store.end_lost(ending)
        self.reaped += len(ended)
        self._following.ended_together(ended, ending)

    def release(self) -> None:
        """Before a clean exit: activities without a block that ends them are not lost, other workers may continue."""
        with suppress(ExportError):
            unowned = [live for live in self._following.live.running() if live.owner is None]
            for chunk in chunks(unowned):
                dropped = {live.ref.span_id for live in chunk if live.ref is not None and live.span is not None}
                self._store.release(self._worker_id(), [live.agent_id for live in chunk], spans=dropped)


def _heartbeat_interval() -> float:
    return min(CONF.heartbeat_interval, CONF.lease_seconds / 3)
