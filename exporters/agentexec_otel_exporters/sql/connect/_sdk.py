"""Private attributes of the drivers, all in one place: `tests/sql/test_sdk.py` checks that each is still there."""

from __future__ import annotations

from typing import Any


def file_descriptor(connection: Any) -> int | None:
    """Return the descriptor of a DBAPI connection's socket; None if it has none (SQLite) or is closed."""
    if hasattr(connection, "pgconn"):  # psycopg: public
        return None if connection.closed else int(connection.pgconn.socket)
    # PyMySQL has no public access to its socket, and closing the connection does not wake a thread that reads from it.
    wire = getattr(connection, "_sock", None)
    return None if wire is None else int(wire.fileno())
