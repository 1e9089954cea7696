"""Exports the spans of ended attempts that no process has exported: those asked for, and those of lost workers."""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from opentelemetry import trace

from agentexec_otel._config import CONF
from agentexec_otel._errors import ActivityNotStoredError, ConfigurationError, SpanNotExportedError, guarded
from agentexec_otel._model.span import StoredSpan
from agentexec_otel._runtime.hand_over import EXPORT_LEASE, trackers
from agentexec_otel._runtime.limits import countdown
from agentexec_otel._runtime.spans import start_daemon
from agentexec_otel.export import SpanStore

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

    from agentexec_otel._runtime.following import Following
    from agentexec_otel._runtime.rebuild import SpanRebuilder

_logger = logging.getLogger("agentexec_otel")

Progress = Callable[[int, int], object]

_BATCH: Final = 100
_MOST_WAITING: Final = 10_000
_PAUSES: Final = (5.0, 30.0, 120.0)
"""Seconds between the tries of an export that fails."""


class Replay:
    """Claims spans, rebuilds them, exports them, and states on their rows that they were exported.

    What it needs for that is made at the first replay.

    Args:
        store: Nothing is replayed if it is no `SpanStore`.
        call: Has the writer do something, and waits for it.
        exporter: Where spans go, or what opens it. None: the environment names it.
    """

    def __init__(
        self,
        store: object,
        call: Callable[[Callable[[], Any]], Any],
        provider: trace.TracerProvider | None,
        exporter: SpanExporter | Callable[[], SpanExporter] | None,
    ) -> None:
        self._store = store if isinstance(store, SpanStore) else None
        self._call = call
        self._provider = provider
        self._exporter = exporter
        self.reset()

    def reset(self) -> None:
        """Forget what waits, and connections of exporters: in a forked child they are the parent's."""
        # Guards that one batch uses the rebuilder and the exporters, which are made under it; held while it does.
        self._lock = threading.Lock()
        self._rebuilder: SpanRebuilder | None = None
        self._exporters: list[SpanExporter] = []
        self._automatic = AutomaticReplay(lambda agent_ids: self._batch((), len(agent_ids), agent_ids=agent_ids))
        self._has_exporter: bool | None = True if self._exporter is not None else None

    def orphaned(self, agent_ids: Sequence[UUID], lost: bool) -> None:
        """Replay the spans of these attempts by and by, if that is wanted and there is an exporter for them."""
        if not CONF.replay_lost or self._store is None:
            return
        if self._has_exporter is None:
            from agentexec_otel._runtime.span_exporters import names_exporter

            self._has_exporter = names_exporter()
        if self._has_exporter:
            self._automatic.add(agent_ids, lost)

    def run(self, criteria: Sequence[Any], batch_size: int, progress: Progress | None, dry_run: bool) -> int:
        """Replay batch after batch. How many spans were exported, or would be.

        Raises:
            SpanNotExportedError: see there.
            ConfigurationError: there is no exporter, or no database.
        """
        if dry_run and self._store is not None:
            return int(self._call(partial(self._store.count_spans, criteria)))
        with self._lock:
            store, _, _ = self._opened()
        total = 0 if progress is None else self._call(partial(store.count_spans, criteria))
        done, after = 0, None
        while True:
            if progress is not None:
                progress(done, max(done, total))
            claimed = self._batch(criteria, batch_size, after=after)
            if not claimed:
                return done
            done += len(claimed)
            after = claimed[-1].cursor

    def _batch(
        self,
        criteria: Sequence[Any],
        most: int,
        *,
        after: tuple[object, ...] | None = None,
        agent_ids: Sequence[UUID] | None = None,
    ) -> Sequence[StoredSpan]:
        """Replay up to `most` spans. Raises as `run`; then they are claimed no longer."""
        with self._lock:
            store, rebuilder, exporters = self._opened()
            claim = partial(
                store.claim_spans, criteria, most, EXPORT_LEASE, after=after, agent_ids=agent_ids,
                max_logs=rebuilder.max_logs,
            )  # fmt: skip
            claimed: Sequence[StoredSpan] = self._call(claim)
            if claimed:
                # Not those of a moment later: `finish` leaves none behind, and none have exported everything.
                self._export(store, rebuilder, exporters, claimed)
            return claimed

    def _opened(self) -> tuple[SpanStore, SpanRebuilder, Sequence[SpanExporter]]:
        from agentexec_otel._runtime.rebuild import SpanRebuilder
        from agentexec_otel._runtime.span_exporters import open_exporters

        if self._store is None:
            raise ConfigurationError("this call needs a database: call ax.configure(engine_or_url)")
        self._exporters = self._exporters or open_exporters(self._exporter)
        self._rebuilder = self._rebuilder or SpanRebuilder(self._provider or trace.get_tracer_provider())
        return self._store, self._rebuilder, self._exporters

    def _export(
        self,
        store: SpanStore,
        rebuilder: SpanRebuilder,
        exporters: Sequence[SpanExporter],
        claimed: Sequence[StoredSpan],
    ) -> None:
        from agentexec_otel._runtime.span_exporters import export

        spans: dict[tuple[UUID, str], ReadableSpan] = {}
        for one in claimed:
            with guarded("rebuilding the span of an activity"):
                spans[one.start.agent_id, one.ref.span_id] = rebuilder.rebuild(one)
        if not spans:
            return
        exported = False
        try:
            exported = export(exporters, list(spans.values()))
        finally:
            self._call(partial(store.spans_exported if exported else store.release_spans, list(spans)))
        if not exported:
            raise SpanNotExportedError(
                f"the exporter reports that {len(spans)} spans were not exported: see its log, and replay again"
            )

    def finish(self, following: Following, timeout: float) -> None:
        """Before the writer stops: end spans that are over, and have exported what is then stated on rows.

        Exporters that were opened here are closed.
        """
        left = countdown(timeout)
        following.hand_over.finish(left())
        if trackers:
            following.mirror.drain(left())
            self._flush_provider(left())
            following.hand_over.finish(left())
        self._automatic.stop(left())
        for exporter in self._exporters:
            if exporter is not self._exporter:  # That one is the application's.
                with guarded("closing an exporter of spans"):
                    exporter.shutdown()
        self._exporters = []

    def _flush_provider(self, timeout: float) -> None:
        """Have the provider of live spans export those that have ended, within `timeout` seconds."""
        provider: Any = self._provider or trace.get_tracer_provider()
        if hasattr(provider, "force_flush"):
            with guarded("flushing the provider of spans"):
                provider.force_flush(max(1, int(timeout * 1000)))


class AutomaticReplay:
    """A thread that replays the spans of attempts whose worker is lost, and those that their process has not ended.

    At most 10,000 wait; the others are left to `ax.replay`.

    Args:
        replay: Replays the spans of these activities. Raises as `Replay.run`.
    """

    def __init__(self, replay: Callable[[Sequence[UUID]], object]) -> None:
        self._replay = replay
        self._changed = threading.Condition()  # Guards the fields below; nothing else is called under it.
        self._waiting: list[tuple[float, int, UUID]] = []
        self._thread: threading.Thread | None = None
        self._is_closing = False

    def add(self, agent_ids: Sequence[UUID], lost: bool) -> None:
        """Replay the spans of these attempts: soon if the worker is lost, else unless their process ends them soon."""
        self._add(agent_ids, 0.0 if lost else CONF.lease_seconds, 0)

    def _add(self, agent_ids: Sequence[UUID], seconds: float, tries: int) -> None:
        due = time.monotonic() + seconds
        with self._changed:
            for agent_id in agent_ids[: max(0, _MOST_WAITING - len(self._waiting))]:
                heapq.heappush(self._waiting, (due, tries, agent_id))
            if self._thread is None and not self._is_closing:
                self._thread = start_daemon(self._run, "agentexec-replay")
            self._changed.notify()

    def _run(self) -> None:
        while batch := self._next():
            with guarded("replaying the spans of lost workers"):
                self._try(batch)

    def _next(self) -> list[tuple[float, int, UUID]]:
        """What is due, as soon as something is. Empty if the process stops and nothing is."""
        with self._changed:
            while True:
                now = time.monotonic()
                due: list[tuple[float, int, UUID]] = []
                while self._waiting and self._waiting[0][0] <= now and len(due) < _BATCH:
                    due.append(heapq.heappop(self._waiting))
                if due or self._is_closing:
                    return due
                self._changed.wait(self._waiting[0][0] - now if self._waiting else None)

    def _try(self, due: Sequence[tuple[float, int, UUID]]) -> None:
        agent_ids = [agent_id for _, _, agent_id in due]
        try:
            self._replay(agent_ids)
        except (SpanNotExportedError, ActivityNotStoredError) as exc:
            tries = min(tried for _, tried, _ in due)
            if tries < len(_PAUSES):
                self._add(agent_ids, _PAUSES[tries], tries + 1)
            else:
                _logger.warning("%d spans of lost workers were not replayed (%s): call ax.replay()", len(due), exc)

    def stop(self, timeout: float) -> None:
        """Replay what is due, within `timeout` seconds, and end the thread. What waits for later is left."""
        with self._changed:
            self._is_closing = True
            thread = self._thread
            self._changed.notify()
        if thread is not None:
            thread.join(timeout)
