"""The crash-safe local spool: what `append` has taken survives the process.

One `write` per record into a file that nobody else writes; no buffer of ours, so there is nothing to lose when the
process is killed. Records are acknowledged once they are stored elsewhere. What a dead process left is replayed by
whoever calls `Spool.recover`; some of it may have been stored already, so replay has to be idempotent.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias
from weakref import WeakSet

from agentexec_otel.export import _ownership as ownership
from agentexec_otel.export._journal import Journal, Limits, Position
from agentexec_otel.export._ownership import Orphan
from agentexec_otel.export._segment import (
    CORRUPT,
    DamagedSegmentError,
    ForeignSegmentError,
    split_name,
)
from agentexec_otel.export._spool_directory import (
    SpoolDirectory,
    SpoolError,
    SpoolFullError,
    SpoolUnavailableError,
    default_directory,
)

__all__ = [
    "Durability",
    "Orphan",
    "Position",
    "Spool",
    "SpoolError",
    "SpoolFullError",
    "SpoolStats",
    "SpoolUnavailableError",
    "default_directory",
]

_logger = logging.getLogger("agentexec_otel.export")

Durability: TypeAlias = Literal["process", "disk"]

_getpid = os.getpid  # looked up on every append


@dataclass(frozen=True, slots=True)
class SpoolStats:
    """What the spool holds.

    Attributes:
        bytes: Size of all segments of this identity: this process's, other processes', orphans, files set aside.
        pending: Records of this process that are not acknowledged.
        segments: Files of this process.
        corrupt: Damaged files that `recover` met and set aside.
        foreign: Files that `recover` met and left alone.
    """

    bytes: int
    pending: int
    segments: int
    corrupt: int
    foreign: int


class Spool:
    """Keeps records until they are acknowledged, or until `recover` in a later process delivers them.

    All methods may be called from any thread, and `append` also from a signal handler. A forked child has its own
    segments; what its parent has not delivered remains the parent's.

    Args:
        directory: Where; created with mode 0700 where missing.
        identity: What the records are meant for, such as a hash of the database and the table prefix. Records of
            another identity are never replayed.
        durability: ``process`` survives the death of the process, ``disk`` also that of the machine (see `sync`).
        max_bytes: Limit for all segments of this identity together, those of other processes included.
        reserve_bytes: The part of it that only ``vital`` records may use.
        segment_bytes: Size at which a new file is begun.
        clock: Seconds, monotonic.

    Raises:
        SpoolUnavailableError: the directory cannot be used; one sentence says why.
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
        self._limits = Limits(max_bytes, reserve_bytes, segment_bytes)
        self._clock = clock
        self._identity = hashlib.sha256(identity.encode()).hexdigest()
        self._directory = SpoolDirectory(Path(directory).absolute(), self._identity[:16])
        self._corrupt = 0
        self._left_alone: set[str] = set()
        self._synced = float("-inf")
        self._journal = Journal(self._directory, self._identity, self._limits, clock)
        self._journals = {self._journal.pid: self._journal}
        _spools.add(self)

    @property
    def path(self) -> Path:
        """The directory of this identity's segments."""
        return self._directory.path

    def append(self, payload: bytes, *, vital: bool = False) -> Position:
        """Take a record: once this has returned, the death of the process does not lose it.

        Args:
            payload: 1 byte to 1 MiB.
            vital: May use the reserve.

        Raises:
            SpoolFullError: no room within the limit, or on the disk.
            SpoolUnavailableError: the disk fails, or the spool is closed.
            ValueError: payload empty or too long.
        """
        journal = self._journal
        if journal.pid != _getpid():
            journal = self._current()
        return journal.append(payload, vital)

    def ack(self, positions: Iterable[Position]) -> None:
        """These records are stored elsewhere: in any order, any number of times.

        A segment without outstanding records is removed, the live one cut back to its header. In a child, its parent's
        positions name nothing.
        """
        self._current().ack(positions)

    def read(self, after: Position = 0, *, limit: int = 256 << 10) -> list[tuple[Position, bytes]]:
        """The oldest of this process's unacknowledged records that were appended after that one.

        For a caller who does not keep every record in memory. About `limit` bytes of them; none only where there is
        none. To be called from the thread that acknowledges.
        """
        return self._current().read(after, limit)

    def sync(self, *, at_most_every: float = 0.0) -> None:
        """With ``disk`` durability: whatever was appended before is on the disk when this returns.

        Args:
            at_most_every: Do nothing when the last one is less than that many seconds ago.

        Raises:
            SpoolUnavailableError: the disk fails.
        """
        if self.durability == "disk" and self._clock() - self._synced >= at_most_every:
            began = self._clock()
            self._current().sync()
            self._synced = began

    def stats(self) -> SpoolStats:
        """Counts of now."""
        journal = self._current()
        return SpoolStats(
            bytes=journal.size + journal.measure(),
            pending=journal.pending,
            segments=len(journal.segments()),
            corrupt=self._corrupt,
            foreign=len(self._left_alone),
        )

    def close(self) -> None:
        """Take no more, and leave what is not acknowledged to whoever recovers. Idempotent."""
        with suppress(SpoolError):
            self.sync()
        self._current().close()

    # -- what others left ---------------------------------------------------------------------------------------

    def recover(self) -> Iterator[Orphan]:
        """The segments whose owners are gone, each locked until its `done` or `release`.

        Files of other identities and versions are left alone and reported once; files without a record are removed.
        Any number of processes may recover at the same time: each orphan is given to one.
        """
        for entry in self._directory.entries():
            name = split_name(entry.name)
            if name is None:
                if not entry.name.endswith(".jsonl"):  # the dead letters
                    self._leave_alone(entry.name, "is not a spool segment")
            elif name[1] != CORRUPT:
                orphan = self._claim(entry.name)
                if orphan is not None:
                    yield orphan

    def _claim(self, name: str) -> Orphan | None:
        try:
            orphan = ownership.claim(self._directory, name, self._identity)
        except ForeignSegmentError as exc:
            self._leave_alone(name, str(exc))
            return None
        except DamagedSegmentError:
            self._report_damage(name)
            return None
        if orphan is not None:
            orphan.on_damage = self._report_damage
        return orphan

    def _leave_alone(self, name: str, why: str) -> None:
        if name not in self._left_alone:
            self._left_alone.add(name)
            _logger.warning("the file %s in the spool %s and is left alone", self.path / name, why)

    def _report_damage(self, name: str) -> None:
        self._corrupt += 1
        _logger.warning("the spool file %s is damaged: what could be read is kept, the file is set aside", name)

    # -- fork ---------------------------------------------------------------------------------------------------

    def after_fork_in_child(self) -> None:
        """Begin anew. Python's own forks call it; any other fork is noticed at the next use. Idempotent."""
        self._current()

    def _current(self) -> Journal:
        """This process's journal. No lock: after a fork whoever held one may not exist."""
        inherited = self._journal
        pid = _getpid()
        if inherited.pid == pid:
            return inherited
        fresh = Journal(self._directory, self._identity, self._limits, self._clock, inherited.generation)
        self._journal = self._journals.setdefault(pid, fresh)
        if self._journals.pop(inherited.pid, None) is not None:
            inherited.abandon()
        return self._journal


_spools: WeakSet[Spool] = WeakSet()


def _after_fork_in_child() -> None:
    for spool in list(_spools):
        spool.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
