"""The format of a spool segment, and whose it is.

A file is a header and records::

    magic 8s | format version u16 | length u16 | crc32 u32 | JSON object     (the same outer layout in every version)
    length u32 | crc32 u32 | payload                                         (any number of times)

Numbers are little-endian. The header's checksum covers everything but itself, so that a damaged header is told from
another version's. A record is at least one byte long: a tail of zeros, which a power failure may leave, is no record.
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
from typing import BinaryIO, Final, cast
from zlib import crc32

FORMAT: Final = 1
MAGIC: Final = b"AXSPOOL\n"
MAX_RECORD: Final = 1 << 20
"""Longest payload. Messages are cut at 60 KiB and metadata at 16 KiB, so a longer one is damage."""

LIVE: Final = ".seg"
LEFT: Final = ".left"
"""Handed over by a process that closed its spool and may live on."""
CORRUPT: Final = ".corrupt"

_HEADER: Final = struct.Struct("<8sHHI")
_CHECKED: Final = _HEADER.size - 4
_RECORD: Final = struct.Struct("<II")
_NAME = re.compile(r"([\w.-]+-\d+-\d+-[0-9a-f]{8})-(\d{6,12})(\.seg|\.left|\.corrupt)", re.ASCII).fullmatch

RECORD_HEAD: Final = _RECORD.size
pack_record = _RECORD.pack
unpack_record = _RECORD.unpack


class DamagedSegmentError(Exception):
    """The bytes are not what was written."""


class ForeignSegmentError(Exception):
    """A sound segment, but not one for us to replay; the message says why."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that writes a segment.

    Attributes:
        started: When the process started: clock ticks since boot on Linux. Tells a recycled pid.
        place: The boot and pid namespace in which `pid` means anything; empty where that cannot be told.
    """

    host: str
    pid: int
    started: int
    place: str

    def is_running(self) -> bool:
        """Whether this very process runs, as far as can be told from here: False where it cannot."""
        return self.place != "" and self.place == _place() and _started(self.pid) == self.started


def this_process() -> Owner:
    """The calling process as an owner."""
    pid = os.getpid()
    return Owner(socket.gethostname()[:200], pid, _started(pid) or _IMPORTED_AT, _place())


_IMPORTED_AT: Final = time.time_ns()


def _started(pid: int) -> int | None:
    """Field 22 of /proc/pid/stat, behind the name, which may hold anything. None: no such process, or a zombie."""
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
    """A segment's file name without its suffix. Those of one owner sort by age."""
    host = re.sub(r"[^\w.-]", "_", owner.host, flags=re.ASCII)[:64] or "_"
    return f"{host}-{owner.pid}-{owner.started}-{rand}-{number:06d}"


def split_name(name: str) -> tuple[str, str] | None:
    """Stem and suffix of a segment's file name, or None where the file is none of ours."""
    match = _NAME(name)
    return None if match is None else (f"{match[1]}-{match[2]}", match[3])


# -- header -----------------------------------------------------------------------------------------------------


def header(identity: str, owner: Owner) -> bytes:
    """A segment's first bytes."""
    body = json.dumps({"identity": identity, **asdict(owner)}).encode()
    start = _HEADER.pack(MAGIC, FORMAT, len(body), 0)[:_CHECKED]
    return start + struct.pack("<I", crc32(body, crc32(start))) + body


def read_header(stream: BinaryIO, identity: str) -> Owner:
    """The owner of the segment whose beginning is read.

    Raises:
        DamagedSegmentError: not a header.
        ForeignSegmentError: of another format version or another identity.
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
    fields = _fields(body)
    if fields.get("identity") != identity:
        raise ForeignSegmentError("belongs to another database or table prefix")
    host, pid, started, place = (fields.get(name) for name in ("host", "pid", "started", "place"))
    if not isinstance(host, str) or not isinstance(pid, int) or not isinstance(started, int):
        raise DamagedSegmentError
    return Owner(host, pid, started, place if isinstance(place, str) else "")


def _fields(body: bytes) -> dict[str, object]:
    try:
        fields: object = json.loads(body)
    except (ValueError, RecursionError):
        raise DamagedSegmentError from None
    return cast("dict[str, object]", fields) if isinstance(fields, dict) else {}


# -- records ----------------------------------------------------------------------------------------------------


def records(stream: BinaryIO) -> Iterator[bytes]:
    """The payloads from here to the end.

    Raises:
        DamagedSegmentError: at the first byte that is not a sound record's.
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
