"""The interfaces of exporters and stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, Protocol, runtime_checkable
from uuid import UUID

from agentexec_otel._model.event import ActivityEvent, SpanRef
from agentexec_otel._model.results import ActiveCount, EndedActivity, Ending, ExportResult, StoredActivity
from agentexec_otel._model.span import SpanOfAttempt, StoredSpan


class ActivityExporter(Protocol):
    """A destination of activity events: the plug-in interface.

    The `ActivityProcessor` queues, retries, bisects and counts. An exporter tries once. All calls come from the
    processor's one writer thread, with instrumentation suppressed.

    Two attributes are optional. ``identity`` is a string that names the destination: spooled events are sent to no
    other one. If it is None, this exporter's events stay in memory. ``after_fork_in_child()`` is called in a forked
    child before anything else.
    """

    def export(self, events: Sequence[ActivityEvent], *, replay: bool = False) -> Sequence[ExportResult]:
        """Store a batch. Return one answer per event, in the same order.

        Args:
            events: In the order in which they were emitted; any mix of activities.
            replay: An earlier try may have stored some of them.

        Raises:
            TransientExportError, MisconfiguredExportError, PoisonExportError: For the batch as a whole. After any other
                exception the batch is tried again a few times, then treated as poison.
        """
        ...

    def force_flush(self, timeout: float) -> bool:
        """Send the events that the exporter itself has buffered, within `timeout` seconds."""
        ...

    def shutdown(self, timeout: float) -> None:
        """Close connections. No other call follows."""
        ...


@runtime_checkable
class ActivityStore(Protocol):
    """An exporter that can also be queried. Takes and returns values only, so it can be remote.

    Each method raises `ExportError` if the store cannot be reached.
    """

    def load(self, agent_ids: Sequence[UUID], *, history: bool = True) -> Mapping[UUID, StoredActivity]:
        """Return the state of the activities that exist, by ``agent_id``.

        Args:
            history: Include the logs of the current attempt of each activity that has no span yet.
        """
        ...

    def attach_spans(self, spans: Sequence[tuple[UUID, int, SpanRef]]) -> Set[UUID]:
        """Name spans on their rows, each by ``agent_id`` and attempt. A row that names a span keeps it.

        Returns the ``agent_id`` of every row that names the span offered here.
        """
        ...

    def end_lost(self, ending: Ending) -> Sequence[EndedActivity]:
        """End every RUNNING activity whose lease has expired by the store's own clock."""
        ...

    def count_active(self) -> Sequence[ActiveCount]:
        """Count the activities that are QUEUED or RUNNING, by type and status."""
        ...

    def extend_leases(
        self, worker_id: str, attempts: Mapping[UUID, int], *, owned: Set[UUID] = frozenset()
    ) -> Mapping[UUID, StoredActivity]:
        """Extend the leases of the activities that this worker runs. Return all of them, without their logs.

        A run that waits has no lease.

        Args:
            attempts: The attempt of each activity that this worker runs. A later one is left alone.
            owned: Activities that a block of this process will end. This worker runs them, even if another has
                reported on them meanwhile.
        """
        ...

    def release(self, worker_id: str, agent_ids: Sequence[UUID], *, spans: Set[str] = frozenset()) -> None:
        """Release the leases of a worker that stops cleanly, so that its RUNNING activities do not count as lost.

        Args:
            spans: Ids of spans that end with the worker. The next worker opens another span, linked to them.
        """
        ...


@runtime_checkable
class SpanStore(Protocol):
    """A store that knows which spans of ended attempts were exported, so that each is exported once.

    Each method raises `ExportError` if the store cannot be reached.
    """

    def hand_over_spans(self, spans: Sequence[SpanOfAttempt], lease_seconds: float | None) -> Set[str]:
        """Claim spans that this process is about to end. Spans of attempts that have not ended are left alone.

        Args:
            lease_seconds: How long a replay leaves them alone. None: they count as exported from now on.

        Returns:
            The ids of those that another process exports or has exported.
        """
        ...

    def spans_exported(self, spans: Sequence[tuple[UUID, str]]) -> None:
        """State that these spans were exported, each by ``agent_id`` and span id."""
        ...

    def release_spans(self, spans: Sequence[tuple[UUID, str]]) -> None:
        """Give up the claims of spans whose export has failed."""
        ...

    def count_spans(self, criteria: Sequence[Any]) -> int:
        """Return how many spans of ended attempts meet the SQL `criteria`, are sampled, and were never exported."""
        ...

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
        """Claim up to `most` of the spans that `count_spans` counts, and return what they are rebuilt from.

        Args:
            lease_seconds: When the claim expires, if this process neither reports the export nor releases them.
            after: The cursor of the span before, in the order in which they are returned.
            agent_ids: Only the spans of these activities.
            max_logs: How many of the last logs of each attempt are returned. None: all.
        """
        ...


@runtime_checkable
class SessionStore(Protocol):
    """A store that works inside a SQLAlchemy transaction of the caller, and accepts SQL criteria.

    SQLAlchemy's exceptions pass through.
    """

    def load_in(self, connection: Any, agent_id: UUID) -> StoredActivity | None:
        """Return the state of an activity in this transaction, with its logs. None if it does not exist."""
        ...

    def write_in(self, connection: Any, events: Sequence[ActivityEvent]) -> Sequence[ExportResult]:
        """Store events. Otherwise like `ActivityExporter.export`."""
        ...

    def find_where(self, connection: Any | None, criteria: Sequence[Any], most: int) -> Sequence[UUID]:
        """Return the ``agent_id`` of up to `most` activities that meet the SQL `criteria`, in ascending order.

        Without a connection it uses its own, and raises `ExportError` like `ActivityStore`.
        """
        ...

    def end_where(self, connection: Any | None, criteria: Sequence[Any], ending: Ending) -> Sequence[EndedActivity]:
        """End every QUEUED or RUNNING activity that meets the SQL `criteria`. Return those that were changed.

        Without a connection it uses its own transactions, and raises `ExportError` like `ActivityStore`.
        """
        ...

    def end_lost_in(self, connection: Any, ending: Ending) -> Sequence[EndedActivity]:
        """Like `ActivityStore.end_lost`."""
        ...
