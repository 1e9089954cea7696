"""`Task`, which `enqueue` returns: wait for its result, or run it in place."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from taskiq import AsyncBroker, TaskiqResult

from agentexec_otel._config import CONF
from agentexec_otel._errors import (
    ActivityCanceledError,
    ActivityNotFoundError,
    ConfigurationError,
    TaskFailedError,
    TaskResultError,
)
from agentexec_otel._model.event import Outcome, Status
from agentexec_otel.export import StoredActivity
from agentexec_otel.tasks import _activities, _sdk
from agentexec_otel.tasks._activities import RefusedMessageError, TaskRun
from agentexec_otel.tasks._definition import Definition
from agentexec_otel.tasks.taskiq.brokers import keep_result

_FAST: Final = 0.025
_FRESH: Final = 2.0
_SLOW: Final = 0.2
"""Seconds between two polls of an activity's status: `_FAST` for the first `_FRESH` seconds, then `_SLOW`."""
_READ_SECONDS: Final = 5.0
_SHORTEST_WAIT: Final = 0.05
_GRACE: Final = 5.0
"""Seconds for which a result may arrive after its activity has ended."""


@dataclass(frozen=True, slots=True)
class Task:
    """A task that was enqueued.

    Attributes:
        agent_id: The id of its activity.
        name: The name under which it is registered.
        context: Its context, validated.
        attempt: The attempt that it was sent for.
    """

    agent_id: UUID
    name: str
    context: Any
    _definition: Definition = field(repr=False)
    _broker: AsyncBroker = field(repr=False)
    attempt: int = 1

    @property
    def task_name(self) -> str:
        """The same as `name`, as agentexec calls it."""
        return self.name

    async def result(self, timeout: float | None = None) -> Any:
        """Wait until the activity has ended, and return the task's result as an instance of its return type.

        Args:
            timeout: Seconds, even if the database or the broker does not answer. None waits without a limit.

        Raises:
            TimeoutError: The task has not ended in time.
            TaskFailedError: The task has ended as ERROR.
            ActivityCanceledError: The task was canceled.
            TaskResultError: The broker keeps no results, or has dropped this one.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        ended = await self._ended(deadline)
        if ended.status is Status.CANCELED:
            raise ActivityCanceledError(self.agent_id)
        if ended.status is Status.ERROR:
            why, error = ended.outcome or Outcome(), await self._failure(deadline)
            raise TaskFailedError(self.name, self.agent_id, why.error_type, why.reason, error, ended.attempt)
        return self._definition.unpack_result(await self._kept(deadline))

    async def execute(self) -> Any:
        """Run the task here and now, and return its result. If a worker has started it, wait for that worker.

        Like a worker, this waits for the database before the task starts. Exceptions of the task are passed on.

        Raises:
            ActivityCanceledError: The task was canceled.
            TaskFailedError, TaskResultError: If a worker runs it: see `result`.
        """
        try:
            run = await _activities.claim(self.agent_id, self.attempt)
        except RefusedMessageError:
            raise ActivityNotFoundError(self.agent_id) from None
        if run is None:
            return await self.result()
        try:
            value = await run.call(self._definition.call(self.agent_id, self.context))
            packed = self._definition.pack_result(value, CONF.result_limit)
        except BaseException as exc:
            await _end(run, exc)
            if run.canceled and not isinstance(exc, KeyboardInterrupt | SystemExit):
                raise ActivityCanceledError(self.agent_id) from exc
            raise
        await _end(run, await self._keep(packed))
        return value

    async def _keep(self, packed: Any) -> TaskResultError | None:
        """Keep a result for others that wait for it. Returns the error if that is not possible."""
        result: TaskiqResult[Any] = TaskiqResult(is_err=False, return_value=packed, execution_time=0.0)
        try:
            await keep_result(self._broker.result_backend.set_result, str(self.agent_id), result)
        except TaskResultError as exc:
            return exc
        return None

    async def _kept(self, deadline: float | None) -> Any:
        if _sdk.keeps_no_results(self._broker):
            raise TaskResultError(
                f"the result of {self.name!r} is not kept, since its broker keeps none: give the pool a place for"
                " results, such as ax.Pool(results='redis://…')"
            )
        left = _GRACE if deadline is None else max(_SHORTEST_WAIT, deadline - time.monotonic())
        with suppress(TimeoutError):
            async with asyncio.timeout(min(left, _GRACE)):
                return await self._first_result()
        if left < _GRACE:
            raise TimeoutError(f"the result of the task {self.name!r} ({self.agent_id}) has not arrived in time")
        raise TaskResultError(
            f"the task {self.name!r} is complete, but its result is not there: the broker was away, or has dropped it"
            f" (AGENTEXEC_RESULT_SECONDS={CONF.result_seconds})"
        )

    async def _first_result(self) -> Any:
        backend = self._broker.result_backend
        while True:
            with suppress(Exception):  # Each backend has its own exceptions for a result that is not there.
                if await backend.is_result_ready(str(self.agent_id)):
                    kept: TaskiqResult[Any] = await backend.get_result(str(self.agent_id))
                    if not kept.is_err:  # An error is the result of an earlier attempt.
                        return kept.return_value
            await asyncio.sleep(_FAST)

    async def _ended(self, deadline: float | None) -> StoredActivity:
        began = time.monotonic()
        while True:
            found = await self._row(_READ_SECONDS if deadline is None else deadline - time.monotonic())
            if found is not None and found.status.terminal:
                return found
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                raise TimeoutError(f"the task {self.name!r} ({self.agent_id}) has not ended in time")
            # All waiters poll at the same moments, and so share one query.
            pace = _FAST if now - began < _FRESH else _SLOW
            wait = pace - now % pace
            await asyncio.sleep(wait if deadline is None else min(wait, deadline - now))

    async def _failure(self, deadline: float | None) -> str:
        """The message with which the activity has failed; empty if the database does not answer any more."""
        found = await self._row(_READ_SECONDS if deadline is None else deadline - time.monotonic(), history=True)
        return (found.failure if found is not None else None) or ""

    async def _row(self, seconds: float, *, history: bool = False) -> StoredActivity | None:
        """The activity's row; None if the database does not answer in time, or reports an error."""
        runtime = _activities.active()
        if not runtime.has_store:
            raise ConfigurationError("this call needs a database: call ax.configure(engine_or_url)")
        try:
            found = await runtime.read_async(self.agent_id, max(_SHORTEST_WAIT, seconds), history=history)
        except TimeoutError:
            if runtime.is_closed:
                raise
            return None
        if found is None:
            raise ActivityNotFoundError(self.agent_id)
        return found


async def _end(run: TaskRun, exc: BaseException | None) -> None:
    """End the activity, and wait for the commit: ``AGENTEXEC_TERMINAL_TIMEOUT`` at most."""
    future = run.end(exc)
    if future is not None:
        await _activities.stored_within(CONF.terminal_timeout, future)
