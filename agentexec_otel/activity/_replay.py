"""Exporting spans that no process has exported, as `ax.replay`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Unpack

from sqlalchemy import func, or_

from agentexec_otel._config import CONF
from agentexec_otel._runtime import process
from agentexec_otel._runtime.replay import Progress
from agentexec_otel.activity._criteria import ACTIVITY, ActivityFilters, criteria_of
from agentexec_otel.activity._retention.archive import checked_batch_size


def replay(
    *,
    batch_size: int = 500,
    progress: Progress | None = None,
    dry_run: bool = False,
    **filters: Unpack[ActivityFilters],
) -> int:
    """Export the spans of attempts that have ended and whose span no process has exported, rebuilt from their logs.

    Each batch is claimed, exported, and then stated on its rows as exported: if the call is interrupted, call it again.
    Two processes never export the same span at once. Without ``agent_id``, attempts that ended within the last
    ``AGENTEXEC_LEASE_SECONDS`` are left to the process that has their span, unless their worker was lost.

    Args:
        batch_size: Spans per export, 1 to 10,000. A batch with many logs is smaller.
        progress: Called at the start and after each batch with how many were exported, and how many there were.
        dry_run: Export nothing; return how many there are.
        filters: See `ActivityFilters`.

    Returns:
        How many were exported.

    Raises:
        ValueError: A malformed argument.
        ConfigurationError: The SDK is not set up, or there is no exporter for spans.
        SpanNotExportedError: The exporter has reported a failure.
        ActivityNotStoredError: The database does not answer.
    """
    size = checked_batch_size(batch_size)
    criteria: Sequence[Any] = criteria_of(filters)
    if filters.get("agent_id") is None:
        # Its process has lost its span, or has had time to end it.
        ended_at = func.coalesce(ACTIVITY.c.ended_at, ACTIVITY.c.updated_at)
        before = datetime.now(UTC) - timedelta(seconds=CONF.lease_seconds)
        criteria = [*criteria, or_(ACTIVITY.c.reason == "lost", ended_at < before)]
    return process.active().replay(criteria, size, progress, dry_run)
