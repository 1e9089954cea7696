"""Lines that a run writes about itself: which, how many, and never in the way of those somebody else writes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final
from weakref import WeakKeyDictionary, ref

from agentexec_otel import activity
from agentexec_otel._config import CONF
from agentexec_otel._errors import guarded
from agentexec_otel._model.event import Status
from agentexec_otel._runtime import process as _runtime
from agentexec_otel.activity import ActivityRun

BURST: Final = 10  # lines of each kind stored at once, refilled by
PER_SECOND: Final = 1.0

_LEVELS: Final = {"off": 0, "steps": 1, "detail": 2}
_STEPS: Final = 1
_DETAIL: Final = 2


class Progress:
    """The lines of one activity's runs about their own steps, by ``AGENTEXEC_PROGRESS``.

    They carry no percentage. Once the application or the agent reports by itself, turns and tool calls are left out;
    what went wrong, handoffs and limits stay.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, run: ActivityRun, clock: Callable[[], float] = time.monotonic) -> None:
        self._run = ref(run)  # `_known` holds this one for as long as the run lives
        self._clock = clock
        self._routine = _Bucket(clock)
        self._notable = _Bucket(clock)
        self.hooked = False
        """Whether run hooks tell of turns, tools and handoffs, so that spans need not."""

    def turn(self, number: int, agent: str) -> None:
        """A turn begins."""
        self._say_routine(_STEPS, f"Turn {number}: {agent}")

    def tool(self, name: str) -> None:
        """A tool is called."""
        self._say_routine(_STEPS, f"Calling {name}")

    def tool_done(self, name: str) -> None:
        """A tool has returned."""
        self._say_routine(_DETAIL, f"{name} is done")

    def tool_failed(self, name: str, error: str | None) -> None:
        """A tool has raised, which the model may get over. `error` is told at the level ``detail`` only."""
        if (run := self._run()) is not None and run.canceled:
            return  # It was stopped, perhaps before it had begun.
        told = f": {error}" if error and _level() >= _DETAIL else ""
        self._say(_STEPS, f"{name} failed{told}")

    def handoff(self, from_agent: str, to_agent: str) -> None:
        """One agent gives the conversation to another."""
        self._say(_STEPS, f"{from_agent} → {to_agent}")

    def guardrail(self, name: str, *, tripped: bool) -> None:
        """A guardrail has looked."""
        if tripped:
            self._say(_STEPS, f"Guardrail {name} tripped")
        else:
            self._say_routine(_DETAIL, f"Guardrail {name} passed")

    def listed(self, server: str, count: int) -> None:
        """An MCP server has told its tools."""
        self._say_routine(_DETAIL, f"{server} offers {count} tool{'' if count == 1 else 's'}")

    def limit(self, max_turns: object) -> None:
        """The turns are used up."""
        self._say(_STEPS, f"Max turns ({max_turns}) exceeded")

    def _say_routine(self, level: int, message: str) -> None:
        if _level() >= level and (run := self._run()) is not None and self._routine.take() and not _reported(run):
            remark(run, message)

    def _say(self, level: int, message: str) -> None:
        if _level() >= level and (run := self._run()) is not None and self._notable.take():
            remark(run, message)


class _Bucket:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._at_hand = float(BURST)
        self._refilled = clock()

    def take(self) -> bool:
        now = self._clock()
        self._at_hand = min(BURST, self._at_hand + (now - self._refilled) * PER_SECOND)
        self._refilled = now
        if self._at_hand < 1:
            return False
        self._at_hand -= 1
        return True


def _reported(run: ActivityRun) -> bool:
    with guarded("reporting what a run does"):
        live = _runtime.active().spans.known(run.agent_id)
        return live is not None and live.reported
    return True


def _level() -> int:
    return _LEVELS[CONF.progress]


_known: Final[WeakKeyDictionary[ActivityRun, Progress]] = WeakKeyDictionary()


def progress_of(run: ActivityRun) -> Progress:
    """The progress of this block; all runs in it share one."""
    found = _known.get(run)
    if found is None:
        found = _known.setdefault(run, Progress(run))
    return found


def told_by_hooks() -> bool:
    """Whether run hooks tell of turns, tools and handoffs here, so that spans need not. Asked for each span."""
    run = activity.current()
    found = None if run is None else _known.get(run)
    return found is not None and found.hooked


def remark(run: ActivityRun, message: str) -> None:
    """Add a line of the instrumentation's own, which is not what `ActivityRun.update` is: somebody's report."""
    with guarded("reporting what a run does"):
        runtime = _runtime.active()
        live = run.ours or runtime.find(run.agent_id)
        runtime.emit(runtime.spans.observe(live, runtime.event(live.agent_id, Status.RUNNING, message, live=live)))
