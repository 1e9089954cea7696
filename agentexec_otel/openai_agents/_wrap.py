"""`AgentRunner.run`, `run_sync` and `run_streamed` with an activity around each run that has none."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextvars import copy_context
from dataclasses import replace
from functools import partial, wraps
from typing import Any, Final, cast
from uuid import uuid4

from agents import RunConfig, RunResult, RunResultStreaming
from agents.run import AgentRunner, RunOptions
from agents.tracing import get_current_trace

from agentexec_otel._errors import guarded
from agentexec_otel._runtime import process as _runtime
from agentexec_otel.activity import ActivityRun
from agentexec_otel.export import StoredActivity
from agentexec_otel.openai_agents._opening import (
    Description,
    configured,
    describe,
    enclosing,
    is_canceled,
    is_open,
    prepare,
    stored_activity,
    stored_activity_async,
    trace_id_of,
    waiting_block,
    with_trace_id,
)
from agentexec_otel.openai_agents._progress import progress_of
from agentexec_otel.openai_agents._steps import StepHooks, TrackedRun, watched
from agentexec_otel.openai_agents._stream import ActivityStream
from agentexec_otel.openai_agents._trace_processor import ActivityTraceProcessor

_LOOK_UP_SECONDS: Final = 0.25  # where waiting stalls nobody else
_UNNOTICED_SECONDS: Final = 0.015  # on the event loop; only for runs whose trace id the application has chosen

_Options = RunOptions[Any]
_Run = Callable[..., Coroutine[Any, Any, RunResult]]
_RunSync = Callable[..., RunResult]
_RunStreamed = Callable[..., RunResultStreaming]


class RunWrapper:
    """Wraps the methods of `AgentRunner`, which every runner inherits, and unwraps them.

    A method that somebody else has wrapped meanwhile is left in place, and passes calls on.
    """

    def __init__(self, processor: ActivityTraceProcessor) -> None:
        self._processor = processor
        self._active = False
        self._originals: dict[str, tuple[object, object]] = {}

    def wrap(self) -> None:
        """Track runs from now on."""
        self._active = True
        for name, wrap in (("run", self._run), ("run_sync", self._run_sync), ("run_streamed", self._run_streamed)):
            original = getattr(AgentRunner, name)
            wrapper = wrap(original)
            self._originals[name] = original, wrapper
            setattr(AgentRunner, name, wrapper)

    def unwrap(self) -> None:
        """Leave runs alone from now on."""
        self._active = False
        for name, (original, wrapper) in self._originals.items():
            if vars(AgentRunner).get(name) is wrapper:
                setattr(AgentRunner, name, original)
        self._originals = {}

    # -- the methods ----------------------------------------------------------------------------------------

    def _run(self, original: _Run) -> _Run:
        @wraps(original)
        async def run(runner: AgentRunner, starting_agent: Any, input: Any, **options: Any) -> RunResult:  # noqa: A002
            tracked = None
            with guarded("tracking a run"):
                if self._tracks(options):
                    about = describe(starting_agent, input, _config(options))
                    about, stored = await stored_activity_async(about, _LOOK_UP_SECONDS)
                    tracked, options = self._begin(about, input, options, stored)
            if tracked is None:
                return await original(runner, starting_agent, input, **options)
            try:
                result = await original(runner, starting_agent, input, **options)
            except BaseException as exc:
                tracked.leave(exc)
                raise
            tracked.leave(None, result)
            return result

        return run

    def _run_sync(self, original: _RunSync) -> _RunSync:
        @wraps(original)
        def run_sync(runner: AgentRunner, starting_agent: Any, input: Any, **options: Any) -> RunResult:  # noqa: A002
            tracked = None
            with guarded("tracking a run"):
                if self._tracks(options) and not _runtime.on_event_loop():  # where the SDK will refuse
                    about = describe(starting_agent, input, _config(options))
                    about, stored = stored_activity(about, _LOOK_UP_SECONDS)
                    tracked, options = self._begin(about, input, options, stored)
            if tracked is None:
                return original(runner, starting_agent, input, **options)
            try:
                result = original(runner, starting_agent, input, **options)
            except BaseException as exc:
                tracked.leave(exc)
                raise
            tracked.leave(None, result)
            return result

        return run_sync

    def _run_streamed(self, original: _RunStreamed) -> _RunStreamed:
        @wraps(original)
        def run_streamed(
            runner: AgentRunner,
            starting_agent: Any,
            input: Any,  # noqa: A002
            **options: Any,
        ) -> RunResultStreaming:
            within = copy_context()  # Nothing stays attached in the caller's.
            tracked = None
            with guarded("tracking a run"):
                if self._tracks(options):
                    about = describe(starting_agent, input, _config(options))
                    about, stored = stored_activity(about, _UNNOTICED_SECONDS)
                    tracked, options = within.run(self._begin, about, input, options, stored)
            if tracked is None:
                return original(runner, starting_agent, input, **options)
            stream = ActivityStream(tracked, within)
            try:
                result = within.run(partial(original, runner, starting_agent, input, **options))
            except BaseException as exc:
                within.run(stream.end, exc)
                raise
            stream.follow(result)
            return result

        return run_streamed

    # -- where a run belongs --------------------------------------------------------------------------------

    def _tracks(self, options: dict[str, Any]) -> bool:
        """Whether this call is to be tracked here; an `OpenAIRunner`, or a wrapper around this one, does it itself."""
        if not self._active or not configured():
            return False
        hooks = options.get("hooks")
        if not isinstance(hooks, StepHooks):
            return True
        if hooks.progress is None:
            hooks.show(progress_of(hooks.run))
        return False

    def _begin(
        self, about: Description, given: object, options: dict[str, Any], stored: StoredActivity | None
    ) -> tuple[TrackedRun, dict[str, Any]]:
        self._processor.register()  # Another library may have replaced all processors, ours too.
        block = waiting_block(about.waiting, stored, resumed=True)
        resumed = block is not None
        canceled = block is not None and is_canceled(block)
        around = None
        if block is None:
            block = around = enclosing()
        block = block or self._within_trace()
        if block is None:
            if about.trace_id is None:
                about = replace(about, trace_id=trace_id_of(uuid4()))
                options = {**options, "run_config": with_trace_id(_config(options), str(about.trace_id))}
            block = prepare(about, stored)
        steps = StepHooks(block, options.get("hooks"), given if resumed else None)
        steps.show(progress_of(block))
        if canceled:
            steps.refuse()
        options = cast("dict[str, Any]", watched(cast(_Options, options), steps))
        if around is None and not canceled:
            block.__enter__()
        left = self._processor.hold(block)
        return TrackedRun(block, steps, _config(options), joined=around is not None or canceled, left=left), options

    def _within_trace(self) -> ActivityRun | None:
        """A block within the activity of the trace that the application has opened around this run, if it has."""
        trace = get_current_trace()
        if trace is None or trace.trace_id == "no-op" or self._processor.is_over(trace):
            return None
        of_trace = self._processor.adopt(trace)
        return ActivityRun(None, of_trace.agent_id, None, None, None, waits=False) if is_open(of_trace) else None


def _config(options: dict[str, Any]) -> RunConfig | dict[str, Any] | None:
    return cast("RunConfig | dict[str, Any] | None", options.get("run_config"))
