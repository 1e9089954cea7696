"""Tasks that are only watched: their engine decides what runs, and the activity follows.

For engines whose hooks are plain functions. Nothing here raises on account of the database, or waits for it longer than
two seconds; where it is known to be away, not at all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final
from uuid import UUID

from agentexec_otel._config import CONF
from agentexec_otel._errors import ExportError
from agentexec_otel._model.event import ActivityEvent, Outcome, Status
from agentexec_otel._runtime import process as _runtime
from agentexec_otel._runtime.live import LiveActivity
from agentexec_otel._runtime.process import Runtime
from agentexec_otel.activity._lifecycle import create_later, submit_end
from agentexec_otel.export import ExportResult, StoredActivity
from agentexec_otel.tasks._run import PATIENCE, TaskRun, claim, join


class Bystander(TaskRun):
    """The run of a task whose activity has ended: what it says is kept as late, and ends nothing.

    Attributes:
        refused: The activity was canceled before this start.
    """

    def __init__(self, runtime: Runtime, live: LiveActivity) -> None:
        super().__init__(runtime, live)
        self._owner = False
        self.refused: Final = live.status is Status.CANCELED

    def end(self, exc: BaseException | None) -> Future[ExportResult] | None:
        """Let go of the activity."""
        live, runtime = self._entered()
        live.owner = None
        runtime.spans.forget(live.agent_id)
        return None

    def end_attempt(self, exc: BaseException | None) -> None:
        """Let go of the activity."""
        self.end(exc)


def create(task_name: str, agent_id: UUID, metadata: Mapping[str, Any] | None = None) -> None:
    """Create a task's activity, committed where the database answers in time, else delivered later."""
    created = create_later(task_name, agent_id=agent_id, metadata=metadata)
    with suppress(TimeoutError):
        created.result(_patience(_runtime.active()))


def start(agent_id: UUID, attempt: int, *, redelivered: bool = False) -> TaskRun | None:
    """Start an attempt of an activity: as the only one where that can be known in time.

    Who comes second, since the engine has delivered a task twice, runs it, too; the first to end decides. A redelivery
    of what still seems to run is the next attempt, and so is the start of one that has failed. One that was canceled
    or is complete stays so: see `Bystander`.

    Args:
        redelivered: The engine has given up an earlier delivery.

    Returns:
        None where this process runs the activity already.
    """
    runtime = _runtime.active()
    if _runtime.on_event_loop():
        return join(runtime, agent_id)
    loop = asyncio.new_event_loop()  # of our own: the thread's current one stays as it is
    try:
        return loop.run_until_complete(_start(runtime, agent_id, attempt, redelivered))
    finally:
        loop.close()


def announce(agent_id: UUID, attempt: int) -> None:
    """Open the next attempt of an activity whose run was lost, QUEUED."""
    runtime = _runtime.active()
    runtime.primary.offer(_queued(runtime, agent_id)._replace(attempt=attempt, claims=True))


def end(agent_id: UUID, status: Status, message: str, outcome: Outcome) -> None:
    """End an activity that runs in another process, or nowhere, without waiting."""
    runtime = _runtime.active()
    known = runtime.spans.known(agent_id)
    if known is None or known.owner is None:
        runtime.spans.forget(agent_id)  # What this process knows of it may be of an attempt that is over.
    submit_end(runtime, runtime.spans.unresolved(agent_id), status, message, None, outcome)


async def _start(runtime: Runtime, agent_id: UUID, attempt: int, redelivered: bool) -> TaskRun | None:
    patience = _patience(runtime)
    deadline = time.monotonic() + patience
    run = await claim(agent_id, attempt, patience)
    if run is not None:
        return run
    stored = await _read(runtime, agent_id, deadline)
    if stored is None:
        return join(runtime, agent_id)
    if stored.status in (Status.CANCELED, Status.COMPLETE):
        return Bystander(runtime, runtime.spans.adopt(stored))
    if stored.status is Status.ERROR or (redelivered and stored.status is Status.RUNNING):
        await _reopen(runtime, stored, deadline)
        run = await claim(agent_id, stored.attempt + 1, max(0.0, deadline - time.monotonic()))
    return join(runtime, agent_id) if run is None else run


async def _read(runtime: Runtime, agent_id: UUID, deadline: float) -> StoredActivity | None:
    if runtime.lookups is None:
        return None
    with suppress(TimeoutError, ExportError):
        reading = asyncio.wrap_future(runtime.lookups.soon(agent_id))
        return await asyncio.wait_for(reading, max(0.0, deadline - time.monotonic()))
    return None


async def _reopen(runtime: Runtime, stored: StoredActivity, deadline: float) -> None:
    queued = _queued(runtime, stored.agent_id)
    if stored.status.terminal:
        queued = queued._replace(reopens=True)
    else:
        queued = queued._replace(attempt=stored.attempt + 1, claims=True)
    answer = runtime.primary.submit(queued)
    runtime.emit_to_others(queued)
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.wrap_future(answer), max(0.0, deadline - time.monotonic()))


def _queued(runtime: Runtime, agent_id: UUID) -> ActivityEvent:
    return runtime.event(agent_id, Status.QUEUED, CONF.activity_message_create)


def _patience(runtime: Runtime) -> float:
    return PATIENCE if runtime.primary.last_error is None else 0.0
