"""A spool segment: the format of the file, its owner, its replay after that process is gone, and a look at its content.

A file is a header and records::

    magic 8s | format version u16 | length u16 | crc32 u32 | JSON object     (the same outer layout in every version)
    length u32 | crc32 u32 | payload                                         (any number of times)

Numbers are little-endian. The checksum of the header covers everything but itself, which distinguishes a damaged header
from one of another version. A record has at least one byte, so a tail of zeros after a power failure is not a record.

After a damaged record, reading continues with the next sound one. Payloads are JSON, which has no zero byte, and the
last byte of a length is zero: so no message can contain what looks like a record.

A segment is locked with a POSIX record lock while its owner, or the process that replays it, lives. Unlike `flock`,
such a lock is not inherited by forked children, so a child that outlives its parent does not prevent a replay. It has
two weaknesses. It does not exclude a second user in the same process: `_held` does. And it is lost if the process
closes any descriptor of the file: the pid of the owner is checked before a free lock is believed.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import socket
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple
from zlib import crc32

from agentexec_otel.export.spool.directory import SpoolDirectory

_logger = logging.getLogger("agentexec_otel.export")

FORMAT: Final = 1
MAGIC: Final = b"AXSPOOL\n"
MAX_RECORD: Final = 1 << 20
"""Longest payload. Messages are cut at 60 KiB and metadata at 16 KiB, so a longer one is damage."""

LIVE: Final = ".seg"
LEFT: Final = ".left"
"""Suffix of a segment whose process has closed the spool and may still run."""
CORRUPT: Final = ".corrupt"
KEPT_CORRUPT = 8
"""Number of damaged files that are kept for inspection. What could be read of them has been delivered."""

_HEADER: Final = struct.Struct("<8sHHI")
_CHECKED: Final = _HEADER.size - 4
_LONGEST_HEADER: Final = _HEADER.size + 0xFFFF
_LONGEST_TARGET: Final = 300
_REPAIRABLE: Final = 1024  # Bytes. Ours have 250 to 600.
_RECORD: Final = struct.Struct("<II")
_NAME = re.compile(r"([\w.-]+-\d+-\d+-[0-9a-f]{8})-(\d{6,12})(\.seg|\.left|\.corrupt)", re.ASCII).fullmatch

pack_record = _RECORD.pack


class DamagedSegmentError(Exception):
    """The bytes are not those that were written."""


class ForeignSegmentError(Exception):
    """A sound segment that must not be replayed here. The message says why."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that writes a segment.

    Attributes:
        started: Start time of the process, in clock ticks since boot on Linux. Detects a recycled pid.
        place: The boot and pid namespace in which `pid` is valid. Empty if unknown.
    """

    pid: int
    started: int
    place: str

    def is_running(self) -> bool:
        """Whether this very process runs. False if that cannot be determined from here."""
        return self.place != "" and self.place == _place() and _started(self.pid) == self.started


def this_process() -> Owner:
    """Describe the calling process."""
    pid = os.getpid()
    return Owner(pid, _started(pid) or _IMPORTED_AT, _place())


_IMPORTED_AT: Final = time.time_ns()


def _started(pid: int) -> int | None:
    """Field 22 of /proc/pid/stat, after the name, which may contain anything. None if there is no such process."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if state in b"ZXx" else int(rest[18])
    except (OSError, ValueError, IndexError):
        return None


@cache
def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except (OSError, ValueError):
        return ""


# -- names ------------------------------------------------------------------------------------------------------


def segment_stem(owner: Owner, rand: str, number: int) -> str:
    """File name of a segment without its suffix. The names of one owner sort by age."""
    host = re.sub(r"[^\w.-]", "_", socket.gethostname(), flags=re.ASCII)[:64] or "_"
    return f"{host}-{owner.pid}-{owner.started}-{rand}-{number:06d}"


def split_name(name: str) -> tuple[str, str] | None:
    """Stem and suffix of the file name of a segment, or None if it is another file."""
    match = _NAME(name)
    return None if match is None else (f"{match[1]}-{match[2]}", match[3])


# -- header -----------------------------------------------------------------------------------------------------


class Header(NamedTuple):
    """What a segment says about itself.

    Attributes:
        identity: A hash of what the records are meant for.
        target: What they are meant for, in words. Empty if a version before this field has written the segment.
    """

    identity: str
    owner: Owner
    target: str = ""


def header(identity: str, owner: Owner, target: str = "") -> bytes:
    """The first bytes of a segment; see `Header`."""
    body = json.dumps({"identity": identity, **asdict(owner), "target": target[:_LONGEST_TARGET]}).encode()
    start = _HEADER.pack(MAGIC, FORMAT, len(body), 0)[:_CHECKED]
    return start + struct.pack("<I", crc32(body, crc32(start))) + body


def read_header(stream: BinaryIO) -> Header:
    """Read the header of a segment. The stream is at the first record after that.

    Raises:
        DamagedSegmentError: Not a header.
        ForeignSegmentError: Another format version.
    """
    content = bytearray(stream.read(_LONGEST_HEADER))
    end = _header_end(content) or _repair(content)
    stream.seek(end)
    version = int.from_bytes(content[len(MAGIC) : len(MAGIC) + 2], "little")
    if version != FORMAT:
        raise ForeignSegmentError(f"is of spool format {version}, this version writes {FORMAT}")
    try:
        fields: Any = json.loads(content[_HEADER.size : end])
        identity, *values = [fields[name] for name in ("identity", "pid", "started", "place")]
        target = str(fields.get("target", ""))
    except (ValueError, RecursionError, TypeError, KeyError):
        raise DamagedSegmentError from None
    if [type(value) for value in values] != [int, int, str]:
        raise DamagedSegmentError
    return Header(identity, Owner(*values), target)


def _header_end(content: bytearray) -> int:
    """Where a sound header ends. 0 if there is none."""
    if len(content) < _HEADER.size or not content.startswith(MAGIC):
        return 0
    _, _, length, checksum = _HEADER.unpack_from(content)
    end = _HEADER.size + int(length)
    body = content[_HEADER.size : end]
    is_sound = len(body) == length and crc32(body, crc32(content[:_CHECKED])) == checksum
    return end if is_sound else 0


def _repair(content: bytearray) -> int:
    """Correct the one bit of a header that is flipped, as its checksum proves. Return where the header ends."""
    for bit in range(8 * min(len(content), _REPAIRABLE)):
        content[bit // 8] ^= 1 << bit % 8
        if end := _header_end(content):
            return end
        content[bit // 8] ^= 1 << bit % 8
    raise DamagedSegmentError


# -- records ----------------------------------------------------------------------------------------------------

_WINDOW: Final = 1 << 18
_SEARCH_LIMIT: Final = 64 << 20
"""Number of payload bytes that are read to find sound records in one file. A file cannot keep its reader busy."""
# A length of 1 byte to 1 MiB, of at least 1 byte. Lookahead, since candidates overlap.
_LENGTH: Final = re.compile(rb"(?=(?!\0\0\0)..[\0-\x10]\0)", re.DOTALL)


def records(stream: BinaryIO, offset: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield the end and the payload of each record from `offset` up to the end of the file.

    None in place of the payload stands for a damaged record, or several in a row.
    """
    searchable = _SEARCH_LIMIT
    stream.seek(offset)
    while start := stream.read(_RECORD.size):
        payload = _payload(stream, start)
        if payload is None:
            offset, searchable = _next_record(stream, offset + 1, searchable)
            stream.seek(offset)
        else:
            offset += _RECORD.size + len(payload)
        yield offset, payload


def _payload(stream: BinaryIO, start: bytes) -> bytes | None:
    """Read the payload of a record that begins with `start`. None if the record is not sound."""
    if len(start) < _RECORD.size:
        return None
    length, checksum = _RECORD.unpack(start)
    # Checked before reading: a damaged length must not ask for 4 GiB of memory.
    if not 0 < length <= MAX_RECORD:
        return None
    payload = stream.read(length)
    return payload if len(payload) == length and crc32(payload) == checksum else None


def _next_record(stream: BinaryIO, offset: int, searchable: int) -> tuple[int, int]:
    """Find the first sound record from `offset` on. Return its offset, or else the end of the file.

    The second value is how many payload bytes may still be read for the next search.
    """
    end = stream.seek(0, os.SEEK_END)
    for candidate, start in _candidates(stream, offset):
        length = _RECORD.unpack(start)[0]
        if candidate + _RECORD.size + length > end:
            continue
        searchable -= length
        if searchable < 0:
            break
        stream.seek(candidate + _RECORD.size)
        if _payload(stream, start) is not None:
            return candidate, searchable
    return end, searchable


def _candidates(stream: BinaryIO, offset: int) -> Iterator[tuple[int, bytes]]:
    while True:
        stream.seek(offset)
        window = stream.read(_WINDOW)
        for match in _LENGTH.finditer(window, 0, len(window) - _RECORD.size + 4):
            yield offset + match.start(), window[match.start() : match.start() + _RECORD.size]
        if len(window) < _WINDOW:
            return
        offset += _WINDOW - _RECORD.size + 1


# -- ownership --------------------------------------------------------------------------------------------------

# Keyed by pid, since a child does not hold what its parent holds. Each step is atomic: no lock that a fork could leave
# locked.
_held: dict[tuple[int, str], object] = {}

_CREATE = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


def _hold(stem: str) -> bool:
    token = object()
    return _held.setdefault((os.getpid(), stem), token) is token


def let_go(stem: str) -> None:
    """Release a segment that this process wrote or replayed."""
    _held.pop((os.getpid(), stem), None)


def _lock(fd: int) -> bool:
    from fcntl import LOCK_EX, LOCK_NB, lockf

    with suppress(BlockingIOError, PermissionError):
        lockf(fd, LOCK_EX | LOCK_NB)
        return True
    return False


def create(directory: SpoolDirectory, stem: str, header: bytes) -> int | None:
    """Create a segment, locked and held until `let_go`.

    None if another process was faster: the name is taken, or a recovering process saw the file while it was empty.

    Raises:
        OSError: The file cannot be created, locked or written.
    """
    with directory.open() as dir_fd, ExitStack() as undo:
        if not _hold(stem):
            return None
        undo.callback(let_go, stem)
        try:
            fd = os.open(stem + LIVE, _CREATE, 0o600, dir_fd=dir_fd)
        except FileExistsError:
            return None
        except OSError:
            raise
        except BaseException:  # A signal handler's: the file may have been created.
            directory.remove(stem + LIVE)
            raise
        undo.callback(directory.remove, stem + LIVE)
        undo.callback(os.close, fd)
        os.fchmod(fd, 0o600)  # the umask may have removed bits
        if not _lock(fd):
            return None
        if os.write(fd, header) != len(header):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if not os.fstat(fd).st_nlink:
            return None
        undo.pop_all()
        return fd


class Orphan:
    """A segment whose owner is gone, locked by this process until `done` or `close`.

    Iterating yields the payloads in the order in which they were appended.

    Attributes:
        name: Name of the file.
        damaged: Number of places at which the file has no sound record: one for each damaged record, if no two of them
            follow each other. Known after the iteration has ended.
    """

    def __init__(self, directory: SpoolDirectory, name: str, fd: int, offset: int) -> None:
        self.name = name
        self.damaged = 0
        self._directory = directory
        self._fd = fd
        self._offset = offset
        self._pid = os.getpid()

    def __iter__(self) -> Iterator[bytes]:
        with open(self._fd, "rb", buffering=1 << 18, closefd=False) as stream:
            self.damaged = 0
            try:
                for _, payload in records(stream, self._offset):
                    if payload is None:
                        self.damaged += 1
                    else:
                        yield payload
            except OSError:
                self.damaged += 1

    def done(self) -> None:
        """Remove the file, since all of it was read and is stored. A damaged file is renamed to ``.corrupt``.

        The copy in a forked child is only closed.
        """
        if self._fd >= 0 and self._pid == os.getpid():
            if self.damaged:
                _set_aside(self._directory, self.name)
            else:
                self._directory.remove(self.name)
        self.close()

    def close(self) -> None:
        """Leave the file to the next `recover`. Idempotent."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
            let_go(_stem(self.name))


def claim(directory: SpoolDirectory, name: str, identity: str) -> Orphan | None:
    """Lock a segment for replay. None if it is in use, gone, or has no record: then it is removed or set aside.

    Raises:
        ForeignSegmentError: Not ours to replay; the file is not touched.
    """
    with ExitStack() as undo:
        if not _hold(_stem(name)):
            return None
        undo.callback(let_go, _stem(name))
        try:
            with directory.open() as dir_fd:
                # O_NONBLOCK: the name may be a named pipe.
                fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
                undo.callback(os.close, fd)
                if not _lock_file(fd, name, dir_fd):
                    return None
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise ForeignSegmentError(f"cannot be read ({os.strerror(exc.errno or 0)})") from None
        with open(fd, "rb", closefd=False) as stream:
            owner = _owner(stream, identity)
            offset = stream.tell()
        size = os.fstat(fd).st_size
        if owner is None and size:
            _set_aside(directory, name)
        elif owner is None or _is_abandoned(owner, name):
            if size > offset:
                undo.pop_all()
                return Orphan(directory, name, fd, offset)
            directory.remove(name)
        return None


def _owner(stream: BinaryIO, identity: str) -> Owner | None:
    """Read the header. None if it is damaged."""
    try:
        found = read_header(stream)
    except DamagedSegmentError:
        return None
    if found.identity != identity:
        raise ForeignSegmentError("belongs to another database or table prefix")
    return found.owner


def _lock_file(fd: int, name: str, dir_fd: int) -> bool:
    """Lock the opened file, unless another process has just replayed it: then it has lost its name."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        raise ForeignSegmentError("is not a file of this user")
    return _lock(fd) and os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_ino == found.st_ino


def _is_abandoned(owner: Owner, name: str) -> bool:
    return name.endswith(LEFT) or owner.pid == os.getpid() or not owner.is_running()


def _set_aside(directory: SpoolDirectory, name: str) -> None:
    """Keep a damaged file for inspection, and remove the oldest ones."""
    directory.rename(name, _stem(name) + CORRUPT)
    corrupt = [(found.st_mtime_ns, other) for other, found in directory.entries() if other.endswith(CORRUPT)]
    for _, other in sorted(corrupt)[:-KEPT_CORRUPT]:
        directory.remove(other)
    _logger.warning("the spool file %s is damaged: what could be read is kept, the file is set aside", name)


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


# -- for a person to look at: nothing is locked, changed or created ---------------------------------------------

_FOLDER: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)


class SegmentContent(NamedTuple):
    """What one file has.

    Attributes:
        target: What the records are meant for. Empty if that is not known.
        records: Number of sound records. 0 for a file of this process, which is not opened.
        first: The payload of the first one.
        is_orphan: The process that wrote it has ended.
        is_damaged: The file was set aside, or has no sound header.
    """

    size: int
    target: str = ""
    records: int = 0
    first: bytes | None = None
    is_orphan: bool = False
    is_damaged: bool = False


def folders(base: Path) -> list[Path]:
    """Return the folders of the spool, one for each target.

    Raises:
        OSError: The directory cannot be read.
    """
    if not base.exists():
        return []
    return sorted(path for path in base.iterdir() if _FOLDER.fullmatch(path.name) and path.is_dir())


def segments(folder: Path) -> Iterator[SegmentContent]:
    """Yield the content of each file that has records, the oldest of each process first.

    Raises:
        OSError: A file cannot be read.
    """
    for path in sorted(folder.iterdir()):
        if split_name(path.name) is not None:
            with suppress(FileNotFoundError):  # Its process has just delivered it.
                yield _content(path)


def _content(path: Path) -> SegmentContent:
    if (os.getpid(), path.stem) in _held:  # Closing it would release the lock of this process.
        return SegmentContent(path.stat().st_size)
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # The name may be that of a named pipe.
    with os.fdopen(os.open(path, flags), "rb") as stream:
        found = os.fstat(stream.fileno())
        if path.suffix == CORRUPT or not stat.S_ISREG(found.st_mode):
            return SegmentContent(found.st_size, is_damaged=True)
        try:
            header = read_header(stream)
        except (DamagedSegmentError, ForeignSegmentError):
            return SegmentContent(found.st_size, is_damaged=found.st_size > 0)
        payloads = [payload for _, payload in records(stream, stream.tell()) if payload is not None]
    is_orphan = path.suffix == LEFT or not header.owner.is_running()
    return SegmentContent(found.st_size, header.target, len(payloads), payloads[0] if payloads else None, is_orphan)
