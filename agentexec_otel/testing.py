"""A kit for testing code that uses agentexec-otel, without a database."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from agentexec_otel._model.event import TERMINAL, ActivityEvent, Status
from agentexec_otel.export import Ack, ExportResult, Reject

__all__ = ["InMemoryActivityExporter"]


class InMemoryActivityExporter:
    """Keeps activity events in a list: `ax.configure(exporters=[InMemoryActivityExporter()])`.

    It decides as a database does: the first terminal status of an attempt wins, what comes behind it is late.
    """

    identity = None
    """Nothing of it is worth a spool."""

    def __init__(self) -> None:
        self.events: list[ActivityEvent] = []
        self._statuses: dict[UUID, Status] = {}
        self._attempts: dict[UUID, int] = {}
        self._seen: set[UUID] = set()

    def export(self, events: Sequence[ActivityEvent], *, replay: bool = False) -> Sequence[ExportResult]:
        """Append the events; see `ActivityExporter.export`."""
        return [self._export(event) for event in events]

    def _export(self, event: ActivityEvent) -> ExportResult:
        known = self._statuses.get(event.agent_id, Status.QUEUED)
        attempt = self._attempts.get(event.agent_id, 1)
        if event.event_id in self._seen:
            return Ack(known, attempt, duplicate=True)
        wanted = event.attempt or attempt
        if event.claims and (known in TERMINAL if wanted > attempt else wanted < attempt or known is not Status.QUEUED):
            return Reject("somebody else has started it, or it has ended")
        if wanted > attempt:
            known, attempt = Status.QUEUED, wanted
        if event.reopens and known in TERMINAL:
            known, attempt = Status.QUEUED, attempt + 1
        late = known in TERMINAL or (event.attempt or attempt) < attempt
        status = known if late or event.status is Status.QUEUED else event.status
        self._seen.add(event.event_id)
        self._statuses[event.agent_id], self._attempts[event.agent_id] = status, attempt
        self.events.append(event)
        return Ack(status, attempt, late=late)

    def status(self, agent_id: UUID) -> Status | None:
        """Where an activity stands; None where it has no events."""
        return self._statuses.get(agent_id)

    def clear(self) -> None:
        """Forget everything."""
        self.__init__()  # type: ignore[misc]

    def force_flush(self, timeout: float) -> bool:
        """Nothing is held back."""
        return True

    def shutdown(self, timeout: float) -> None:
        """Keep the events: tests read them afterwards."""
