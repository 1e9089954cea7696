"""The files of archives: used by one process at a time, and on disk before rows are deleted."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from agentexec_otel._errors import ConfigurationError

_CREATE: Final = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)


def open_locked(path: Path, archive: Path) -> int:
    """Open a file to read and write it, locked until it is closed. A new one is for its owner only.

    Raises:
        ConfigurationError: Another process uses the archive.
        OSError: The file cannot be opened.
    """
    while True:
        fd = os.open(path, _CREATE, 0o600)
        try:
            lock(fd, archive)
            with suppress(FileNotFoundError):
                # Another process may have replaced the file before it was locked.
                if os.path.samestat(os.fstat(fd), path.stat()):
                    return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def lock(fd: int, archive: Path, *, shared: bool = False) -> None:
    """Lock a file until it is closed. On Windows, which has no `flock`, nothing is locked.

    Raises:
        ConfigurationError: It is locked.
    """
    try:
        from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
    except ImportError:
        return
    try:
        flock(fd, (LOCK_SH if shared else LOCK_EX) | LOCK_NB)
    except BlockingIOError:
        raise ConfigurationError(
            f"{archive} is in use by another archive or restore: wait until that has ended, or name another one"
        ) from None


# -- on disk ------------------------------------------------------------------------------------------------------


def write_all(fd: int, data: bytes) -> None:
    """Write all of the data."""
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def sync_directory(path: Path) -> None:
    """Wait until the names of the files in a directory are on disk."""
    if os.name != "posix":  # a directory cannot be opened
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
