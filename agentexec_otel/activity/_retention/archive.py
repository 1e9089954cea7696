"""Moves activities that have ended from the database to an archive, or deletes them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing, nullcontext
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, Unpack
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Row, delete, func, or_, select

from agentexec_otel._model.event import ACTIVE
from agentexec_otel.activity._criteria import ACTIVITY, LOG, ActivityFilters, criteria_of, without_news_since
from agentexec_otel.activity._retention.files import Archive, archive_path, open_archive
from agentexec_otel.activity._retention.records import ACTIVITY_COLUMNS, LOG_COLUMNS, StoredRow
from agentexec_otel.activity._retention.transactions import (
    Aside,
    Progress,
    bounded,
    checked_batch_size,
    lock_database,
    repeated,
    report,
    run,
    run_async,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from agentexec_otel.activity._retention.transactions import Database

_Row: TypeAlias = "Row[*tuple[Any, ...]]"


def archive(
    engine: Database,
    older_than: timedelta | datetime,
    *,
    to: str | Path | None = None,
    batch_size: int = 500,
    progress: Progress | None = None,
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
    return run(engine, partial(_archive, _Plan.of(older_than, to, batch_size, progress, filters)))


async def archive_async(
    engine: AsyncEngine,
    older_than: timedelta | datetime,
    *,
    to: str | Path | None = None,
    batch_size: int = 500,
    progress: Progress | None = None,
    **filters: Unpack[ActivityFilters],
) -> int:
    """Archive as `ax.activity.archive` does, with an AsyncEngine. Files are written in a thread."""
    return await run_async(engine, partial(_archive, _Plan.of(older_than, to, batch_size, progress, filters)))


class _Plan(NamedTuple):
    criteria: Sequence[ColumnElement[bool]]
    to: Path | None
    batch_size: int
    progress: Progress | None

    @classmethod
    def of(
        cls,
        older_than: timedelta | datetime,
        to: str | Path | None,
        batch_size: int,
        progress: Progress | None,
        filters: ActivityFilters,
    ) -> _Plan:
        before = without_news_since(older_than)
        criteria = (
            ACTIVITY.c.status.not_in(ACTIVE),
            ACTIVITY.c.created_at < before,  # ends the scan of the index
            func.coalesce(ACTIVITY.c.ended_at, ACTIVITY.c.updated_at) < before,  # producers of schema 1 set no ended_at
            *criteria_of(filters),
        )
        path = None if to is None else archive_path("to", to)
        return cls(criteria, path, checked_batch_size(batch_size), progress)


def _archive(plan: _Plan, connection: Connection, aside: Aside) -> int:
    to = plan.to
    target = None if to is None else aside(lambda: open_archive(to))
    with nullcontext() if target is None else closing(target):
        return _Batches(plan, connection, aside, target).archive()


class _Batches:
    """Archives batch after batch, in the order of ``created_at``, for which there is an index."""

    def __init__(self, plan: _Plan, connection: Connection, aside: Aside, target: Archive | None) -> None:
        self._plan = plan
        self._connection = connection
        self._aside = aside
        self._target = target
        self._is_written = False  # the batch of the transaction that is under way

    def archive(self) -> int:
        """Return how many were archived."""
        self._remove_unarchived()
        archived, total = 0, self._total()
        report(self._plan.progress, 0, total)
        after: _Row | None = None
        while rows := self._read(after):
            archived += self._move(rows)
            report(self._plan.progress, archived, max(archived, total))
            after = rows[-1]
        return archived

    def _total(self) -> int:
        if self._plan.progress is None:
            return 0
        with self._connection.begin():
            return self._connection.execute(
                select(func.count()).select_from(ACTIVITY).where(*self._plan.criteria)
            ).scalar_one()

    def _remove_unarchived(self) -> None:
        """Remove from the last batch of the archive what the database still has: it was not deleted."""
        target = self._target
        if target is None:
            return
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
        statement = select(*ACTIVITY_COLUMNS).where(*self._plan.criteria)
        if after is not None:
            behind = or_(ACTIVITY.c.created_at > after.created_at, ACTIVITY.c.id > after.id)
            statement = statement.where(ACTIVITY.c.created_at >= after.created_at, behind)
        statement = statement.order_by(ACTIVITY.c.created_at, ACTIVITY.c.id).limit(self._plan.batch_size)
        with self._connection.begin():
            rows = self._connection.execute(statement).all()
        return bounded(rows, self._plan.batch_size, lambda row: int(row.last_seq))

    def _move(self, rows: Sequence[_Row]) -> int:
        encoded = dict[UUID, Any]()
        if (target := self._target) is not None:
            stored = self._with_logs(rows)
            encoded = self._aside(lambda: {row.id: target.encode(row) for row in stored})
        move = partial(self._move_unchanged, {row.id: row for row in rows}, encoded)
        return repeated(move, self._aside, undo=self._remove_rolled_back)

    def _remove_rolled_back(self) -> None:
        """Remove the batch from the archive: it was not deleted, even if another archiver has deleted it meanwhile."""
        if (target := self._target) is not None and self._is_written:
            self._aside(lambda: target.keep(frozenset()))

    def _with_logs(self, rows: Sequence[_Row]) -> list[StoredRow]:
        statement = select(LOG.c.activity_id, *LOG_COLUMNS).where(LOG.c.activity_id.in_([row.id for row in rows]))
        logs: defaultdict[UUID, list[Sequence[Any]]] = defaultdict(list)
        with self._connection.begin():
            for activity_id, *log in self._connection.execute(statement.order_by(LOG.c.activity_id, LOG.c.seq)).all():
                logs[activity_id].append(log)
        return [StoredRow(row.id, row, logs[row.id]) for row in rows]

    def _move_unchanged(self, rows: dict[UUID, _Row], encoded: dict[UUID, Any]) -> int:
        """Write the batch, and delete it, without those that another process has changed or locked."""
        connection, target = self._connection, self._target
        self._is_written = False
        with connection.begin():
            lock_database(connection)
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
