"""Logs that a run adds about its own steps: which ones, and how many."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final
from weakref import WeakKeyDictionary, ref

from agentexec_otel._config import CONF
from agentexec_otel._errors import guarded
from agentexec_otel.activity import ActivityRun
from agentexec_otel.instrumentation._activities import add_log, known

_BURST: Final = 10  # logs of each kind that a run may add at once
_PER_SECOND: Final = 1.0

_LEVELS: Final = {"off": 0, "steps": 1, "detail": 2}
_STEPS: Final = 1
_DETAIL: Final = 2


class RateLimit:
    """A token bucket: `burst` at once, then `per_second`.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, burst: int, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = float(burst)
        self._per_second = per_second
        self._clock = clock
        self._available = float(burst)
        self._refilled = clock()

    def take(self) -> bool:
        """Take one, if one is left."""
        now = self._clock()
        self._available = min(self._burst, self._available + (now - self._refilled) * self._per_second)
        self._refilled = now
        if self._available < 1:
            return False
        self._available -= 1
        return True


class Progress:
    """The logs of one activity's runs about their own steps, as ``AGENTEXEC_PROGRESS`` asks for them.

    They carry no percentage. After the application or the agent has added a log of its own, turns and tool calls are
    left out. Failures, handoffs and limits stay.
    """

    def __init__(self, block: ActivityRun) -> None:
        self._block = ref(block)  # `_progress` holds this object for as long as the block lives.
        self._routine = RateLimit(_BURST, _PER_SECOND)
        self._notable = RateLimit(_BURST, _PER_SECOND)
        self._reported: set[str] = set()  # calls of tools that have gone wrong, and are not over
        self._listed: dict[str, int] = {}
        self.is_hooked = False
        """Whether run hooks report turns, tools and handoffs, so that spans need not."""

    def turn(self, number: int, agent: str) -> None:
        """A turn begins."""
        self._add_routine(_STEPS, f"Turn {number}: {agent}")

    def tool(self, name: str) -> None:
        """A tool is called."""
        self._add_routine(_STEPS, f"Calling {name}")

    def tool_done(self, name: str, call: str) -> None:
        """A tool has returned."""
        if call not in self._reported:
            self._add_routine(_DETAIL, f"{name} is done")

    def tool_failed(self, name: str, error: str | None, call: str | None = None) -> None:
        """A tool has raised; the model may recover from it. The level ``detail`` adds `error`."""
        if (block := self._block()) is not None and block.canceled:
            return  # The run was stopped, perhaps before the tool began.
        self._add_once(call, f"{name} failed", error)

    def tool_answered_error(self, name: str, error: str | None, call: str | None) -> None:
        """An MCP server has answered that its tool has failed. The level ``detail`` adds `error`."""
        self._add_once(call, f"{name} answered with an error", error)

    def tool_timed_out(self, name: str, seconds: float, call: str | None) -> None:
        """A tool has taken longer than it may."""
        self._add_once(call, f"{name} timed out after {seconds:g} s")

    def tool_misused(self, name: str, call: str | None) -> None:
        """The model has called a tool with arguments that the tool does not take."""
        self._add_once(call, f"{name} was called with invalid arguments")

    def tool_not_approved(self, name: str, call: str | None) -> None:
        """A person has rejected the call of a tool."""
        self._add_once(call, f"{name} was not approved")

    def rejected(self, guardrail: str, name: str, what: str, call: str | None) -> None:
        """A guardrail has rejected the call of a tool, or its output."""
        self._add_once(call, f"Guardrail {guardrail} rejected the {what} of {name}")

    def forget(self, call: str) -> None:
        """The call of a tool is over: nothing more is reported about it."""
        self._reported.discard(call)

    def handoff(self, from_agent: str, to_agent: str) -> None:
        """One agent hands the conversation over to another."""
        self._add_notable(f"{from_agent} → {to_agent}")

    def guardrail(self, name: str, *, tripped: bool) -> None:
        """A guardrail has decided."""
        if tripped:
            self._add_notable(f"Guardrail {name} tripped")
        else:
            self._add_routine(_DETAIL, f"Guardrail {name} passed")

    def guardrail_failed(self, name: str) -> None:
        """A guardrail has raised instead of deciding."""
        self._add_notable(f"Guardrail {name} failed")

    def listed(self, server: str, count: int) -> None:
        """An MCP server has listed its tools. Frameworks ask at each turn: only another number is reported again."""
        if self._listed.get(server) != count:
            self._listed[server] = count
            self._add_routine(_DETAIL, f"{server} offers {count} tool{'' if count == 1 else 's'}")

    def not_listed(self, server: str) -> None:
        """An MCP server could not list its tools."""
        self._add_notable(f"{server} did not list its tools")

    def limit(self, max_turns: object) -> None:
        """The turns are used up."""
        self._add_notable(f"Max turns ({max_turns}) exceeded")

    def _add_routine(self, level: int, message: str) -> None:
        block = self._block()
        if block is not None and _level() >= level and self._routine.take() and not _is_reported(block):
            add_log(block, message)

    def _add_once(self, call: str | None, message: str, error: str | None = None) -> None:
        """Add the only log about how a call has ended."""
        if call in self._reported:
            return
        if call is not None:
            self._reported.add(call)
        detail = f": {error}" if error and _level() >= _DETAIL else ""
        self._add_notable(f"{message}{detail}")

    def _add_notable(self, message: str) -> None:
        block = self._block()
        if block is not None and _level() >= _STEPS and self._notable.take():
            add_log(block, message)


def _is_reported(block: ActivityRun) -> bool:
    with guarded("reporting what a run does"):
        view = known(block.agent_id)
        return view is not None and view.has_reports
    return True


def _level() -> int:
    return _LEVELS[CONF.progress]


_progress: Final[WeakKeyDictionary[ActivityRun, Progress]] = WeakKeyDictionary()


def progress_of(block: ActivityRun) -> Progress:
    """The progress of this block, which all runs in it share."""
    return _progress.setdefault(block, Progress(block))
