"""Schemas that the queries return, with the documented fields and those that existing agentexec front ends read.

They can be built with agentexec's field names alone: what those leave out has a default.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    WithJsonSchema,
    computed_field,
)

from agentexec_otel._model.event import Status

__all__ = [
    "ActivityCursorPageSchema",
    "ActivityDetailSchema",
    "ActivityFeedLogSchema",
    "ActivityFeedSchema",
    "ActivityListItemSchema",
    "ActivityListSchema",
    "ActivityLogSchema",
    "ActivityStatsBucketSchema",
    "ActivityStatsSchema",
    "ActivityTypeStatsSchema",
    "PercentilesSchema",
]


# A field with a default is always in the output, so that clients need not expect it to be absent.
_CONFIG = ConfigDict(from_attributes=True, json_schema_serialization_defaults_required=True)


def _now() -> datetime:
    return datetime.now(UTC)


class _OrUUID:
    """Accepts a UUID, too. Not part of the declared type, since our logs have integers."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type, handler: GetCoreSchemaHandler) -> Any:
        return handler.generate_schema(int | UUID)


class ActivityLogSchema(BaseModel):
    """One log. `seq` orders the logs of an activity and is the cursor of `ax.activity.logs`."""

    model_config = _CONFIG

    id: Annotated[int, _OrUUID, WithJsonSchema({"type": "integer"})]
    message: str
    status: Status
    percentage: int | None = 0
    created_at: datetime
    seq: int = 0
    attempt: int = 1
    late: bool = False


class _Summary(BaseModel):
    """Fields of both detail and list item."""

    model_config = _CONFIG

    agent_id: UUID
    agent_type: str
    created_at: datetime
    updated_at: datetime
    status: Status
    latest_percentage: int | None = Field(
        default=None, validation_alias=AliasChoices("latest_percentage", "percentage")
    )
    started_at: datetime | None = None
    ended_at: datetime | None = None
    attempt: int = 1
    trace_id: str | None = None
    span_id: str | None = None
    trace_url: str | None = None
    worker_id: str | None = None
    lease_expires_at: datetime | None = None
    error_type: str | None = None
    reason: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    requests: int | None = None
    cached_input_tokens: int | None = None
    reasoning_tokens: int | None = None
    model: str | None = None
    waiting: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = Field(
        default=None, validation_alias=AliasChoices("metadata_", "metadata"), exclude=True
    )

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
        return (self.ended_at or self.updated_at) if self.status.terminal else _now()


def _seconds(since: datetime, until: datetime) -> float:
    """At least 0: the two clocks may differ."""
    return max(0.0, (until - since).total_seconds())


class ActivityDetailSchema(_Summary):
    """An activity with all its logs. `metadata` is an attribute that is never serialised."""

    id: UUID | None = None
    status: Status = Status.QUEUED
    logs: list[ActivityLogSchema] = Field(default_factory=list[ActivityLogSchema])


class ActivityListItemSchema(_Summary):
    """An activity in a list, with its most recent log."""

    created_at: datetime = Field(default_factory=_now)
    updated_at: datetime = Field(default_factory=_now)
    latest_log: str | None = Field(default=None, validation_alias=AliasChoices("latest_log", "latest_log_message"))
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


class PercentilesSchema(BaseModel):
    """Percentiles of some values, each one of the values: the smallest that so many of them do not exceed.

    Without values (``count`` is 0) they are None.
    """

    count: int = 0
    sum: int | float = 0
    p50: int | float | None = None
    p90: int | float | None = None
    p95: int | float | None = None
    p99: int | float | None = None
    max: int | float | None = None


class ActivityTypeStatsSchema(BaseModel):
    """How the activities of one type did."""

    agent_type: str
    total: int
    active: int
    failed: int
    duration_seconds: PercentilesSchema


class ActivityStatsBucketSchema(BaseModel):
    """How many activities started, ended and failed in a span of time. `failed` are among `ended`."""

    start: datetime
    started: int
    ended: int
    failed: int


class ActivityStatsSchema(BaseModel):
    """Counts and percentiles of activities."""

    total: int
    by_status: dict[Status, int]
    by_type: list[ActivityTypeStatsSchema]
    by_reason: dict[str, int]
    duration_seconds: PercentilesSchema
    queued_seconds: PercentilesSchema
    input_tokens: PercentilesSchema
    output_tokens: PercentilesSchema
    series: list[ActivityStatsBucketSchema]


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
