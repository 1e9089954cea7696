"""The filters of `ax.activity.list` as query parameters."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, Final, cast
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from agentexec_otel.activity import ActivityFilters
from agentexec_otel.activity.models import Status


class FilterParameters(BaseModel):
    """Query parameters. An activity has to meet all of them; of one that is repeated, any value."""

    model_config = ConfigDict(extra="forbid")

    agent_id: list[UUID] = []
    status: Annotated[list[Status], Field(description="QUEUED, RUNNING, COMPLETE, ERROR or CANCELED.")] = []
    agent_type: Annotated[list[str], Field(description="The name of the task or agent.")] = []
    metadata: Annotated[
        list[str],
        Field(
            description="`key=text`, or `key:=JSON` for a number, `true` or `false`. All of them must match.",
            examples=[["tenant=acme", "priority:=5"]],
        ),
    ] = []
    reason: Annotated[list[str], Field(description="Why it ended, such as `timeout`.")] = []
    error_type: Annotated[list[str], Field(description="The class of the exception.")] = []
    trace_id: list[str] = []
    worker_id: list[str] = []
    created_after: datetime | None = None
    created_before: datetime | None = None
    updated_after: datetime | None = None
    updated_before: datetime | None = None
    ended_after: datetime | None = None
    ended_before: datetime | None = None
    waiting: Annotated[bool | None, Field(description="Whether it waits, such as for an approval.")] = None
    text: Annotated[str | None, Field(description="Part of the latest message, in any case.", min_length=1)] = None

    def filters(self) -> ActivityFilters:
        """The filters that were given."""
        given = {name: getattr(self, name) for name in _SHARED}
        given["metadata_filter"] = metadata_of(self.metadata)
        return cast(ActivityFilters, {name: value for name, value in given.items() if value not in (None, [], {})})


_SHARED: Final = sorted(ActivityFilters.__annotations__.keys() & FilterParameters.model_fields.keys())


def metadata_of(pairs: list[str]) -> dict[str, Any]:
    """Read ``key=text`` and ``key:=JSON`` pairs. Raises ValueError for anything else."""
    return dict(_pair(pair) for pair in pairs)


def _pair(pair: str) -> tuple[str, Any]:
    key, equals, value = pair.partition("=")
    if not (key.removesuffix(":") and equals):
        raise ValueError(f"metadata is {pair[:80]!r}: write key=text, or key:=JSON")
    if not key.endswith(":"):
        return key, value
    try:
        return key[:-1], json.loads(value)
    except ValueError:
        raise ValueError(f"metadata is {pair[:80]!r}: what follows := is no JSON") from None
