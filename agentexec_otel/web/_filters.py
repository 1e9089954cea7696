"""The filters of `ax.activity.list` as query parameters."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Annotated, Any, Final, cast
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from agentexec_otel.activity import ActivityFilters
from agentexec_otel.activity.models import Status
from agentexec_otel.web._openapi import AGENT_ID, MOMENT, TRACE_ID, WORKER_ID

_NUMBER: Final = re.compile(r"[-+]?[\d._]+(e[-+]?\d+)?\s*", re.IGNORECASE)


def _moment(description: str) -> Any:
    return Field(description=description, examples=[MOMENT.isoformat()])


def _no_number(text: object) -> object:
    """Refuse a number, which pydantic reads as seconds since 1970."""
    if isinstance(text, str) and _NUMBER.fullmatch(text):
        raise ValueError("write a time such as 2026-01-31T12:00:00Z")
    return text


_Moment = Annotated[datetime, BeforeValidator(_no_number)]


class FilterParameters(BaseModel):
    """Query parameters. An activity has to meet all of them; of one that is repeated, any value."""

    model_config = ConfigDict(extra="forbid")

    agent_id: Annotated[list[UUID], Field(description="The activity.", examples=[[str(AGENT_ID)]])] = []
    status: Annotated[
        list[Status], Field(description="QUEUED, RUNNING, COMPLETE, ERROR or CANCELED.", examples=[["ERROR"]])
    ] = []
    agent_type: Annotated[list[str], Field(description="The name of the task or agent.", examples=[["research"]])] = []
    metadata: Annotated[
        list[str],
        Field(
            description="`key=text`, or `key:=JSON` for a number, `true` or `false`. All of them must match.",
            examples=[["tenant=acme", "priority:=5"]],
        ),
    ] = []
    reason: Annotated[list[str], Field(description="Why it ended, such as `timeout`.", examples=[["timeout"]])] = []
    error_type: Annotated[list[str], Field(description="The class of the exception.", examples=[["TimeoutError"]])] = []
    trace_id: Annotated[list[str], Field(description="The trace of its span.", examples=[[TRACE_ID]])] = []
    worker_id: Annotated[list[str], Field(description="The process that runs it.", examples=[[WORKER_ID]])] = []
    created_after: Annotated[_Moment | None, _moment("Created at this moment or later.")] = None
    created_before: Annotated[_Moment | None, _moment("Created before this moment.")] = None
    updated_after: Annotated[_Moment | None, _moment("With a log at this moment or later.")] = None
    updated_before: Annotated[_Moment | None, _moment("Without a log since this moment.")] = None
    ended_after: Annotated[_Moment | None, _moment("Ended at this moment or later.")] = None
    ended_before: Annotated[_Moment | None, _moment("Ended before this moment.")] = None
    waiting: Annotated[
        bool | None, Field(description="Whether it waits, such as for an approval.", examples=[True])
    ] = None
    text: Annotated[
        str | None, Field(description="Part of the latest message, in any case.", min_length=1, examples=["timeout"])
    ] = None

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
    except (ValueError, RecursionError):
        raise ValueError(f"metadata is {pair[:80]!r}: what follows := is no JSON") from None
