"""A kit for testing code that uses agentexec-otel, without a database."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from agentexec_otel._model.event import ActivityEvent, Status
from agentexec_otel._model.fold import ActivityState, answer, fold
from agentexec_otel.export import ExportResult

__all__ = ["InMemoryActivityExporter"]


class InMemoryActivityExporter:
    """Keeps activity events in a list: `ax.configure(exporters=[InMemoryActivityExporter()])`.

    It answers as a database does: by the same rules, and each event once.
    """

    identity = None
    """Its events are never spooled."""

    def __init__(self) -> None:
        self.events: list[ActivityEvent] = []
        self._states: dict[UUID, ActivityState] = {}
        self._late: dict[UUID, bool] = {}

    def export(self, events: Sequence[ActivityEvent], *, replay: bool = False) -> Sequence[ExportResult]:
        """Append the events that a database would store; see `ActivityExporter.export`."""
        return [self._withdraw(event) if event.withdraws else self._store(event, replay) for event in events]

    def _store(self, event: ActivityEvent, replay: bool) -> ExportResult:
        before = self._states.get(event.agent_id)
        if before is not None and event.event_id in self._late:
            return before.acknowledge(self._late[event.event_id], duplicate=True)
        state, verdict = fold(before, event, replay=replay)
        if state is not None and verdict.refusal is None:
            self._states[event.agent_id] = state
            self._late[event.event_id] = verdict.late
            self.events.append(event)
        return answer(state, event, verdict)

    def _withdraw(self, event: ActivityEvent) -> ExportResult:
        before = self._states.get(event.agent_id)
        state, verdict = fold(before, event)
        if before is not None and event.event_id not in self._late:
            state = before
        if before is not None and state is None:
            del self._states[event.agent_id], self._late[event.event_id]
            self.events = [one for one in self.events if one.event_id != event.event_id]
        return answer(state, event, verdict)

    def status(self, agent_id: UUID) -> Status | None:
        """The status of an activity; None if it has no events."""
        state = self._states.get(agent_id)
        return None if state is None else state.status

    def clear(self) -> None:
        """Forget everything."""
        self.__init__()  # type: ignore[misc]

    def force_flush(self, timeout: float) -> bool:
        """Return True: nothing is buffered."""
        return True

    def shutdown(self, timeout: float) -> None:
        """Keep the events, so that tests can read them afterwards."""
