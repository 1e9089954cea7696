"""What instrumentation asks of the runtime. No other module of this package imports it."""

from __future__ import annotations

import asyncio
from uuid import UUID

from agentexec_otel._errors import ActivityNotFoundError, ExportError, guarded
from agentexec_otel._model.event import Status
from agentexec_otel._runtime import process as _runtime
from agentexec_otel.activity import ActivityRun
from agentexec_otel.export import StoredActivity


class RowUnavailableError(Exception):
    """The database did not answer in time."""


def require_setup() -> None:
    """Set the runtime up from the environment if nothing has.

    Raises:
        ConfigurationError: Nothing is configured.
    """
    _runtime.active()


def on_event_loop() -> bool:
    """Whether blocking here would stall a running asyncio event loop."""
    return _runtime.on_event_loop()


# -- what this process knows, without I/O -----------------------------------------------------------------------


def is_known(agent_id: UUID) -> bool:
    """Whether this process has seen the activity."""
    return _runtime.active().spans.known(agent_id) is not None


def is_owned(agent_id: UUID) -> bool:
    """Whether a block of this process will end the activity."""
    live = _runtime.active().spans.known(agent_id)
    return live is not None and live.owner is not None


def status_of(agent_id: UUID) -> Status | None:
    """The last status that this process knows of; None if it has not seen the activity."""
    live = _runtime.active().spans.known(agent_id)
    return None if live is None else live.status


def is_over(block: ActivityRun) -> bool:
    """Whether the attempt that runs in this block has ended."""
    ours = block.ours
    return block.canceled or (ours is not None and ours.status.terminal)


def has_reports(agent_id: UUID) -> bool:
    """Whether the application, or an agent, has added a line of its own."""
    live = _runtime.active().spans.known(agent_id)
    return live is not None and live.reported


def tokens_counted(agent_id: UUID) -> tuple[int, int, int]:
    """Input tokens, output tokens and requests that blocks of this process have counted for the current attempt."""
    live = _runtime.active().spans.known(agent_id)
    counts = () if live is None or live.over else live.usage.values()  # The row of an ended activity is read again.
    totals = [sum(count or 0 for count in column) for column in zip(*counts, strict=True)]
    return (totals[0], totals[1], totals[2]) if totals else (0, 0, 0)


# -- what the database knows ------------------------------------------------------------------------------------


def can_read() -> bool:
    """Whether there is a database to read from."""
    return _runtime.active().store is not None


def read(agent_id: UUID, seconds: float) -> StoredActivity | None:
    """Read the activity's row; None if there is none. Blocks for at most `seconds`.

    Raises:
        RowUnavailableError: The database did not answer in time.
    """
    runtime = _runtime.active()
    store = runtime.store
    if store is None or runtime.primary.last_error is not None:
        raise RowUnavailableError
    try:
        return runtime.primary.call(lambda: store.lookup(agent_id), seconds)
    except (TimeoutError, ExportError):
        raise RowUnavailableError from None


async def read_async(agent_id: UUID, seconds: float) -> StoredActivity | None:
    """Read the activity's row without a thread: the application's thread pool may be exhausted. See `read`."""
    runtime = _runtime.active()
    if runtime.lookups is None or runtime.primary.last_error is not None:
        raise RowUnavailableError
    try:
        return await asyncio.wait_for(asyncio.wrap_future(runtime.lookups.soon(agent_id)), seconds)
    except (TimeoutError, ExportError):
        raise RowUnavailableError from None


def adopt(stored: StoredActivity) -> None:
    """Remember an activity as its row has it now."""
    _runtime.active().spans.adopt(stored)


def find(agent_id: UUID, seconds: float) -> None:
    """Look an activity up that this process has not seen; the writer does so later if the database needs longer.

    Raises:
        ActivityNotFoundError: There is no such activity.
    """
    if is_known(agent_id) or not can_read():
        return
    try:
        stored = read(agent_id, seconds)
    except RowUnavailableError:
        return
    if stored is None:
        raise ActivityNotFoundError(agent_id)
    adopt(stored)


# -- blocks and lines -------------------------------------------------------------------------------------------


def new_block(
    agent_type: str, agent_id: UUID, metadata: dict[str, object] | None, *, may_exist: bool = False
) -> ActivityRun:
    """A block that creates its activity when it is entered, and never waits for the database.

    Args:
        may_exist: The activity may exist already; the block then runs that one.
    """
    return ActivityRun(agent_type, None, agent_id, None, metadata, waits=False, may_exist=may_exist)


def existing_block(agent_id: UUID) -> ActivityRun:
    """A block that runs an existing activity, and never waits for the database."""
    return ActivityRun(None, agent_id, None, None, None, waits=False)


def add_line(block: ActivityRun, message: str) -> None:
    """Add a line that, unlike one of `ActivityRun.update`, does not count as a report of the application."""
    with guarded("reporting what a run does"):
        runtime = _runtime.active()
        live = block.ours or runtime.find(block.agent_id)
        runtime.emit(runtime.spans.observe(live, runtime.event(live.agent_id, Status.RUNNING, message, live=live)))


def expect_usage(block: ActivityRun, expected: bool = True) -> None:
    """Say whether the final log of this block, if it ends its activity, reports token usage. The span waits for it."""
    with guarded("following a run"):
        live = _runtime.active().spans.known(block.agent_id) if block.owner else None
        if live is not None:
            live.counts = expected
