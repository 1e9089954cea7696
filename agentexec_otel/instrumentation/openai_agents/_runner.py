"""`OpenAIRunner`: `agents.Runner` with an activity around each run."""

from __future__ import annotations

from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from agents import (
    Agent,
    FunctionTool,
    MaxTurnsExceeded,
    RunConfig,
    RunErrorHandlers,
    RunHooks,
    Runner,
    RunResult,
    RunResultStreaming,
    RunState,
    Session,
    TResponseInputItem,
)
from agents.run import DEFAULT_MAX_TURNS, RunOptions

from agentexec_otel import activity
from agentexec_otel._errors import ActivityCanceledError
from agentexec_otel._model.ids import parse_agent_id
from agentexec_otel.activity import ActivityRun
from agentexec_otel.instrumentation._activities import add_log, find
from agentexec_otel.instrumentation._open_run import existing_block
from agentexec_otel.instrumentation.openai_agents._hooks import track, with_hooks
from agentexec_otel.instrumentation.openai_agents._recovery import WRAP_UP, Unfinished, wrap_up_input, wrap_up_options
from agentexec_otel.instrumentation.openai_agents._report_tool import REPORT_STATUS, report_tool
from agentexec_otel.instrumentation.openai_agents._stream import UNNOTICED_SECONDS, ActivityStream, ContinuedStream

TContext = TypeVar("TContext")


@dataclass(frozen=True, slots=True)
class Prompts:
    """Texts for agents.

    Attributes:
        report_status: When and how to call the report tool. Put it into an agent's instructions.
        wrap_up: The prompt after the turn limit, with `max_turns_recovery`.
    """

    report_status: str
    wrap_up: str


@dataclass(frozen=True, slots=True)
class Tools:
    """Tools for agents.

    Attributes:
        report_status: Lets the agent report its own progress; the model knows it as ``report_activity``.
    """

    report_status: FunctionTool


class OpenAIRunner:
    """Runs agents as `agents.Runner` does, and reports the run to the activity `agent_id`.

    The activity is RUNNING during the run, then COMPLETE, ERROR (with the exception's type and a reason) or CANCELED.
    If a task or a block of `ax.activity.run` around the run owns the activity, only that owner ends it. The activity's
    span is current while agents work.

    Args:
        agent_id: The activity, as `ax.activity.create` returned it.
        max_turns_recovery: After the turn limit, ask the agent once to wrap up instead of failing.
        recovery_turns: Turns the agent has to wrap up, at least 1.
        wrap_up_prompt: Replaces the default of ``prompts.wrap_up``.
        report_status_prompt: Replaces the default of ``prompts.report_status``.

    Raises:
        ValueError: `agent_id` is no UUID, or `recovery_turns` is less than 1.
    """

    def __init__(
        self,
        agent_id: UUID | str,
        *,
        max_turns_recovery: bool = False,
        recovery_turns: int = 5,
        wrap_up_prompt: str | None = None,
        report_status_prompt: str | None = None,
    ) -> None:
        if recovery_turns < 1:
            raise ValueError(f"recovery_turns must be at least 1, not {recovery_turns}")
        self.agent_id = parse_agent_id(agent_id)
        self.max_turns_recovery = max_turns_recovery
        self.recovery_turns = recovery_turns
        self.prompts = Prompts(
            report_status=REPORT_STATUS if report_status_prompt is None else report_status_prompt,
            wrap_up=WRAP_UP if wrap_up_prompt is None else wrap_up_prompt,
        )
        self.tools = Tools(report_status=report_tool(self.agent_id))

    async def run(
        self,
        starting_agent: Agent[TContext],
        input: str | list[TResponseInputItem] | RunState[TContext],  # noqa: A002  # the SDK's name
        *,
        context: TContext | None = None,
        max_turns: int | None = DEFAULT_MAX_TURNS,
        hooks: RunHooks[TContext] | None = None,
        run_config: RunConfig | dict[str, Any] | None = None,
        error_handlers: RunErrorHandlers[TContext] | None = None,
        previous_response_id: str | None = None,
        auto_previous_response_id: bool = False,
        conversation_id: str | None = None,
        session: Session | None = None,
    ) -> RunResult:
        """Run as `agents.Runner.run` does, with the same arguments, result and exceptions.

        After a recovery from the turn limit, the result is that of the run that wrapped up. Its input is the
        conversation so far.

        Raises:
            ActivityNotFoundError: No activity has the runner's `agent_id`.
            ActivityCanceledError: The activity was canceled elsewhere; checked before each model and tool call.
            MaxTurnsExceeded: The turn limit was reached. If wrapping up failed, its ``__cause__`` is that failure.
        """
        options: RunOptions[TContext] = {
            "context": context,
            "max_turns": max_turns,
            "hooks": hooks,
            "run_config": run_config,
            "error_handlers": error_handlers,
            "previous_response_id": previous_response_id,
            "auto_previous_response_id": auto_previous_response_id,
            "conversation_id": conversation_id,
            "session": session,
        }
        async with activity.run(self.agent_id) as block:
            tracked = track(block, input, run_config, leaves_block=False)
            with tracked:
                result = await self._run(block, starting_agent, input, with_hooks(options, tracked))
                tracked.result = result
            return result

    def run_streamed(
        self,
        starting_agent: Agent[TContext],
        input: str | list[TResponseInputItem] | RunState[TContext],  # noqa: A002  # the SDK's name
        context: TContext | None = None,
        max_turns: int | None = DEFAULT_MAX_TURNS,
        hooks: RunHooks[TContext] | None = None,
        run_config: RunConfig | dict[str, Any] | None = None,
        previous_response_id: str | None = None,
        auto_previous_response_id: bool = False,
        conversation_id: str | None = None,
        session: Session | None = None,
        *,
        error_handlers: RunErrorHandlers[TContext] | None = None,
    ) -> RunResultStreaming:
        """Run as `agents.Runner.run_streamed` does, with the same arguments and result.

        The run decides how the activity ends, not the consumer of its stream. A run whose stream is not read
        continues in the background. `cancel()` on the result ends the activity as CANCELED. With
        `max_turns_recovery` the stream continues with the events of the run that wraps up, and the result's
        attributes become that run's.

        Raises:
            ActivityNotFoundError: No activity has the runner's `agent_id`.
        """
        options: RunOptions[TContext] = {
            "context": context,
            "max_turns": max_turns,
            "hooks": hooks,
            "run_config": run_config,
            "error_handlers": error_handlers,
            "previous_response_id": previous_response_id,
            "auto_previous_response_id": auto_previous_response_id,
            "conversation_id": conversation_id,
            "session": session,
        }
        find(self.agent_id, UNNOTICED_SECONDS)  # Otherwise the spans of agents are not below the activity's span.
        block = existing_block(self.agent_id)  # It does not wait: the stream may end on any thread.
        tracked = track(block, input, run_config)
        options = with_hooks(options, tracked)

        def wrap_up(left: RunResultStreaming, limit: MaxTurnsExceeded) -> RunResultStreaming:
            conversation, more = self._continued(block, limit, left, options)
            return Runner.run_streamed(left.last_agent, conversation, **more)

        run_context = copy_context()
        run_context.run(block.__enter__)
        stream = ActivityStream(tracked, run_context, wrap_up if self.max_turns_recovery else None)
        result = stream.start(partial(Runner.run_streamed, starting_agent, input, **options))
        return ContinuedStream(result, stream) if self.max_turns_recovery else result

    async def _run(
        self,
        block: ActivityRun,
        agent: Agent[TContext],
        given: str | list[TResponseInputItem] | RunState[TContext],
        options: RunOptions[TContext],
    ) -> RunResult:
        try:
            return await Runner.run(agent, given, **options)
        except MaxTurnsExceeded as limit:
            left = limit.run_data
            if not self.max_turns_recovery or left is None:
                raise
            conversation, more = self._continued(block, limit, left, options)
            try:
                return await Runner.run(left.last_agent, conversation, **more)
            except ActivityCanceledError:
                raise
            except Exception as failure:
                raise limit from failure

    def _continued(
        self, block: ActivityRun, limit: MaxTurnsExceeded, left: Unfinished, options: RunOptions[TContext]
    ) -> tuple[list[TResponseInputItem], RunOptions[TContext]]:
        add_log(block, f"{limit}; the agent was asked to wrap up.")
        more = wrap_up_options(left, options, self.recovery_turns)
        return wrap_up_input(left, options, self.prompts.wrap_up), more
