"""The end of spans that are open here: each is handed to its provider, unless another process has exported it."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence, Set
from typing import Final, Protocol
from uuid import UUID
from weakref import WeakSet

from agentexec_otel._errors import ExportError, guarded
from agentexec_otel._runtime.limits import chunks
from agentexec_otel._runtime.live import ClosingSpan
from agentexec_otel.export import SpanStore

_logger = logging.getLogger("agentexec_otel")

EXPORT_LEASE: Final = 300.0
"""Seconds for the export of a span that was handed over, before a replay takes it."""
_MOST_REPORTS: Final = 100_000

trackers: Final[WeakSet[object]] = WeakSet()
"""The exporters of this process that report what they have exported; see `ax.tracked`."""


class Soon(Protocol):
    """Has the writer do something, behind the events that wait; `give_up` is called if it ends before that."""

    def __call__(self, work: Callable[[], object], give_up: Callable[[], object] = ...) -> object: ...


class HandOver:
    """Ends spans, and states on their rows which were exported.

    Args:
        store: None if the rows cannot say it: spans are ended at once.
        end: Ends a span. Called on any thread; must not wait.
    """

    def __init__(self, store: SpanStore | None, end: Callable[[ClosingSpan], object], soon: Soon) -> None:
        self._store = store
        self._end = end
        self._soon = soon
        self.reset()

    def reset(self) -> None:
        """Forget what waits: in a forked child it is the parent's."""
        self._lock = threading.Lock()  # Guards the fields below; nothing else is called under it.
        self._closing: list[ClosingSpan] = []
        self._reports: deque[tuple[UUID, str, bool]] = deque(maxlen=_MOST_REPORTS)
        self._is_due = False
        self._is_closed = False

    def add(self, closing: ClosingSpan) -> None:
        """End this span soon. On any thread."""
        with self._lock:
            waits = self._store is not None and closing.of is not None and not self._is_closed
            if waits:
                self._closing.append(closing)
        if waits:
            self._work_soon()
        else:
            self._end(closing)

    def report(self, spans: Sequence[tuple[UUID, str]], *, exported: bool) -> None:
        """An exporter that is tracked has exported these spans, or failed to. On any thread."""
        if self._store is not None:
            with self._lock:
                self._reports.extend((agent_id, span_id, exported) for agent_id, span_id in spans)
            self._work_soon()

    def _work_soon(self) -> None:
        with self._lock:
            is_due, self._is_due = self._is_due, True
        if not is_due:
            self._soon(self.work, self.end_unclaimed)

    def finish(self, timeout: float) -> None:
        """Have the writer do what waits, for `timeout` seconds at most. On any thread but the writer's."""
        done = threading.Event()
        with self._lock:
            waits = bool(self._closing or self._reports)
        if waits:
            self._soon(self.work)
            self._soon(done.set, done.set)
            done.wait(timeout)

    def work(self) -> None:
        """Do what waits. On the writer's thread; if the database is away, the next call does it."""
        with self._lock:
            self._is_due = False
            closing, self._closing = self._closing, []
            reports = list(self._reports)
            self._reports.clear()
        if self._store is None or not (closing or reports):
            return
        for ended in chunks(closing):
            self._claim(self._store, ended)
        for reported in chunks(reports):
            self._state(self._store, reported)

    def _claim(self, store: SpanStore, closing: Sequence[ClosingSpan]) -> None:
        taken: Set[str] = frozenset()
        with guarded("claiming the spans of activities"):
            try:
                named = [one.of for one in closing if one.of is not None]
                taken = store.hand_over_spans(named, EXPORT_LEASE if trackers else None)
            except ExportError:
                with self._lock:
                    waits = not self._is_closed
                    self._closing = [*closing, *self._closing] if waits else self._closing
                if waits:
                    return
        for one in closing:
            if one.of is not None and one.of.span_id in taken:
                _logger.debug("the span of %s was exported by another process", one.of.agent_id)
            else:
                self._end(one)

    def _state(self, store: SpanStore, reports: Sequence[tuple[UUID, str, bool]]) -> None:
        with guarded("stating which spans of activities were exported"):
            try:
                for exported, tell in ((True, store.spans_exported), (False, store.release_spans)):
                    spans = [(agent_id, span_id) for agent_id, span_id, success in reports if success is exported]
                    if spans:
                        tell(spans)
            except ExportError:
                with self._lock:
                    self._reports.extendleft(reversed(reports))

    def end_unclaimed(self) -> None:
        """End what waits, and what follows, without asking the database: the writer has stopped. On any thread."""
        with self._lock:
            self._is_due, self._is_closed = False, True
            closing, self._closing = self._closing, []
        for one in closing:
            self._end(one)
