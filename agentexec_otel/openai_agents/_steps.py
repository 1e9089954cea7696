"""What is seen of each step of a run: token usage so far, progress, and whether it may go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast
from weakref import WeakKeyDictionary

from agents import (
    Agent,
    AgentHookContext,
    AgentsException,
    RunConfig,
    RunContextWrapper,
    RunHooks,
    RunResult,
    RunResultStreaming,
    Tool,
)
from agents.items import TResponseInputItem
from agents.lifecycle import RunHooksBase
from agents.run import RunOptions
from agents.usage import Usage

from agentexec_otel._errors import ActivityCanceledError, guarded
from agentexec_otel._model.outcome import keep_to_yourself, text_of
from agentexec_otel._runtime import process as _runtime
from agentexec_otel.activity import ActivityRun
from agentexec_otel.openai_agents._progress import Progress, remark
from agentexec_otel.openai_agents._waiting import goes_on_in, waiting_of

TContext = TypeVar("TContext")

_TOOL_FAILED: Final = "Error running tool"  # How the SDK begins what it makes of a tool's exception.


class StoppedError(ActivityCanceledError, AgentsException):
    """An `ActivityCanceledError` that the SDK passes on as it is instead of calling it a failure of a tool."""


# -- tokens -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Input tokens, output tokens and model calls."""

    input: int = 0
    output: int = 0
    requests: int = 0

    @classmethod
    def of(cls, usage: Usage) -> _Tokens:
        return cls(usage.input_tokens, usage.output_tokens, usage.requests)

    def __add__(self, other: _Tokens) -> _Tokens:
        return _Tokens(self.input + other.input, self.output + other.output, self.requests + other.requests)

    def __sub__(self, other: _Tokens) -> _Tokens:
        return _Tokens(self.input - other.input, self.output - other.output, self.requests - other.requests)

    def at_least_none(self) -> _Tokens:
        return _Tokens(max(0, self.input), max(0, self.output), max(0, self.requests))


@dataclass(slots=True)
class _Meter:
    """A usage that the SDK adds to while runs go on, and where it stood when the first of them began."""

    usage: Usage
    before: _Tokens
    holders: int = 0

    @property
    def counted(self) -> _Tokens:
        return _Tokens.of(self.usage) - self.before


class Tally:
    """The tokens of all runs in one block. Runs within one another share the SDK's usage, which counts once."""

    def __init__(self) -> None:
        self._done = _Tokens()
        self._meters: dict[int, _Meter] = {}

    def hold(self, usage: Usage) -> None:
        """Count what is added to `usage` from now on, until everybody who holds it has let it go."""
        meter = self._meters.setdefault(id(usage), _Meter(usage, _Tokens.of(usage)))
        meter.holders += 1

    def release(self, usage: Usage) -> None:
        """Keep what `usage` has counted, not the usage itself: many runs may come."""
        meter = self._meters[id(usage)]
        meter.holders -= 1
        if not meter.holders:
            del self._meters[id(usage)]
            self._done += meter.counted

    def add(self, tokens: _Tokens) -> None:
        """Count what another process has counted."""
        self._done += tokens

    def record(self, run: ActivityRun) -> None:
        """Put the totals so far on the activity."""
        total = sum((meter.counted for meter in self._meters.values()), self._done)
        run.record_usage(total.input, total.output, total.requests)


_tallies: Final[WeakKeyDictionary[ActivityRun, Tally]] = WeakKeyDictionary()


def record_usage(run: ActivityRun) -> None:
    """Put the totals of all runs in this block on the activity, be they 0."""
    _tallies.setdefault(run, Tally()).record(run)


# -- hooks ------------------------------------------------------------------------------------------------------


class StepHooks(RunHooks[Any]):
    """The caller's run hooks, with a look at the activity before each model and tool call.

    Hooks are where the SDK shows its usage while it runs; a run that fails leaves no result to read it from.
    """

    def __init__(self, run: ActivityRun, inner: RunHooks[Any] | None, given: object = None) -> None:
        self.run = run
        self.progress: Progress | None = None
        self.over = False
        self._inner = inner
        self._tally = _tallies.setdefault(run, Tally())
        with guarded("recording the usage of a run"):
            self._count_what_was_before(given)
        self._held: dict[int, Usage] = {}
        self._stopped = False
        self._refused = False
        self._turn = 0
        self._tools = 0  # at work
        self._tools_idle = asyncio.Event()
        for name in dir(inner):  # by name, so that a callback which a later SDK adds is passed on too
            if name.startswith("on_") and name not in _OWN:
                setattr(self, name, getattr(inner, name))

    def _count_what_was_before(self, given: object) -> None:
        waiting = waiting_of(given)
        if waiting is None or waiting != self.run.agent_id:
            return
        live = _runtime.active().spans.known(self.run.agent_id)
        before: Any = cast(Any, given)._context
        if before is None:
            return
        here = {} if live is None or live.over else live.usage  # What is over is read again on entering.
        counted = sum((_Tokens(*(count or 0 for count in counts)) for counts in here.values()), _Tokens())
        self._tally.add((_Tokens.of(before.usage) - counted).at_least_none())

    def show(self, progress: Progress) -> None:
        """Write lines about the steps."""
        progress.hooked = True
        self.progress = progress

    async def on_llm_start(
        self,
        context: RunContextWrapper[Any],
        agent: Agent[Any],
        system_prompt: str | None,
        input_items: list[TResponseInputItem],
    ) -> None:
        usage = context.usage
        if id(usage) not in self._held:
            self._held[id(usage)] = usage
            self._tally.hold(usage)
        self._tools = 0  # Whatever the last turn called is done.
        self._stop_if_canceled()
        self._turn += 1
        if self.progress is not None:
            self.progress.turn(self._turn, agent.name)
        if self._inner is not None:
            await self._inner.on_llm_start(context, agent, system_prompt, input_items)

    async def on_tool_start(self, context: RunContextWrapper[Any], agent: Agent[Any], tool: Tool) -> None:
        if self._tools and self.run.canceled:
            await self._tools_idle.wait()  # Raising now, the SDK would tear those that are at work.
        self._stop_if_canceled()
        self._tools += 1
        self._tools_idle.clear()
        if self.progress is not None:
            self.progress.tool(tool.name)
        if self._inner is not None:
            await self._inner.on_tool_start(context, agent, tool)

    async def on_tool_end(self, context: RunContextWrapper[Any], agent: Agent[Any], tool: Tool, result: object) -> None:
        self.tool_left()
        if self.progress is not None:
            self.progress.tool_done(tool.name)
        if self._inner is not None:
            await self._inner.on_tool_end(context, agent, tool, cast(str, result))

    async def on_handoff(self, context: RunContextWrapper[Any], from_agent: Agent[Any], to_agent: Agent[Any]) -> None:
        if self.progress is not None:
            self.progress.handoff(from_agent.name, to_agent.name)
        if self._inner is not None:
            await self._inner.on_handoff(context, from_agent, to_agent)

    async def on_agent_end(self, context: AgentHookContext[Any], agent: Agent[Any], output: object) -> None:
        if self._stopped:  # That of a tool which was stopped, taken for the answer.
            raise StoppedError(self.run.agent_id)
        if self._inner is not None:
            await self._inner.on_agent_end(context, agent, output)

    def stop(self) -> None:
        """Go no further: a run within has been stopped."""
        self._stopped = True

    def refuse(self) -> None:
        """Do not begin: somebody has canceled what was to be resumed. Its block is not entered."""
        self._stopped = self._refused = True

    def tool_left(self) -> None:
        """One tool less is at work: it is done, or it is an agent that waits for an approval."""
        self._tools = max(0, self._tools - 1)
        if not self._tools:
            self._tools_idle.set()

    def _stop_if_canceled(self) -> None:
        if self._stopped or self.run.canceled:
            raise StoppedError(self.run.agent_id)

    def record_usage(self) -> None:
        """Put the tokens of all model calls so far on the activity, at the end of a run."""
        if not self._refused:
            self._tally.record(self.run)
        for usage in self._held.values():
            self._tally.release(usage)
        self._held.clear()


_OWN: Final = frozenset(name for name in vars(StepHooks) if name.startswith("on_"))
_at_work: Final[ContextVar[StepHooks | None]] = ContextVar("agentexec_otel.openai_agents.steps", default=None)


def at_work() -> bool:
    """Whether this code is part of a tracked run that is not over; a context may outlive the run it was made in."""
    steps = _at_work.get()
    return steps is not None and not steps.over


def watched(options: RunOptions[TContext], steps: StepHooks) -> RunOptions[TContext]:
    """The options with `steps` as the hooks, unless what is given are no run hooks: then the SDK shall say so."""
    hooks = cast(object, options.get("hooks"))
    if hooks is not None and not isinstance(hooks, RunHooksBase):
        return options
    changed = options.copy()
    changed["hooks"] = steps
    return changed


class TrackedRun:
    """A run of agents in the block of an activity. To be made, and left, in the context of the run.

    Args:
        joined: The block is somebody else's, who leaves it, too.
        config: Of the run. It may say that what the model and its tools say must not be stored, so neither must the
            text of an exception.
        left: Called in the end, with what the run has raised.
    """

    def __init__(
        self,
        run: ActivityRun,
        steps: StepHooks,
        config: RunConfig | Mapping[str, Any] | None,
        *,
        joined: bool = False,
        left: Callable[[BaseException | None], None] | None = None,
    ) -> None:
        self.run = run
        self.steps = steps
        self._joined = joined
        self._left = left
        self._discreet = not _setting(config, "trace_include_sensitive_data")
        self._around = _at_work.get()
        _at_work.set(steps)
        counts_in_leaving(run)

    def close(self, left_by: BaseException | None, result: RunResult | RunResultStreaming | None = None) -> None:
        """The run is over: it raised this exception, or returned `result`. Never raises."""
        _at_work.set(self._around)
        self.steps.over = True
        with guarded("recording the usage of a run"):
            self.steps.record_usage()
        if isinstance(left_by, StoppedError) and self._within is not None:
            self._within.stop()
        if left_by is not None and self._discreet:
            of_tool = text_of(left_by).startswith(_TOOL_FAILED)
            keep_to_yourself(left_by, _TOOL_FAILED if of_tool else type(left_by).__name__)
        if left_by is None and result is not None:
            with guarded("reporting what a run waits for"):
                self._say_what_waits(result)

    def leave(self, left_by: BaseException | None, result: RunResult | RunResultStreaming | None = None) -> None:
        """The run is over, and its block with it: left by this exception, or by its end (None). Never raises."""
        self.close(left_by, result)
        if not self._joined:
            with guarded("ending an activity"):
                self.run.__exit__(None if left_by is None else type(left_by), left_by, None)
        if self._left is not None:
            with guarded("ending the activity of a trace"):
                self._left(left_by if self._within is None else None)  # The run around it may get over that.

    @property
    def _within(self) -> StepHooks | None:
        """The run of the same activity that has called this one, as a tool."""
        around = self._around
        return around if around is not None and around.run.agent_id == self.run.agent_id else None

    def _say_what_waits(self, result: RunResult | RunResultStreaming) -> None:
        """Say what an interrupted run waits for; it has not ended, it will be resumed."""
        if waiting := len(result.interruptions):
            ours = self.run.ours
            over = self.run.canceled or (ours is not None and ours.status.terminal)
            if not self._joined and not over:
                counts_in_leaving(self.run, False)
                self.run.leave_open()
                if self.run.owner:
                    with guarded("noting where a run goes on"):
                        goes_on_in(self.run.agent_id, result)
            if self._joined and self._around is not None:
                self._around.tool_left()  # The SDK says nothing of the end of a tool that is an agent and waits.
            remark(self.run, f"Stopped for the approval of {waiting} tool call{'s' if waiting > 1 else ''}.")


_DEFAULTS: Final = RunConfig()


def _setting(config: RunConfig | Mapping[str, Any] | None, name: str) -> Any:
    """What a run's configuration says, or else the environment."""
    default = getattr(_DEFAULTS, name)
    return config.get(name, default) if isinstance(config, Mapping) else getattr(config, name, default)


def counts_in_leaving(run: ActivityRun, counts: bool = True) -> None:
    """Say that this block, where it ends its activity, counts tokens when it is left: the span waits for that."""
    with guarded("following a run"):
        live = _runtime.active().spans.known(run.agent_id) if run.owner else None
        if live is not None:
            live.counts = counts
