"""The tool by which an agent reports its progress. A model writes the input, so everything is bounded."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, Final, cast
from uuid import UUID

from agents import FunctionTool
from agents.tool_context import ToolContext

from agentexec_otel import activity
from agentexec_otel._errors import guarded
from agentexec_otel.instrumentation._activities import known
from agentexec_otel.instrumentation._progress import RateLimit

TOOL_NAME: Final = "report_activity"
MESSAGE_LIMIT: Final = 1_000  # characters kept of one report
ARGUMENTS_LIMIT: Final = 32_768  # characters of JSON that are parsed
MOST_REPORTS: Final = 500  # reports stored per runner, that is per activity
BURST: Final = 30  # reports stored at once
PER_SECOND: Final = 5.0

REPORT_STATUS: Final = """\
Somebody is following this task while you work on it. Keep them informed with the `report_activity` tool: \
when you start, whenever a larger part of the work is done, and when you find something worth knowing.

- `message`: one short, concrete sentence about what you are doing or have just found, \
such as "Comparing the prices of three suppliers".
- `percentage`: your honest estimate of how much of the whole task is done, from 0 to 100, never less than \
before; null if you cannot tell.

A report gets no answer from anybody, so carry on with the task right after it, and do not report the same thing twice.
"""

_STORED: Final = "Recorded. Continue with the task."
_ENDED: Final = "This activity has already ended, so the report changes nothing. Stop reporting."
_NO_MESSAGE: Final = f"Not recorded: call {TOOL_NAME} with a short `message` saying what you are doing."
_TOO_MANY: Final = "Not recorded: this task has used up its reports. Continue without reporting."
_TOO_FAST: Final = "Not recorded: that was too soon after the last report. Continue with the task."
_FAILED: Final = "The report could not be recorded. This does not matter for the task: continue with it."

_DESCRIPTION: Final = (
    "Tell whoever follows this task what you are doing. Changes nothing else: it neither ends nor delays the task."
)
_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "message": {"type": "string", "description": "What you are doing or have just found, in one short sentence."},
        "percentage": {
            "anyOf": [{"type": "integer"}, {"type": "null"}],
            "description": "How much of the whole task is done, 0 to 100; null if unknown.",
        },
    },
    "required": ["message", "percentage"],
    "additionalProperties": False,
}


def report_tool(agent_id: UUID) -> FunctionTool:
    """The tool for one activity, whose id the model can neither see nor choose. It never raises into the run."""
    left, rate = MOST_REPORTS, RateLimit(BURST, PER_SECOND)

    async def report(context: ToolContext[Any], arguments: str) -> str:
        nonlocal left
        if left <= 0:
            return _TOO_MANY
        if not rate.take():
            return _TOO_FAST
        left -= 1
        answer = _FAILED
        with guarded(f"the tool {TOOL_NAME}"):
            answer = await _store(agent_id, arguments)
        return answer  # noqa: RET504  # still _FAILED if the guard has suppressed an exception

    return FunctionTool(
        name=TOOL_NAME,
        description=_DESCRIPTION,
        params_json_schema=_SCHEMA,
        on_invoke_tool=report,
        strict_json_schema=True,
    )


async def _store(agent_id: UUID, arguments: str) -> str:
    message, percentage = parse(arguments)
    if not message:
        return _NO_MESSAGE
    had_ended = _has_ended(agent_id)  # The update may forget an ended activity, to read its row again.
    accepted = await activity.aio.update(agent_id, message, percentage)
    if had_ended or _has_ended(agent_id):
        return _ENDED
    return _STORED if accepted else _FAILED


def _has_ended(agent_id: UUID) -> bool:
    view = known(agent_id)
    return view is not None and view.status.terminal


def parse(arguments: str) -> tuple[str, int | None]:
    """Message and percentage from what a model has sent; an empty message if there is none."""
    try:
        value: object = json.loads(arguments) if len(arguments) <= ARGUMENTS_LIMIT else None
    except (ValueError, RecursionError):
        return "", None
    if not isinstance(value, dict):
        return "", None
    given = cast("dict[str, object]", value)
    message = given.get("message")
    text = " ".join(str(message).split()) if isinstance(message, str | int | float) else ""
    if len(text) > MESSAGE_LIMIT:
        text = f"{text[: MESSAGE_LIMIT - 1]}…"
    return text, percentage_of(given.get("percentage"))


def percentage_of(value: object) -> int | None:
    """The percentage that a model means by `value`, clamped to 0 to 100; None if it means none."""
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value.strip().removesuffix("%"))
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:  # NaN
        return None
    return int(max(0, min(100, value)))
