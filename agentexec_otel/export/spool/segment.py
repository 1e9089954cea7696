"""The format of a spool segment, and the process that owns it.

A file is a header and records::

    magic 8s | format version u16 | length u16 | crc32 u32 | JSON object     (the same outer layout in every version)
    length u32 | crc32 u32 | payload                                         (any number of times)

Numbers are little-endian. The checksum of the header covers everything but itself, which distinguishes a damaged header
from one of another version. A record has at least one byte: a tail of zeros, which a power failure may leave, is none.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Final
from zlib import crc32

FORMAT: Final = 1
MAGIC: Final = b"AXSPOOL\n"
MAX_RECORD: Final = 1 << 20
"""Longest payload. Messages are cut at 60 KiB and metadata at 16 KiB, so a longer one is damage."""

LIVE: Final = ".seg"
LEFT: Final = ".left"
"""Suffix of a segment whose process has closed the spool and may still run."""
CORRUPT: Final = ".corrupt"

_HEADER: Final = struct.Struct("<8sHHI")
_CHECKED: Final = _HEADER.size - 4
_RECORD: Final = struct.Struct("<II")
_NAME = re.compile(r"([\w.-]+-\d+-\d+-[0-9a-f]{8})-(\d{6,12})(\.seg|\.left|\.corrupt)", re.ASCII).fullmatch

RECORD_HEAD: Final = _RECORD.size
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


def header(identity: str, owner: Owner) -> bytes:
    """The first bytes of a segment."""
    body = json.dumps({"identity": identity, **asdict(owner)}).encode()
    start = _HEADER.pack(MAGIC, FORMAT, len(body), 0)[:_CHECKED]
    return start + struct.pack("<I", crc32(body, crc32(start))) + body


def read_header(stream: BinaryIO, identity: str) -> Owner:
    """Read the header of a segment.

    Raises:
        DamagedSegmentError: Not a header.
        ForeignSegmentError: Another format version or another identity.
    """
    start = stream.read(_HEADER.size)
    if len(start) < _HEADER.size or not start.startswith(MAGIC):
        raise DamagedSegmentError
    _, version, length, checksum = _HEADER.unpack(start)
    body = stream.read(length)
    if len(body) < length or crc32(body, crc32(start[:_CHECKED])) != checksum:
        raise DamagedSegmentError
    if version != FORMAT:
        raise ForeignSegmentError(f"is of spool format {version}, this version writes {FORMAT}")
    try:
        fields: Any = json.loads(body)
        values = [fields[name] for name in ("identity", "pid", "started", "place")]
    except (ValueError, RecursionError, TypeError, KeyError):
        raise DamagedSegmentError from None
    if values[0] != identity:
        raise ForeignSegmentError("belongs to another database or table prefix")
    if [type(value) for value in values[1:]] != [int, int, str]:
        raise DamagedSegmentError
    return Owner(*values[1:])


# -- records ----------------------------------------------------------------------------------------------------


def records(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the payloads up to the end of the file.

    Raises:
        DamagedSegmentError: At the first byte that is not part of a sound record.
    """
    while start := stream.read(_RECORD.size):
        if len(start) < _RECORD.size:
            raise DamagedSegmentError
        length, checksum = _RECORD.unpack(start)
        # Checked before reading: a damaged length must not ask for 4 GiB of memory.
        if not 0 < length <= MAX_RECORD:
            raise DamagedSegmentError
        payload = stream.read(length)
        if len(payload) < length or crc32(payload) != checksum:
            raise DamagedSegmentError
        yield payload
