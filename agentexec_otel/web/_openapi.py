"""What the OpenAPI document says of each endpoint, beside its signature and docstring.

The examples are made by the schemas and encoders that make the responses.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, Final
from uuid import UUID

from fastapi.responses import StreamingResponse

import agentexec_otel as ax
from agentexec_otel.activity.models import Status
from agentexec_otel.web._problems import PROBLEM_TYPE, Problem
from agentexec_otel.web._schemas import Activity, ActivityDetail, ActivityPage
from agentexec_otel.web._scope import ACTION_HEADER
from agentexec_otel.web._streams import encoded

# -- examples -----------------------------------------------------------------------------------------------------

AGENT_ID: Final = UUID("3f9c7d52-6b0e-4a64-9d55-0c9b6a1f2e77")
_OTHER_ID: Final = UUID("8f14e45f-ceea-467f-a8d4-26a8c5b1d8a1")
MOMENT: Final = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
TRACE_ID: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
WORKER_ID: Final = "web-1:4711:a1b2c3"

_LOGS: Final = [
    ax.activity.ActivityLogSchema(
        id=100 + seq, seq=seq, message=message, status=status, percentage=percentage,
        created_at=MOMENT + timedelta(seconds=seq - 1),
    )
    for seq, (message, status, percentage) in enumerate(
        [
            ("Waiting to start.", Status.QUEUED, None),
            ("Analyzing competitors.", Status.RUNNING, 50),
            ("Task completed successfully.", Status.COMPLETE, 100),
        ],
        1,
    )
]  # fmt: skip
_SUMMARY: Final[dict[str, Any]] = {
    "agent_id": AGENT_ID,
    "agent_type": "research",
    "status": Status.COMPLETE,
    "created_at": MOMENT,
    "started_at": MOMENT + timedelta(seconds=1),
    "updated_at": MOMENT + timedelta(seconds=2),
    "ended_at": MOMENT + timedelta(seconds=2),
    "latest_percentage": 100,
    "trace_id": TRACE_ID,
    "worker_id": WORKER_ID,
    "model": "gpt-5",
    "input_tokens": 1_200,
    "output_tokens": 80,
    "metadata": {"tenant": "acme"},
}
_ACTIVITY: Final = Activity(**_SUMMARY, latest_log=_LOGS[-1].message, latest_log_timestamp=_LOGS[-1].created_at)
_PERCENTILES: Final = ax.activity.PercentilesSchema(count=3, sum=93, p50=20, p90=61, p95=61, p99=61, max=61)

_DETAIL: Final = ActivityDetail(**_SUMMARY, logs=_LOGS).model_dump(mode="json")
_LOGS_EXAMPLE: Final = [log.model_dump(mode="json") for log in _LOGS]
_PAGE: Final = ActivityPage(items=[_ACTIVITY], page_size=50, total=1, page=1, pages=1).model_dump(mode="json")
_STATS: Final = ax.activity.ActivityStatsSchema(
    total=3,
    by_status={status: {Status.COMPLETE: 2, Status.ERROR: 1}.get(status, 0) for status in Status},
    by_type=[
        ax.activity.ActivityTypeStatsSchema(
            agent_type="research", total=3, active=0, failed=1, duration_seconds=_PERCENTILES
        )
    ],
    by_reason={"timeout": 1},
    duration_seconds=_PERCENTILES,
    queued_seconds=_PERCENTILES,
    input_tokens=_PERCENTILES,
    output_tokens=_PERCENTILES,
    series=[ax.activity.ActivityStatsBucketSchema(start=MOMENT, started=3, ended=3, failed=1)],
).model_dump(mode="json")
_RETRIED_MANY: Final = {
    "attempts": {str(AGENT_ID): 2},
    "refused": {str(_OTHER_ID): f"the activity {_OTHER_ID} cannot be retried, because its context is not kept"},
}

_FOLLOWED: Final = b"".join(
    [
        *(encoded("log", log, str(log.seq)) for log in _LOGS),
        encoded("end", _ACTIVITY),
    ]
).decode()
_FOLLOWED_LIST: Final = b"".join([encoded("ready", "{}", "67"), encoded("activity", _ACTIVITY, "6a")]).decode()
_JOINED: Final = (
    'data: {"type": "RUN_STARTED", "threadId": "thread-1", "runId": "run-1"}\n\n'
    f'id: 3\ndata: {{"type": "ACTIVITY_SNAPSHOT", "messageId": "{AGENT_ID}", "activityType": "agentexec.activity",'
    ' "metadata": {"seq": 3}, "content": {"agent_type": "research", "attempt": 1, "status": "COMPLETE", "message":'
    ' "Task completed successfully.", "percentage": 100, "logs": []}, "replace": true}\n\n'
    'data: {"type": "RUN_FINISHED", "threadId": "thread-1", "runId": "run-1", "outcome": {"type": "success"}}\n\n'
)

_DETAILS: Final = {
    400: "There was an error parsing the body",
    403: "You are not allowed to see these activities.",
    404: f"no activity has the agent_id {AGENT_ID}: create it with ax.activity.create() first",
    409: f"the activity {AGENT_ID} is RUNNING: only an activity that has ended is retried",
    422: "query.page_size: Input should be less than or equal to 200",
    502: "1 activities could not be handed to a worker, and ended as ERROR.",
    503: "no database is configured: call ax.configure(engine_or_url)",
}

# -- endpoints ----------------------------------------------------------------------------------------------------

_ALWAYS: Final = (403, 422, 503)
_OF_ONE: Final = (403, 404, 422, 503)
_WITH_BODY: Final = (400, *_OF_ONE)
_OF_A_CHANGE: Final = {
    "parameters": [
        {
            "name": ACTION_HEADER,
            "in": "header",
            "required": True,
            "description": "Any value. A page of another site cannot send it without the permission of CORS.",
            "schema": {"type": "string", "examples": ["1"]},
        }
    ]
}
_DESCRIPTIONS: Final = {
    400: "The body cannot be read.",
    403: "The application refuses the request, or the scope of the caller does not allow it.",
    404: "There is no such activity in the scope of the caller.",
    409: "The activity has not ended, or nothing can run it.",
    422: "The request is malformed.",
    502: "Activities were re-opened, but could not be handed to a worker. They have ended as ERROR.",
    503: "The database does not answer, or has no tables.",
}


def _json(description: str, example: Any) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"example": example}}}


def _stream(description: str, example: str, events: list[str]) -> dict[str, Any]:
    """A stream of Server-Sent Events with these names."""
    properties = {
        "event": {"type": "string", "enum": events},
        "id": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    }
    # The keyword of OpenAPI 3.2, which FastAPI uses in documents of 3.1, too.
    item = {"type": "object", "properties": properties, "required": ["data"]}
    return {"description": description, "content": {"text/event-stream": {"itemSchema": item, "example": example}}}


def _problem(status: int) -> dict[str, Any]:
    example = Problem(title=HTTPStatus(status).phrase, status=status, detail=_DETAILS[status])
    content = {"schema": Problem.model_json_schema(), "example": example.model_dump(exclude_none=True)}
    return {"description": _DESCRIPTIONS[status], "content": {PROBLEM_TYPE: content}}


def _endpoint(summary: str, answer: dict[str, Any], problems: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """The arguments for FastAPI's decorator of an endpoint."""
    responses = {200: answer, **more.pop("responses", {}), **{status: _problem(status) for status in problems}}
    return {"summary": summary, "responses": responses, **more}


def _streamed(summary: str, answer: dict[str, Any], problems: tuple[int, ...]) -> dict[str, Any]:
    return _endpoint(summary, answer, problems, response_class=StreamingResponse)


def _change(summary: str, answer: dict[str, Any], problems: tuple[int, ...]) -> dict[str, Any]:
    return _endpoint(summary, answer, problems, openapi_extra=_OF_A_CHANGE)


_ONE_ACTIVITY = _json("The activity. One that has ended has an `ETag`.", _DETAIL) | {
    "headers": {
        "ETag": {"description": "Of an activity that has ended.", "schema": {"type": "string"}, "example": '"5d1f…"'}
    }
}
_NOT_MODIFIED = {HTTPStatus.NOT_MODIFIED.value: {"description": "The `ETag` in `If-None-Match` is still right."}}
_SESSION = {"may_act": True, "may_see_content": True, "may_retry": False, "version": ax.__version__}

ENDPOINTS: Final[dict[str, dict[str, Any]]] = {
    "get_session": _endpoint("What the caller may do", _json("What the caller may do.", _SESSION), (403,)),
    "list_activities": _endpoint("List activities", _json("A page.", _PAGE), _ALWAYS),
    "get_activity": _endpoint(
        "Get an activity", _ONE_ACTIVITY, _OF_ONE, responses=_NOT_MODIFIED, response_model=ActivityDetail | Activity
    ),
    "get_logs": _endpoint("Get the logs of an activity", _json("The logs.", _LOGS_EXAMPLE), _OF_ONE),
    "get_stats": _endpoint("Count and measure activities", _json("The figures.", _STATS), _ALWAYS),
    "follow_activity": _streamed(
        "Follow an activity", _stream("Its logs, until it ends.", _FOLLOWED, ["log", "end"]), _OF_ONE
    ),
    "join_run": _streamed(
        "Join an activity as a run of AG-UI",
        _stream("The events of the run.", _JOINED, ["message"]),
        _WITH_BODY,
    ),
    "follow_list": _streamed(
        "Follow a list",
        _stream("The activities that change.", _FOLLOWED_LIST, ["ready", "activity", "left", "reset"]),
        _ALWAYS,
    ),
    "cancel_activity": _change("Cancel an activity", _json("Whether it was canceled.", {"canceled": True}), _WITH_BODY),
    "cancel_activities": _change("Cancel many", _json("How many were canceled.", {"canceled": 12}), _ALWAYS),
    "retry_activity": _change("Retry an activity", _json("The new attempt.", {"attempt": 2}), (*_WITH_BODY, 409, 502)),
    "retry_activities": _change("Retry many", _json("The new attempts.", _RETRIED_MANY), (*_ALWAYS, 502)),
}
"""By the name of the endpoint's function."""
