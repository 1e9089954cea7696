"""Archives as a directory of Parquet parts: a batch per part, an activity with its logs per row.

A part is written under another name, and gets its own when it is complete and on disk.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Boolean, Column, Integer, Numeric

from agentexec_otel._errors import MissingExtraError
from agentexec_otel.activity._retention.files import lock, open_locked, sync_directory
from agentexec_otel.activity._retention.records import (
    ACTIVITY_COLUMNS,
    ARROW_CODEC,
    FORMAT,
    LOG_COLUMNS,
    ArchivedActivity,
    NotArchivedError,
)
from agentexec_otel.activity.models import UtcDateTime

_NAME: Final = re.compile(r"part-(\d{8})\.parquet").fullmatch
_LOCK: Final = ".lock"
_FORMAT_KEY: Final = b"archive_format"


class ParquetArchive:
    """A directory that parts are added to, as lines are to `JsonLinesArchive`.

    Raises:
        ConfigurationError: Another process uses the directory.
        MissingExtraError: pyarrow is not installed.
        ValueError: The directory has parts that are not ours.
        OSError: The directory cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._parquet = _Parquet()
        self._path = path
        path.mkdir(mode=0o700, exist_ok=True)
        self._fd = open_locked(path / _LOCK, path)
        try:
            self._last = max(_parts(path), default=0)
        except BaseException:
            self.close()
            raise

    def encode(self, activity: Sequence[Any], logs: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """The row of the part."""
        return ARROW_CODEC.encode(activity, logs)

    def append(self, encoded: Sequence[dict[str, Any]]) -> None:
        """Write the next part."""
        self._write(self._last + 1, self._parquet.table(encoded))
        self._last += 1

    def last_batch(self) -> Sequence[UUID]:
        """The row ids of the last part."""
        if not self._last:
            return []
        part = self._parquet.read(self._part(self._last), columns=["id"])
        return list(map(UUID, part.column("id").to_pylist()))

    def keep(self, archived: Set[UUID]) -> None:
        """Remove the last part, or replace it if only some of its rows are removed."""
        found = self.last_batch()
        kept = [row_id in archived for row_id in found]
        part = self._part(self._last)
        if not any(kept):
            part.unlink()
            sync_directory(self._path)
            self._last -= 1
        elif not all(kept):
            self._write(self._last, self._parquet.read(part).filter(kept))

    def close(self) -> None:
        """Release the directory."""
        os.close(self._fd)

    def _part(self, number: int) -> Path:
        return self._path / f"part-{number:08}.parquet"

    def _write(self, number: int, table: Any) -> None:
        part = self._part(number)
        unfinished = part.with_name(f".{part.name}.tmp")  # readers of data sets ignore names that begin with a dot
        fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "wb") as file:
            self._parquet.write(table, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(part)
        sync_directory(self._path)


class ParquetSource:
    """A directory of parts that is read.

    Raises:
        ConfigurationError: An archive is being written to the directory.
        MissingExtraError: pyarrow is not installed.
        ValueError: The directory has no parts, or some that are not ours.
        OSError: The directory cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._parquet = _Parquet()
        self._fd: int | None = None
        try:
            with suppress(FileNotFoundError):  # a copy of the parts alone
                self._fd = os.open(path / _LOCK, os.O_RDONLY)
                lock(self._fd, path, shared=True)
            self._parts = list(_parts(path).values())
            if not self._parts:
                raise ValueError(f"{path} has no parts of an archive of activities: name the directory that has")
            self.total = sum(map(self._parquet.count, self._parts))
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[ArchivedActivity]:
        """The activities, the last one of the last part first."""
        for part in reversed(self._parts):
            try:
                yield from map(ARROW_CODEC.decode, reversed(self._parquet.read(part).to_pylist()))
            except NotArchivedError as exc:
                raise ValueError(f"{part} {exc}") from exc

    def close(self) -> None:
        """Release the directory."""
        if self._fd is not None:
            os.close(self._fd)


class _Parquet:
    """What we need of pyarrow."""

    def __init__(self) -> None:
        try:
            self._arrow: Any = import_module("pyarrow")
            self._parquet: Any = import_module("pyarrow.parquet")
        except ModuleNotFoundError as exc:
            if exc.name != "pyarrow":
                raise
            raise MissingExtraError("an archive in Parquet", "pyarrow", "parquet") from None
        log = self._arrow.struct([(column.name, self._type(column)) for column in LOG_COLUMNS])
        columns = [(column.name, self._type(column)) for column in ACTIVITY_COLUMNS]
        self._schema: Any = self._arrow.schema(
            [*columns, ("logs", self._arrow.list_(log))], metadata={_FORMAT_KEY: str(FORMAT)}
        )

    def _type(self, column: Column[Any]) -> Any:
        arrow = self._arrow
        types = {
            UtcDateTime: arrow.timestamp("us", tz="UTC"),
            Integer: arrow.int64(),
            Boolean: arrow.bool_(),
            Numeric: arrow.decimal128(20, 10),
        }
        return next((kind for sql, kind in types.items() if isinstance(column.type, sql)), arrow.string())

    def table(self, records: Sequence[dict[str, Any]]) -> Any:
        return self._arrow.Table.from_pylist(records, schema=self._schema)

    def write(self, table: Any, file: Any) -> None:
        self._parquet.write_table(table, file, compression="zstd")

    def read(self, part: Path, columns: list[str] | None = None) -> Any:
        with self._opened(part) as file:
            return file.read(columns)

    def count(self, part: Path) -> int:
        with self._opened(part) as file:
            return file.metadata.num_rows  # type: ignore[no-any-return]

    def _opened(self, part: Path) -> Any:
        try:
            file = self._parquet.ParquetFile(part)
        except self._arrow.ArrowInvalid:
            raise ValueError(f"{part} is no archive of activities, or damaged") from None
        metadata: dict[bytes, bytes] = file.schema_arrow.metadata or {}
        written_as = metadata.get(_FORMAT_KEY)
        if written_as is None:
            raise ValueError(f"{part} is no archive of activities: name another directory")
        if written_as != str(FORMAT).encode():
            raise ValueError(f"{part} is an archive of a later version: upgrade agentexec-otel")
        return file


def _parts(path: Path) -> dict[int, Path]:
    """The parts by their number, in order."""
    found = ((_NAME(part.name), part) for part in sorted(path.iterdir()))
    return {int(name[1]): part for name, part in found if name}
