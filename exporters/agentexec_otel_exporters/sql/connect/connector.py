"""Connections of the writer. All of them are opened here."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Final

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.pool import Pool

from agentexec_otel.export import TransientExportError
from agentexec_otel_exporters.sql._errors import translated
from agentexec_otel_exporters.sql.connect.engine import connecting, writer_engine
from agentexec_otel_exporters.sql.connect.session import StaleSessions
from agentexec_otel_exporters.sql.connect.sqlite import READ_ONLY, SQLiteFile
from agentexec_otel_exporters.sql.connect.watchdog import Watchdog

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

_inherited: Final[list[Pool]] = []
"""Pools of the parent process, kept so that garbage collection in the child does not close their connections."""


class Connector:
    """Opens connections to one database.

    Attributes:
        engine: The writer's engine.

    Raises:
        ConfigurationError: The URL is malformed or names a database that is not supported.
    """

    def __init__(self, database: str | URL | Engine | AsyncEngine) -> None:
        self.engine, self._owned = writer_engine(database)
        self._watchdog = Watchdog()
        self._stale_sessions = StaleSessions()
        self._file_in_use: Callable[[], AbstractContextManager[None]] = nullcontext
        if self._owned:
            self._watchdog.watch_pool(self.engine)
            self._stale_sessions.watch(self.engine)
            if self.engine.dialect.name == "sqlite":
                self._file_in_use = SQLiteFile(self.engine).in_use

    def translated(self) -> AbstractContextManager[None]:
        """Raise `ExportError`s that name this database, in place of exceptions of SQLAlchemy and the driver."""
        return translated(self.engine.url)

    @contextmanager
    def reading(self) -> Generator[Connection]:
        """A connection that takes no write lock. Raises `ExportError` if none can be opened."""
        with self._file_in_use(), self._watchdog.watching(), self._open() as connection:
            yield connection.execution_options(**READ_ONLY)

    @contextmanager
    def writing(self) -> Generator[Connection]:
        """A connection in a transaction, committed at the end. Raises `ExportError` if none can be opened."""
        with self._file_in_use(), self._watchdog.watching(), self._open() as connection, connection.begin():
            yield connection

    def shutdown(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for transactions under way, cut those that are left, and close the others."""
        self._watchdog.stop(timeout)
        if self._owned:
            self.engine.dispose()

    def after_fork_in_child(self) -> None:
        """Forget the pooled connections without closing them: the parent still uses them."""
        self._watchdog.reset()
        self._stale_sessions.forget()
        if self._owned:
            _inherited.append(self.engine.pool)
            self.engine.dispose(close=False)

    def _open(self) -> Connection:
        try:
            with self.translated(), connecting():
                return self.engine.connect()
        except TransientExportError as exc:
            exc.sent = False  # No event can have been stored.
            raise
