"""What one process has spooled and not yet seen stored: its own segments.

The live segment takes the appends; older ones wait until the last of their records is acknowledged. All of it is in the
files, so nothing here has to survive.
"""

from __future__ import annotations

import errno
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from typing import Final, TypeAlias
from zlib import crc32

from agentexec_otel.export import _ownership as ownership
from agentexec_otel.export._segment import (
    LIVE,
    MAX_RECORD,
    RECORD_HEAD,
    DamagedSegmentError,
    header,
    pack_record,
    records,
    segment_stem,
    split_name,
    this_process,
    unpack_record,
)
from agentexec_otel.export._spool_directory import (
    SpoolDirectory,
    SpoolError,
    SpoolFullError,
    SpoolUnavailableError,
    file_identity,
)

Position: TypeAlias = int
"""Names an appended record. Grows with every append of a process."""

_MEASURE_INTERVAL: Final = 1.0
_TRIES: Final = 3
# No free descriptor passes as well: the spool is not to be given up for it.
_NO_ROOM: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE))

_write = os.write


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes; see `Spool`."""

    total: int
    reserve: int
    segment: int


@dataclass(slots=True, eq=False)
class _Segment:
    """A file of this process, from one time it was empty to the next.

    `writing` is only seen true where an append of this thread was interrupted: by a signal handler, which will return
    to it, or by an exception, which makes it `broken`. Either way nobody knows where the file ends: it takes no more.
    """

    stem: str
    fd: int
    file: tuple[int, int] | None
    base: Position
    start: int
    end: int
    limit: int
    synced: int
    count: int = 0
    acked: set[Position] = field(default_factory=set[Position])
    writing: bool = False
    broken: bool = False

    @property
    def settled(self) -> bool:
        return len(self.acked) == self.count

    @property
    def interrupted(self) -> bool:
        """An append below us on the stack goes on with this file."""
        return self.writing and not self.broken


class Journal:
    """The segments of one process. A forked child has a journal of its own, and begins with no segment.

    Args:
        generation: Segments are numbered from here, so that the parent's positions name nothing of the child's.
    """

    def __init__(
        self,
        directory: SpoolDirectory,
        identity: str,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
        generation: int = 0,
    ) -> None:
        owner = this_process()
        self.pid = owner.pid
        self.generation = generation
        self._directory = directory
        self._limits = limits
        self._clock = clock
        self._owner = owner
        self._rand = secrets.token_hex(4)
        self._header = header(identity, owner)
        # Reentrant: a signal handler may report an activity in the middle of an append of the same thread.
        self._lock = threading.RLock()
        # Held while a descriptor is synced, which takes long, and while one is closed; never while appending.
        self._sync_lock = threading.RLock()
        self._live: _Segment | None = None
        self._segments: dict[int, _Segment] = {}
        self._others = 0
        self._measured = float("-inf")
        self._new_name = False
        self._closed = False

    # -- appending ----------------------------------------------------------------------------------------------

    def append(self, payload: bytes, vital: bool) -> Position:
        """See `Spool.append`."""
        length = len(payload)
        if not 0 < length <= MAX_RECORD:
            raise ValueError(f"a record of {length} bytes")
        record = pack_record(length, crc32(payload)) + payload
        size = length + RECORD_HEAD
        with self._lock:
            segment = self._live
            if segment is None or segment.writing or segment.end + size > segment.limit:
                segment = self._ready(size, vital)
            segment.writing = True
            try:
                if _write(segment.fd, record) != size:
                    segment = self._write_again(segment, record)
            except OSError as exc:
                segment = self._write_again(segment, record, exc)
            except BaseException:
                segment.broken = True
                raise
            position = segment.base + segment.end
            segment.end += size
            segment.count += 1
            segment.writing = False
            return position

    def _write_again(self, segment: _Segment, record: bytes, error: OSError | None = None) -> _Segment:
        """After a failure, or a part of the record: cut that part off; try a new file where that may help."""
        self._cut_back(segment)
        full = error is None or error.errno == errno.EFBIG
        # Who becomes a daemon closes every descriptor of the process.
        closed = error is not None and error.errno == errno.EBADF
        if not (closed or (full and segment.count)):
            raise _failure(error) from None
        self._live = None
        segment = self._ready(len(record), vital=True)
        segment.writing = True
        try:
            if _write(segment.fd, record) == len(record):
                return segment
        except OSError as exc:
            error = exc
        self._cut_back(segment)
        raise _failure(error) from None

    def _cut_back(self, segment: _Segment) -> None:
        try:
            os.ftruncate(segment.fd, segment.end)
        except OSError:
            segment.broken = True  # what came behind the part would never be found
            self._live = None
        else:
            segment.writing = False

    def _ready(self, size: int, vital: bool) -> _Segment:
        """The live segment with room for `size` bytes, or a new one where it has none; already marked as `writing`."""
        if self._closed:
            raise SpoolUnavailableError("the spool is closed")
        segment = self._live
        if segment is not None and (segment.writing or (segment.count and segment.end + size > self._limits.segment)):
            self._live = segment = None
        if segment is None:
            return self._admit(None, size, vital)
        segment.writing = True  # a signal handler must not cut it back meanwhile
        try:
            return self._admit(segment, size, vital)
        except SpoolError:
            segment.writing = False
            raise
        except BaseException:
            segment.broken = True
            raise

    def _admit(self, segment: _Segment | None, size: int, vital: bool) -> _Segment:
        need = size if segment is not None else size + len(self._header)
        free = self._limits.total - self.size - self._bytes_of_others()
        if need > (free if vital else free - self._limits.reserve):
            raise SpoolFullError("the spool has reached its limit")
        if segment is None:
            segment = self._live = self._create()
            free -= segment.start
        segment.limit = min(self._limits.segment, segment.end + free - self._limits.reserve)
        return segment

    def _create(self) -> _Segment:
        for _ in range(_TRIES):
            number = self._next_number()
            stem = segment_stem(self._owner, self._rand, number)
            try:
                self._directory.ensure()
                fd = ownership.create(self._directory, stem, self._header)
            except FileNotFoundError:
                self._directory.restore()  # somebody has removed it
            except OSError as exc:
                raise _failure(exc) from None
            else:
                if fd is not None:
                    self._new_name = True
                    return self._begin(number, stem, fd, len(self._header), writing=True)
        raise SpoolUnavailableError(f"no file can be kept in the spool directory {self._directory.path}")

    def _next_number(self) -> int:
        # One step for the interpreter: a signal handler that comes after it takes the next one.
        number = self.generation = self.generation + 1
        return number

    def _begin(self, number: int, stem: str, fd: int, start: int, limit: int = 0, *, writing: bool = False) -> _Segment:
        """An empty segment, with a number of its own so that an old position never means a new record."""
        segment = _Segment(
            stem, fd, file_identity(fd), number << 32, start, start, limit, synced=start, writing=writing
        )
        self._segments[number] = segment
        return segment

    # -- sizes --------------------------------------------------------------------------------------------------

    def segments(self) -> list[_Segment]:
        """Oldest first. A copy, since a signal handler may add one while we look."""
        return [segment for _, segment in sorted(self._segments.items())]

    @property
    def size(self) -> int:
        """Size of this process's segments."""
        return sum(segment.end for segment in self.segments())

    @property
    def pending(self) -> int:
        """Records that are not acknowledged."""
        return sum(segment.count - len(segment.acked) for segment in self.segments())

    def measure(self) -> int:
        """Bytes of other processes' segments, of orphans and of what was set aside."""
        mine = {segment.stem for segment in self.segments()}
        others = 0
        for entry in self._directory.entries():
            name = split_name(entry.name)
            if name is not None and name[0] not in mine:
                others += entry.size
        self._others = others
        self._measured = self._clock()
        return others

    def _bytes_of_others(self) -> int:
        stale = self._clock() - self._measured >= _MEASURE_INTERVAL
        return self.measure() if stale else self._others

    # -- what is stored elsewhere -------------------------------------------------------------------------------

    def ack(self, positions: Iterable[Position]) -> None:
        """See `Spool.ack`."""
        for position in positions:
            segment = self._segments.get(position >> 32)
            if segment is not None:
                segment.acked.add(position)
        with self._lock:
            # Taken out in one step each: a signal handler in between may acknowledge as well.
            finished = [segment for segment in self.segments() if self._finished(segment) and self._take(segment)]
        self._close_files(finished)

    def _take(self, segment: _Segment) -> bool:
        return self._segments.pop(segment.base >> 32, None) is segment

    def _finished(self, segment: _Segment) -> bool:
        """Whether the file has served. The live one goes on, cut back to its header."""
        if segment is self._live:
            return not segment.writing and self._cut_to_header(segment)
        return segment.settled and not segment.interrupted

    def _cut_to_header(self, segment: _Segment) -> bool:
        """As far as it is settled. True where the file is of no more use."""
        segment.writing = True  # from here on, an append by a signal handler goes elsewhere
        try:
            if not segment.count or not segment.settled:
                segment.writing = False
                return False
            sound = segment.file == file_identity(segment.fd)
            if sound:
                os.ftruncate(segment.fd, segment.start)
        except OSError:
            sound = False
        except BaseException:
            segment.broken = True
            raise
        if sound and self._take(segment):
            self._live = self._begin(self._next_number(), segment.stem, segment.fd, segment.start, segment.limit)
            return False
        # The disk fails, or somebody removed or closed the file: what is written there would not be found again.
        segment.broken = True
        self._live = None
        return True

    def read(self, after: Position, limit: int) -> list[tuple[Position, bytes]]:
        """See `Spool.read`."""
        while True:
            segment, offset, chunk = self._chunk(after, limit)
            if segment is None:
                return []
            found: list[tuple[Position, bytes]] = []
            with suppress(DamagedSegmentError):  # the chunk may end within a record
                for payload in records(BytesIO(chunk)):
                    after = segment.base + offset
                    offset += len(payload) + RECORD_HEAD
                    if after not in segment.acked:
                        found.append((after, payload))
            if found:
                return found

    def _chunk(self, after: Position, limit: int) -> tuple[_Segment | None, int, bytes]:
        """Of the first segment that has a record after that one: where this record begins, and bytes from there on."""
        with self._lock:
            for segment in self.segments():
                with suppress(OSError):  # it stays for the next process
                    offset = max(segment.start, after - segment.base)
                    if segment.base <= after < segment.base + segment.end:
                        offset += _record_size(segment.fd, offset)
                    if offset < segment.end:
                        wanted = max(limit, _record_size(segment.fd, offset))
                        return segment, offset, os.pread(segment.fd, min(wanted, segment.end - offset), offset)
        return None, 0, b""

    # -- durability ---------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Everything appended before this call is on the disk. A caller who finds it done by another one only waits.

        Raises:
            SpoolUnavailableError: the disk fails.
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
                    os.fsync(self._directory.fd)
            except OSError as exc:
                raise _failure(exc) from None

    def close(self) -> None:
        """Take no more. What is not acknowledged is left to whoever recovers."""
        with self._lock:
            self._closed = True
            self._live = None
            left = [segment for segment in self.segments() if not segment.interrupted and self._take(segment)]
        self._close_files(left)

    def _close_files(self, segments: Sequence[_Segment]) -> None:
        if not segments:
            return
        with self._sync_lock, suppress(SpoolError):
            self._directory.ensure()
            for segment in segments:
                with suppress(OSError):
                    if segment.settled:
                        ownership.remove(self._directory, segment.stem + LIVE)
                    else:
                        ownership.hand_over(self._directory, segment.stem)
                _close(segment)
                ownership.let_go(segment.stem)

    def abandon(self) -> None:
        """In a forked child: close the copies of the parent's descriptors. The files stay the parent's."""
        for segment in self.segments():
            if self._take(segment):
                _close(segment)


def _close(segment: _Segment) -> None:
    # Unless somebody has closed it, and the number is another file's by now. A removed file is ours still.
    if file_identity(segment.fd) in (segment.file, None):
        with suppress(OSError):
            os.close(segment.fd)


_fdatasync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)  # macOS has none


def _record_size(fd: int, offset: int) -> int:
    length: int = unpack_record(os.pread(fd, RECORD_HEAD, offset))[0]
    return RECORD_HEAD + length


def _failure(error: OSError | None) -> SpoolError:
    """None: a part of a record was written, which is what a full disk does."""
    if error is None:
        return SpoolFullError("no room left on the disk for the spool")
    kind = SpoolFullError if error.errno in _NO_ROOM else SpoolUnavailableError
    return kind(f"the spool cannot be written: {os.strerror(error.errno or 0)}")
