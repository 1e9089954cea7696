"""A cursor of the driver itself, whose errors come as SQLAlchemy would raise them.

`Connection.exec_driver_sql` prepares a result object for each statement: with it, storing one event on SQLite takes 1.5
times as long.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing, contextmanager
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError


@contextmanager
def driver_cursor(connection: Connection, text: str) -> Generator[Any]:
    """A cursor for a statement; `text` is named in SQLAlchemy's exceptions, its parameters are not."""
    if not connection.in_transaction():
        connection.begin()  # as SQLAlchemy does with the first statement that it executes itself
    dialect = connection.dialect
    driver: Any = connection.connection.dbapi_connection
    error: type[Exception] = dialect.loaded_dbapi.Error
    try:
        with closing(driver.cursor()) as cursor:
            yield cursor
    except error as exc:
        gone = dialect.is_disconnect(exc, driver, None)  # type: ignore[arg-type]
        if gone:
            connection.invalidate(exc)
        raise DBAPIError.instance(
            text, None, exc, error, hide_parameters=True, connection_invalidated=gone, dialect=dialect
        ) from exc
