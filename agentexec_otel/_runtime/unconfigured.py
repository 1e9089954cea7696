"""What calls with a session use in a process that has not called `configure`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from agentexec_otel._model.event import ActivityEvent
from agentexec_otel._model.results import Ack, EndedActivity, Ending, ExportResult, StoredActivity
from agentexec_otel._runtime.runtime import Runtime
from agentexec_otel._runtime.setup import session_store


class UnconfiguredRuntime(Runtime):
    """Writes rows in sessions of the caller. Nothing follows a commit: no span, no view, no other exporter.

    Its events name no worker: without a writer thread a lease could not be extended, and the activity would be lost.
    """

    def __init__(self) -> None:
        super().__init__((), None, None, None)
        self._session_store = session_store()

    def event(self, *args: Any, **kwargs: Any) -> ActivityEvent:
        """As `Runtime.event`, without a worker."""
        return super().event(*args, **kwargs)._replace(worker_id=None)

    def committed_creation(self, event: ActivityEvent) -> None:
        """Do nothing."""

    def committed(self, event: ActivityEvent, stored: StoredActivity, result: ExportResult) -> None:
        """Do nothing."""

    def retried(self, events: Sequence[ActivityEvent], results: Sequence[ExportResult]) -> dict[UUID, int]:
        """The attempts that were opened."""
        return {
            event.agent_id: result.attempt
            for event, result in zip(events, results, strict=True)
            if isinstance(result, Ack)
        }

    def ended_together(self, ended: Sequence[EndedActivity], ending: Ending) -> None:
        """Do nothing."""

    def has_pending(self, agent_id: UUID) -> bool:
        """False: nothing waits."""
        return False
