"""What the spool's directory has, for a person to look at. Nothing is locked, changed or created."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from agentexec_otel.export.spool.segment import (
    CORRUPT,
    LEFT,
    DamagedSegmentError,
    ForeignSegmentError,
    Header,
    is_held,
    read_header,
    records,
    split_name,
)

_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # The name may be that of a named pipe.
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
    if is_held(path.stem):  # Closing it would release the lock of this process.
        return SegmentContent(path.stat().st_size)
    with os.fdopen(os.open(path, _FLAGS), "rb") as stream:
        found = os.fstat(stream.fileno())
        if path.suffix == CORRUPT or not stat.S_ISREG(found.st_mode):
            return SegmentContent(found.st_size, is_damaged=True)
        try:
            return _read(stream, read_header(stream), found.st_size, is_left=path.suffix == LEFT)
        except (DamagedSegmentError, ForeignSegmentError):
            return SegmentContent(found.st_size, is_damaged=found.st_size > 0)


def _read(stream: BinaryIO, header: Header, size: int, *, is_left: bool) -> SegmentContent:
    payloads = [payload for _, payload in records(stream, stream.tell()) if payload is not None]
    is_orphan = is_left or not header.owner.is_running()
    return SegmentContent(size, header.target, len(payloads), payloads[0] if payloads else None, is_orphan)
