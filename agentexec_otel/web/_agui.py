"""An activity as a run of the AG-UI protocol (version 1.0, https://docs.ag-ui.com)."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from agentexec_otel.activity import ActivityListItemSchema, ActivityLogSchema
from agentexec_otel.activity.models import Status
from agentexec_otel.web._schemas import Activity
from agentexec_otel.web._scope import Scope, shown
from agentexec_otel.web._streams import HEARTBEAT, ActivityStream

ACTIVITY_TYPE: Final = "agentexec.activity"


class RunAgentInput(BaseModel):
    """What an AG-UI client sends to start or join a run. Other fields of the protocol are ignored."""

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"examples": [{"threadId": "thread-1", "runId": "run-1"}]}
    )

    thread_id: str = Field(alias="threadId", description="Comes back in the events.")
    run_id: str = Field(alias="runId", description="Comes back in the events.")


class AguiRun:
    """The events of an activity as those of a run.

    ``RUN_STARTED`` when it runs, ``ACTIVITY_SNAPSHOT`` once, ``ACTIVITY_DELTA`` for each log, and at its end
    ``RUN_FINISHED`` or ``RUN_ERROR``. A run that waits is finished by an interrupt.

    Args:
        resumes: The client has a snapshot.
    """

    def __init__(self, stream: ActivityStream, run: RunAgentInput, scope: Scope, *, resumes: bool) -> None:
        self._stream = stream
        self._ids = {"threadId": run.thread_id, "runId": run.run_id}
        self._scope = scope
        self._has_snapshot = resumes
        self._started = False
        self._held: list[ActivityLogSchema] = []

    async def events(self) -> AsyncGenerator[bytes]:
        """The events as they are sent."""
        async for logs in self._stream.logs():
            if not logs:
                yield HEARTBEAT
            for event in self._progress([log.log for log in logs]):
                yield event
            if self._stream.activity.waiting is not None:
                break
        for event in self._end(self._stream.activity):
            yield event

    def _progress(self, logs: Sequence[ActivityLogSchema]) -> list[bytes]:
        self._held += logs
        activity = shown(Activity.model_validate(self._stream.activity), self._scope)
        if activity.status is Status.QUEUED or not self._held:
            return []
        logs, self._held = self._held, []
        if self._has_snapshot:
            return [*self._start(), *(self._delta(log) for log in logs)]
        self._has_snapshot = True
        return [*self._start(), self._snapshot(activity, logs)]

    def _start(self) -> list[bytes]:
        if self._started:
            return []
        self._started = True
        return [_event("RUN_STARTED", **self._ids)]

    def _snapshot(self, activity: Activity, logs: Sequence[ActivityLogSchema]) -> bytes:
        content = activity.model_dump(mode="json", include={"agent_type", "attempt"})
        for log in logs:
            content |= {} if log.late else _state(log)
        content["logs"] = [_log(log) for log in logs]
        return self._activity_event("ACTIVITY_SNAPSHOT", logs[-1], content=content, replace=True)

    def _delta(self, log: ActivityLogSchema) -> bytes:
        changed = {} if log.late else _state(log)
        patch = [{"op": "add", "path": "/logs/-", "value": _log(log)}]
        patch += [{"op": "add", "path": f"/{name}", "value": value} for name, value in changed.items()]
        return self._activity_event("ACTIVITY_DELTA", log, patch=patch)

    def _activity_event(self, kind: str, log: ActivityLogSchema, **fields: Any) -> bytes:
        return _event(
            kind,
            str(log.seq),
            messageId=str(self._stream.activity.agent_id),
            activityType=ACTIVITY_TYPE,
            timestamp=round(log.created_at.timestamp() * 1000),
            metadata={"seq": log.seq},
            **fields,
        )

    def _end(self, activity: ActivityListItemSchema) -> list[bytes]:
        if activity.waiting is not None:
            outcome: dict[str, Any] = {"type": "interrupt", "interrupts": self._interrupts(activity.waiting)}
        elif activity.status is Status.COMPLETE:
            outcome = {"type": "success"}
        elif activity.status is Status.CANCELED:
            outcome = {"type": "cancelled"}
        elif activity.status is Status.ERROR:
            said = activity.latest_log if self._scope.may_see_content else None
            message = said or "The activity has failed."
            return [*self._start(), _event("RUN_ERROR", message=message, code=activity.reason, usage=_usage(activity))]
        else:
            return []  # The server stops. The client joins again.
        return [*self._start(), _event("RUN_FINISHED", **self._ids, outcome=outcome, usage=_usage(activity))]

    def _interrupts(self, waiting: dict[str, Any]) -> list[dict[str, Any]]:
        reason = str(waiting["for"])
        items = waiting["items"] if self._scope.may_see_content else ()
        calls = [(str(item["call_id"]), item.get("tool")) for item in items if item.get("call_id")]
        named = [{"id": call, "reason": reason, "toolCallId": call, "message": tool} for call, tool in calls]
        return named or [{"id": str(self._stream.activity.agent_id), "reason": reason}]


def _event(kind: str, cursor: str | None = None, **fields: Any) -> bytes:
    data = json.dumps({"type": kind, **{name: value for name, value in fields.items() if value is not None}})
    place = "" if cursor is None else f"id: {cursor}\n"
    return f"{place}data: {data}\n\n".encode()


def _log(log: ActivityLogSchema) -> dict[str, Any]:
    return log.model_dump(mode="json", include={"seq", "message", "status", "percentage", "created_at", "late"})


def _state(log: ActivityLogSchema) -> dict[str, Any]:
    """What a log says of the activity. A log without a percentage leaves the percentage as it was."""
    state: dict[str, Any] = {"status": log.status, "message": log.message}
    return state if log.percentage is None else {**state, "percentage": log.percentage}


def _usage(activity: ActivityListItemSchema) -> list[dict[str, Any]] | None:
    usage = {
        "model": activity.model,
        "inputTokens": activity.input_tokens,
        "outputTokens": activity.output_tokens,
        "cachedInputTokens": activity.cached_input_tokens,
        "reasoningTokens": activity.reasoning_tokens,
    }
    kept = {name: value for name, value in usage.items() if value is not None}
    return [kept] if kept else None
