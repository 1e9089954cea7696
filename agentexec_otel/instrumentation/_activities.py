"""What instrumentation asks of the runtime. No other module of this package imports it."""

from __future__ import annotations

from uuid import UUID

from agentexec_otel._errors import ActivityNotFoundError, guarded
from agentexec_otel._model.event import Status
from agentexec_otel._runtime import process
from agentexec_otel._runtime.reader import RowUnavailableError
from agentexec_otel._runtime.runtime import on_event_loop
from agentexec_otel.activity import ActivityRun
from agentexec_otel.export import StoredActivity

__all__ = [
    "RowUnavailableError",
    "add_line",
    "adopt",
    "can_read",
    "existing_block",
    "expect_usage",
    "find",
    "has_reports",
    "is_known",
    "is_over",
    "is_owned",
    "new_block",
    "on_event_loop",
    "read",
    "read_async",
    "require_setup",
    "status_of",
    "tokens_counted",
]


def require_setup() -> None:
    """Set the runtime up from the environment if nothing has.

    Raises:
        ConfigurationError: Nothing is configured.
    """
    process.active()


# -- what this process knows, without I/O -----------------------------------------------------------------------


def is_known(agent_id: UUID) -> bool:
    """Whether this process has seen the activity."""
    return process.active().known(agent_id) is not None


def is_owned(agent_id: UUID) -> bool:
    """Whether a block of this process will end the activity."""
    live = process.active().known(agent_id)
    return live is not None and live.owner is not None


def status_of(agent_id: UUID) -> Status | None:
    """The last status that this process knows of; None if it has not seen the activity."""
    live = process.active().known(agent_id)
    return None if live is None else live.status


def is_over(block: ActivityRun) -> bool:
    """Whether the attempt that runs in this block has ended."""
    view = block.view
    return block.canceled or (view is not None and view.status.terminal)


def has_reports(agent_id: UUID) -> bool:
    """Whether the application, or an agent, has added a line of its own."""
    live = process.active().known(agent_id)
    return live is not None and live.has_reports


def tokens_counted(agent_id: UUID) -> tuple[int, int, int]:
    """Input tokens, output tokens and requests that blocks of this process have counted for the current attempt."""
    live = process.active().known(agent_id)
    usage = None if live is None or live.is_over else live.usage_total()
    return (0, 0, 0) if usage is None else (usage.input_tokens or 0, usage.output_tokens or 0, usage.requests or 0)


# -- what the database knows ------------------------------------------------------------------------------------


def can_read() -> bool:
    """Whether there is a database to read from."""
    return process.active().has_store


def read(agent_id: UUID, seconds: float) -> StoredActivity | None:
    """Read the activity's row; None if there is none. Blocks for at most `seconds`.

    Raises:
        RowUnavailableError: The database did not answer in time.
    """
    return process.active().read(agent_id, seconds)


async def read_async(agent_id: UUID, seconds: float) -> StoredActivity | None:
    """Read the activity's row without a thread: the application's thread pool may be exhausted. See `read`."""
    return await process.active().read_async(agent_id, seconds)


def adopt(stored: StoredActivity) -> None:
    """Remember an activity as its row has it now."""
    process.active().adopt(stored)


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
    return ActivityRun(agent_type, agent_id=agent_id, metadata=metadata, waits=False, may_exist=may_exist)


def existing_block(agent_id: UUID) -> ActivityRun:
    """A block that runs an existing activity, and never waits for the database."""
    return ActivityRun(agent_id=agent_id, waits=False)


def add_line(block: ActivityRun, message: str) -> None:
    """Add a line that, unlike one of `ActivityRun.update`, does not count as a report of the application."""
    with guarded("reporting what a run does"):
        runtime = process.active()
        runtime.record(block.view or runtime.find(block.agent_id), Status.RUNNING, message)


def expect_usage(block: ActivityRun, expected: bool = True) -> None:
    """Say whether the final log of this block, if it ends its activity, reports token usage. The span waits for it."""
    with guarded("following a run"):
        live = process.active().known(block.agent_id) if block.owner else None
        if live is not None:
            live.expect_usage(expected)
