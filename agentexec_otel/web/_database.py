"""Runs queries off the event loop, with a synchronous or an asynchronous engine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from fastapi.concurrency import run_in_threadpool
from sqlalchemy import URL, Engine
from sqlalchemy.orm import Session

import agentexec_otel as ax

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

_T = TypeVar("_T")


class Database:
    """The database that the status API reads.

    Args:
        database: An engine, or a URL, for which a synchronous engine is made at the first query. None: the one that
            `ax.configure()` was given, or ``AGENTEXEC_DATABASE_URL``.
    """

    def __init__(self, database: str | URL | Engine | AsyncEngine | None) -> None:
        self._given = database
        self._engine: Engine | AsyncEngine | None = None

    async def ask(self, query: Callable[[Session], _T]) -> _T:
        """Return the query's answer, in a session of its own."""
        engine = self._opened()
        if isinstance(engine, Engine):
            return await run_in_threadpool(partial(_ask, engine, query))
        from sqlalchemy.ext.asyncio import AsyncSession

        async with AsyncSession(engine) as session:
            return await session.run_sync(query)

    def _opened(self) -> Engine | AsyncEngine:
        if self._engine is None:
            found = self._given if self._given is not None else ax.configured_database()
            self._engine = ax.db.engine(found) if isinstance(found, str | URL) else found
        return self._engine


def _ask(engine: Engine, query: Callable[[Session], _T]) -> _T:
    with Session(engine) as session:
        return query(session)
