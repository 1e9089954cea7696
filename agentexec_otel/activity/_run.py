"""`run()`: the block that owns an activity from its start to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Token
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from opentelemetry import context, trace

from agentexec_otel._config import CONF
from agentexec_otel._model.event import ActivityEvent, Outcome, Status
from agentexec_otel._model.ids import parse_agent_id
from agentexec_otel._model.outcome import outcome_of
from agentexec_otel._model.results import ExportResult
from agentexec_otel._model.text import NAME_LIMIT, clean_message, describe, plain_int, plain_str
from agentexec_otel._runtime import process
from agentexec_otel._runtime.event_loop import on_event_loop
from agentexec_otel._runtime.live import LiveActivity, Usage
from agentexec_otel.activity import _lifecycle
from agentexec_otel.activity._lifecycle import current_block


def run(
    task_name_or_agent_id: str | UUID,
    message: str | None = None,
    *,
    agent_id: UUID | str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> ActivityRun:
    """Run an activity as a ``with`` or ``async with`` block: RUNNING when it is entered, and ended as its code ends.

    Leaving normally is COMPLETE, an exception ERROR with its type and a reason, a cancellation (``CancelledError``,
    ``KeyboardInterrupt``) CANCELED; the exception propagates. Inside, the activity's span is the current OpenTelemetry
    span and `current()` returns the block. A block inside another block of the same activity adds logs and leaves the
    end to the outer one.

    Args:
        task_name_or_agent_id: A task name creates an activity; an ``agent_id`` runs an existing one, and joins its
            current attempt.
        message: The first RUNNING log. Default: ``AGENTEXEC_ACTIVITY_MESSAGE_STARTED``.
        agent_id: With a task name: the id of the new activity.
        metadata: With a task name: as for `create`.

    Raises:
        ValueError: neither a name nor an id.
        ValueError, ActivityNotFoundError, ActivityNotStoredError: on entering, as `create` and `update`.
    """
    existing = _as_agent_id(task_name_or_agent_id)
    if existing is not None and (agent_id is not None or metadata is not None):
        raise ValueError("agent_id and metadata belong to a new activity: give run() a task name with them")
    if existing is not None:
        return ActivityRun(agent_id=existing, message=message)
    task_name = plain_str(task_name_or_agent_id)
    if task_name is None:  # such as the None of an id that was never set
        raise ValueError(f"run() is given {describe(task_name_or_agent_id)}: give it a task name or an agent_id")
    return ActivityRun(task_name, agent_id=agent_id, message=message, metadata=metadata)


def current() -> ActivityRun | None:
    """The activity whose block encloses this code, across ``await`` and ``asyncio.to_thread``; None outside of any."""
    return current_block.get()


class ActivityRun:
    """A running activity, as `run()` gives it. Re-entrant use is an error: call `run()` again instead.

    Args:
        task_name: Creates an activity; None runs the one that `agent_id` names.
        waits: Entering waits for the row of a new activity, and leaving for the commit of its end.
        may_exist: There may be an activity with this `agent_id` already, which is then continued.
    """

    def __init__(
        self,
        task_name: str | None = None,
        *,
        agent_id: UUID | str | None = None,
        message: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        waits: bool = True,
        may_exist: bool = False,
    ) -> None:
        self._task_name = task_name
        self._wanted_id = agent_id
        self._id = None if task_name is not None or agent_id is None else parse_agent_id(agent_id)
        self._message = message
        self._metadata = metadata
        self._waits = waits
        self._may_exist = may_exist
        self._view: LiveActivity | None = None
        self._owner = False
        self._ended_before: ActivityEvent | None = None
        self._tokens: tuple[Token[ActivityRun | None], Token[context.Context] | None] | None = None
        self._left_open = False

    @property
    def agent_id(self) -> UUID:
        """The activity's id; known once the block is entered."""
        if self._id is None:
            raise RuntimeError("the activity is created when the block is entered: read agent_id inside of it")
        return self._id

    @property
    def owner(self) -> bool:
        """Whether this block ends the activity; False inside another block of the same activity."""
        return self._owner

    @property
    def canceled(self) -> bool:
        """Whether the attempt was canceled, or retried elsewhere, as far as this process has heard."""
        return self._view is not None and self._view.is_canceled

    @property
    def view(self) -> LiveActivity | None:
        """This process's view of the attempt that runs here; None until the block is entered."""
        return self._view

    def update(self, message: str, percentage: float | None = None) -> bool:
        """Add a log to the attempt that the block runs; see `ax.activity.update`."""
        return process.active().record(self._found(), Status.RUNNING, message, percentage, reported=True)

    def waiting(
        self, for_: str = "approval", items: Iterable[Mapping[str, Any]] = (), message: str | None = None
    ) -> bool:
        """Have the run wait, such as for a person: it stays RUNNING without a lease, so it never counts as lost.

        The next `update()`, or the next run of the activity in any process, ends the wait: the same attempt continues,
        with a lease. If the block is left without an exception while the run waits, the activity stays open.

        Args:
            for_: What it waits for, in a word.
            items: The details, at most 100: for each call of a tool a dict with ``tool`` and ``call_id``.
            message: The log. Default: a sentence of `for_` and the tools.

        Returns:
            As `update`.

        Raises:
            ValueError: a malformed argument, or items of more than 16 KiB.
        """
        return process.active().wait(self._found(), for_, items, message, reported=True)

    def _found(self) -> LiveActivity:
        return self._view if self._view is not None else process.active().find(self.agent_id)

    def record_usage(
        self,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        requests: int | None = None,
        cached_input_tokens: int | None = None,
        reasoning_tokens: int | None = None,
        model: str | None = None,
    ) -> None:
        """This block's totals so far of tokens and model requests; stored with the activity's end, also if it fails.

        Blocks within one another add up. What is no count is ignored. Cached tokens are part of the input tokens, and
        reasoning tokens part of the output tokens.

        Args:
            model: The model that was called last. None, or what is no string, leaves the one that was named before.
        """
        counts = (input_tokens, output_tokens, requests, cached_input_tokens, reasoning_tokens)
        name = plain_str(model)
        cleaned = None if not name else clean_message(name, NAME_LIMIT)
        self._entered().count_usage(self, Usage(*map(_count, counts)), cleaned)

    def leave_open(self) -> None:
        """Do not end the activity if the block is left without an exception: the work continues elsewhere, or later."""
        self._left_open = True

    # -- entering -------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._refuse_second_entry()
        if self._task_name is None:
            return self._start(process.active().find(self.agent_id, join=self._waits))
        if self._waits:
            self._id = _lifecycle.create(self._task_name, agent_id=self._wanted_id, metadata=self._metadata)
        return self._start(self._found_new(self._task_name))

    async def __aenter__(self) -> Self:
        self._refuse_second_entry()
        if not process.is_configured():
            await asyncio.to_thread(process.active)  # Setting up may wait for the database.
        if self._task_name is None:
            return self._start(await process.active().find_async(self.agent_id, join=self._waits))
        if self._waits:
            self._id = await _lifecycle.create_async(self._task_name, agent_id=self._wanted_id, metadata=self._metadata)
        return self._start(self._found_new(self._task_name))

    def _found_new(self, task_name: str) -> LiveActivity:
        """The view of the new activity. Creates it if nothing waits for its row."""
        if not self._waits:
            self._id, _ = _lifecycle.create_soon(
                task_name, agent_id=self._wanted_id, metadata=self._metadata, may_exist=self._may_exist
            )
        return process.active().find(self.agent_id)

    def _refuse_second_entry(self) -> None:
        if self._view is not None:
            raise RuntimeError("this block was entered before: call ax.activity.run() for each run")

    def _start(self, live: LiveActivity) -> Self:
        self._view = live
        self._owner = live.own(self)
        self._ended_before = live.ending
        if self._owner or self._message is not None:
            text = CONF.activity_message_started if self._message is None else self._message
            process.active().record(live, Status.RUNNING, text)
        self._attach(live)
        return self

    def _attach(self, live: LiveActivity) -> None:
        span = live.span
        token = context.attach(trace.set_span_in_context(span)) if span is not None else None
        self._tokens = (current_block.set(self), token)

    # -- leaving --------------------------------------------------------------------------------------------

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        future = self._leave(exc)
        if future is not None and self._waits and not on_event_loop():
            with suppress(TimeoutError):
                future.result(CONF.terminal_timeout)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        future = self._leave(exc)
        if future is not None and self._waits:
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.wrap_future(future), CONF.terminal_timeout)

    def _leave(self, exc: BaseException | None) -> Future[ExportResult] | None:
        self.detach()
        return self._finish(exc)

    def _finish(self, exc: BaseException | None) -> Future[ExportResult] | None:
        live = self._entered()
        if not self._owner:
            return None
        self._owner = False
        live.disown(self)
        status, outcome = self._outcome(live, exc)
        ended_inside = live.ending is not self._ended_before
        has_usage = live.usage_total() is not None or live.expects_usage
        repeats = live.status is status and status is not Status.ERROR  # An exception says more than its status.
        if not has_usage and (repeats or (ended_inside and not self.canceled)):
            return None  # Ended before by complete(), error() or cancel(); there are no tokens to add.
        if exc is None and not ended_inside and (self._left_open or live.is_waiting):
            live.expect_usage(False)
            return None
        message = self._message_of(status, exc) if not repeats else _usage_message(live.usage_total())
        # A run may be at work still, uncounted.
        live.expect_usage(outcome is not None and outcome.requests is not None)
        return process.active().end(live, status, message, 100 if status is Status.COMPLETE else None, outcome)

    @staticmethod
    def _message_of(status: Status, exc: BaseException | None) -> str:
        if status is Status.ERROR:
            return _lifecycle.error_message(exc)
        return CONF.activity_message_complete if status is Status.COMPLETE else CONF.activity_message_cancel

    @staticmethod
    def _outcome(live: LiveActivity, exc: BaseException | None) -> tuple[Status, Outcome | None]:
        status, outcome = outcome_of(exc)
        usage = live.usage_total()
        if usage is not None:
            why = outcome or Outcome()
            outcome = Outcome(why.error_type, why.reason, *usage, live.model)
        return status, outcome

    def detach(self) -> None:
        """Stop being the current activity of the context that entered the block; the block may be left later."""
        tokens, self._tokens = self._tokens, None
        if tokens is None:
            return
        # A generator may be closed in another context than it was started in; there is nothing to undo there.
        with suppress(ValueError):
            current_block.reset(tokens[0])
            if tokens[1] is not None:
                context.detach(tokens[1])

    def _entered(self) -> LiveActivity:
        if self._view is None:
            raise RuntimeError("use ax.activity.run() in a with block")
        return self._view


def _count(value: object) -> int | None:
    count = None if value is True or value is False else plain_int(value)
    return count if count is not None and 0 <= count < 1 << 63 else None


def _usage_message(usage: Usage | None) -> str:
    """The text of a log that is there for its usage: how the activity has ended was said before."""
    names = ("input tokens", "output tokens", "requests")
    counts = (f"{name} {count}" for name, count in zip(names, usage or (), strict=False) if count is not None)
    return f"Usage: {', '.join(counts) or 'unknown'}."


def _as_agent_id(value: str | UUID) -> UUID | None:
    try:
        return parse_agent_id(value)
    except ValueError:
        return None
