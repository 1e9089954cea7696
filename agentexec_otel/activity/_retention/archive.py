"""Moves activities that have ended from the database to an archive, or deletes them, and reads archives back."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar, Unpack
from uuid import UUID

from sqlalchemy import Connection, Engine, Row, delete, false, func, insert, literal, or_, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session, scoped_session

from agentexec_otel._model.event import ACTIVE
from agentexec_otel._model.text import describe, plain_int
from agentexec_otel.activity._criteria import ACTIVITY, LOG, ActivityFilters, criteria_of, without_news_since
from agentexec_otel.activity._retention.json_lines import JsonLinesArchive, JsonLinesSource
from agentexec_otel.activity._retention.parquet import ParquetArchive, ParquetSource
from agentexec_otel.activity._retention.records import ACTIVITY_COLUMNS, LOG_COLUMNS, ArchivedActivity
from agentexec_otel.activity._schema_faults import error_code, schema_faults_named
from agentexec_otel.activity._sessions import asynchronous_engine, engine_of

if TYPE_CHECKING:
    # Its module cannot be imported without greenlet, which synchronous applications need not have.
    from sqlalchemy.ext.asyncio import AsyncEngine

_T = TypeVar("_T")
_Row: TypeAlias = "Row[*tuple[Any, ...]]"
_Database: TypeAlias = Engine | Session | scoped_session[Session]
_Archive: TypeAlias = JsonLinesArchive | ParquetArchive
_Progress: TypeAlias = Callable[[int, int], object]
"""Called with how many activities are done, and with how many there are."""

_JSON_LINES: Final = ".jsonl"
_MOST_PER_BATCH: Final = 10_000
_MOST_LOGS: Final = 20_000
_IDS_PER_QUERY: Final = 1_000
_PAUSES: Final = (0.05, 0.25, 1.0, 3.0)
"""Seconds between the tries of a transaction that others have disturbed."""
_DISTURBED: Final = frozenset(("40001", "40P01", "55P03", "1205", "1213", "SQLITE_BUSY", "SQLITE_BUSY_SNAPSHOT"))
_NOTHING: Final = update(ACTIVITY).where(false()).values(updated_at=ACTIVITY.c.updated_at)


def archive(
    engine: _Database,
    older_than: timedelta | datetime,
    *,
    to: str | Path | None = None,
    batch_size: int = 500,
    progress: _Progress | None = None,
    **filters: Unpack[ActivityFilters],
) -> int:
    """Move activities that ended long ago, with all their logs, to an archive, or delete them.

    Each batch is on disk before its rows are deleted, in one short transaction. If the call is interrupted at any
    moment, call it again: the archive then has each activity once, and the database has the others. An activity that
    another process changes or locks meanwhile is left for the next call. `restore` reads the archive back.

    Args:
        engine: Or a session that is in no transaction, whose engine is used.
        older_than: Only activities that ended that long ago, or before then.
        to: A file that ends in ``.jsonl``, or a directory for Parquet parts; both are appended to. None deletes only.
        batch_size: Activities per transaction, 1 to 10,000. A batch with many logs is smaller.
        progress: Called at the start and after each batch with how many are archived, and how many there were.
        filters: See `ActivityFilters`. Activities that have not ended are never archived.

    Returns:
        How many were archived.

    Raises:
        ValueError: A malformed argument, or ``to`` is no archive.
        ConfigurationError: The session is in a transaction, another call uses the archive, or the tables are missing
            or outdated.
        MissingExtraError: pyarrow is needed for Parquet.
        OSError: The archive cannot be written. What was archived before stays archived.
    """
    return _run(engine, _Archiving(older_than, to, batch_size, progress, filters))


async def archive_async(
    engine: AsyncEngine,
    older_than: timedelta | datetime,
    *,
    to: str | Path | None = None,
    batch_size: int = 500,
    progress: _Progress | None = None,
    **filters: Unpack[ActivityFilters],
) -> int:
    """Archive as `ax.activity.archive` does, with an AsyncEngine. Files are written in a thread."""
    return await _run_async(engine, _Archiving(older_than, to, batch_size, progress, filters))


def restore(engine: _Database, source: str | Path, *, batch_size: int = 500, progress: _Progress | None = None) -> int:
    """Insert the activities of an archive, with all their logs, as they were. Those that exist already are skipped.

    The database may be another one, and of another kind. The id of a log stays what it was, unless the database has
    given it to another log, or will do so.

    Args:
        engine: As for `archive`.
        source: What `archive` was given as ``to``.
        batch_size: As for `archive`.
        progress: Called at the start and after each batch with how many are read, and how many there are.

    Returns:
        How many were inserted.

    Raises:
        ValueError: A malformed argument, or ``source`` is no archive, damaged, or one of a later version.
        OSError: The archive cannot be read.
        ConfigurationError, MissingExtraError: As `archive`.
    """
    return _run(engine, _restoring(source, batch_size, progress))


async def restore_async(
    engine: AsyncEngine, source: str | Path, *, batch_size: int = 500, progress: _Progress | None = None
) -> int:
    """Restore as `ax.activity.restore` does, with an AsyncEngine. Files are read in a thread."""
    return await _run_async(engine, _restoring(source, batch_size, progress))


# -- archiving ----------------------------------------------------------------------------------------------------


class _Archiving:
    """One call of `archive`: batch after batch, in the order of ``created_at``, for which there is an index."""

    _connection: Connection
    _aside: _Aside
    _target: _Archive | None = None
    _is_written = False  # the batch of the transaction that is under way

    def __init__(
        self,
        older_than: timedelta | datetime,
        to: str | Path | None,
        batch_size: int,
        progress: _Progress | None,
        filters: ActivityFilters,
    ) -> None:
        before = without_news_since(older_than)
        self._criteria = (
            ACTIVITY.c.status.not_in(ACTIVE),
            ACTIVITY.c.created_at < before,  # ends the scan of the index
            func.coalesce(ACTIVITY.c.ended_at, ACTIVITY.c.updated_at) < before,  # producers of schema 1 set no ended_at
            *criteria_of(filters),
        )
        self._to = None if to is None else _archive_path("to", to)
        self._batch_size = checked_batch_size(batch_size)
        self._progress = progress

    def __call__(self, connection: Connection, aside: _Aside) -> int:
        """Return how many were archived."""
        self._connection, self._aside = connection, aside
        if (to := self._to) is None:
            return self._archive()
        with closing(aside(lambda: _open_archive(to))) as self._target:
            self._remove_unarchived(self._target)
            return self._archive()

    def _archive(self) -> int:
        archived, total = 0, self._total()
        _report(self._progress, 0, total)
        after: _Row | None = None
        while rows := self._read(after):
            archived += self._move(rows)
            _report(self._progress, archived, max(archived, total))
            after = rows[-1]
        return archived

    def _total(self) -> int:
        if self._progress is None:
            return 0
        with self._connection.begin():
            return self._connection.scalar(select(func.count()).select_from(ACTIVITY).where(*self._criteria)) or 0

    def _remove_unarchived(self, target: _Archive) -> None:
        """Remove from the last batch of the archive what the database still has: it was not deleted."""
        if not (found := self._aside(target.last_batch)):
            return
        # Locked, so that a deletion whose commit is still on its way comes first.
        rows = select(ACTIVITY.c.id).where(ACTIVITY.c.id.in_(found)).order_by(ACTIVITY.c.agent_id).with_for_update()
        with self._connection.begin():
            present = set(self._connection.scalars(rows))
        if present:
            self._aside(lambda: target.keep(set(found) - present))

    def _read(self, after: _Row | None) -> list[_Row]:
        """The next rows. They are not locked yet, so that locks are held for a short time."""
        statement = select(*ACTIVITY_COLUMNS).where(*self._criteria)
        if after is not None:
            behind = or_(ACTIVITY.c.created_at > after.created_at, ACTIVITY.c.id > after.id)
            statement = statement.where(ACTIVITY.c.created_at >= after.created_at, behind)
        statement = statement.order_by(ACTIVITY.c.created_at, ACTIVITY.c.id).limit(self._batch_size)
        with self._connection.begin():
            rows = self._connection.execute(statement).all()
        return _bounded(rows, self._batch_size, lambda row: int(row.last_seq))

    def _move(self, rows: Sequence[_Row]) -> int:
        encoded = dict[UUID, Any]()
        if (target := self._target) is not None:
            logs = self._logs(rows)
            encoded = self._aside(lambda: {row.id: target.encode(row, logs[row.id]) for row in rows})
        move = partial(self._move_unchanged, {row.id: row for row in rows}, encoded)
        return _repeated(move, self._aside, undo=self._remove_rolled_back)

    def _remove_rolled_back(self) -> None:
        """Remove the batch from the archive: it was not deleted, even if another archiver has deleted it meanwhile."""
        if (target := self._target) is not None and self._is_written:
            self._aside(lambda: target.keep(frozenset()))

    def _logs(self, rows: Sequence[_Row]) -> defaultdict[UUID, list[Sequence[Any]]]:
        statement = select(LOG.c.activity_id, *LOG_COLUMNS).where(LOG.c.activity_id.in_([row.id for row in rows]))
        logs: defaultdict[UUID, list[Sequence[Any]]] = defaultdict(list)
        with self._connection.begin():
            for activity_id, *log in self._connection.execute(statement.order_by(LOG.c.activity_id, LOG.c.seq)).all():
                logs[activity_id].append(log)
        return logs

    def _move_unchanged(self, rows: dict[UUID, _Row], encoded: dict[UUID, Any]) -> int:
        """Write the batch, and delete it, without those that another process has changed or locked."""
        connection, target = self._connection, self._target
        self._is_written = False
        with connection.begin():
            _lock_database(connection)
            unchanged = {row.id for row in self._lock(rows.values()) if row == rows[row.id]}
            ids = [row_id for row_id in rows if row_id in unchanged]  # in the order of `created_at`
            if ids and target is not None:
                self._aside(lambda: target.append([encoded[row_id] for row_id in ids]))
                self._is_written = True
            # Logs first: SQLite cascades only if the application enforces foreign keys.
            connection.execute(delete(LOG).where(LOG.c.activity_id.in_(ids)))
            connection.execute(delete(ACTIVITY).where(ACTIVITY.c.id.in_(ids)))
        return len(ids)

    def _lock(self, rows: Iterable[_Row]) -> Sequence[_Row]:
        # In the order in which the writer locks. What is locked already is in use.
        agent_ids = [row.agent_id for row in rows]
        statement = select(*ACTIVITY_COLUMNS).where(ACTIVITY.c.agent_id.in_(agent_ids)).order_by(ACTIVITY.c.agent_id)
        return self._connection.execute(statement.with_for_update(skip_locked=True)).all()


# -- restoring ----------------------------------------------------------------------------------------------------


def _restoring(source: str | Path, batch_size: int, progress: _Progress | None) -> partial[int]:
    return partial(_restore, _archive_path("source", source), checked_batch_size(batch_size), progress)


def _restore(path: Path, batch_size: int, progress: _Progress | None, connection: Connection, aside: _Aside) -> int:
    source = aside(lambda: _open_source(path))
    with closing(source):
        restored = read = 0
        activities = iter(source)

        def next_batch() -> list[ArchivedActivity]:
            return _bounded(activities, batch_size, lambda one: len(one.logs))

        _report(progress, 0, source.total)
        while batch := aside(next_batch):
            # Another process may insert the same ones: the next try finds them.
            restored += _repeated(partial(_insert, connection, batch), aside, also=(IntegrityError,))
            read += len(batch)
            _report(progress, read, source.total)
    return restored


def _insert(connection: Connection, batch: Sequence[ArchivedActivity]) -> int:
    # Of two states of an activity the first one that is read is the later one.
    by_agent = {one.activity["agent_id"]: one for one in reversed(batch)}
    with connection.begin():
        _lock_database(connection)
        present = connection.scalars(select(ACTIVITY.c.agent_id).where(ACTIVITY.c.agent_id.in_(list(by_agent))))
        for agent_id in present.all():
            del by_agent[agent_id]
        if by_agent:
            inserted = by_agent.values()
            connection.execute(insert(ACTIVITY), [dict(one.activity) for one in inserted])
            logs = [{**log, "activity_id": one.activity["id"]} for one in inserted for log in one.logs]
            _insert_logs(connection, logs)
    return len(by_agent)


def _insert_logs(connection: Connection, logs: Sequence[dict[str, Any]]) -> None:
    taken = set(_taken(connection, [log["id"] for log in logs]))
    first_new = _next_log_id(connection)
    kept: list[dict[str, Any]] = []
    renumbered: list[dict[str, Any]] = []
    for log in logs:
        if log["id"] in taken or (first_new is not None and log["id"] > first_new):
            renumbered.append({name: value for name, value in log.items() if name != "id"})
        else:
            taken.add(log["id"])
            kept.append(log)
    for rows in (kept, renumbered):
        if rows:
            connection.execute(insert(LOG), rows)


def _taken(connection: Connection, ids: Sequence[int]) -> Iterator[int]:
    for at in range(0, len(ids), _IDS_PER_QUERY):
        yield from connection.scalars(select(LOG.c.id).where(LOG.c.id.in_(ids[at : at + _IDS_PER_QUERY])))


def _next_log_id(connection: Connection) -> int | None:
    """An id that PostgreSQL gives to no later log. Smaller ones are past, larger ones would collide with later logs.

    The other databases number on from the largest id.
    """
    if connection.dialect.name != "postgresql":
        return None
    sequence = func.pg_get_serial_sequence(literal(LOG.name), "id")
    return int(connection.execute(select(func.nextval(sequence))).scalar_one())


# -- archives by their name ---------------------------------------------------------------------------------------


def _archive_path(argument: str, value: object) -> Path:
    """Return the path. Raises `ValueError` if it names no kind of archive."""
    path = Path(value) if isinstance(value, str | Path) and str(value) else None
    if path is None or not (path.suffix in ("", _JSON_LINES) or path.is_dir()):
        shown = str(value) if isinstance(value, Path) else value
        raise ValueError(
            f"{argument} is {describe(shown)}: name a file that ends in {_JSON_LINES}, or a directory for Parquet"
        )
    return path


def _open_archive(path: Path) -> _Archive:
    """Open an archive to append to it, or make a new one."""
    return JsonLinesArchive(path) if path.suffix == _JSON_LINES else ParquetArchive(path)


def _open_source(path: Path) -> JsonLinesSource | ParquetSource:
    """Open an archive to read it."""
    return JsonLinesSource(path) if path.suffix == _JSON_LINES else ParquetSource(path)


# -- a connection of its own, transactions that take locks, and work aside ----------------------------------------


class _Aside(Protocol):
    """Does work that blocks, such as on files, beside the connection."""

    def __call__(self, work: Callable[[], _T], /) -> _T:
        """The result of the work."""
        ...


def _report(progress: _Progress | None, done: int, total: int) -> None:
    """Call the application's `progress`, if there is one."""
    if progress is not None:
        progress(done, total)


def _run(database: _Database, work: Callable[[Connection, _Aside], int]) -> int:
    """Do the work on a connection of its own."""
    with schema_faults_named(), engine_of(database).connect() as connection:
        return work(_prepared(connection), _directly)


async def _run_async(engine: AsyncEngine, work: Callable[[Connection, _Aside], int]) -> int:
    """As `_run`, on an event loop: what blocks is done in a thread."""
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


def _lock_database(connection: Connection) -> None:
    """On SQLite, which has no row locks, take the write lock before anything is read in the transaction."""
    if connection.dialect.name != "sqlite":
        return
    if connection.connection.driver_connection.in_transaction:  # type: ignore[union-attr]
        connection.execute(_NOTHING)
    else:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _repeated(
    work: Callable[[], _T],
    aside: _Aside,
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


def _bounded(activities: Iterable[_T], most: int, logs_of: Callable[[_T], int]) -> list[_T]:
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
