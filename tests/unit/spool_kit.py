"""What the spool's tests share: processes that die, and an independent reading of the file format."""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
import traceback
import warnings
import zlib
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from agentexec_otel.export.spool import Position, Spool, SpoolFullError
from agentexec_otel.export.spool.segment import let_go

FileSpans = list[tuple[int, int, bytes]]


def spans_of(content: bytes) -> FileSpans:
    """Begin, end and payload of each record of a segment, read by the page that describes the format."""
    magic, version, length, checksum = struct.unpack_from("<8sHHI", content)
    assert (magic, version) == (b"AXSPOOL\n", 1)
    offset = 16 + length
    assert checksum == zlib.crc32(content[:12] + content[16:offset])
    found: FileSpans = []
    while offset < len(content):
        size, _ = struct.unpack_from("<II", content, offset)
        found.append((offset, offset + 8 + size, content[offset + 8 : offset + 8 + size]))
        offset += 8 + size
    return found


def with_header(content: bytes, version: int = 1, changes: Mapping[str, object] | None = None) -> bytes:
    """The same segment as another version or process would have begun it: the outer layout is for ever."""
    end = 16 + struct.unpack_from("<H", content, 10)[0]
    body = json.dumps({**json.loads(content[16:end]), **(changes or {})}).encode()
    start = struct.pack("<8sHH", b"AXSPOOL\n", version, len(body))
    return start + struct.pack("<I", zlib.crc32(start + body)) + body + content[end:]


def segment_files(spool: Spool) -> list[Path]:
    """The segments in its directory, oldest first."""
    return sorted(path for path in spool.path.iterdir() if path.suffix in (".seg", ".left"))


def fill(spool: Spool, payload: bytes, *, vital: bool = False) -> list[Position]:
    """Append until the spool is full."""
    positions: list[Position] = []
    with suppress(SpoolFullError):
        while True:
            positions.append(spool.append(payload, vital=vital))
    return positions


def drain(spool: Spool) -> list[bytes]:
    """Recover and acknowledge everything that was left."""
    found: list[bytes] = []
    for orphan in spool.recover():
        found.extend(orphan)
        orphan.done()
    return found


def read_all(spool: Spool, after: Position = 0, limit: int = 1_000) -> list[tuple[Position, bytes]]:
    """Everything that is outstanding, as one reads it who follows the positions."""
    found: list[tuple[Position, bytes]] = []
    while batch := spool.read(after, limit=limit):
        found += batch
        after = batch[-1][0]
    return found


def pending(spool: Spool) -> int:
    """Number of records that are not acknowledged."""
    return len(read_all(spool))


def crash(spool: Spool) -> None:
    """Leave the files as the death of the process does, without a process: descriptors closed, nothing else."""
    spool._journal.abandon()  # pyright: ignore[reportPrivateUsage]
    for path in spool.path.iterdir():
        let_go(path.stem)


@dataclass(frozen=True, slots=True)
class Child:
    """A forked process. Its exit status is 0 only where its work came to an end."""

    pid: int

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def join(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        assert status == 0, f"the child ended with status {status:#x}"


def fork(work: Callable[[], object], seconds: int = 20) -> Child:
    """Run `work` in a forked child that dies by SIGALRM when it takes too long, and never returns here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads: that is what is tested
        pid = os.fork()
    if pid:
        return Child(pid)
    run_and_exit(work, seconds)
    raise AssertionError


def run_and_exit(work: Callable[[], object], seconds: int = 20) -> None:
    """In a child: no pytest, no clean-up."""
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        work()
        status = 0
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


class Log:
    """Lines appended by several processes; once `write` has returned the line is there, whatever happens next."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, line: bytes) -> None:
        os.write(self._fd, line + b"\n")

    def lines(self) -> list[bytes]:
        return self.path.read_bytes().split(b"\n")[:-1]


@contextmanager
def umask(mask: int) -> Generator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
