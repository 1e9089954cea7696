"""What dead processes left in the spool, delivered by a living one: at its start, and every minute."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

from agentexec_otel._model.codec import MalformedEventError, decode
from agentexec_otel.export._delivery import Entry
from agentexec_otel.export._spool import Orphan, Spool

_logger = logging.getLogger("agentexec_otel.export")

INTERVAL = 60.0
CHUNK = 500


class Replay:
    """Yields the orphans' events a chunk at a time, so that live events need not wait for a long past.

    An orphan is removed once the chunk behind its last one is asked for: everything before it is settled then.
    """

    def __init__(self, spool: Spool | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._spool = spool
        self._clock = clock
        self._due = float("-inf")
        self._chunks: Iterator[list[Entry]] | None = None
        self.unreadable = 0

    def next_chunk(self) -> Iterator[list[Entry]]:
        """The next chunk, if there is one and it is time."""
        if self._spool is None:
            return
        if self._chunks is None and self._clock() >= self._due:
            self._chunks = self._all(self._spool)
        if self._chunks is not None:
            chunk = next(self._chunks, None)
            if chunk is not None:
                yield chunk
                return
            self._chunks = None
            self._due = self._clock() + INTERVAL

    def now(self) -> None:
        """Look for orphans at the next call."""
        self._due = float("-inf")

    @property
    def busy(self) -> bool:
        """Whether the next chunk is at hand."""
        return self._chunks is not None

    @property
    def pending(self) -> bool:
        """Whether there may be something to replay right now."""
        return self._spool is not None and (self.busy or self._clock() >= self._due)

    def _all(self, spool: Spool) -> Iterator[list[Entry]]:
        events = files = 0
        for orphan in spool.recover():
            with orphan:
                files += 1
                for chunk in self._chunks_of(orphan):
                    events += len(chunk)
                    yield chunk
                orphan.done()
        if events:
            _logger.warning("%d activity events were recovered from %d files that dead processes left", events, files)

    def _chunks_of(self, orphan: Orphan) -> Iterator[list[Entry]]:
        chunk: list[Entry] = []
        unreadable = 0
        for payload in orphan:
            try:
                chunk.append(Entry(decode(payload)))
            except MalformedEventError:
                unreadable += 1
                continue
            if len(chunk) >= CHUNK:
                yield chunk
                chunk = []
        if chunk:
            yield chunk
        self.unreadable += unreadable
        if unreadable:
            _logger.error("%d records of a dead process hold no activity event and are skipped", unreadable)
