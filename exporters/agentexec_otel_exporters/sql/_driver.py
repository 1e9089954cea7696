"""Statements executed by the driver itself, for speed. Its errors are raised as SQLAlchemy would raise them."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing, contextmanager
from typing import Any, Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

_PART: Final = 500


def fetch(connection: Connection, text: str, parameters: Any) -> Sequence[Sequence[Any]]:
    """Return the rows of a SELECT, as the driver has them."""
    with _cursor(connection, text) as cursor:
        cursor.execute(text, parameters)
        rows: list[Sequence[Any]] = []
        # In parts: a driver may hold the GIL while it fetches.
        while part := cursor.fetchmany(_PART):
            rows += part
        return rows


def execute(connection: Connection, text: str, parameters: Any) -> None:
    """Run a statement."""
    with _cursor(connection, text) as cursor:
        cursor.execute(text, parameters)


def execute_many(connection: Connection, text: str, rows: Sequence[Sequence[Any]]) -> None:
    """Run a statement for each row."""
    with _cursor(connection, text) as cursor:
        cursor.executemany(text, rows)


def copy(connection: Connection, text: str, pieces: Iterable[str]) -> None:
    """Run PostgreSQL's COPY … FROM STDIN with text in its own format. The server works while the next piece is made."""
    with _cursor(connection, text) as cursor, cursor.copy(text) as into:
        for piece in pieces:
            into.write(piece)


@contextmanager
def _cursor(connection: Connection, text: str) -> Generator[Any]:
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
