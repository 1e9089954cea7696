"""Schemas that the queries return, with the documented fields and those that existing agentexec front ends read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, computed_field

from agentexec_otel._model.event import Status

__all__ = [
    "ActivityCursorPageSchema",
    "ActivityDetailSchema",
    "ActivityFeedLogSchema",
    "ActivityFeedSchema",
    "ActivityListItemSchema",
    "ActivityListSchema",
    "ActivityLogSchema",
]


class ActivityLogSchema(BaseModel):
    """One log. `seq` orders the logs of an activity and is the cursor of `ax.activity.logs`."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    message: str
    status: Status
    percentage: int | None
    created_at: datetime
    seq: int
    attempt: int = 1
    late: bool = False


class _Summary(BaseModel):
    """Fields of both detail and list item."""

    model_config = ConfigDict(from_attributes=True)

    agent_id: UUID
    agent_type: str
    created_at: datetime
    updated_at: datetime
    status: Status
    latest_percentage: int | None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    attempt: int = 1
    trace_id: str | None = None
    span_id: str | None = None
    worker_id: str | None = None
    error_type: str | None = None
    reason: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    requests: int | None = None
    cached_input_tokens: int | None = None
    reasoning_tokens: int | None = None
    model: str | None = None
    waiting: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = Field(default=None, exclude=True)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def percentage(self) -> int | None:
        """The same as `latest_percentage`."""
        return self.latest_percentage

    @computed_field  # type: ignore[prop-decorator]
    @property
    def queued_seconds(self) -> float | None:
        """Seconds from the creation to the start, so far if it waits still. None for a retry, whose wait is unknown."""
        return None if self.attempt > 1 else _seconds(self.created_at, self.started_at or self._end())

    @computed_field  # type: ignore[prop-decorator]
    @property
    def duration_seconds(self) -> float | None:
        """Seconds from the start of the current attempt to its end, so far if it runs still. None before the start."""
        return None if self.started_at is None else _seconds(self.started_at, self._end())

    @computed_field  # type: ignore[prop-decorator]
    @property
    def elapsed_time_seconds(self) -> int:
        """`duration_seconds` in whole seconds. 0 before the start."""
        return int(self.duration_seconds or 0)

    def _end(self) -> datetime:
        # A producer of schema 1 ends activities without a moment.
        return (self.ended_at or self.updated_at) if self.status.terminal else datetime.now(UTC)


def _seconds(since: datetime, until: datetime) -> float:
    """At least 0: the two clocks may differ."""
    return max(0.0, (until - since).total_seconds())


class ActivityDetailSchema(_Summary):
    """An activity with all its logs. `metadata` is an attribute that is never serialised."""

    logs: list[ActivityLogSchema]


class ActivityListItemSchema(_Summary):
    """An activity in a list, with its most recent log."""

    latest_log: str | None
    latest_log_timestamp: datetime | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def latest_log_message(self) -> str | None:
        """The same as `latest_log`."""
        return self.latest_log


class ActivityListSchema(BaseModel):
    """One page of activities, newest first unless asked otherwise."""

    items: list[ActivityListItemSchema]
    total: int
    page: int
    page_size: int
    next_cursor: str | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def pages(self) -> int:
        """Number of pages."""
        return -(-self.total // self.page_size)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total_pages(self) -> int:
        """The same as `pages`."""
        return self.pages


class ActivityCursorPageSchema(BaseModel):
    """One page of activities behind a cursor. `next_cursor` is None on the last page."""

    items: list[ActivityListItemSchema]
    total: int | None = None
    page_size: int
    next_cursor: str | None = None


class ActivityFeedLogSchema(ActivityLogSchema):
    """A log in the feed. `cursor` is the place behind it."""

    agent_id: UUID
    agent_type: str
    cursor: str


class ActivityFeedSchema(BaseModel):
    """One page of the feed. If `has_more`, the next page can be read at once; otherwise, poll for it."""

    logs: list[ActivityFeedLogSchema]
    next_cursor: str
    has_more: bool = False
