"""What a plug-in has to be, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable
from uuid import UUID

from agentexec_otel._event import ActivityEvent, Opening, Outcome, SpanRef, Status


@dataclass(frozen=True, slots=True)
class Ack:
    """The event is stored.

    Attributes:
        status: The activity's status after this event: the winner's, where the event came late.
        attempt: The activity's current attempt.
        late: The event's attempt had already ended; it is kept in the history and changed nothing.
        duplicate: The event had been stored before.
        span_id: The span that the activity's row names, whichever process opened it.
        outcome: Why the attempt ended, where it has.
    """

    status: Status
    attempt: int = 1
    late: bool = False
    duplicate: bool = False
    span_id: str | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """The event is not stored yet; offer it again after that many seconds."""

    after: float = 0.0


@dataclass(frozen=True, slots=True)
class Reject:
    """The event can never be stored. `reason` is one sentence without the event's content."""

    reason: str


ExportResult = Ack | Retry | Reject


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


@dataclass(frozen=True, slots=True)
class Ending:
    """How many activities are ended at once: one terminal status, one line, one reason."""

    status: Status
    message: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class StoredActivity:
    """An activity as its row has it, and the lines that were written before it had a span.

    Attributes:
        counted: A run in it has ended, and has said what it spent.
    """

    agent_id: UUID
    opening: Opening
    status: Status
    attempt: int
    created_at_ns: int
    span: SpanRef | None
    history: tuple[ActivityEvent, ...] = ()
    counted: bool = False


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
