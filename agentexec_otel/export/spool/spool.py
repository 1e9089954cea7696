"""The crash-safe local spool: what `append` has taken survives the process.

Each record is one `write` to a file that no other process writes to. There is no buffer, so a killed process loses
nothing. Records are acknowledged once they are stored elsewhere. `Spool.recover` replays what a dead process left; some
of it may be stored already, so replay has to be idempotent.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias
from weakref import WeakSet

from agentexec_otel.export.spool.directory import SpoolDirectory, SpoolError, SpoolUnavailableError
from agentexec_otel.export.spool.journal import Journal, Position
from agentexec_otel.export.spool.segment import CORRUPT, ForeignSegmentError, Orphan, claim, split_name

_logger = logging.getLogger("agentexec_otel.export")

Durability: TypeAlias = Literal["process", "disk"]


class Spool:
    """Keeps records until they are acknowledged, or until `recover` in a later process delivers them.

    All methods may be called from any thread, and `append` also from a signal handler. A forked child has its own
    segments; what its parent has not delivered remains the parent's.

    Args:
        directory: Created with mode 0700 if missing.
        identity: What the records are meant for, such as a hash of the database and the table prefix. Records of
            another identity are never replayed.
        durability: ``process`` survives the death of the process, ``disk`` also that of the machine (see `sync`).
        max_bytes: Limit for all segments of this identity together, including those of other processes.
        reserve_bytes: The part of it that only ``vital`` records may use.
        segment_bytes: Size at which a new file is begun.
        clock: Monotonic time in seconds.

    Attributes:
        path: The directory of the segments of this identity.
        target: The identity.

    Raises:
        SpoolUnavailableError: The directory cannot be used. The message says why.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        identity: str,
        durability: Durability = "process",
        max_bytes: int = 256 << 20,
        reserve_bytes: int = 0,
        segment_bytes: int = 4 << 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if os.name != "posix":
            raise SpoolUnavailableError("the spool needs a POSIX system")
        self.durability: Durability = durability
        self.target = identity
        self._identity = hashlib.sha256(identity.encode()).hexdigest()
        self._directory = SpoolDirectory(Path(directory).absolute(), self._identity[:16])
        self.path = self._directory.path
        self._foreign: set[str] = set()
        self._kept: set[str] = set()
        limits = max_bytes, reserve_bytes, segment_bytes
        self._new_journal = partial(Journal, self._directory, self._identity, limits, clock, target=identity)
        self._journal = self._new_journal()
        self._journals = {self._journal.pid: self._journal}
        _spools.add(self)

    def append(self, payload: bytes, *, vital: bool = False) -> Position:
        """Take a record. Once this has returned, the death of the process does not lose it.

        Args:
            payload: 1 byte to 1 MiB.
            vital: May use the reserve.

        Raises:
            SpoolFullError: No room within the limit, or on the disk.
            SpoolUnavailableError: The disk fails, or the spool is closed.
            ValueError: The payload is empty or too long.
        """
        journal = self._journal
        if journal.pid != os.getpid():
            journal = self._current()
        return journal.append(payload, vital)

    def ack(self, positions: Iterable[Position]) -> None:
        """Acknowledge records, in any order and any number of times: they are stored elsewhere.

        A segment without outstanding records is removed, the live one cut back to its header. A child cannot
        acknowledge its parent's records.
        """
        self._current().ack(positions)

    def read(self, after: Position = 0, *, limit: int = 256 << 10) -> list[tuple[Position, bytes]]:
        """Return the oldest unacknowledged records that this process appended after that position.

        About `limit` bytes of them, and none only if there are none. Call it from the thread that acknowledges.
        """
        return self._current().read(after, limit)

    def sync(self) -> None:
        """With ``disk`` durability, return after everything appended before this call is on the disk.

        Raises:
            SpoolUnavailableError: The disk fails.
        """
        if self.durability == "disk":
            self._current().sync()

    @property
    def is_intact(self) -> bool:
        """Whether every record that is outstanding is in a file. False if something has removed the directory."""
        return self._current().is_intact

    def restore(self) -> int:
        """Write files again that something has removed, with all their records. Returns how many.

        Raises:
            SpoolError: They cannot be written.
        """
        return self._current().restore()

    def size(self) -> int:
        """Return the bytes of all segments of this identity: also of other processes, orphans and damaged files."""
        journal = self._current()
        return journal.size + journal.measure()

    def close(self) -> None:
        """Accept no more records. The next `recover` gets those that are not acknowledged. Idempotent."""
        with suppress(SpoolError):
            self.sync()
        self._current().close()

    def leave(self, payloads: Iterable[bytes]) -> None:
        """Keep records that `recover` yields as if a dead process had left them, on the disk at the return.

        Raises:
            SpoolError: They cannot be kept. The first ones may be.
        """
        journal = self._new_journal()
        try:
            for payload in payloads:
                journal.append(payload, vital=True)
            journal.sync()
        finally:
            journal.close()

    # -- orphans ------------------------------------------------------------------------------------------------

    def recover(self) -> Iterator[Orphan]:
        """Yield the segments whose owners are gone, each locked until its `done` or `close`.

        Files of other identities and versions are not touched, and reported once; files without a record are removed.
        Any number of processes may recover at the same time: each orphan is given to one.
        """
        for name, _ in self._directory.entries():
            orphan = self._claim(name)
            if orphan is not None:
                yield orphan

    def _claim(self, name: str) -> Orphan | None:
        if name.endswith((CORRUPT, ".jsonl")) or name in self._kept:  # set aside, or the dead letters
            return None
        try:
            if split_name(name) is None:
                raise ForeignSegmentError("is not a spool segment")
            return claim(self._directory, name, self._identity)
        except ForeignSegmentError as exc:
            self._report_foreign(name, str(exc))
            return None

    def keep(self, orphan: Orphan, why: str) -> None:
        """Leave an orphan to other versions of this library: `recover` of this process yields it no more."""
        orphan.close()
        self._kept.add(orphan.name)
        self._report_foreign(orphan.name, why)

    def _report_foreign(self, name: str, why: str) -> None:
        if name not in self._foreign:
            self._foreign.add(name)
            _logger.warning("the file %s in the spool %s and is left alone", self.path / name, why)

    # -- fork ---------------------------------------------------------------------------------------------------

    @staticmethod
    def after_fork_in_child() -> None:
        """Begin without segments in every spool. Forks by C code call no hook: they are noticed at the next use."""
        for spool in list(_spools):
            spool._current()

    def _current(self) -> Journal:
        """The journal of this process: a new one after a fork, without the parent's segments.

        Takes no lock: after a fork the thread that held it may not exist.
        """
        inherited = self._journal
        pid = os.getpid()
        if inherited.pid == pid:
            return inherited
        fresh = self._new_journal(inherited.numbers)
        self._journal = self._journals.setdefault(pid, fresh)
        if self._journals.pop(inherited.pid, None) is not None:
            inherited.abandon()
        return self._journal


_spools: WeakSet[Spool] = WeakSet()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Spool.after_fork_in_child)
