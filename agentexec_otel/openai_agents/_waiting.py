"""Which activity a run that waits for an approval goes on in: remembered in its state, wherever that is resumed.

The SDK's trace id does not tell where tracing is disabled, where the application has chosen it, or uses it again.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final, cast
from uuid import UUID

from agents import RunResult, RunResultStreaming, RunState
from agents.tracing.traces import TraceState

_KEY: Final = "agentexec.agent_id"


def goes_on_in(agent_id: UUID, result: RunResult | RunResultStreaming) -> None:
    """Have `result.to_state()` say that the run is to go on in this activity."""
    told: Any = result
    state = told._trace_state or TraceState.from_trace(getattr(told, "trace", None)) or TraceState()
    state.extra[_KEY] = str(agent_id)
    told._trace_state = state


def waiting_of(given: object) -> UUID | None:
    """The activity that was left open for the run with this input; None where that is no state of such a run."""
    state: Any = getattr(cast(object, given), "_trace_state", None) if isinstance(given, RunState) else None
    told = getattr(state, "extra", {}).get(_KEY)
    with suppress(ValueError):
        return None if told is None else UUID(str(told))
    return None
