"""Activity events into the Activity and ActivityLog tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError

from agentexec_otel._model.event import ActivityEvent, SpanRef, late_cancellation
from agentexec_otel.activity.models import Activity
from agentexec_otel.export import (
    ActiveCount,
    EndedActivity,
    Ending,
    ExportError,
    ExportResult,
    SpanOfAttempt,
    StoredActivity,
    StoredSpan,
)
from agentexec_otel_exporters.sql._errors import is_denied, is_unique_violation
from agentexec_otel_exporters.sql._session_store import SQLSessionStore, end_in_chunks
from agentexec_otel_exporters.sql.connect import Connector
from agentexec_otel_exporters.sql.migrations.version import create_missing
from agentexec_otel_exporters.sql.write.ending import CHUNK, CHUNK_LOST, end_chunk, end_lost_chunk
from agentexec_otel_exporters.sql.write.leases import (
    attach_spans,
    claim_spans,
    count_spans,
    extend_leases,
    hand_over_spans,
    release,
    release_spans,
    spans_exported,
)
from agentexec_otel_exporters.sql.write.load import count_active, find_activities, load_activities
from agentexec_otel_exporters.sql.write.transaction import write_events

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


_PLACES: Final = frozenset(
    ("database", "dbname", "host", "hostaddr", "options", "port", "read_default_file", "read_default_group", "service",
     "servicefile", "unix_socket")
)  # fmt: skip
"""What in a URL's query names another server, database or schema: PostgreSQL's search_path is one of the options."""


class SQLExporter(SQLSessionStore):
    """Stores activities on SQLite, PostgreSQL or MySQL/MariaDB: one transaction per batch.

    Args:
        database: A SQLAlchemy URL or engine, synchronous or not. The exporter connects on its own, with a
            synchronous driver and at most one connection at a time.

    Raises:
        ConfigurationError: The URL is malformed or names a database that is not supported.
    """

    def __init__(self, database: str | URL | Engine | AsyncEngine) -> None:
        self._connector = Connector(database)

    @property
    def engine(self) -> Engine:
        """The writer's own engine."""
        return self._connector.engine

    def create_tables(self) -> None:
        """Create the tables that are missing, and state their revision.

        Raises:
            ExportError: The database refuses or does not answer.
        """
        try:
            with self._connector.translated():
                self._create_missing()
        except ExportError:
            self.shutdown(0.0)
            raise

    def _create_missing(self) -> None:
        for tries_left in range(4, -1, -1):
            try:
                with self._connector.writing() as connection:
                    create_missing(connection)
            except DBAPIError as exc:
                # Another process may create them at the same time. The next try finds them.
                if not tries_left or not (isinstance(exc, IntegrityError) or "already exists" in str(exc.orig)):
                    raise
            else:
                break

    def export(self, events: Sequence[ActivityEvent], *, replay: bool = False) -> Sequence[ExportResult]:
        """Store a batch in one transaction; see `ActivityExporter.export`."""
        with self._connector.translated():
            try:
                return self._write(events, replay=replay)
            except DBAPIError as exc:
                # The user may lack the right to DELETE. Then the activities are ended instead of removed.
                if not (is_denied(exc) and any(event.withdraws for event in events)):
                    raise
            given = [late_cancellation(event.agent_id, 1) if event.withdraws else event for event in events]
            return self._write(given, replay=True)

    def _write(self, events: Sequence[ActivityEvent], *, replay: bool) -> Sequence[ExportResult]:
        try:
            with self._connector.writing() as connection:
                return write_events(connection, events, replay=replay, new=not replay)
        except IntegrityError as exc:
            # Stored before, by a try whose answer was lost or by another exporter, or an activity was not new.
            if replay or not is_unique_violation(exc):
                raise
        with self._connector.writing() as connection:
            return write_events(connection, events, replay=True)

    def load(self, agent_ids: Sequence[UUID], *, history: bool = True) -> Mapping[UUID, StoredActivity]:
        """The present state of those that exist; see `ActivityStore.load`."""
        with self._connector.translated(), self._connector.reading() as connection:
            return load_activities(connection, agent_ids, history=history)

    def attach_spans(self, spans: Sequence[tuple[UUID, int, SpanRef]]) -> Set[UUID]:
        """Name spans on their rows; see `ActivityStore.attach_spans`."""
        with self._connector.translated(), self._connector.writing() as connection:
            return attach_spans(connection, spans)

    def end_lost(self, ending: Ending) -> Sequence[EndedActivity]:
        """End what is RUNNING with an expired lease; see `ActivityStore.end_lost`."""
        return self._end_in_chunks(partial(end_lost_chunk, ending=ending), CHUNK_LOST)

    def count_active(self) -> Sequence[ActiveCount]:
        """How many are QUEUED or RUNNING; see `ActivityStore.count_active`."""
        with self._connector.translated(), self._connector.reading() as connection:
            return count_active(connection)

    def extend_leases(
        self, worker_id: str, attempts: Mapping[UUID, int], *, owned: Set[UUID] = frozenset()
    ) -> Mapping[UUID, StoredActivity]:
        """Extend the leases of what this worker runs; see `ActivityStore.extend_leases`."""
        with self._connector.translated(), self._connector.writing() as connection:
            return extend_leases(connection, worker_id, attempts, owned)

    def release(self, worker_id: str, agent_ids: Sequence[UUID], *, spans: Set[str] = frozenset()) -> None:
        """Give up the leases of this worker; see `ActivityStore.release`."""
        with self._connector.translated(), self._connector.writing() as connection:
            release(connection, worker_id, agent_ids, spans)

    # -- spans of ended attempts ----------------------------------------------------------------------------------

    def hand_over_spans(self, spans: Sequence[SpanOfAttempt], lease_seconds: float | None) -> Set[str]:
        """Claim spans that are about to be ended; see `SpanStore.hand_over_spans`."""
        with self._connector.translated(), self._connector.writing() as connection:
            return hand_over_spans(connection, spans, lease_seconds)

    def spans_exported(self, spans: Sequence[tuple[UUID, str]]) -> None:
        """State that spans were exported; see `SpanStore.spans_exported`."""
        with self._connector.translated(), self._connector.writing() as connection:
            spans_exported(connection, spans)

    def release_spans(self, spans: Sequence[tuple[UUID, str]]) -> None:
        """Give up claims; see `SpanStore.release_spans`."""
        with self._connector.translated(), self._connector.writing() as connection:
            release_spans(connection, spans)

    def count_spans(self, criteria: Sequence[Any]) -> int:
        """How many spans there are to replay; see `SpanStore.count_spans`."""
        with self._connector.translated(), self._connector.reading() as connection:
            return count_spans(connection, criteria)

    def claim_spans(
        self,
        criteria: Sequence[Any],
        most: int,
        lease_seconds: float,
        *,
        after: tuple[object, ...] | None = None,
        agent_ids: Sequence[UUID] | None = None,
        max_logs: int | None = None,
    ) -> Sequence[StoredSpan]:
        """Claim spans to replay; see `SpanStore.claim_spans`."""
        named = () if agent_ids is None else (Activity.agent_id.in_(agent_ids),)
        with self._connector.translated(), self._connector.writing() as connection:
            return claim_spans(connection, [*criteria, *named], most, lease_seconds, after, max_logs)

    # -- in a transaction of the caller, or in its own ------------------------------------------------------------

    def find_where(self, connection: Connection | None, criteria: Sequence[Any], most: int) -> Sequence[UUID]:
        """The activities that meet the criteria; see `SessionStore.find_where`."""
        if connection is not None:
            return super().find_where(connection, criteria, most)
        with self._connector.translated(), self._connector.reading() as own:
            return find_activities(own, criteria, most)

    def end_where(
        self, connection: Connection | None, criteria: Sequence[Any], ending: Ending
    ) -> Sequence[EndedActivity]:
        """End what is QUEUED or RUNNING and meets the criteria; see `SessionStore.end_where`."""
        if connection is not None:
            return super().end_where(connection, criteria, ending)
        return self._end_in_chunks(partial(end_chunk, criteria=criteria, ending=ending), CHUNK)

    @staticmethod
    def session_store() -> SQLSessionStore:
        """What writes in transactions of the caller alone, for a process that has configured no database."""
        return SQLSessionStore()

    def _end_in_chunks(self, end: Callable[[Connection], list[EndedActivity]], most: int) -> list[EndedActivity]:
        """End chunk after chunk. Each one is committed, so that no lock is held for long."""

        def end_chunk_alone() -> list[EndedActivity]:
            with self._connector.translated(), self._connector.writing() as own:
                return end(own)

        return end_in_chunks(end_chunk_alone, most)

    def after_fork_in_child(self) -> None:
        """Forget the parent's connections without closing them."""
        self._connector.after_fork_in_child()

    @property
    def identity(self) -> str:
        """Names the database and tables, without user and password. Spooled events are sent to no other ones."""
        url = self._connector.engine.url
        place = Path(url.database or "").absolute() if url.get_backend_name() == "sqlite" else url.database
        where = "&".join(f"{name}={value}" for name, value in sorted(url.query.items()) if name in _PLACES)
        named = f"?{where}" if where else ""
        return f"{url.get_backend_name()}://{url.host}:{url.port}/{place}{named}#{Activity.__tablename__}"

    def force_flush(self, timeout: float) -> bool:
        """Do nothing: no event is buffered."""
        return True

    def shutdown(self, timeout: float) -> None:
        """Close the connections within `timeout` seconds, even if the database does not answer.

        A running transaction may finish until then. After that its connection is cut, and it is rolled back.
        """
        self._connector.shutdown(timeout)
