"""The file of a SQLite database, which may be deleted, moved or replaced while it is open.

SQLite goes on with the file that it has opened, where nobody would find what is written; and whoever opens the empty
place of a file makes a new one, and removes the write-ahead log that belonged to the old.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine, event
from sqlalchemy.pool import ConnectionPoolEntry

from agentexec_otel.export import MisconfiguredExportError

_GONE: Final = (
    "the database file was deleted or moved: put it back, or make a new one (ax.Base.metadata.create_all(engine))"
)


class DatabaseFile:
    """Follows which file an engine writes to.

    Does nothing where the engine is not SQLite's, or not ours.
    """

    def __init__(self, engine: Engine, *, owned: bool) -> None:
        self._engine = engine
        self._path = ""
        self._file: tuple[int, int] | None = None
        if owned and engine.dialect.name == "sqlite":
            event.listen(engine, "checkin", self._used)

    def check(self) -> None:
        """Before a connection is taken: leave a file that is not the database's any more.

        Raises:
            MisconfiguredExportError: there is none at its place.
        """
        if self._file is None:
            return
        found = _identity(self._path)
        if found != self._file:
            self._engine.dispose()
            if found is None:
                raise MisconfiguredExportError(_GONE)
            self._file = None

    def _used(self, connection: Any, record: ConnectionPoolEntry) -> None:
        """Before its first use there may be no file."""
        if self._file is None and connection is not None:
            (_, _, self._path) = connection.execute("PRAGMA database_list").fetchone()
            self._file = _identity(self._path)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
