"""The segments of one process: the records that it has spooled and that are not acknowledged.

The live segment takes the appends. Older ones stay until the last of their records is acknowledged. Everything is in
the files, so nothing in this object has to survive the process.
"""

from __future__ import annotations

import errno
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Final, TypeAlias
from zlib import crc32

from agentexec_otel import _syscalls
from agentexec_otel.export.spool.directory import SpoolDirectory, SpoolError, SpoolFullError, SpoolUnavailableError
from agentexec_otel.export.spool.segment import (
    LEFT,
    LIVE,
    MAX_RECORD,
    create,
    header,
    let_go,
    pack_record,
    records,
    segment_stem,
    split_name,
    this_process,
)

Position: TypeAlias = int
"""Names an appended record. Grows with every append of a process."""

_MEASURE_INTERVAL: Final = 1.0
_COPY: Final = 1 << 20
_TRIES: Final = 3
_BLOCKED_SECONDS: Final = 0.02  # A write to the page cache takes microseconds.
_DISK_FULL: Final = frozenset((errno.ENOSPC, errno.EDQUOT))
# A lack of descriptors passes as well: the spool is not given up for it.
_NO_ROOM: Final = _DISK_FULL | {errno.EFBIG, errno.EMFILE, errno.ENFILE}

_fdatasync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)  # macOS has none


@dataclass(slots=True, eq=False)
class _Segment:
    """A file of this process, from one time it was empty to the next.

    Attributes:
        base: Positions of the file are `base` plus the offset at which the record ends.
        start: Offset of the first record.
        end: Offset at which the next record begins.
        limit: Up to this offset, an append needs no look at the limits of the spool.
        synced: Offset up to which the file is on the disk.
        count: Number of records.
        retired: Takes no more records.
    """

    stem: str
    fd: int
    inode: tuple[int, int] | None
    base: Position
    start: int
    end: int
    limit: int
    synced: int
    count: int = 0
    acked: set[Position] = field(default_factory=set[Position])
    retired: bool = False

    @property
    def is_acked(self) -> bool:
        return len(self.acked) == self.count


class Journal:
    """The segments of one process. A forked child has a journal of its own, and begins with no segment.

    Args:
        limits: In bytes: of all segments together, the reserve in it for vital records, and of one segment.
        numbers: Numbers of the segments. A child continues its parent's, so that no position means a record of both.
    """

    def __init__(
        self,
        directory: SpoolDirectory,
        identity: str,
        limits: tuple[int, int, int],
        clock: Callable[[], float] = time.monotonic,
        numbers: Iterator[int] | None = None,
        *,
        target: str = "",
    ) -> None:
        self._owner = this_process()
        self.pid = self._owner.pid
        self.numbers = numbers or count(1)
        self._directory = directory
        self._max_bytes, self._reserve, self._max_segment = limits
        self._clock = clock
        self._rand = secrets.token_hex(4)
        self._header = header(identity, self._owner, target)
        # Guards the live segment and its file. Reentrant: a signal handler may append or acknowledge in the middle of
        # an append of the same thread.
        self._lock = threading.RLock()
        # Held while a descriptor is synced, which takes long, and while one is closed; never while appending.
        self._sync_lock = threading.RLock()
        self._live: _Segment | None = None
        self._segments: dict[int, _Segment] = {}
        self._others = 0
        self._measured = float("-inf")
        self._new_name = False
        self._write = _syscalls.write
        self._closed = False

    # -- appending ----------------------------------------------------------------------------------------------

    def append(self, payload: bytes, vital: bool) -> Position:
        """See `Spool.append`."""
        length = len(payload)
        if not 0 < length <= MAX_RECORD:
            raise ValueError(f"a record of {length} bytes")
        record = pack_record(length, crc32(payload)) + payload
        position: Position | None = None
        try:
            with self._lock:
                position = self._append(record, payload, vital)
        except BaseException:
            if position is not None:  # interrupted at the last moment: the caller does not learn the position
                self.ack([position])
            raise
        return position

    def _append(self, record: bytes, payload: bytes, vital: bool) -> Position:
        size = len(record)
        # While a file is written to it is not the live one: a signal handler appends to another.
        segment = self._live
        self._live = None
        try:
            if segment is None or segment.end + size > segment.limit:
                segment = self._admit(segment, size, vital)
            try:
                began = self._clock()
                if self._write(segment.fd, record) != size:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
                if self._clock() - began > _BLOCKED_SECONDS:
                    self._write = os.write  # Other threads run while it blocks.
            except OSError as exc:
                self._cut_back(segment, exc)
                return self.append(payload, vital)
        except SpoolError:
            raise
        except BaseException:  # interrupted: the end of the file is unknown
            if segment is not None:
                segment.retired = True
            raise
        segment.end += size
        segment.count += 1
        # As `_put_back` does. No call: a signal handler that raises in between would leave the segment to no one.
        if self._live is None:
            self._live = segment
        else:
            segment.retired = True
        return segment.base + segment.end

    def _put_back(self, segment: _Segment) -> None:
        """Make it the live one, unless a signal handler has begun another one."""
        if self._live is None:
            self._live = segment
        else:
            segment.retired = True

    def _admit(self, segment: _Segment | None, size: int, vital: bool) -> _Segment:
        """Return `segment` if it may grow by `size` bytes, or else a new one."""
        if self._closed:
            raise SpoolUnavailableError("the spool is closed")
        if segment is not None and segment.count and segment.end + size > self._max_segment:
            segment.retired = True
            segment = None
        if self._clock() - self._measured >= _MEASURE_INTERVAL:
            self.measure()
        free = self._max_bytes - self._reserve - self.size - self._others
        need = size if segment is not None else size + len(self._header)
        if need > free + vital * self._reserve:
            if segment is not None:
                self._put_back(segment)
            raise SpoolFullError("the spool has reached its limit")
        if segment is None:
            segment = self._create()
            free -= segment.start
        segment.limit = min(self._max_segment, segment.end + free)
        return segment

    def _create(self) -> _Segment:
        for _ in range(_TRIES):
            number = next(self.numbers)
            stem = segment_stem(self._owner, self._rand, number)
            try:
                fd = create(self._directory, stem, self._header)
            except OSError as exc:
                raise _failure(exc) from None
            if fd is not None:
                self._new_name = True
                self._write = _syscalls.write
                try:
                    return self._begin(number, stem, fd, len(self._header))
                except BaseException:  # A signal handler's: the file has no owner yet.
                    self._directory.remove(stem + LIVE)
                    os.close(fd)
                    let_go(stem)
                    raise
        raise SpoolUnavailableError(f"no file can be kept in the spool directory {self._directory.path}")

    def _begin(self, number: int, stem: str, fd: int, start: int, limit: int = 0) -> _Segment:
        """An empty segment. It has a number of its own, so that an old position never means a new record."""
        segment = _Segment(stem, fd, _inode(fd), number << 32, start, start, limit, synced=start)
        self._segments[number] = segment
        return segment

    def _cut_back(self, segment: _Segment, error: OSError) -> None:
        """Cut off what a failed write has left. Return if a new file may take the record.

        That is so if the file has reached the size limit of the process, or something has closed its descriptor.
        """
        try:
            os.ftruncate(segment.fd, segment.end)
        except OSError:
            segment.retired = True
        if error.errno == errno.EBADF or (segment.count and error.errno not in _DISK_FULL):
            segment.retired = True
            return
        if not segment.retired:
            self._put_back(segment)
        raise _failure(error) from None

    # -- sizes --------------------------------------------------------------------------------------------------

    def segments(self) -> list[_Segment]:
        """Oldest first. A copy, since a signal handler may add one meanwhile."""
        return [segment for _, segment in sorted(self._segments.items())]

    @property
    def size(self) -> int:
        """Size of this process's segments in bytes."""
        return sum(segment.end for segment in self.segments())

    def measure(self) -> int:
        """Bytes of the segments of other processes, of orphans and of damaged files."""
        mine = {segment.stem for segment in self.segments()}
        names = [(split_name(name), found.st_size) for name, found in self._directory.entries()]
        self._others = sum(size for name, size in names if name is not None and name[0] not in mine)
        self._measured = self._clock()
        return self._others

    # -- what is acknowledged -----------------------------------------------------------------------------------

    def ack(self, positions: Iterable[Position]) -> None:
        """See `Spool.ack`."""
        for position in positions:
            segment = self._segments.get(position >> 32)
            if segment is not None:
                segment.acked.add(position)
        with self._lock:
            finished = [segment for segment in self.segments() if segment.is_acked and self._finish(segment)]
        self._release(finished)

    def _finish(self, segment: _Segment) -> bool:
        """Whether the file can be removed. The live one is cut back to its header instead."""
        live = segment is self._live
        if not (segment.count if live else segment.retired):
            return False
        if live:
            self._live = None
        # In one step: a signal handler may acknowledge as well.
        if not self._forget(segment):
            return False
        # Something may have closed the file or removed it: then the next append begins another.
        if not live or _inode(segment.fd) != segment.inode:
            return True
        try:
            os.ftruncate(segment.fd, segment.start)
        except OSError:
            return True
        self._put_back(self._begin(next(self.numbers), segment.stem, segment.fd, segment.start, segment.limit))
        return False

    def _forget(self, segment: _Segment) -> bool:
        return self._segments.pop(segment.base >> 32, None) is segment

    def read(self, after: Position, limit: int) -> list[tuple[Position, bytes]]:
        """See `Spool.read`."""
        with self._lock:
            for segment in self.segments():
                offset = max(segment.start, after - segment.base)
                found = _read(segment, offset, limit) if offset < segment.end else []
                if found:
                    return found
        return []

    # -- durability ---------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Bring to the disk what was appended before this call. Threads that wait here share one sync.

        Raises:
            SpoolUnavailableError: The disk fails.
        """
        wanted = [(segment, segment.end) for segment in self.segments()]
        with self._sync_lock:
            try:
                for segment, end in wanted:
                    if segment.synced < end and self._segments.get(segment.base >> 32) is segment:
                        reached = segment.end
                        _fdatasync(segment.fd)
                        segment.synced = reached
                if self._new_name:
                    self._new_name = False
                    self._directory.sync()
            except OSError as exc:
                raise _failure(exc) from None

    def close(self) -> None:
        """Accept no more records. The next `recover` of any process gets those that are not acknowledged."""
        with self._lock:
            self._closed = True
            live, self._live = self._live, None
            if live is not None:
                live.retired = True
            # The others belong to an append that was interrupted by a signal handler, which closes the spool.
            left = [segment for segment in self.segments() if segment.retired and self._forget(segment)]
            for segment in self.segments():
                segment.limit = 0
        self._release(left)

    def _release(self, segments: Sequence[_Segment]) -> None:
        """Close files. Those with outstanding records are left to the next `recover`, the others removed."""
        with self._sync_lock:
            for segment in segments:
                with suppress(OSError, SpoolError):
                    if segment.is_acked:
                        self._directory.remove(segment.stem + LIVE)
                    else:
                        self._directory.rename(segment.stem + LIVE, segment.stem + LEFT)
                _close(segment)
                let_go(segment.stem)

    # -- removed files ------------------------------------------------------------------------------------------

    @property
    def is_intact(self) -> bool:
        """Whether every record that is outstanding is in a file that has a name."""
        return all(segment.is_acked or not _is_removed(segment) for segment in self.segments())

    def restore(self) -> int:
        """Write files again that something has removed. Returns how many. Call it from the thread that acknowledges.

        Raises:
            SpoolError: They cannot be written.
        """
        restored = 0
        for segment in self.segments():
            if not _is_removed(segment):
                continue
            with self._lock:
                removed = segment.fd
                if self._segments.get(segment.base >> 32) is segment:
                    self._rewrite(segment)
                    restored += 1
            if removed != segment.fd:
                with self._sync_lock, suppress(OSError):
                    os.close(removed)
        return restored

    def _rewrite(self, segment: _Segment) -> None:
        """Copy the content to a new file of the same name."""
        let_go(segment.stem)  # There is no file that another thread could recover.
        try:
            with ExitStack() as undo:
                fd = create(self._directory, segment.stem, self._header)
                if fd is None:
                    raise SpoolUnavailableError(f"a file {segment.stem}{LIVE} is in the way")
                undo.callback(let_go, segment.stem)
                undo.callback(self._directory.remove, segment.stem + LIVE)
                undo.callback(os.close, fd)
                _copy(segment, fd)
                undo.pop_all()
        except OSError as exc:
            raise _failure(exc) from None
        segment.fd, segment.inode, segment.synced = fd, _inode(fd), segment.start
        self._new_name = True

    def abandon(self) -> None:
        """In a forked child: close the copies of the parent's descriptors. The files stay the parent's."""
        for segment in self.segments():
            if self._forget(segment):
                _close(segment)


def _read(segment: _Segment, offset: int, limit: int) -> list[tuple[Position, bytes]]:
    """Outstanding records from that offset on: at least one if there is any, and about `limit` bytes.

    A damaged one counts as acknowledged: nothing else can be done for it.
    """
    found: list[tuple[Position, bytes]] = []
    # If the disk fails, what cannot be read stays for the next process.
    with suppress(OSError), open(segment.fd, "rb", closefd=False) as stream:
        for end, payload in records(stream, offset):
            if end > segment.end:
                break
            position = segment.base + end
            if payload is None:
                segment.acked.add(position)
                continue
            limit -= len(payload)
            if found and limit < 0:
                break
            if position not in segment.acked:
                found.append((position, payload))
    return found


def _is_removed(segment: _Segment) -> bool:
    try:
        found = os.fstat(segment.fd)
    except OSError:  # Something has closed the descriptor.
        return False
    return found.st_nlink == 0 and (found.st_dev, found.st_ino) == segment.inode


def _copy(segment: _Segment, fd: int) -> None:
    """Append the records to a new file."""
    offset = segment.start
    while offset < segment.end:
        part = os.pread(segment.fd, min(_COPY, segment.end - offset), offset)
        if not part:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        offset += os.write(fd, part)


def _inode(fd: int) -> tuple[int, int] | None:
    """Identify an open file. None if the descriptor is closed or the file was removed."""
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found.st_nlink else None


def _close(segment: _Segment) -> None:
    # Something else may have closed the descriptor, and the number may be another file's by now.
    if _inode(segment.fd) in (segment.inode, None):
        with suppress(OSError):
            os.close(segment.fd)


def _failure(error: OSError) -> SpoolError:
    kind = SpoolFullError if error.errno in _NO_ROOM else SpoolUnavailableError
    return kind(f"the spool cannot be written: {os.strerror(error.errno or 0)}")
