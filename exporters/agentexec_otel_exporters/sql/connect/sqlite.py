"""What only SQLite needs: its settings, its write lock, and care for its file."""

from __future__ import annotations

import logging
import os
import random
import sqlite3
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast
from weakref import WeakSet

from sqlalchemy import Connection, Engine, event
from sqlalchemy.pool import ConnectionPoolEntry

from agentexec_otel._config import CONF
from agentexec_otel.export import MisconfiguredExportError

_logger = logging.getLogger("agentexec_otel.export")

READ_ONLY: Final = {"agentexec_read_only": True}
"""Execution option of a connection that does not write, so that it takes no write lock."""

_PATIENCE: Final = 5_000
"""Milliseconds that SQLite waits for another process's lock."""
_FORK_PATIENCE: Final = 0.25
"""Seconds that a fork waits for the transaction under way. A longer one sleeps, waiting for another process's lock."""
_QUICK_TRIES: Final = 400
_WAL: Final = "agentexec_wal"  # Key of a pooled connection's info.
_BEGIN: Final = "BEGIN IMMEDIATE"
_TO_WAL: Final = "PRAGMA journal_mode = WAL"
_GONE: Final = (
    "the database file was deleted or moved: put it back, or make a new one (ax.Base.metadata.create_all(engine))"
)


# -- connections ----------------------------------------------------------------------------------------------------


def prepare_sqlite(engine: Engine) -> None:
    """Set up each new connection of this engine for several writers."""
    event.listen(engine, "connect", _connected)
    event.listen(engine, "begin", _begin)


def _connected(connection: Any, record: ConnectionPoolEntry) -> None:
    connection.isolation_level = None
    if CONF.sqlite_wal:
        mode = _switch_to_wal(connection)
        record.info[_WAL] = mode == "wal"
        if mode == "wal":
            connection.execute("PRAGMA synchronous = NORMAL").close()
        else:
            _logger.warning("SQLite stays in journal mode %s: it has no WAL there, and several writers are slow", mode)


def _switch_to_wal(connection: Any) -> str:
    """Return the resulting journal mode. SQLite does not always wait if several processes set up a new file."""
    connection.execute("PRAGMA busy_timeout = 0").close()
    cursor = _when_free(connection, _TO_WAL)
    found = cursor and cursor.fetchone()
    connection.execute(f"PRAGMA busy_timeout = {_PATIENCE}").close()
    (mode,) = found or connection.execute(_TO_WAL).fetchone()
    return str(mode)


def _begin(connection: Connection) -> None:
    if connection.get_execution_options().keys() >= READ_ONLY.keys():
        _set_busy_timeout(connection, _PATIENCE)
        connection.exec_driver_sql("BEGIN")
        return
    # A deferred transaction that reads and then writes fails at once beside another writer. SQLite itself sleeps up to
    # 100 ms between its tries, which starves some of several writers: try more often first.
    _set_busy_timeout(connection, 0)
    begun = _when_free(connection.connection.dbapi_connection, _BEGIN) is not None
    # After BEGIN nothing waits in WAL mode. In other modes COMMIT waits for readers.
    if not begun or not connection.info.get(_WAL):
        _set_busy_timeout(connection, _PATIENCE)
    if not begun:
        connection.exec_driver_sql(_BEGIN)


def _set_busy_timeout(connection: Connection, milliseconds: int) -> None:
    driver: Any = connection.connection.dbapi_connection
    driver.execute(f"PRAGMA busy_timeout = {milliseconds}").close()


def _when_free(driver: Any, statement: str) -> sqlite3.Cursor | None:
    """Retry the statement while the database is busy. None if it fails; the caller retries and reports the error."""
    for _ in range(_QUICK_TRIES):
        try:
            return cast("sqlite3.Cursor", driver.execute(statement))
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                return None
            time.sleep(random.uniform(0.0005, 0.004))  # noqa: S311
    return None


# -- the file -------------------------------------------------------------------------------------------------------


class SQLiteFile:
    """Keeps an engine off its file during a fork, and off a file that was moved, deleted or replaced.

    SQLite keeps its file locks per process, in memory that a forked child inherits: a child that opens the same file
    believes that it holds its parent's locks. So connections are closed before a fork, and opened again after it.

    SQLite also keeps writing to a file that was deleted or moved, and no reader finds the data. Opening the path anew
    would create an empty file, and remove the write-ahead log of the old one.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._path = ""
        self._identity: tuple[int, int] | None = None
        self._reset()
        event.listen(engine, "checkin", self._used)
        _files.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()  # Held by one transaction, or by a fork from before to after.
        self._forking_thread: int | None = None

    @contextmanager
    def in_use(self) -> Generator[None]:
        """Hold off forks. Raises MisconfiguredExportError if the file is gone."""
        with self._lock:
            self._check()
            yield

    def _check(self) -> None:
        if self._identity is None:
            return
        found = _identity(self._path)
        if found != self._identity:
            self._engine.dispose()
            if found is None:
                raise MisconfiguredExportError(_GONE)
            self._identity = None

    def _used(self, connection: Any, record: ConnectionPoolEntry) -> None:
        """Learn the file's identity. There may be no file before the first use."""
        if self._identity is None and connection is not None:
            (_, _, self._path) = connection.execute("PRAGMA database_list").fetchone()
            self._identity = _identity(self._path)

    def before_fork(self) -> None:
        """Close the file, unless a long transaction is under way."""
        if self._lock.acquire(timeout=_FORK_PATIENCE):
            self._forking_thread = threading.get_ident()
            self._engine.dispose()

    def after_fork_in_parent(self) -> None:
        """Allow transactions again, if this thread has blocked them."""
        if self._forking_thread == threading.get_ident():
            self._forking_thread = None
            self._lock.release()

    def after_fork_in_child(self) -> None:
        """Start with a new lock."""
        self._reset()


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


_files: Final[WeakSet[SQLiteFile]] = WeakSet()


def _each_file(call: str) -> None:
    for file in list(_files):
        getattr(file, call)()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _each_file("before_fork"),
        after_in_parent=lambda: _each_file("after_fork_in_parent"),
        after_in_child=lambda: _each_file("after_fork_in_child"),
    )
