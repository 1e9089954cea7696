"""Activity events into the Activity and ActivityLog tables."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence, Set
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.pool import Pool

from agentexec_otel._model.event import ActivityEvent, SpanRef
from agentexec_otel.activity.models import Activity, Base
from agentexec_otel.export import (
    Ack,
    EndedActivity,
    Ending,
    ExportResult,
    Outcome,
    StoredActivity,
    TransientExportError,
)
from agentexec_otel_exporters.sql._engine import writer_engine
from agentexec_otel_exporters.sql._errors import is_unique_violation, translated
from agentexec_otel_exporters.sql._file import DatabaseFile
from agentexec_otel_exporters.sql._fork import ForkGate
from agentexec_otel_exporters.sql._left_sessions import LeftSessions
from agentexec_otel_exporters.sql._session import READ_ONLY
from agentexec_otel_exporters.sql._watchdog import Watchdog
from agentexec_otel_exporters.sql.write.ending import CHUNK, CHUNK_LOST, end_chunk, end_lost_chunk
from agentexec_otel_exporters.sql.write.leases import attach_spans, extend_leases, release
from agentexec_otel_exporters.sql.write.load import load_activities
from agentexec_otel_exporters.sql.write.transaction import join_transaction, write_events

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


_PLACES: Final = frozenset(
    ("database", "dbname", "host", "hostaddr", "options", "port", "read_default_file", "read_default_group", "service",
     "servicefile", "unix_socket")
)  # fmt: skip
"""What in a URL's query names another server, database or schema: PostgreSQL's search_path is one of the options."""

_inherited: list[Pool] = []
"""Pools of the process that this one was forked from, kept so that nothing finalises, and closes, their connections."""


class SQLExporter:
    """Stores activities on SQLite, PostgreSQL or MySQL/MariaDB: one transaction per batch.

    Args:
        database: A SQLAlchemy URL or engine, synchronous or not. The exporter connects on its own, with a
            synchronous driver and at most one connection at a time.

    Raises:
        ConfigurationError: the URL is malformed or names a database that is not supported.
    """

    def __init__(self, database: str | URL | Engine | AsyncEngine) -> None:
        self._engine, self._owned = writer_engine(database)
        self._watchdog = Watchdog()
        self._left_sessions = LeftSessions()
        self._fork_gate = ForkGate(self._engine, owned=self._owned)
        self._file = DatabaseFile(self._engine, owned=self._owned)
        if self._owned:
            self._watchdog.watch_pool(self._engine)
            self._left_sessions.watch(self._engine)

    @property
    def engine(self) -> Engine:
        """The writer's own engine."""
        return self._engine

    def create_tables(self) -> None:
        """Create the tables that are missing. Raises `ExportError` where the database refuses."""
        with translated():
            for tries_left in range(4, -1, -1):
                try:
                    Base.metadata.create_all(self._engine)
                except DBAPIError as exc:
                    # Another process makes them at this moment: what it has made is found the next time.
                    if not tries_left or not (isinstance(exc, IntegrityError) or "already exists" in str(exc.orig)):
                        raise
                else:
                    break

    def export(self, events: Sequence[ActivityEvent], *, replay: bool = False) -> Sequence[ExportResult]:
        """Store a batch in one transaction; see `ActivityExporter.export`."""
        with translated():
            try:
                with self._transaction() as connection:
                    return write_events(connection, events, replay=replay, new=not replay)
            except IntegrityError as exc:
                # Stored before, by a try whose answer was lost or by another way in; or an activity was not new.
                if replay or not is_unique_violation(exc):
                    raise
            with self._transaction() as connection:
                return write_events(connection, events, replay=True)

    def load(self, agent_ids: Sequence[UUID], *, history: bool = True) -> Mapping[UUID, StoredActivity]:
        """The present state of those that exist; see `ActivityStore.load`."""
        with translated(), self._fork_gate.using(), self._watchdog.watching(), self._connect() as connection:
            return load_activities(connection.execution_options(**READ_ONLY), agent_ids, history=history)

    def attach_spans(self, spans: Sequence[tuple[UUID, int, SpanRef]]) -> Set[UUID]:
        """Name spans on their rows; see `ActivityStore.attach_spans`."""
        with translated(), self._transaction() as connection:
            return attach_spans(connection, spans)

    def end_lost(self, ending: Ending) -> Sequence[EndedActivity]:
        """End what is RUNNING with an expired lease; see `ActivityStore.end_lost`."""
        return self._in_chunks(None, partial(end_lost_chunk, ending=ending), CHUNK_LOST)

    def extend_leases(
        self, worker_id: str, agent_ids: Sequence[UUID], *, owned: Set[UUID] = frozenset()
    ) -> Mapping[UUID, StoredActivity]:
        """Extend the leases of what this worker runs; see `ActivityStore.extend_leases`."""
        with translated(), self._transaction() as connection:
            return extend_leases(connection, worker_id, agent_ids, owned)

    def release(self, worker_id: str, agent_ids: Sequence[UUID], *, spans: Set[str] = frozenset()) -> None:
        """Give up the leases of this worker; see `ActivityStore.release`."""
        with translated(), self._transaction() as connection:
            release(connection, worker_id, agent_ids, spans)

    # -- in a transaction of the caller, where SQLAlchemy's exceptions pass through ------------------------------

    def load_in(self, connection: Connection, agent_id: UUID) -> StoredActivity | None:
        """The present state of an activity; see `SessionStore.load_in`."""
        join_transaction(connection)
        return load_activities(connection, [agent_id]).get(agent_id)

    def write_in(self, connection: Connection, events: Sequence[ActivityEvent]) -> Sequence[ExportResult]:
        """Store events; see `SessionStore.write_in`."""
        join_transaction(connection)
        return write_events(connection, events)

    def end_where(
        self, connection: Connection | None, criteria: Sequence[Any], ending: Ending
    ) -> Sequence[EndedActivity]:
        """End what is QUEUED or RUNNING and meets the criteria; see `SessionStore.end_where`."""
        return self._in_chunks(connection, partial(end_chunk, criteria=criteria, ending=ending), CHUNK)

    def end_lost_in(self, connection: Connection, ending: Ending) -> Sequence[EndedActivity]:
        """End what is RUNNING with an expired lease; see `SessionStore.end_lost_in`."""
        return self._in_chunks(connection, partial(end_lost_chunk, ending=ending), CHUNK_LOST)

    @contextmanager
    def _transaction(self) -> Generator[Connection]:
        with self._fork_gate.using(), self._watchdog.watching(), self._connect() as connection, connection.begin():
            yield connection

    def _connect(self) -> Connection:
        self._file.check()
        try:
            with translated():
                return self._engine.connect()
        except TransientExportError as exc:
            exc.sent = False
            raise

    def _in_chunks(
        self, connection: Connection | None, end: Callable[[Connection], list[EndedActivity]], most: int
    ) -> list[EndedActivity]:
        """End chunk after chunk. Without a connection each chunk is committed, so that no lock is held for long."""
        ended: list[EndedActivity] = []
        while True:
            if connection is not None:
                join_transaction(connection)
                chunk = end(connection)
            else:
                with translated(), self._transaction() as own:
                    chunk = end(own)
            ended.extend(chunk)
            if len(chunk) < most:
                return ended

    def after_fork_in_child(self) -> None:
        """The pooled connections are the parent's: forget them, without closing what the parent still uses."""
        self._watchdog.reset()
        self._left_sessions.forget()
        if self._owned:
            _inherited.append(self._engine.pool)
            self._engine.dispose(close=False)

    @property
    def identity(self) -> str:
        """Which database and tables, without user and password: spooled events go nowhere else."""
        url = self._engine.url
        place = Path(url.database or "").absolute() if url.get_backend_name() == "sqlite" else url.database
        where = "&".join(f"{name}={value}" for name, value in sorted(url.query.items()) if name in _PLACES)
        named = f"?{where}" if where else ""
        return f"{url.get_backend_name()}://{url.host}:{url.port}/{place}{named}#{Activity.__tablename__}"

    def force_flush(self, timeout: float) -> bool:
        """Nothing is held back."""
        return True

    def shutdown(self, timeout: float) -> None:
        """Close the writer's connections."""
        if self._owned:
            self._engine.dispose()
        self._watchdog.stop()

    # -- replaced ------------------------------------------------------------------------------------------------

    def lookup(self, agent_id: UUID) -> StoredActivity | None:  # replaced by load
        """Replaced."""
        return self.load([agent_id]).get(agent_id)

    def lookup_many(self, agent_ids: Sequence[UUID]) -> Mapping[UUID, StoredActivity]:  # replaced by load
        """Replaced."""
        return self.load(agent_ids)

    def read(self, connection: Connection, agent_id: UUID) -> StoredActivity | None:  # replaced by load_in
        """Replaced."""
        return self.load_in(connection, agent_id)

    def write(self, connection: Connection, events: Sequence[ActivityEvent]) -> Sequence[ExportResult]:  # write_in
        """Replaced."""
        return self.write_in(connection, events)

    def standing(self, agent_ids: Sequence[UUID]) -> Mapping[UUID, Ack]:  # replaced by load(history=False)
        """Replaced."""
        return {one.agent_id: _ack(one) for one in self.load(agent_ids, history=False).values()}

    def heartbeat(  # replaced by extend_leases
        self, worker_id: str, agent_ids: Sequence[UUID], *, owned: Set[UUID] = frozenset()
    ) -> Mapping[UUID, Ack]:
        """Replaced."""
        return {one.agent_id: _ack(one) for one in self.extend_leases(worker_id, agent_ids, owned=owned).values()}

    def reap(  # replaced by end_lost and end_lost_in
        self, connection: Connection | None, ending: Ending
    ) -> Sequence[tuple[UUID, int]]:
        """Replaced."""
        ended = self.end_lost(ending) if connection is None else self.end_lost_in(connection, ending)
        return [one[:2] for one in ended]


def _ack(stored: StoredActivity) -> Ack:  # replaced
    outcome = stored.outcome and Outcome(stored.outcome.error_type, stored.outcome.reason)
    span_id = stored.span.span_id if stored.span is not None else None
    return Ack(stored.status, stored.attempt, late=stored.status.terminal, span_id=span_id, outcome=outcome)
