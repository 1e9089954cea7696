"""What the status API returns beside the schemas of the queries."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from agentexec_otel import __version__
from agentexec_otel.activity import ActivityDetailSchema, ActivityListItemSchema


class Activity(ActivityListItemSchema):
    """An activity with its most recent log and its metadata."""

    metadata: dict[str, Any] | None = Field(default=None, examples=[{"tenant": "acme"}])


class ActivityDetail(ActivityDetailSchema):
    """An activity with its logs and its metadata."""

    metadata: dict[str, Any] | None = None


class ActivityPage(BaseModel):
    """A page of activities. `total`, `page` and `pages` are null on a page behind a cursor."""

    model_config = ConfigDict(from_attributes=True)

    items: list[Activity]
    page_size: int
    total: int | None = None
    page: int | None = None
    pages: int | None = None
    next_cursor: str | None = None


class Act(BaseModel):
    """The body of a change."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"message": "Asked for by support."}]})

    message: Annotated[str | None, Field(max_length=2_000, description="The log of the change.")] = None


class Canceled(BaseModel):
    """Whether the activity was canceled. False if it had ended before."""

    canceled: bool


class CanceledMany(BaseModel):
    """How many activities were canceled."""

    canceled: int


class Retried(BaseModel):
    """The number of the new attempt."""

    attempt: int


class RetriedMany(BaseModel):
    """Which activities were retried."""

    attempts: Annotated[dict[UUID, int], Field(description="The number of the new attempt of each activity.")]
    refused: Annotated[
        dict[UUID, str], Field(description="Why an activity was not re-opened, such as for want of its context.")
    ] = {}


class SessionInfo(BaseModel):
    """What the caller may do."""

    may_act: Annotated[bool, Field(description="Whether the caller may cancel activities.")]
    may_see_content: Annotated[bool, Field(description="Whether the caller sees messages, errors and metadata.")]
    may_retry: Annotated[bool, Field(description="Whether the caller may retry activities that have ended.")]
    version: Annotated[str, Field(description="The version of agentexec-otel.")] = __version__
