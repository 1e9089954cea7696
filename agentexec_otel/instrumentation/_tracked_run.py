"""One run of agents, reported to the activity of a block: its steps, its tokens, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final
from uuid import UUID

from agentexec_otel._errors import ActivityCanceledError, guarded
from agentexec_otel._model.outcome import replace_text
from agentexec_otel.activity import ActivityRun
from agentexec_otel.instrumentation._activities import continue_if_waiting, expect_usage, known, wait_for_approval
from agentexec_otel.instrumentation._progress import Progress, progress_of
from agentexec_otel.instrumentation._tally import Tokens, Usage, tally_of


@dataclass(frozen=True, slots=True)
class Framework:
    """What differs from one agent framework to another.

    Attributes:
        stopped_error: Raised at a step to stop a run. The framework must pass it on unchanged.
        safe_text: Returns what may be stored of an exception if the run keeps its contents private.
        pending_approvals: Returns the calls of tools that wait for an approval, from the result of a run. Each has
            the ``tool``'s name and the ``call_id``.
        remember: Makes the state of an interrupted run name the activity, so that the resumed run continues it.
    """

    stopped_error: type[ActivityCanceledError]
    safe_text: Callable[[BaseException], str]
    pending_approvals: Callable[[Any], Sequence[Mapping[str, str | None]]]
    remember: Callable[[UUID, Any], None]


@dataclass(frozen=True, slots=True)
class Earlier:
    """What a run had done when it was interrupted, and what was decided since then.

    Attributes:
        turns: Turns that it had taken.
        usage: Tokens that it had spent in total. None if they belong to another activity.
        rejected: Calls of tools that a person has rejected, each by the tool's name and the call's id.
    """

    turns: int
    usage: Usage | None
    rejected: Sequence[tuple[str, str]]


class TrackedRun:
    """One run of agents in `block`.

    Create it before the run, use it as a context manager around the run, and call the methods for steps from the
    framework's hooks. The block is entered by the caller, and left here.

    Attributes:
        result: The result that the run has returned, set by the caller.
        on_left: Called at the end, with the exception that left the run.

    Args:
        earlier: If the run is resumed: what it had done before.
        is_joined: The block belongs to another owner, which decides whether the activity stays open.
        leaves_block: Leave the block at the end, unless it is joined.
        is_private: Store no text of an exception, only its type.
    """

    def __init__(
        self,
        framework: Framework,
        block: ActivityRun,
        *,
        earlier: Earlier | None = None,
        is_joined: bool = False,
        leaves_block: bool = True,
        is_private: bool = False,
    ) -> None:
        self.block = block
        self.progress: Progress | None = None
        self.result: object = None
        self.is_over = False
        self._framework = framework
        self._is_joined = is_joined
        self._leaves_block = leaves_block and not is_joined
        self._is_private = is_private
        self.on_left: Callable[[BaseException | None], None] | None = None
        self._outer: TrackedRun | None = None
        self._tally = tally_of(block)
        self._held: dict[int, Usage] = {}
        self._is_stopped = False
        self._is_refused = False
        self._turn = 0 if earlier is None else earlier.turns
        self._rejected = () if earlier is None else earlier.rejected
        self._tools_running = 0
        self._tools_idle = asyncio.Event()
        if earlier is not None and earlier.usage is not None:
            with guarded("recording the usage of a run"):
                self._count_elsewhere(Tokens.of(earlier.usage))

    def _count_elsewhere(self, spent: Tokens) -> None:
        """Count the tokens that were not counted in this process, in the current attempt."""
        view = known(self.block.agent_id)
        usage = None if view is None or view.is_over else view.usage_total()
        counted_here = Tokens() if usage is None else Tokens(*(count or 0 for count in usage))
        self._tally.add(Tokens(*(max(0, count) for count in spent.plus(counted_here, -1))))

    def show_progress(self) -> None:
        """Add logs about the steps."""
        if self.progress is None:
            self.progress = progress_of(self.block)
            self.progress.is_hooked = True

    def __enter__(self) -> None:
        """The run begins."""
        self._outer = _current.get()
        _current.set(self)
        expect_usage(self.block)
        continue_if_waiting(self.block)

    # -- steps ----------------------------------------------------------------------------------------------

    def before_model_call(self, agent: str, usage: Usage, model: str | None) -> None:
        """Count `usage` from now on. Raises the framework's `stopped_error` if the activity was canceled.

        Args:
            model: The name of the model, if it is known.
        """
        self._tally.model = model or self._tally.model
        if id(usage) not in self._held:
            self._held[id(usage)] = usage
            self._tally.hold(usage)
        self._tools_running = 0  # The tools of the previous turn are done.
        self._stop_if_canceled()
        self._turn += 1
        if self.progress is not None:
            for rejected in self._rejected:
                self.progress.tool_not_approved(*rejected)
            self._rejected = ()
            self.progress.turn(self._turn, agent)

    async def before_tool(self, name: str) -> None:
        """Raises the framework's `stopped_error` if the activity was canceled, after running tools have finished."""
        if self._tools_running and self.block.canceled:
            await self._tools_idle.wait()  # To raise now would interrupt them.
        self._stop_if_canceled()
        self._tools_running += 1
        self._tools_idle.clear()
        if self.progress is not None:
            self.progress.tool(name)

    def after_tool(self) -> None:
        """A tool has returned. The caller reports whether it succeeded, which only the framework knows."""
        self._tools_running = max(0, self._tools_running - 1)
        if not self._tools_running:
            self._tools_idle.set()

    def on_handoff(self, from_agent: str, to_agent: str) -> None:
        """One agent hands the conversation over to another."""
        if self.progress is not None:
            self.progress.handoff(from_agent, to_agent)

    def before_answer(self) -> None:
        """Raises the framework's `stopped_error` if the answer is only what a stopped tool has returned."""
        if self._is_stopped:
            raise self._framework.stopped_error(self.block.agent_id)

    def refuse(self) -> None:
        """Stop before the first step: the activity was canceled while it waited. Its block is not entered."""
        self._is_stopped = self._is_refused = True

    def _stop_if_canceled(self) -> None:
        if self._is_stopped or self.block.canceled:
            raise self._framework.stopped_error(self.block.agent_id)

    # -- the end --------------------------------------------------------------------------------------------

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """The run has raised `exc`, or returned `result`. Never raises."""
        self._close(exc)
        if self._leaves_block:
            with guarded("ending an activity"):
                self.block.__exit__(exc_type, exc, None)
        if self.on_left is not None:
            with guarded("ending the activity of a trace"):
                self.on_left(exc if self._caller() is None else None)  # The calling run may recover from it.

    def _close(self, exc: BaseException | None) -> None:
        _current.set(self._outer)
        self.is_over = True
        with guarded("recording the usage of a run"):
            self._record_usage()
        if exc is None:
            with guarded("reporting what a run waits for"):
                self._report_approvals()
            return
        if isinstance(exc, self._framework.stopped_error) and (caller := self._caller()) is not None:
            caller._is_stopped = True
        if self._is_private:
            replace_text(exc, self._framework.safe_text(exc))

    def _caller(self) -> TrackedRun | None:
        """The run of the same activity that has called this one as a tool."""
        outer = self._outer
        return outer if outer is not None and outer.block.agent_id == self.block.agent_id else None

    def _record_usage(self) -> None:
        if not self._is_refused:
            self._tally.record(self.block)
        for usage in self._held.values():
            self._tally.release(usage)
        self._held.clear()

    def _report_approvals(self) -> None:
        """If the run waits for approvals, so does its activity, until it is resumed."""
        calls = () if self.result is None else self._framework.pending_approvals(self.result)
        if not calls:
            return
        if self._is_joined and self._outer is not None:
            self._outer.after_tool()  # No hook reports the end of an agent that is a tool and waits.
        if self._caller() is not None:
            return  # The calling run stops for the same approval.
        wait_for_approval(self.block, calls)
        if not self.block.canceled:
            with guarded("remembering the activity of a run that waits"):
                self._framework.remember(self.block.agent_id, self.result)


_current: Final[ContextVar[TrackedRun | None]] = ContextVar("agentexec_otel.tracked_run", default=None)


def is_tracked() -> bool:
    """Whether this code is part of a tracked run that is not over. A context may outlive the run it was copied in."""
    run = _current.get()
    return run is not None and not run.is_over
