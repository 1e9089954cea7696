"""Reads archives back into a database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, func, insert, literal, select
from sqlalchemy.exc import IntegrityError

from agentexec_otel.activity._criteria import ACTIVITY, LOG
from agentexec_otel.activity._retention.files import archive_path, open_source
from agentexec_otel.activity._retention.records import ArchivedActivity
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

_IDS_PER_QUERY: Final = 1_000


def restore(engine: Database, source: str | Path, *, batch_size: int = 500, progress: Progress | None = None) -> int:
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
    return run(engine, _restoring(source, batch_size, progress))


async def restore_async(
    engine: AsyncEngine, source: str | Path, *, batch_size: int = 500, progress: Progress | None = None
) -> int:
    """Restore as `ax.activity.restore` does, with an AsyncEngine. Files are read in a thread."""
    return await run_async(engine, _restoring(source, batch_size, progress))


def _restoring(source: str | Path, batch_size: int, progress: Progress | None) -> partial[int]:
    return partial(_restore, archive_path("source", source), checked_batch_size(batch_size), progress)


def _restore(path: Path, batch_size: int, progress: Progress | None, connection: Connection, aside: Aside) -> int:
    source = aside(lambda: open_source(path))
    with closing(source):
        restored = read = 0
        activities = iter(source)

        def next_batch() -> list[ArchivedActivity]:
            return bounded(activities, batch_size, lambda one: len(one.logs))

        report(progress, 0, source.total)
        while batch := aside(next_batch):
            # Another process may insert the same ones: the next try finds them.
            restored += repeated(partial(_insert, connection, batch), aside, also=(IntegrityError,))
            read += len(batch)
            report(progress, read, source.total)
    return restored


def _insert(connection: Connection, batch: Sequence[ArchivedActivity]) -> int:
    # Of two states of an activity the first one that is read is the later one.
    by_agent = {one.activity["agent_id"]: one for one in reversed(batch)}
    with connection.begin():
        lock_database(connection)
        present = connection.scalars(select(ACTIVITY.c.agent_id).where(ACTIVITY.c.agent_id.in_(list(by_agent))))
        for agent_id in present.all():
            del by_agent[agent_id]
        if by_agent:
            connection.execute(insert(ACTIVITY), [dict(one.activity) for one in by_agent.values()])
            _insert_logs(connection, [log for one in by_agent.values() for log in _logs_of(one)])
    return len(by_agent)


def _logs_of(archived: ArchivedActivity) -> Iterator[dict[str, Any]]:
    return ({**log, "activity_id": archived.activity["id"]} for log in archived.logs)


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
