"""Archives as JSON Lines: an activity with its logs per line.

A line has the columns of the activity, its `logs`, `archive_format`, and `archive_batch`: the offset at which the batch
of the line begins. So the last line leads to the last batch.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from agentexec_otel.activity._retention.files import lock, open_locked, sync_directory, write_all
from agentexec_otel.activity._retention.records import (
    FORMAT,
    JSON_CODEC,
    ArchivedActivity,
    NotArchivedError,
    compact_json,
)

_BEGINNING: Final = b'{"archive_format":'
_CHUNK: Final = 1 << 20


class JsonLinesArchive:
    """A file that activities are appended to.

    Those of its last batch may not have been deleted from the database: the process was killed.

    Raises:
        ConfigurationError: Another process uses the file.
        ValueError: The file is no archive.
        OSError: The file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = open_locked(path, path)
        try:
            self._copy().unlink(missing_ok=True)
            self._size = self._without_torn_line()
        except BaseException:
            self.close()
            raise

    def encode(self, activity: Sequence[Any], logs: Sequence[Sequence[Any]]) -> bytes:
        """The line of an activity, as `append` takes it."""
        record = {"archive_format": FORMAT, "archive_batch": self._size, **JSON_CODEC.encode(activity, logs)}
        return compact_json(record).encode() + b"\n"

    def append(self, encoded: Sequence[bytes]) -> None:
        """Write a batch. It is on disk when this returns."""
        data = b"".join(encoded)
        os.lseek(self._fd, self._size, os.SEEK_SET)
        write_all(self._fd, data)
        os.fsync(self._fd)
        self._size += len(data)

    def last_batch(self) -> Sequence[UUID]:
        """The row ids of the last lines."""
        return [row_id for row_id, _ in self._last_lines()]

    def keep(self, archived: Set[UUID]) -> None:
        """Remove from the last batch what is not among these. If this is interrupted, none of these is lost."""
        lines = self._last_lines()
        kept = [line for row_id, line in lines if row_id in archived]
        begin = self._size - sum(len(line) for _, line in lines)
        if not kept:
            os.ftruncate(self._fd, begin)
            os.fsync(self._fd)
            self._size = begin
        elif len(kept) < len(lines):
            self._replace(begin, b"".join(kept))

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _without_torn_line(self) -> int:
        """Cut off a line that was not written to its end. Return the size of the file."""
        size = os.fstat(self._fd).st_size
        if not size:
            sync_directory(self._path.parent)
            return 0
        with mmap.mmap(self._fd, size, access=mmap.ACCESS_READ) as content:
            _check_beginning(content, self._path)
            end = content.rfind(b"\n") + 1
        os.ftruncate(self._fd, end)
        return end

    def _last_lines(self) -> list[tuple[UUID, bytes]]:
        """The row id and the line of each activity of the last batch."""
        if not self._size:
            return []
        with mmap.mmap(self._fd, self._size, access=mmap.ACCESS_READ) as content:
            begin = content.rfind(b"\n", 0, self._size - 1) + 1
            try:
                offset = int(json.loads(content[begin:])["archive_batch"])
                lines = content[min(offset, begin) :].splitlines(keepends=True)
                return [(UUID(json.loads(line)["id"]), line) for line in lines]
            except (AttributeError, KeyError, TypeError, ValueError):
                raise _damaged(self._path, begin) from None

    def _copy(self) -> Path:
        path = self._path.resolve()  # it may be a link
        return path.with_name(f".{path.name}.tmp")

    def _replace(self, begin: int, kept: bytes) -> None:
        """Put a copy of the file in its place that has `kept` from `begin` on."""
        copy = self._copy()
        fd = open_locked(copy, self._path)
        try:
            for at in range(0, begin, _CHUNK):
                os.lseek(self._fd, at, os.SEEK_SET)
                write_all(fd, os.read(self._fd, min(_CHUNK, begin - at)))
            write_all(fd, kept)
            os.fsync(fd)
            copy.replace(self._path.resolve())
            sync_directory(copy.parent)
        except BaseException:
            os.close(fd)
            raise
        self.close()
        self._fd, self._size = fd, begin + len(kept)


class JsonLinesSource:
    """A file that is read. A last line that was not written to its end is left out.

    Raises:
        ConfigurationError: An archive is being written to the file.
        ValueError: The file is no archive.
        OSError: The file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb")
        self._content: mmap.mmap | bytes = b""
        try:
            lock(self._file.fileno(), path, shared=True)
            if size := os.fstat(self._file.fileno()).st_size:  # a file of no bytes cannot be mapped
                self._content = mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_READ)
            _check_beginning(self._content, path)
            self.total = sum(self._content[at : at + _CHUNK].count(b"\n") for at in range(0, size, _CHUNK))
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[ArchivedActivity]:
        """The activities, the last one first: of one that is there twice, the later state comes first."""
        end = self._content.rfind(b"\n") + 1
        while end:
            begin = self._content.rfind(b"\n", 0, end - 1) + 1
            yield self._decoded(begin, self._content[begin:end])
            end = begin

    def close(self) -> None:
        """Close the file."""
        if isinstance(self._content, mmap.mmap):
            self._content.close()
        self._file.close()

    def _decoded(self, begin: int, line: bytes) -> ArchivedActivity:
        try:
            record: dict[str, Any] = json.loads(line)
            written_as = record.pop("archive_format")
            record.pop("archive_batch")
        except (AttributeError, KeyError, TypeError, ValueError):
            raise _damaged(self._path, begin) from None
        if written_as != FORMAT:
            raise ValueError(f"{self._path} is an archive of a later version: upgrade agentexec-otel")
        try:
            return JSON_CODEC.decode(record)
        except NotArchivedError as exc:
            raise ValueError(f"{self._path}, line at byte {begin}, {exc}") from exc


def _check_beginning(content: mmap.mmap | bytes, path: Path) -> None:
    """Refuse another program's file: ours may be cut off after any byte."""
    found = content[: len(_BEGINNING)]
    if not _BEGINNING.startswith(found):
        raise ValueError(f"{path} is no archive of activities: name another file")


def _damaged(path: Path, begin: int) -> ValueError:
    return ValueError(f"{path} is damaged: the line at byte {begin} is no archived activity")
