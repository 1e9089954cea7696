"""`AgentExecInstrumentor`: an activity for each run, without a change to the application."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine
from contextlib import nullcontext
from contextvars import copy_context
from functools import partial, wraps
from typing import Any, Final, Unpack

from agents import Agent, AgentBase, RunResult, RunResultStreaming
from agents.run import AgentRunner, RunOptions
from agents.tracing import get_current_trace
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

from agentexec_otel._config import assign
from agentexec_otel._errors import guarded
from agentexec_otel.activity import ActivityRun
from agentexec_otel.instrumentation._activities import complain, on_event_loop
from agentexec_otel.instrumentation._open_run import (
    RunDescription,
    existing_block,
    is_configured,
    is_owned,
    look_up,
    look_up_async,
    open_run,
)
from agentexec_otel.instrumentation._tracked_run import TrackedRun
from agentexec_otel.instrumentation.openai_agents import _sdk
from agentexec_otel.instrumentation.openai_agents._hooks import StepHooks, track, with_hooks
from agentexec_otel.instrumentation.openai_agents._patches import Patches
from agentexec_otel.instrumentation.openai_agents._run_arguments import describe, with_trace_id
from agentexec_otel.instrumentation.openai_agents._stream import UNNOTICED_SECONDS, ActivityStream
from agentexec_otel.instrumentation.openai_agents._tool_calls import ToolCallWrapper
from agentexec_otel.instrumentation.openai_agents._trace_processor import ActivityTraceProcessor

_INSTRUMENTS: Final = ("openai-agents >= 0.24, < 0.25",)
_LOOK_UP_SECONDS: Final = 0.25  # a wait that delays only the run itself

_Options = RunOptions[Any]


class AgentExecInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Gives each top-level run of the OpenAI Agents SDK an activity: live logs, tokens, and how it ended.

    ::

        ax.configure("sqlite:///app.db", create_tables=True)
        AgentExecInstrumentor().instrument()

    The activity's id is the UUID in the SDK's trace id. Its type is the workflow's name, else the starting agent's. Its
    metadata are the trace's, and the ids of its group, conversation and session. A `trace(...)` of the application is
    one activity for all runs in it. Runs inside another activity, and agents as tools, report to that one. A run that
    cannot be tracked runs untracked.

    This sets nothing else up: `ax.configure`, or ``AGENTEXEC_DATABASE_URL``, says where activities go.
    Options of ``instrument()`` are settings, such as ``progress="detail"``: a declarative configuration passes them.
    """

    _wrapper: RunWrapper

    def instrumentation_dependencies(self) -> Collection[str]:
        """The versions of the SDK that this works with."""
        return _INSTRUMENTS

    def _instrument(self, **kwargs: Any) -> None:
        if unknown := assign(kwargs):
            complain(f"AgentExecInstrumentor has no option {', '.join(unknown)}: options are settings, in lower case")
        self._wrapper = RunWrapper()
        self._wrapper.wrap()

    def _uninstrument(self, **kwargs: Any) -> None:
        self._wrapper.unwrap()


class RunWrapper:
    """Wraps the methods of `AgentRunner`, from which every runner inherits, and restores them.

    If another library has wrapped a method since, that wrapper stays, and ours only passes the call on.
    """

    def __init__(self) -> None:
        self._processor = ActivityTraceProcessor()
        self._patches = Patches()

    def wrap(self) -> None:
        """Track runs from now on."""
        self._processor.register()
        self._patches.wrap(AgentRunner, "run", self._run)
        self._patches.wrap(AgentRunner, "run_sync", self._run_sync)
        self._patches.wrap(AgentRunner, "run_streamed", self._run_streamed)
        self._patches.wrap(AgentBase, "get_all_tools", self._get_all_tools)
        ToolCallWrapper(self._patches).wrap()

    def unwrap(self) -> None:
        """Track no more runs, and restore the methods."""
        self._processor.unregister()
        self._patches.restore()

    # -- the methods ----------------------------------------------------------------------------------------

    def _run(self, original: Callable[..., Coroutine[Any, Any, RunResult]]) -> Callable[..., Any]:
        @wraps(original)
        async def run(runner: Any, starting_agent: Any, input: Any, **options: Unpack[_Options]) -> RunResult:  # noqa: A002
            tracked = None
            with guarded("tracking a run"):
                if self._is_tracked_here(options):
                    about = describe(starting_agent, input, options)
                    about = await look_up_async(about, _LOOK_UP_SECONDS)
                    tracked, options = self._begin(about, input, options)
            with tracked or nullcontext():
                result = await original(runner, starting_agent, input, **options)
                if tracked is not None:
                    tracked.result = result
            return result

        return run

    def _run_sync(self, original: Callable[..., RunResult]) -> Callable[..., Any]:
        @wraps(original)
        def run_sync(runner: Any, starting_agent: Any, input: Any, **options: Unpack[_Options]) -> RunResult:  # noqa: A002
            tracked = None
            with guarded("tracking a run"):
                if self._is_tracked_here(options) and not on_event_loop():  # On one, the SDK will refuse.
                    about = look_up(describe(starting_agent, input, options), _LOOK_UP_SECONDS)
                    tracked, options = self._begin(about, input, options)
            with tracked or nullcontext():
                result = original(runner, starting_agent, input, **options)
                if tracked is not None:
                    tracked.result = result
            return result

        return run_sync

    def _run_streamed(self, original: Callable[..., RunResultStreaming]) -> Callable[..., Any]:
        @wraps(original)
        def run_streamed(
            runner: Any,
            starting_agent: Any,
            input: Any,  # noqa: A002
            **options: Unpack[_Options],
        ) -> RunResultStreaming:
            context = copy_context()  # Nothing stays attached in the caller's.
            tracked = None
            with guarded("tracking a run"):
                if self._is_tracked_here(options):
                    about = look_up(describe(starting_agent, input, options), UNNOTICED_SECONDS)
                    tracked, options = context.run(self._begin, about, input, options)
            start = partial(original, runner, starting_agent, input, **options)
            return start() if tracked is None else ActivityStream(tracked, context).start(start)

        return run_streamed

    def _get_all_tools(self, original: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
        """Every session of a realtime agent begins with this call. `agents.realtime` itself is not imported here."""

        @wraps(original)
        async def get_all_tools(agent: Any, *args: Any, **named: Any) -> Any:
            if self._processor.is_active and not isinstance(agent, Agent):
                complain("realtime sessions are not tracked: only runs of the OpenAI Agents SDK get an activity")
            return await original(agent, *args, **named)

        return get_all_tools

    # -- where a run belongs --------------------------------------------------------------------------------

    def _is_tracked_here(self, options: _Options) -> bool:
        """Whether this call tracks the run. An `OpenAIRunner`, or a wrapper around this one, does it itself."""
        if not self._processor.is_active or not is_configured():
            return False
        hooks = options.get("hooks")
        if not isinstance(hooks, StepHooks):
            return True
        hooks.tracked.show_progress()
        return False

    def _begin(self, about: RunDescription, given: object, options: _Options) -> tuple[TrackedRun, _Options]:
        self._processor.register()  # Another library may have replaced all processors, ours included.
        config = options.get("run_config")
        opening = open_run(about, self._block_in_trace)
        block = opening.block
        tracked = track(block, None if opening.is_new else given, config, is_joined=opening.is_joined)
        tracked.show_progress()
        options = with_hooks(options, tracked)
        if opening.is_refused:
            tracked.refuse()
        elif not opening.is_joined:
            block.__enter__()
        if opening.is_new and not about.own_id:
            options["run_config"] = with_trace_id(config, block.agent_id)
        tracked.on_left = self._processor.hold(block)
        return tracked, options

    def _block_in_trace(self) -> ActivityRun | None:
        """A block in the activity of the trace that the application has opened around this run, if there is one."""
        trace = get_current_trace()
        if trace is None or _sdk.is_disabled(trace) or self._processor.is_over(trace):
            return None
        of_trace = self._processor.adopt(trace)
        return existing_block(of_trace.agent_id) if is_owned(of_trace.agent_id) else None
