"""Delivery of what dead processes left in the spool, when the writer starts and every minute after that."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from itertools import islice

from agentexec_otel._model.codec import LaterSchemaError, MalformedEventError, decode
from agentexec_otel.export._delivery import Entry
from agentexec_otel.export.spool import Orphan, Spool

_logger = logging.getLogger("agentexec_otel.export")

INTERVAL = 60.0
CHUNK = 500
"""Events are read a chunk at a time, so that live events do not wait for a long past."""


class Replay:
    """Reads the events of orphans.

    An orphan is removed when the chunk after its last one is requested. By then the caller has stored the earlier ones.
    If a later version has written any of its events, it is kept for that version instead.

    Attributes:
        damaged: Number of records that were not readable.
    """

    def __init__(self, spool: Spool | None) -> None:
        self.damaged = 0
        self._spool = spool
        self._due = float("-inf")
        self._chunks: Iterator[list[Entry]] | None = None

    def next_chunk(self) -> list[Entry]:
        """Return the next chunk. Empty if there is none, or if the next poll of the spool is not due."""
        if not self.pending:
            return []
        self._chunks = self._chunks or self._read()
        chunk = next(self._chunks, list[Entry]())
        if not chunk:
            self._chunks = None
            self._due = time.monotonic() + INTERVAL
        return chunk

    def now(self) -> None:
        """Poll the spool for orphans at the next call."""
        self._due = float("-inf")

    @property
    def pending(self) -> bool:
        """Whether there may be something to replay right now."""
        return self._spool is not None and (self._chunks is not None or time.monotonic() >= self._due)

    def _read(self) -> Iterator[list[Entry]]:
        events = files = 0
        for orphan in self._spool.recover() if self._spool is not None else ():
            with closing(orphan):
                files += 1
                unread = Counter[type[MalformedEventError]]()
                entries = _entries(orphan, unread)
                while chunk := list(islice(entries, CHUNK)):
                    events += len(chunk)
                    yield chunk
                self._finish(orphan, unread[MalformedEventError], unread[LaterSchemaError])
        if events:
            _logger.warning("%d activity events were recovered from %d files that dead processes left", events, files)

    def _finish(self, orphan: Orphan, malformed: int, later: int) -> None:
        damaged = malformed + orphan.damaged
        self.damaged += damaged
        if damaged:
            _logger.error("%d activity events of a dead process are lost: their records are damaged", damaged)
        if later and self._spool is not None:
            self._spool.keep(orphan, f"has {later} events of a later version of agentexec-otel")
        else:
            orphan.done()


def _entries(orphan: Orphan, unread: Counter[type[MalformedEventError]]) -> Iterator[Entry]:
    """Yield the events of an orphan. Records without one are counted in `unread`, by what is wrong with them."""
    for payload in orphan:
        try:
            yield Entry(decode(payload))
        except MalformedEventError as exc:
            unread[type(exc)] += 1
