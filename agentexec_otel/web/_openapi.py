"""What the OpenAPI document says of each endpoint, beside its signature and docstring."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from fastapi.responses import StreamingResponse

from agentexec_otel import __version__
from agentexec_otel.web import _examples
from agentexec_otel.web._problems import PROBLEM_TYPE, Problem
from agentexec_otel.web._schemas import Activity, ActivityDetail
from agentexec_otel.web._scope import ACTION_HEADER

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
    content = {"schema": Problem.model_json_schema(), "example": _examples.problem_example(status)}
    return {"description": _DESCRIPTIONS[status], "content": {PROBLEM_TYPE: content}}


def _endpoint(summary: str, answer: dict[str, Any], problems: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """The arguments for FastAPI's decorator of an endpoint."""
    responses = {200: answer, **more.pop("responses", {}), **{status: _problem(status) for status in problems}}
    return {"summary": summary, "responses": responses, **more}


def _streamed(summary: str, answer: dict[str, Any], problems: tuple[int, ...]) -> dict[str, Any]:
    return _endpoint(summary, answer, problems, response_class=StreamingResponse)


def _change(summary: str, answer: dict[str, Any], problems: tuple[int, ...]) -> dict[str, Any]:
    return _endpoint(summary, answer, problems, openapi_extra=_OF_A_CHANGE)


_ACTIVITY = _json("The activity. One that has ended has an `ETag`.", _examples.DETAIL) | {
    "headers": {
        "ETag": {"description": "Of an activity that has ended.", "schema": {"type": "string"}, "example": '"5d1f…"'}
    }
}
_NOT_MODIFIED = {HTTPStatus.NOT_MODIFIED.value: {"description": "The `ETag` in `If-None-Match` is still right."}}
_SESSION = {"may_act": True, "may_see_content": True, "may_retry": False, "version": __version__}

ENDPOINTS: Final[dict[str, dict[str, Any]]] = {
    "get_session": _endpoint("What the caller may do", _json("What the caller may do.", _SESSION), (403,)),
    "list_activities": _endpoint("List activities", _json("A page.", _examples.PAGE), _ALWAYS),
    "get_activity": _endpoint(
        "Get an activity", _ACTIVITY, _OF_ONE, responses=_NOT_MODIFIED, response_model=ActivityDetail | Activity
    ),
    "get_logs": _endpoint("Get the logs of an activity", _json("The logs.", _examples.LOGS), _OF_ONE),
    "get_stats": _endpoint("Count and measure activities", _json("The figures.", _examples.STATS), _ALWAYS),
    "follow_activity": _streamed(
        "Follow an activity", _stream("Its logs, until it ends.", _examples.FOLLOWED, ["log", "end"]), _OF_ONE
    ),
    "join_run": _streamed(
        "Join an activity as a run of AG-UI",
        _stream("The events of the run.", _examples.JOINED, ["message"]),
        _WITH_BODY,
    ),
    "follow_list": _streamed(
        "Follow a list",
        _stream("The activities that change.", _examples.FOLLOWED_LIST, ["ready", "activity", "left", "reset"]),
        _ALWAYS,
    ),
    "cancel_activity": _change("Cancel an activity", _json("Whether it was canceled.", {"canceled": True}), _WITH_BODY),
    "cancel_activities": _change("Cancel many", _json("How many were canceled.", {"canceled": 12}), _ALWAYS),
    "retry_activity": _change("Retry an activity", _json("The new attempt.", {"attempt": 2}), (*_WITH_BODY, 409, 502)),
    "retry_activities": _change("Retry many", _json("The new attempts.", _examples.RETRIED_MANY), (*_ALWAYS, 502)),
}
"""By the name of the endpoint's function."""
