"""Examples for the OpenAPI document, made by the schemas and encoders that make the responses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, Final
from uuid import UUID

from agentexec_otel.activity import (
    ActivityLogSchema,
    ActivityStatsBucketSchema,
    ActivityStatsSchema,
    ActivityTypeStatsSchema,
    PercentilesSchema,
)
from agentexec_otel.activity.models import Status
from agentexec_otel.web._problems import Problem
from agentexec_otel.web._schemas import Activity, ActivityDetail, ActivityPage
from agentexec_otel.web._sse import encoded

AGENT_ID: Final = UUID("3f9c7d52-6b0e-4a64-9d55-0c9b6a1f2e77")
_OTHER_ID: Final = UUID("8f14e45f-ceea-467f-a8d4-26a8c5b1d8a1")
MOMENT: Final = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
TRACE_ID: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
WORKER_ID: Final = "web-1:4711:a1b2c3"

_LOGS: Final = [
    ActivityLogSchema(
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
_PERCENTILES: Final = PercentilesSchema(count=3, sum=93, p50=20, p90=61, p95=61, p99=61, max=61)

DETAIL: Final = ActivityDetail(**_SUMMARY, logs=_LOGS).model_dump(mode="json")
LOGS: Final = [log.model_dump(mode="json") for log in _LOGS]
PAGE: Final = ActivityPage(items=[_ACTIVITY], page_size=50, total=1, page=1, pages=1).model_dump(mode="json")
STATS: Final = ActivityStatsSchema(
    total=3,
    by_status={status: {Status.COMPLETE: 2, Status.ERROR: 1}.get(status, 0) for status in Status},
    by_type=[
        ActivityTypeStatsSchema(agent_type="research", total=3, active=0, failed=1, duration_seconds=_PERCENTILES)
    ],
    by_reason={"timeout": 1},
    duration_seconds=_PERCENTILES,
    queued_seconds=_PERCENTILES,
    input_tokens=_PERCENTILES,
    output_tokens=_PERCENTILES,
    series=[ActivityStatsBucketSchema(start=MOMENT, started=3, ended=3, failed=1)],
).model_dump(mode="json")
RETRIED_MANY: Final = {
    "attempts": {str(AGENT_ID): 2},
    "refused": {str(_OTHER_ID): f"the activity {_OTHER_ID} cannot be retried, because its context is not kept"},
}

FOLLOWED: Final = b"".join(
    [
        *(encoded("log", log, str(log.seq)) for log in _LOGS),
        encoded("end", _ACTIVITY),
    ]
).decode()
FOLLOWED_LIST: Final = b"".join([encoded("ready", "{}", "67"), encoded("activity", _ACTIVITY, "6a")]).decode()
JOINED: Final = (
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


def problem_example(status: int) -> dict[str, Any]:
    """Problem details with that status."""
    example = Problem(title=HTTPStatus(status).phrase, status=status, detail=_DETAILS[status])
    return example.model_dump(exclude_none=True)
