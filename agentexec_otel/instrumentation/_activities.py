"""What instrumentation asks of the runtime. No other module of this package imports it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

from agentexec_otel._config import CONF
from agentexec_otel._errors import ActivityNotFoundError, guarded
from agentexec_otel._model.event import Status
from agentexec_otel._runtime.complaints import complain
from agentexec_otel._runtime.event_loop import on_event_loop
from agentexec_otel._runtime.live import LiveActivity
from agentexec_otel._runtime.process import active, tracer_provider
from agentexec_otel._runtime.reader import RowUnavailableError
from agentexec_otel.activity import ActivityRun

__all__ = [
    "RowUnavailableError",
    "active",
    "add_log",
    "complain",
    "continue_if_waiting",
    "expect_usage",
    "find",
    "known",
    "on_event_loop",
    "tracer_provider",
    "wait_for_approval",
]

_MOST_CALLS: Final = 50  # more might not fit on the row


def known(agent_id: UUID) -> LiveActivity | None:
    """The view of an activity that this process has seen. Does no I/O."""
    return active().known(agent_id)


def find(agent_id: UUID, seconds: float) -> None:
    """Look up an activity that this process has not seen; the writer does so later if the database needs longer.

    Raises:
        ActivityNotFoundError: There is no such activity.
    """
    runtime = active()
    if runtime.known(agent_id) is not None or not runtime.has_store:
        return
    try:
        stored = runtime.read(agent_id, seconds)
    except RowUnavailableError:
        return
    if stored is None:
        raise ActivityNotFoundError(agent_id)
    runtime.adopt(stored)


def add_log(block: ActivityRun, message: str) -> None:
    """Add a log that, unlike one of `ActivityRun.update`, does not count as a report of the application."""
    with guarded("reporting what a run does"):
        runtime = active()
        runtime.record(block.view or runtime.find(block.agent_id), Status.RUNNING, message)


def wait_for_approval(block: ActivityRun, calls: Sequence[Mapping[str, str | None]]) -> None:
    """Have the activity wait for the approval of these calls of tools."""
    runtime = active()
    message = f"Stopped for the approval of {len(calls)} tool call{'s' if len(calls) > 1 else ''}."
    runtime.wait(block.view or runtime.find(block.agent_id), "approval", calls[:_MOST_CALLS], message)


def continue_if_waiting(block: ActivityRun) -> None:
    """Report that a run begins, if the activity waits and its owner has not reported it."""
    if block.view is not None and block.view.is_waiting:
        add_log(block, CONF.activity_message_started)


def expect_usage(block: ActivityRun) -> None:
    """Say that the block's final log reports token usage. The activity's span waits for that log."""
    if block.owner and block.view is not None:
        block.view.expect_usage(True)
