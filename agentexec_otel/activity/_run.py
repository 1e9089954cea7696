"""`run()`: the block that owns an activity from its start to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar, Token
from functools import partial
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from opentelemetry import context, trace

from agentexec_otel._config import CONF
from agentexec_otel._model.event import Outcome, Status
from agentexec_otel._model.ids import parse_agent_id
from agentexec_otel._model.outcome import outcome_of
from agentexec_otel._model.text import describe
from agentexec_otel._runtime import process as _runtime
from agentexec_otel._runtime.live import LiveActivity
from agentexec_otel._runtime.process import Runtime
from agentexec_otel.activity import _lifecycle
from agentexec_otel.export import ExportResult

_current: ContextVar[ActivityRun | None] = ContextVar("agentexec_otel.current_activity", default=None)


def run(
    task_name_or_agent_id: str | UUID,
    message: str | None = None,
    *,
    agent_id: UUID | str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> ActivityRun:
    """Run an activity as a ``with`` or ``async with`` block: RUNNING at its start, and at its end what happened.

    Leaving normally is COMPLETE, an exception ERROR with its type and a reason, a cancellation (``CancelledError``,
    ``KeyboardInterrupt``) CANCELED; the exception goes on. Inside, the activity's span is the current OpenTelemetry
    span and `current()` returns the block. A block inside another one of the same activity reports, and leaves the end
    to the outer one.

    Args:
        task_name_or_agent_id: A task name creates an activity; an ``agent_id`` runs one that exists.
        message: The first RUNNING line. Default: ``AGENTEXEC_ACTIVITY_MESSAGE_STARTED``.
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
        return ActivityRun(None, existing, agent_id, message, metadata)
    if not isinstance(task_name_or_agent_id, str):  # such as the None of an id that was never set
        raise ValueError(f"run() is given {describe(task_name_or_agent_id)}: give it a task name or an agent_id")
    return ActivityRun(task_name_or_agent_id, existing, agent_id, message, metadata)


def current() -> ActivityRun | None:
    """The activity whose block encloses this code, across ``await`` and ``asyncio.to_thread``; None outside of any."""
    return _current.get()


class ActivityRun:
    """A running activity, as `run()` gives it. Re-entrant use is an error: call `run()` again instead.

    With ``waits=False`` entering a new one does not wait for its row, and leaving does not wait for its end. Where that
    row ``may_exist`` already, nothing is amiss: the activity is gone on with.
    """

    def __init__(
        self,
        task_name: str | None,
        existing: UUID | None,
        agent_id: UUID | str | None,
        message: str | None,
        metadata: Mapping[str, Any] | None,
        *,
        waits: bool = True,
        may_exist: bool = False,
    ) -> None:
        self._waits = waits
        self._may_exist = may_exist
        self._task_name = task_name
        self._id = existing
        self._wanted_id = agent_id
        self._message = message
        self._metadata = metadata
        self._live: LiveActivity | None = None
        self._runtime: Runtime | None = None
        self._owner = False
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
        """Whether somebody else has canceled the activity meanwhile: known by the next line that is stored."""
        live = self._live
        return live is not None and (live.canceled or live.status is Status.CANCELED)

    @property
    def ours(self) -> LiveActivity | None:
        """What this process knows of the attempt that runs here; None until its row has been read."""
        return self._live if self._live is not None and self._live.attempt is not None else None

    def update(self, message: str, percentage: float | None = None) -> bool:
        """Add a line; see `ax.activity.update`. It belongs to the attempt that the block runs, until that is left."""
        live = self.ours or _runtime.active().find(self.agent_id, waits=False)
        return _lifecycle.report(live, message, percentage)

    def record_usage(
        self, input_tokens: int | None = None, output_tokens: int | None = None, requests: int | None = None
    ) -> None:
        """This block's totals so far of tokens and model requests; stored with the activity's end, also when it fails.

        Blocks within one another add up. What is no count is ignored.
        """
        self._entered()[0].usage[self] = (_count(input_tokens), _count(output_tokens), _count(requests))

    def leave_open(self) -> None:
        """Do not end the activity when the block is left without an exception: the work goes on elsewhere, or later."""
        self._left_open = True

    # -- entering -------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._find()
        self._start()
        return self

    async def __aenter__(self) -> Self:
        if not _runtime.is_configured():
            await asyncio.to_thread(_runtime.active)  # Setting up may wait for the database.
        await self._find_async()
        self._start()
        return self

    async def _find_async(self) -> None:
        self._refuse_a_second_time()
        if self._id is None and self._waits:
            self._id = await _lifecycle.create_async(
                self._task_name or "", agent_id=self._wanted_id, metadata=self._metadata
            )
        if self._id is None:
            self._find()
            return
        self._runtime = _runtime.active()
        self._live = await self._runtime.find_async(self._id)

    def _refuse_a_second_time(self) -> None:
        if self._live is not None:
            raise RuntimeError("this block was entered before: call ax.activity.run() for each run")

    def _find(self) -> None:
        self._refuse_a_second_time()
        if self._id is None:
            create = _lifecycle.create if self._waits else partial(_lifecycle.create_soon, may_exist=self._may_exist)
            self._id = create(self._task_name or "", agent_id=self._wanted_id, metadata=self._metadata)
        self._runtime = _runtime.active()
        self._live = self._runtime.find(self._id)

    def _start(self) -> None:
        live, runtime = self._entered()
        if live.owner is None:
            live.owner = self
            self._owner = True
        if self._owner or self._message is not None:
            text = CONF.activity_message_started if self._message is None else self._message
            event = runtime.event(live.agent_id, Status.RUNNING, text, live=live)
            runtime.emit(runtime.spans.observe(live, event))
        self._attach(live)

    def _attach(self, live: LiveActivity) -> None:
        token = context.attach(trace.set_span_in_context(live.span)) if live.span is not None else None
        self._tokens = (_current.set(self), token)

    # -- leaving --------------------------------------------------------------------------------------------

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        future = self._leave(exc)
        if future is not None and self._waits and not _runtime.on_event_loop():
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
        live, _ = self._entered()
        runtime = _runtime.active()
        if not self._owner:
            return None
        self._owner = False
        live.owner = None
        if live.ending is not None and not self.canceled and not (live.usage or live.counts):
            return None  # Ended inside the block by complete() or error(); there are no tokens to add.
        if self._left_open and exc is None and live.ending is None:
            return None
        return self._end(live, runtime, exc)

    def _end(self, live: LiveActivity, runtime: Runtime, exc: BaseException | None) -> Future[ExportResult]:
        status, outcome = self._outcome(live, exc)
        live.counts = outcome is not None and outcome.requests is not None  # A run may be at work still, uncounted.
        messages = {
            Status.COMPLETE: CONF.activity_message_complete,
            Status.CANCELED: CONF.activity_message_cancel,
            Status.ERROR: _lifecycle.error_message(exc),
        }
        percentage = 100 if status is Status.COMPLETE else None
        return _lifecycle.submit_end(runtime, live, status, messages[status], percentage, outcome)

    @staticmethod
    def _outcome(live: LiveActivity, exc: BaseException | None) -> tuple[Status, Outcome | None]:
        status, outcome = outcome_of(exc)
        usage = [_sum(counts) for counts in zip(*live.usage.values(), strict=True)]
        if usage:
            why = outcome or Outcome()
            outcome = Outcome(why.error_type, why.reason, *usage)
        return status, outcome

    def detach(self) -> None:
        """Be current no longer, in the context that entered the block; leaving it may come later, and elsewhere."""
        tokens, self._tokens = self._tokens, None
        if tokens is None:
            return
        # A generator may be closed in another context than it was started in; there is nothing to undo there.
        with suppress(ValueError):
            _current.reset(tokens[0])
            if tokens[1] is not None:
                context.detach(tokens[1])

    def _entered(self) -> tuple[LiveActivity, Runtime]:
        if self._live is None or self._runtime is None:
            raise RuntimeError("use ax.activity.run() in a with block")
        return self._live, self._runtime


def _sum(counts: Iterable[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 else None


def _as_agent_id(value: str | UUID) -> UUID | None:
    try:
        return parse_agent_id(value)
    except ValueError:
        return None
