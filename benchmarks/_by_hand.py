"""The least that keeps what a task is doing in a database: a row per task, and a line per status, by the raw driver."""

from __future__ import annotations

import asyncio
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib import import_module
from typing import Any, Final, Protocol

from benchmarks._drivers import connect

_POOL: Final = 10
_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS hand (id {text} PRIMARY KEY, status {text})",
    "CREATE TABLE IF NOT EXISTS hand_line (id {serial} PRIMARY KEY, task {text}, status {text}, at {time})",
)
_TYPES: Final = {
    "sqlite": {"text": "TEXT", "serial": "INTEGER", "time": "TEXT DEFAULT CURRENT_TIMESTAMP"},
    "postgres": {"text": "TEXT", "serial": "BIGSERIAL", "time": "TIMESTAMPTZ DEFAULT now()"},
}
_ENDED: Final = "('COMPLETE', 'ERROR', 'CANCELED')"


class Lines(Protocol):
    """Where a process puts the lines of its tasks."""

    async def put(self, task: str, status: str) -> bool:
        """Commit one line; False where the task has ended already."""
        ...

    async def close(self) -> None:
        """Give the connections back."""


def create_tables(kind: str, dsn: str) -> None:
    """Create both tables where they are missing."""
    with closing(connect(kind, dsn)) as connection:
        for statement in _TABLES:
            connection.execute(statement.format(**_TYPES[kind]))
        connection.commit()


class SQLiteLines:
    """On a thread of its own, since sqlite3 blocks."""

    def __init__(self, dsn: str) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._dsn = dsn
        self._connection: sqlite3.Connection | None = None

    async def put(self, task: str, status: str) -> bool:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._put, task, status)

    async def close(self) -> None:
        if self._connection is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
        self._thread.shutdown()

    def _put(self, task: str, status: str) -> bool:
        opened = self._connection = self._connection or connect("sqlite", self._dsn)
        if status == "QUEUED":
            changed = opened.execute("INSERT INTO hand VALUES (?, ?)", (task, status))
        else:
            changed = opened.execute(
                f"UPDATE hand SET status = ? WHERE id = ? AND status NOT IN {_ENDED}", (status, task)
            )
        opened.execute("INSERT INTO hand_line (task, status) VALUES (?, ?)", (task, status))
        opened.commit()
        return changed.rowcount == 1


class PostgresLines:
    """Through asyncpg, in one round trip per line."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._opening: asyncio.Future[Any] | None = None

    async def put(self, task: str, status: str) -> bool:
        self._opening = self._opening or asyncio.ensure_future(self._open())
        pool = await self._opening
        change = (
            "INSERT INTO hand VALUES ($1, $2) RETURNING id"
            if status == "QUEUED"
            else f"UPDATE hand SET status = $2 WHERE id = $1 AND status NOT IN {_ENDED} RETURNING id"
        )
        statement = f"WITH changed AS ({change}) INSERT INTO hand_line (task, status) SELECT id, $2 FROM changed"
        return bool((await pool.execute(statement, task, status)).endswith(" 1"))

    async def close(self) -> None:
        if self._opening is not None:
            await (await self._opening).close()

    async def _open(self) -> Any:
        asyncpg = import_module("asyncpg")  # it has no types
        return await asyncpg.create_pool(self._dsn, min_size=_POOL, max_size=_POOL)


def open_lines(kind: str, dsn: str) -> Lines:
    """Where a process puts its lines."""
    return SQLiteLines(dsn) if kind == "sqlite" else PostgresLines(dsn)
