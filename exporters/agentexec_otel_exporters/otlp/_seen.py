"""What this process knows of activities from the events that it has sent. A receiver of OTLP cannot be asked."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from copy import copy
from typing import Final
from uuid import UUID

from agentexec_otel._model.fold import ActivityState
from agentexec_otel.export import Ack, ActivityEvent

_MOST: Final = 10_000


class SeenActivities:
    """The last activities that events were about, each with its state."""

    def __init__(self) -> None:
        self._states: OrderedDict[UUID, ActivityState] = OrderedDict()

    def answers(self, events: Sequence[ActivityEvent]) -> tuple[list[Ack], dict[UUID, ActivityState]]:
        """The answers for events that are about to be sent, and the states to `keep` once they are.

        An event is never refused: that is for a store to decide, which sees all processes.
        """
        states: dict[UUID, ActivityState] = {}
        acks: list[Ack] = []
        for event in events:
            state = states.get(event.agent_id)
            if state is None:
                state = states[event.agent_id] = self._state_before(event)
            verdict = state.apply(event._replace(claims=False))
            acks.append(state.acknowledge(verdict.late, ends=verdict.ends))
        return acks, states

    def _state_before(self, event: ActivityEvent) -> ActivityState:
        known = self._states.get(event.agent_id)
        return ActivityState.unopened(event.agent_id, event.occurred_at_ns) if known is None else copy(known)

    def keep(self, states: dict[UUID, ActivityState]) -> None:
        """The events were sent."""
        for agent_id, state in states.items():
            self._states[agent_id] = state
            self._states.move_to_end(agent_id)
        while len(self._states) > _MOST:
            self._states.popitem(last=False)

    def forget(self, agent_id: UUID) -> None:
        """The activity was withdrawn."""
        self._states.pop(agent_id, None)
