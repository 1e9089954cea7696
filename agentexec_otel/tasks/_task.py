"""What `enqueue` returns: a task on its way, and how to wait for it."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from taskiq import AsyncBroker, TaskiqResult
from taskiq.result_backends.dummy import DummyResultBackend

from agentexec_otel._config import CONF
from agentexec_otel._errors import (
    ActivityCanceledError,
    ActivityNotFoundError,
    ExportError,
    TaskFailedError,
    TaskResultError,
)
from agentexec_otel._model.event import Outcome, Status
from agentexec_otel._runtime import process as _runtime
from agentexec_otel.export import Ack
from agentexec_otel.tasks._definition import Definition
from agentexec_otel.tasks._run import TaskRun, claim, stored_within

_FAST: Final = 0.025
_FRESH: Final = 2.0
_SLOW: Final = 0.2
"""Seconds between two looks at an activity's status: `_FAST` for the first `_FRESH` seconds, then `_SLOW`."""
_GRACE: Final = 5.0
"""Seconds that a result may come behind the end of its activity."""


@dataclass(frozen=True, slots=True)
class Task:
    """A task that was enqueued.

    Attributes:
        agent_id: Its activity's id.
        name: The name it is registered under.
        context: What it was given, validated.
    """

    agent_id: UUID
    name: str
    context: Any
    _definition: Definition = field(repr=False)
    _broker: AsyncBroker = field(repr=False)

    async def result(self, timeout: float | None = None) -> Any:
        """Wait until the activity has ended; what the task has returned, as its return type says.

        Args:
            timeout: Seconds; None waits for as long as it takes.

        Raises:
            TimeoutError: it has not ended in time.
            TaskFailedError: it has ended as ERROR.
            ActivityCanceledError: it was canceled.
            TaskResultError: the broker keeps no results, or this one not any longer.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        ended = await self._ended(deadline)
        if ended.status is Status.CANCELED:
            raise ActivityCanceledError(self.agent_id)
        if ended.status is Status.ERROR:
            why = ended.outcome or Outcome()
            raise TaskFailedError(self.name, self.agent_id, why.error_type, why.reason)
        return self._definition.unpack_result(await self._kept())

    async def execute(self) -> Any:
        """Run the task here and now, and return its result. Where a worker has started it already, wait for that one.

        Raises:
            ActivityCanceledError: it was canceled.
            TaskFailedError, TaskResultError: as `result`, where somebody else runs it. What the task itself raises is
                passed on.
        """
        run = await claim(self.agent_id, 1)
        if run is None:
            return await self.result()
        try:
            value, packed = await self._run_here(run)
        except BaseException as exc:
            await _settled(run, exc)
            if run.canceled and not isinstance(exc, KeyboardInterrupt | SystemExit):
                raise ActivityCanceledError(self.agent_id) from exc
            raise
        with suppress(Exception):
            await self._keep(packed)
        await _settled(run, None)
        return value

    async def _run_here(self, run: TaskRun) -> tuple[Any, Any]:
        with run:
            work = asyncio.create_task(self._definition.call(self.agent_id, self.context))
            run.when_canceled(work)
            value = await work
        return value, self._definition.pack_result(value, CONF.result_limit)

    async def _keep(self, packed: Any) -> None:
        kept: TaskiqResult[Any] = TaskiqResult(is_err=False, return_value=packed, execution_time=0.0)
        await self._broker.result_backend.set_result(str(self.agent_id), kept)

    async def _kept(self) -> Any:
        backend = self._broker.result_backend
        if isinstance(backend, DummyResultBackend):
            raise TaskResultError(
                f"the result of {self.name!r} is not kept, since its broker keeps none: give the pool a place for"
                " results, such as ax.Pool(results='redis://…')"
            )
        given_up = time.monotonic() + _GRACE
        while True:
            with suppress(Exception):  # each backend has its own exceptions for what is not there
                if await backend.is_result_ready(str(self.agent_id)):
                    kept: TaskiqResult[Any] = await backend.get_result(str(self.agent_id))
                    if not kept.is_err:  # else it is that of an attempt before
                        return kept.return_value
            if time.monotonic() >= given_up:
                break
            await asyncio.sleep(_FAST)
        raise TaskResultError(
            f"the task {self.name!r} is complete, but its result is not there: the broker was away, or has dropped it"
            f" (AGENTEXEC_RESULT_SECONDS={CONF.result_seconds})"
        )

    async def _ended(self, deadline: float | None) -> Ack:
        runtime = _runtime.active()
        began = time.monotonic()
        while True:
            found = None
            with suppress(ExportError):
                found = await asyncio.wrap_future(runtime.needed_standings.soon(self.agent_id))
                if found is None:
                    raise ActivityNotFoundError(self.agent_id)
            if found is not None and found.status.terminal:
                return found
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                raise TimeoutError(f"the task {self.name!r} ({self.agent_id}) has not ended in time")
            # All who wait look at the same moments, and so in one query.
            pace = _FAST if now - began < _FRESH else _SLOW
            wait = pace - now % pace
            await asyncio.sleep(wait if deadline is None else min(wait, deadline - now))


async def _settled(run: TaskRun, exc: BaseException | None) -> None:
    """End the activity, and wait a bounded time for its commit."""
    future = run.end(exc)
    if future is not None:
        await stored_within(CONF.terminal_timeout, future)
