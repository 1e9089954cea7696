"""Which process may touch which segment, and what becomes of those that a process left behind.

A segment is locked with a POSIX record lock for as long as its owner, or who replays it, lives. Unlike `flock`, such a
lock is not shared with forked children, so one that outlives its parent keeps nothing from being replayed. In
exchange it is blind to a second user in the same process, and is lost when the process closes any descriptor of that
file; hence the table of what this process holds, and the look at the owner's pid before a free lock is believed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType

from agentexec_otel.export._segment import (
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
from agentexec_otel.export._spool_directory import SpoolDirectory

KEPT_CORRUPT = 8
"""Damaged files kept for a look; what could be read of them has been delivered."""

# By process, since what a parent holds is not held by its child. Every step is atomic: no lock to be forked with.
_held: dict[int, dict[str, object]] = {}


def _hold(stem: str) -> bool:
    token = object()
    return _held.setdefault(os.getpid(), {}).setdefault(stem, token) is token


def let_go(stem: str) -> None:
    """A segment of this process's, or one it has replayed, is no longer in use here."""
    _held.get(os.getpid(), {}).pop(stem, None)


def _lock(fd: int) -> bool:
    from fcntl import LOCK_EX, LOCK_NB, lockf

    try:
        lockf(fd, LOCK_EX | LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def create(directory: SpoolDirectory, stem: str, header: bytes) -> int | None:
    """A new segment, locked and in use here until `let_go`.

    None where somebody was faster: the name is taken, or a recoverer saw the file while it was empty.

    Raises:
        OSError: the file cannot be created, locked or written.
    """
    if not _hold(stem):
        return None
    sound = False
    try:
        fd = os.open(stem + LIVE, _CREATE, 0o600, dir_fd=directory.fd)
        try:
            sound = _begin(fd, header)
        finally:
            if not sound:
                os.close(fd)
                remove(directory, stem + LIVE)
    except FileExistsError:
        return None
    finally:
        if not sound:
            let_go(stem)
    return fd if sound else None


_CREATE = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


def _begin(fd: int, header: bytes) -> bool:
    os.fchmod(fd, 0o600)  # whatever the umask took away
    if not _lock(fd):
        return False
    if os.write(fd, header) != len(header):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return os.fstat(fd).st_nlink > 0


class Orphan:
    """A segment whose owner is gone, locked by this process until `done` or `release`.

    Iterating gives the payloads in the order in which they were appended; damage ends it early.

    Attributes:
        name: The file's name.
        owner: Who wrote it.
        damaged: The file has bytes that are no record. Known once the iteration has ended.
    """

    def __init__(self, directory: SpoolDirectory, name: str, fd: int, owner: Owner, offset: int) -> None:
        self.name = name
        self.owner = owner
        self.damaged = False
        self.on_damage: Callable[[str], None] | None = None
        self._directory = directory
        self._fd = fd
        self._offset = offset
        self._pid = os.getpid()
        self._read = False

    def __iter__(self) -> Iterator[bytes]:
        with open(self._fd, "rb", buffering=1 << 18, closefd=False) as stream:
            stream.seek(self._offset)
            try:
                yield from records(stream)
            except (DamagedSegmentError, OSError):
                self.damaged = True
        self._read = True

    def done(self) -> None:
        """Everything read is stored: remove the file, or set it aside as ``.corrupt`` where it is damaged.

        An orphan that was not read to its end is only released.
        """
        if self._fd >= 0 and self._read and self._is_ours:
            if self.damaged:
                set_aside(self._directory, self.name)
                if self.on_damage is not None:
                    self.on_damage(self.name)
            else:
                remove(self._directory, self.name)
        self.release()

    def release(self) -> None:
        """Leave the file to the next one who recovers. Idempotent."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
            if self._is_ours:
                let_go(_stem(self.name))

    @property
    def _is_ours(self) -> bool:
        """Whether this is still the process that locked the file, and not a child of it."""
        return self._pid == os.getpid()

    def __enter__(self) -> Orphan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def claim(directory: SpoolDirectory, name: str, identity: str) -> Orphan | None:
    """Lock a segment for replay. None where it is in use or gone, or had no record and was removed.

    Raises:
        ForeignSegmentError: not for us to replay, and left alone.
        DamagedSegmentError: without a sound header, and set aside.
    """
    if not _hold(_stem(name)):
        return None
    fd = -1
    orphan = None
    try:
        # O_NONBLOCK: somebody may have put a named pipe there.
        fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory.fd)
        orphan = _inspect(directory, name, fd, identity)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise ForeignSegmentError(f"cannot be read ({os.strerror(exc.errno or 0)})") from None
    finally:
        if orphan is None:
            if fd >= 0:
                os.close(fd)
            let_go(_stem(name))
    return orphan


def _inspect(directory: SpoolDirectory, name: str, fd: int, identity: str) -> Orphan | None:
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        raise ForeignSegmentError("is not a file of this user")
    if not _lock(fd) or not _still_named(directory, name, found.st_ino):
        return None
    size = os.fstat(fd).st_size
    with open(fd, "rb", closefd=False) as stream:
        try:
            owner = read_header(stream, identity)
        except DamagedSegmentError:
            if size == 0:
                remove(directory, name)
                return None
            set_aside(directory, name)
            raise
        offset = stream.tell()
    if not name.endswith(LEFT) and owner.pid != os.getpid() and owner.is_running():
        return None
    if size == offset:
        remove(directory, name)
        return None
    return Orphan(directory, name, fd, owner, offset)


def _still_named(directory: SpoolDirectory, name: str, inode: int) -> bool:
    """Whether the locked file still has that name: another recoverer may have just finished with it."""
    try:
        return os.stat(name, dir_fd=directory.fd, follow_symlinks=False).st_ino == inode
    except FileNotFoundError:
        return False


def remove(directory: SpoolDirectory, name: str) -> None:
    """Unlink a file, if it is there."""
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory.fd)


def hand_over(directory: SpoolDirectory, stem: str) -> None:
    """Mark a segment as free to be replayed although its owner may live on."""
    _rename(directory, stem + LIVE, stem + LEFT)


def set_aside(directory: SpoolDirectory, name: str) -> None:
    """Keep a damaged file for a look; the oldest of them make room."""
    _rename(directory, name, _stem(name) + CORRUPT)
    aside = [entry for entry in directory.entries() if entry.name.endswith(CORRUPT)]
    for entry in sorted(aside, key=lambda entry: entry.modified_ns)[:-KEPT_CORRUPT]:
        remove(directory, entry.name)


def _rename(directory: SpoolDirectory, old: str, new: str) -> None:
    with suppress(FileNotFoundError):
        os.rename(old, new, src_dir_fd=directory.fd, dst_dir_fd=directory.fd)


def _stem(name: str) -> str:
    parts = split_name(name)
    return name if parts is None else parts[0]
