"""Activities in transactions of the caller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from agentexec_otel._model.event import ActivityEvent
from agentexec_otel.export import EndedActivity, Ending, ExportResult, StoredActivity
from agentexec_otel_exporters.sql.write.ending import CHUNK, CHUNK_LOST, end_chunk, end_lost_chunk
from agentexec_otel_exporters.sql.write.load import find_activities, load_activities
from agentexec_otel_exporters.sql.write.transaction import join_transaction, write_events


class SQLSessionStore:
    """Reads and writes on connections of the caller, has none of its own. SQLAlchemy's exceptions pass through."""

    def load_in(self, connection: Connection, agent_id: UUID) -> StoredActivity | None:
        """The present state of an activity; see `SessionStore.load_in`."""
        join_transaction(connection)
        return load_activities(connection, [agent_id]).get(agent_id)

    def write_in(self, connection: Connection, events: Sequence[ActivityEvent]) -> Sequence[ExportResult]:
        """Store events; see `SessionStore.write_in`."""
        join_transaction(connection)
        return write_events(connection, events)

    def find_where(self, connection: Connection, criteria: Sequence[Any], most: int) -> Sequence[UUID]:
        """The activities that meet the criteria; see `SessionStore.find_where`."""
        join_transaction(connection)
        return find_activities(connection, criteria, most)

    def end_where(self, connection: Connection, criteria: Sequence[Any], ending: Ending) -> Sequence[EndedActivity]:
        """End what is QUEUED or RUNNING and meets the criteria; see `SessionStore.end_where`."""
        join_transaction(connection)
        return end_in_chunks(partial(end_chunk, connection, criteria, ending), CHUNK)

    def end_lost_in(self, connection: Connection, ending: Ending) -> Sequence[EndedActivity]:
        """End what is RUNNING with an expired lease; see `SessionStore.end_lost_in`."""
        join_transaction(connection)
        return end_in_chunks(partial(end_lost_chunk, connection, ending), CHUNK_LOST)


def end_in_chunks(end: Callable[[], list[EndedActivity]], most: int) -> list[EndedActivity]:
    """End chunk after chunk, until one has fewer than `most`."""
    ended: list[EndedActivity] = []
    while True:
        chunk = end()
        ended.extend(chunk)
        if len(chunk) < most:
            return ended
