"""One run of agents, reported to the activity of a block: its steps, its tokens, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from agentexec_otel._errors import ActivityCanceledError, guarded
from agentexec_otel._model.outcome import replace_text
from agentexec_otel.activity import ActivityRun
from agentexec_otel.instrumentation import _activities as activities
from agentexec_otel.instrumentation._progress import Progress, progress_of
from agentexec_otel.instrumentation._tally import Tokens, Usage, tally_of


@dataclass(frozen=True, slots=True)
class Framework:
    """What differs from one agent framework to another.

    Attributes:
        stopped_error: Raised at a step to stop a run. The framework must pass it on unchanged.
        safe_text: Returns what may be stored of an exception if the run keeps its contents private.
        count_approvals: Returns how many tool calls wait for an approval, from the result of a run.
        remember: Makes the state of an interrupted run name the activity, so that the resumed run continues it.
    """

    stopped_error: type[ActivityCanceledError]
    safe_text: Callable[[BaseException], str]
    count_approvals: Callable[[Any], int]
    remember: Callable[[UUID, Any], None]


class TrackedRun:
    """One run of agents in `block`.

    Create it before the run. Call `start` and `close` (or `leave`) in the context of the run, and the methods for
    steps from the framework's hooks.

    Args:
        earlier: Tokens that the run had spent in total when it was interrupted.
        is_joined: Another owner leaves the block.
        is_private: Store no text of an exception, only its type.
    """

    def __init__(
        self,
        framework: Framework,
        block: ActivityRun,
        *,
        earlier: Usage | None = None,
        is_joined: bool = False,
        is_private: bool = False,
    ) -> None:
        self.block = block
        self.progress: Progress | None = None
        self.is_over = False
        self._framework = framework
        self._is_joined = is_joined
        self._is_private = is_private
        self._on_left: Callable[[BaseException | None], None] | None = None
        self._outer: TrackedRun | None = None
        self._tally = tally_of(block)
        self._held: dict[int, Usage] = {}
        self._is_stopped = False
        self._is_refused = False
        self._turn = 0
        self._tools_running = 0
        self._tools_idle = asyncio.Event()
        if earlier is not None:
            with guarded("recording the usage of a run"):
                counted_here = Tokens(*activities.tokens_counted(block.agent_id))
                spent_elsewhere = Tokens.of(earlier).minus(counted_here)
                self._tally.add(Tokens(*(max(0, count) for count in spent_elsewhere)))

    def show_progress(self) -> None:
        """Write lines about the steps."""
        if self.progress is None:
            self.progress = progress_of(self.block)
            self.progress.is_hooked = True

    def start(self, on_left: Callable[[BaseException | None], None] | None = None) -> None:
        """The run begins; the block is entered.

        Args:
            on_left: Called by `leave` with the exception that left the run.
        """
        self._on_left = on_left
        self._outer = _current.get()
        _current.set(self)
        activities.expect_usage(self.block)

    # -- steps ----------------------------------------------------------------------------------------------

    def before_model_call(self, agent: str, usage: Usage) -> None:
        """Count `usage` from now on. Raises the framework's `stopped_error` if the activity was canceled."""
        if id(usage) not in self._held:
            self._held[id(usage)] = usage
            self._tally.hold(usage)
        self._tools_running = 0  # The tools of the previous turn are done.
        self._stop_if_canceled()
        self._turn += 1
        if self.progress is not None:
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

    def after_tool(self, name: str) -> None:
        """A tool has returned."""
        self._release_tool()
        if self.progress is not None:
            self.progress.tool_done(name)

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

    def _release_tool(self) -> None:
        self._tools_running = max(0, self._tools_running - 1)
        if not self._tools_running:
            self._tools_idle.set()

    # -- the end --------------------------------------------------------------------------------------------

    def close(self, exc: BaseException | None, result: object = None) -> None:
        """The run has raised `exc`, or returned `result`. Leaves the block open. Never raises."""
        _current.set(self._outer)
        self.is_over = True
        with guarded("recording the usage of a run"):
            self._record_usage()
        if exc is None:
            with guarded("reporting what a run waits for"):
                self._report_approvals(result)
            return
        if isinstance(exc, self._framework.stopped_error) and (caller := self._caller()) is not None:
            caller._is_stopped = True
        if self._is_private:
            replace_text(exc, self._framework.safe_text(exc))

    def leave(self, exc: BaseException | None, result: object = None) -> None:
        """Like `close`, and leave the block unless another owner does. Never raises."""
        self.close(exc, result)
        if not self._is_joined:
            with guarded("ending an activity"):
                self.block.__exit__(None if exc is None else type(exc), exc, None)
        if self._on_left is not None:
            with guarded("ending the activity of a trace"):
                self._on_left(exc if self._caller() is None else None)  # The calling run may recover from it.

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

    def _report_approvals(self, result: object) -> None:
        """If the run waits for approvals, it has not ended: leave its activity open until it is resumed."""
        count = 0 if result is None else self._framework.count_approvals(result)
        if not count:
            return
        if not self._is_joined and not activities.is_over(self.block):
            activities.expect_usage(self.block, False)
            self.block.leave_open()
            if self.block.owner:
                with guarded("remembering the activity of a run that waits"):
                    self._framework.remember(self.block.agent_id, result)
        if self._is_joined and self._outer is not None:
            self._outer._release_tool()  # No hook reports the end of an agent that is a tool and waits.
        activities.add_line(self.block, f"Stopped for the approval of {count} tool call{'s' if count > 1 else ''}.")


_current: Final[ContextVar[TrackedRun | None]] = ContextVar("agentexec_otel.tracked_run", default=None)


def is_tracked() -> bool:
    """Whether this code is part of a tracked run that is not over. A context may outlive the run it was copied in."""
    run = _current.get()
    return run is not None and not run.is_over
