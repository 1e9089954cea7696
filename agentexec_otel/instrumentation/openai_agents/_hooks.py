"""Run hooks that report each step of a run, and stop it if its activity was canceled."""

from __future__ import annotations

from typing import Any, Final, TypeVar, cast

from agents import Agent, AgentHookContext, AgentsException, RunContextWrapper, RunHooks, RunState, Tool
from agents.items import TResponseInputItem
from agents.lifecycle import RunHooksBase
from agents.run import RunOptions

from agentexec_otel._errors import ActivityCanceledError, guarded
from agentexec_otel._model.outcome import text_of
from agentexec_otel.activity import ActivityRun
from agentexec_otel.instrumentation._tracked_run import Earlier, Framework, TrackedRun
from agentexec_otel.instrumentation.openai_agents._run_arguments import (
    AnyRunConfig,
    is_private,
    model_of,
    remember_activity,
    resumed_activity,
)
from agentexec_otel.instrumentation.openai_agents._sdk import (
    TOOL_FAILED,
    pending_call,
    rejected_calls,
    turns_of,
    usage_of,
)
from agentexec_otel.instrumentation.openai_agents._tool_calls import report_return

TContext = TypeVar("TContext")


class StoppedError(ActivityCanceledError, AgentsException):
    """An `ActivityCanceledError` that the SDK passes on unchanged, instead of treating it as the failure of a tool."""


def _safe_text(exc: BaseException) -> str:
    return TOOL_FAILED if text_of(exc).startswith(TOOL_FAILED) else type(exc).__name__


_FRAMEWORK: Final = Framework(
    stopped_error=StoppedError,
    safe_text=_safe_text,
    pending_approvals=lambda result: [pending_call(item) for item in result.interruptions],
    remember=remember_activity,
)


def track(block: ActivityRun, given: object, config: AnyRunConfig, **owner: bool) -> TrackedRun:
    """A run of agents in this block.

    Args:
        given: The run's input. If it is the state of a run, its turns are counted on; so are its tokens, if it belongs
            to the same activity.
        owner: As for `TrackedRun`: `is_joined`, `leaves_block`.
    """
    return TrackedRun(_FRAMEWORK, block, earlier=_earlier(block, given), is_private=is_private(config), **owner)


def _earlier(block: ActivityRun, given: object) -> Earlier | None:
    if not isinstance(given, RunState):
        return None
    state = cast("RunState[Any]", given)
    usage = usage_of(state) if resumed_activity(state) == block.agent_id else None
    return Earlier(turns_of(state), usage, rejected_calls(state))


class StepHooks(RunHooks[Any]):
    """The caller's run hooks, each after its step was reported to `tracked`.

    Only hooks see the SDK's usage while it runs: a run that fails leaves no result to read it from.
    """

    def __init__(self, tracked: TrackedRun, inner: RunHooks[Any] | None, config: AnyRunConfig) -> None:
        self.tracked = tracked
        self._config = config
        self._inner: RunHooks[Any] = RunHooks() if inner is None else inner
        for name in dir(inner):  # By name, so that a callback of a later SDK is passed on, too.
            if name.startswith("on_") and name not in _OWN:
                setattr(self, name, getattr(inner, name))

    async def on_llm_start(
        self,
        context: RunContextWrapper[Any],
        agent: Agent[Any],
        system_prompt: str | None,
        input_items: list[TResponseInputItem],
    ) -> None:
        self.tracked.before_model_call(agent.name, context.usage, model_of(agent, self._config))
        await self._inner.on_llm_start(context, agent, system_prompt, input_items)

    async def on_tool_start(self, context: RunContextWrapper[Any], agent: Agent[Any], tool: Tool) -> None:
        await self.tracked.before_tool(tool.name)
        await self._inner.on_tool_start(context, agent, tool)

    async def on_tool_end(self, context: RunContextWrapper[Any], agent: Agent[Any], tool: Tool, result: object) -> None:
        self.tracked.after_tool()
        if self.tracked.progress is not None:
            with guarded("reporting a step of a run"):
                report_return(self.tracked.progress, tool, context, result)
        await self._inner.on_tool_end(context, agent, tool, cast(str, result))

    async def on_handoff(self, context: RunContextWrapper[Any], from_agent: Agent[Any], to_agent: Agent[Any]) -> None:
        self.tracked.on_handoff(from_agent.name, to_agent.name)
        await self._inner.on_handoff(context, from_agent, to_agent)

    async def on_agent_end(self, context: AgentHookContext[Any], agent: Agent[Any], output: object) -> None:
        self.tracked.before_answer()
        await self._inner.on_agent_end(context, agent, output)


_OWN: Final = frozenset(name for name in vars(StepHooks) if name.startswith("on_"))


def with_hooks(options: RunOptions[TContext], tracked: TrackedRun) -> RunOptions[TContext]:
    """The options with `StepHooks` around the caller's hooks; unchanged if the SDK will refuse those."""
    hooks = cast(object, options.get("hooks"))
    if hooks is not None and not isinstance(hooks, RunHooksBase):
        return options
    changed = options.copy()
    changed["hooks"] = StepHooks(tracked, cast("RunHooks[Any] | None", hooks), options.get("run_config"))
    return changed
