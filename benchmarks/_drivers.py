"""Raw connections. Imports the drivers only, so that a process which just reads starts at once."""

from __future__ import annotations

from typing import Any


def connect(kind: str, dsn: str, *, wal: bool = True) -> Any:
    """A raw driver connection; transactions are begun by the first statement.

    Args:
        kind: ``sqlite`` or ``postgres``.
        dsn: A file name, or a libpq URI.
        wal: SQLite as durable as on the SDK's own connections, so that like is compared with like.
    """
    if kind == "postgres":
        import psycopg

        return psycopg.connect(dsn)
    import sqlite3

    connection = sqlite3.connect(dsn, timeout=30.0)
    if wal:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
    return connection
