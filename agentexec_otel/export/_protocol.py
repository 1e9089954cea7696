"""What a plug-in has to be, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, Protocol, runtime_checkable
from uuid import UUID

from agentexec_otel._model.event import ActivityEvent, SpanRef
from agentexec_otel._model.results import Ack, Ending, ExportResult, StoredActivity


class ActivityExporter(Protocol):
    """A sink for activity events: the plug-in interface.

    Queue, retry, bisecting and counting live in the `ActivityProcessor`, so an exporter only has to try once.
    All calls come from the processor's one writer thread, with instrumentation suppressed.

    Two attributes are optional: ``identity``, a string that names the destination (spooled events go nowhere else; None
    keeps this exporter's events in memory), and ``after_fork_in_child()``, called first in a forked child.
    """

    def export(self, events: Sequence[ActivityEvent], *, replay: bool = False) -> Sequence[ExportResult]:
        """Store a batch, and answer for each event in the same order.

        Args:
            events: In the order in which they were emitted; any mix of activities.
            replay: Some of them may have been stored by an earlier try.

        Raises:
            TransientExportError, MisconfiguredExportError, PoisonExportError: for the batch as a whole. Any other
                exception is tried again a few times, then treated as poison.
        """
        ...

    def force_flush(self, timeout: float) -> bool:
        """Pass on whatever the exporter itself still holds, within `timeout` seconds."""
        ...

    def shutdown(self, timeout: float) -> None:
        """Release connections. No call follows."""
        ...


@runtime_checkable
class ActivityStore(Protocol):
    """An exporter that can also be asked: what the life-cycle API needs from the SQL exporter."""

    def lookup(self, agent_id: UUID) -> StoredActivity | None:
        """The activity's present state, or None. Raises `ExportError` where it cannot be read."""
        ...

    def lookup_many(self, agent_ids: Sequence[UUID]) -> Mapping[UUID, StoredActivity]:
        """As `lookup`, for several at once; those that do not exist are left out."""
        ...

    def read(self, connection: Any, agent_id: UUID) -> StoredActivity | None:
        """As `lookup`, inside the caller's own transaction (a SQLAlchemy `Connection`)."""
        ...

    def attach_spans(self, spans: Sequence[tuple[UUID, int, SpanRef]]) -> Set[UUID]:
        """Name spans on their rows, each by ``agent_id`` and attempt; a row that names one keeps it.

        Returns the ``agent_id`` of every row that names the span offered here.
        """
        ...

    def write(self, connection: Any, events: Sequence[ActivityEvent]) -> Sequence[ExportResult]:
        """Store events inside the caller's own transaction (a SQLAlchemy `Connection`)."""
        ...

    def end_where(self, connection: Any | None, criteria: Sequence[Any], ending: Ending) -> Sequence[tuple[UUID, int]]:
        """End every QUEUED or RUNNING activity that meets the SQL `criteria`.

        In the caller's own transaction, or without a connection in one of its own. Returns the ``agent_id`` of each
        that it changed, with the attempt that it ended.
        """
        ...

    def reap(self, connection: Any | None, ending: Ending) -> Sequence[tuple[UUID, int]]:
        """End every RUNNING activity whose lease has expired by the database's clock; otherwise as `end_where`."""
        ...

    def heartbeat(
        self, worker_id: str, agent_ids: Sequence[UUID], *, owned: Set[UUID] = frozenset()
    ) -> Mapping[UUID, Ack]:
        """Extend the leases of those activities that this worker runs, and tell where each of them stands.

        Those `owned` have a block here that will end them: this worker runs them, whoever the row names.
        """
        ...

    def standing(self, agent_ids: Sequence[UUID]) -> Mapping[UUID, Ack]:
        """Where those activities stand, without changing anything."""
        ...

    def release(self, worker_id: str, agent_ids: Sequence[UUID], *, spans: Set[str] = frozenset()) -> None:
        """Give the leases of this worker back: it goes in good order, and what it leaves RUNNING is not lost.

        Args:
            spans: The ids of spans that go with it and will never end: whoever goes on opens another, linked to them.
        """
        ...
