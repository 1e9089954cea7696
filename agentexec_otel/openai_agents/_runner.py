"""`OpenAIRunner`: `agents.Runner` with an activity around each run."""

from __future__ import annotations

from contextlib import suppress
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
from agentexec_otel._errors import ActivityCanceledError, ActivityNotFoundError, ExportError
from agentexec_otel._model.ids import parse_agent_id
from agentexec_otel._runtime import process as _runtime
from agentexec_otel.activity import ActivityRun
from agentexec_otel.openai_agents._progress import remark
from agentexec_otel.openai_agents._recovery import Unfinished, wrap_up_input, wrap_up_options
from agentexec_otel.openai_agents._report_status import report_tool
from agentexec_otel.openai_agents._steps import StepHooks, TrackedRun, watched
from agentexec_otel.openai_agents._stream import ActivityStream, ContinuedStream
from agentexec_otel.openai_agents._texts import REPORT_STATUS, WRAP_UP

TContext = TypeVar("TContext")

_UNNOTICED_SECONDS = 0.015  # of a stalled event loop, once per activity
_WRAPPING_UP = "{limit}; the agent was asked to wrap up."


@dataclass(frozen=True, slots=True)
class Prompts:
    """Texts for agents.

    Attributes:
        report_status: When and how to call the report tool; meant to be put into an agent's instructions.
        wrap_up: What the agent is told when its turns are used up and `max_turns_recovery` is on.
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
    """Runs agents as `agents.Runner` does, and keeps the activity `agent_id` true to what happens.

    The run is RUNNING while it works, then COMPLETE, ERROR (with the exception's type and a reason) or
    CANCELED. Where a task or a block of `ax.activity.run` around it owns the activity, progress is
    reported but the end is left to that owner. The activity's span is current while agents work.

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

        After a recovery from the turn limit the result is that of the run that wrapped up, with the
        conversation so far as its input.

        Raises:
            ActivityNotFoundError: No activity has the runner's `agent_id`.
            ActivityCanceledError: The activity was canceled from elsewhere; noticed before each model call.
            MaxTurnsExceeded: Also when wrapping up fails; that failure is then its ``__cause__``.
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
        async with activity.run(self.agent_id) as run:
            steps = StepHooks(run, hooks, input)
            tracked = TrackedRun(run, steps, run_config)
            try:
                result = await self._run(run, starting_agent, input, watched(options, steps))
            except BaseException as exc:
                tracked.close(exc)
                raise
            tracked.close(None, result)
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

        The run itself decides how the activity ends, not its consumer: a stream that is abandoned goes
        on in the background and ends as it ends; `cancel()` on the result makes it CANCELED. With
        `max_turns_recovery` the stream goes on with the events of the run that wraps up, and the
        result's attributes are that run's.

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
        return self._start(starting_agent, input, options)

    async def _run(
        self,
        run: ActivityRun,
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
            remark(run, _WRAPPING_UP.format(limit=limit))
            conversation, more = self._continued(left, options)
            try:
                return await Runner.run(left.last_agent, conversation, **more)
            except ActivityCanceledError:
                raise
            except Exception as failure:
                raise limit from failure

    def _start(
        self,
        agent: Agent[TContext],
        given: str | list[TResponseInputItem] | RunState[TContext],
        options: RunOptions[TContext],
    ) -> RunResultStreaming:
        _look_up(self.agent_id)
        run = ActivityRun(None, self.agent_id, None, None, None, waits=False)  # The stream may end on any thread.
        steps = StepHooks(run, options.get("hooks"), given)
        options = watched(options, steps)

        def wrap_up(left: RunResultStreaming, limit: MaxTurnsExceeded) -> RunResultStreaming:
            remark(run, _WRAPPING_UP.format(limit=limit))
            conversation, more = self._continued(left, options)
            return Runner.run_streamed(left.last_agent, conversation, **more)

        within = copy_context()
        within.run(run.__enter__)
        tracked = within.run(TrackedRun, run, steps, options.get("run_config"))
        stream = ActivityStream(tracked, within, wrap_up if self.max_turns_recovery else None)
        try:
            result = within.run(partial(Runner.run_streamed, agent, given, **options))
        except BaseException as exc:
            within.run(stream.end, exc)
            raise
        stream.follow(result)
        return ContinuedStream(result, stream) if self.max_turns_recovery else result

    def _continued(
        self, left: Unfinished, options: RunOptions[TContext]
    ) -> tuple[list[TResponseInputItem], RunOptions[TContext]]:
        more = wrap_up_options(left, options, self.recovery_turns)
        return wrap_up_input(left, options, self.prompts.wrap_up), more


def _look_up(agent_id: UUID) -> None:
    """Read the row of an activity this process has not seen, if the database answers before anyone notices.

    A streamed run starts without an `await` in which the row could be read, but its parent span is on that row. Where
    the database takes longer, the writer reads it later, and the agents' own spans are not beneath the activity's.
    """
    runtime = _runtime.active()
    store = runtime.store
    if store is None or runtime.spans.known(agent_id) is not None:
        return
    with suppress(TimeoutError, ExportError):
        stored = runtime.primary.call(lambda: store.lookup(agent_id), _UNNOTICED_SECONDS)
        if stored is None:
            raise ActivityNotFoundError(agent_id)
        runtime.spans.adopt(stored)
