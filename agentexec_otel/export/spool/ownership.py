"""Which process may use which segment, and how a segment is replayed after its process is gone.

A segment is locked with a POSIX record lock while its owner, or the process that replays it, lives. Unlike `flock`,
such a lock is not inherited by forked children, so a child that outlives its parent does not prevent a replay. It has
two weaknesses. It does not exclude a second user in the same process: `_held` does. And it is lost if the process
closes any descriptor of the file: the pid of the owner is checked before a free lock is believed.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, suppress

from agentexec_otel.export.spool.directory import SpoolDirectory
from agentexec_otel.export.spool.segment import (
    CORRUPT,
    LEFT,
    LIVE,
    DamagedSegmentError,
    ForeignSegmentError,
    Owner,
    read_header,
    records,
    split_name,
)

_logger = logging.getLogger("agentexec_otel.export")

KEPT_CORRUPT = 8
"""Number of damaged files that are kept for inspection; what could be read of them has been delivered."""

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

    Iterating yields the payloads in the order in which they were appended. It ends early at the first damaged byte.

    Attributes:
        name: Name of the file.
        damaged: Whether the file has bytes that are no record. Known after the iteration has ended.
    """

    def __init__(self, directory: SpoolDirectory, name: str, fd: int, offset: int) -> None:
        self.name = name
        self.damaged = False
        self._directory = directory
        self._fd = fd
        self._offset = offset
        self._pid = os.getpid()

    def __iter__(self) -> Iterator[bytes]:
        with open(self._fd, "rb", buffering=1 << 18, closefd=False) as stream:
            stream.seek(self._offset)
            try:
                yield from records(stream)
            except (DamagedSegmentError, OSError):
                self.damaged = True

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
            try:
                owner = read_header(stream, identity)
            except DamagedSegmentError:
                owner = None
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
    parts = split_name(name)
    return name if parts is None else parts[0]
