"""What `archive` and `restore` share: their connection, transactions that take locks, and work aside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, TypeVar

from sqlalchemy import Connection, Engine, false, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, scoped_session

from agentexec_otel._model.text import describe, plain_int
from agentexec_otel.activity._criteria import ACTIVITY
from agentexec_otel.activity._schema_faults import error_code, schema_faults_named
from agentexec_otel.activity._sessions import asynchronous_engine, engine_of

if TYPE_CHECKING:
    # Its module cannot be imported without greenlet, which synchronous applications need not have.
    from sqlalchemy.ext.asyncio import AsyncEngine

    Database: TypeAlias = Engine | Session | scoped_session[Session]

_T = TypeVar("_T")

_MOST_PER_BATCH: Final = 10_000
_MOST_LOGS: Final = 20_000
_PAUSES: Final = (0.05, 0.25, 1.0, 3.0)
"""Seconds between the tries of a transaction that others have disturbed."""
_DISTURBED: Final = frozenset(("40001", "40P01", "55P03", "1205", "1213", "SQLITE_BUSY", "SQLITE_BUSY_SNAPSHOT"))
_NOTHING: Final = update(ACTIVITY).where(false()).values(updated_at=ACTIVITY.c.updated_at)


class Aside(Protocol):
    """Does work that blocks, such as on files, beside the connection."""

    def __call__(self, work: Callable[[], _T], /) -> _T:
        """The result of the work."""
        ...


Progress: TypeAlias = Callable[[int, int], object]
"""Called with how many activities are done, and with how many there are."""


def report(progress: Progress | None, done: int, total: int) -> None:
    """Call the application's `progress`, if there is one."""
    if progress is not None:
        progress(done, total)


def run(database: Database, work: Callable[[Connection, Aside], int]) -> int:
    """Do the work on a connection of its own."""
    with schema_faults_named(), engine_of(database).connect() as connection:
        return work(_prepared(connection), _directly)


async def run_async(engine: AsyncEngine, work: Callable[[Connection, Aside], int]) -> int:
    """As `run`, on an event loop: what blocks is done in a thread."""
    with schema_faults_named():
        async with asynchronous_engine(engine).connect() as connection:
            return await connection.run_sync(lambda own: work(_prepared(own), _in_thread))


def _prepared(connection: Connection) -> Connection:
    if connection.dialect.name == "sqlite":
        return connection
    # Whatever the application uses: AUTOCOMMIT keeps no lock, and REPEATABLE READ locks gaps on MariaDB.
    return connection.execution_options(isolation_level="READ COMMITTED")


def _directly(work: Callable[[], _T], /) -> _T:
    return work()


def _in_thread(work: Callable[[], _T], /) -> _T:
    from sqlalchemy.util import await_only

    return await_only(_done_in_thread(work))


async def _done_in_thread(work: Callable[[], _T]) -> _T:
    done = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        await asyncio.wait([done])  # the caller closes the files that it uses
        raise


def lock_database(connection: Connection) -> None:
    """On SQLite, which has no row locks, take the write lock before anything is read in the transaction."""
    if connection.dialect.name != "sqlite":
        return
    if connection.connection.driver_connection.in_transaction:  # type: ignore[union-attr]
        connection.execute(_NOTHING)
    else:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def repeated(
    work: Callable[[], _T],
    aside: Aside,
    *,
    undo: Callable[[], object] = lambda: None,
    also: tuple[type[DBAPIError], ...] = (),
) -> _T:
    """Do the work of a transaction again if others have disturbed it, by a deadlock or by a lock held for long.

    Args:
        undo: Called before each further try.
        also: Errors after which there is a further try as well.
    """
    for pause in _PAUSES:
        try:
            return work()
        except DBAPIError as exc:
            if not isinstance(exc, also) and error_code(exc.orig) not in _DISTURBED:
                raise
        aside(partial(time.sleep, pause))
        undo()
    return work()


def bounded(activities: Iterable[_T], most: int, logs_of: Callable[[_T], int]) -> list[_T]:
    """The first activities: at most that many, and with not many more than 20,000 logs."""
    found: list[_T] = []
    logs = 0
    for activity in islice(activities, most):
        found.append(activity)
        logs += logs_of(activity)
        if logs >= _MOST_LOGS:
            break
    return found


def checked_batch_size(batch_size: object) -> int:
    """Return the number. Raises `ValueError` for anything else."""
    size = plain_int(batch_size)
    if size is None or not 1 <= size <= _MOST_PER_BATCH:
        raise ValueError(f"batch_size is {describe(batch_size)}: pass 1 to {_MOST_PER_BATCH:,} activities")
    return size
