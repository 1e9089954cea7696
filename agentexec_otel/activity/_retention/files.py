"""The files of archives: found by their name, used by one process at a time, and on disk before rows are deleted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol
from uuid import UUID

from agentexec_otel._errors import ConfigurationError
from agentexec_otel._model.text import describe
from agentexec_otel.activity._retention.records import ArchivedActivity, StoredRow

_JSON_LINES: Final = ".jsonl"
_NAMES: Final = f"name a file that ends in {_JSON_LINES}, or a directory for Parquet"
_CREATE: Final = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)


class Archive(Protocol):
    """Where activities are archived. Those of its last batch may not have been deleted: the process was killed."""

    def encode(self, row: StoredRow) -> Any:
        """The activity as `append` takes it."""

    def append(self, encoded: Sequence[Any]) -> None:
        """Write a batch. It is on disk when this returns."""

    def last_batch(self) -> Sequence[UUID]:
        """The row ids of the last batch."""
        ...

    def keep(self, archived: Set[UUID]) -> None:
        """Remove from the last batch what is not among these. If this is interrupted, none of these is lost."""

    def close(self) -> None:
        """Release the files."""


class Source(Protocol):
    """An archive that is read. Of an activity that it has twice, the later state comes first."""

    @property
    def total(self) -> int:
        """Number of activities."""
        ...

    def __iter__(self) -> Iterator[ArchivedActivity]:
        """The last one first. Raises `ValueError` for what is none of ours."""
        ...

    def close(self) -> None:
        """Release the files."""


def archive_path(argument: str, value: object) -> Path:
    """Return the path. Raises `ValueError` if it names no kind of archive."""
    path = Path(value) if isinstance(value, str | Path) and str(value) else None
    if path is None or not (_is_json_lines(path) or not path.suffix or path.is_dir()):
        shown = str(value) if isinstance(value, Path) else value
        raise ValueError(f"{argument} is {describe(shown)}: {_NAMES}")
    return path


def _is_json_lines(path: Path) -> bool:
    return path.suffix == _JSON_LINES


def open_archive(path: Path) -> Archive:
    """Open an archive to append to it, or make a new one."""
    if _is_json_lines(path):
        from agentexec_otel.activity._retention.json_lines import JsonLinesArchive

        return JsonLinesArchive(path)
    from agentexec_otel.activity._retention.parquet import ParquetArchive

    return ParquetArchive(path)


def open_source(path: Path) -> Source:
    """Open an archive to read it."""
    if _is_json_lines(path):
        from agentexec_otel.activity._retention.json_lines import JsonLinesSource

        return JsonLinesSource(path)
    from agentexec_otel.activity._retention.parquet import ParquetSource

    return ParquetSource(path)


# -- one process at a time ----------------------------------------------------------------------------------------


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
