"""The tool through which an agent reports its progress. A model writes its input, so everything is bounded."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Final, cast
from uuid import UUID

from agents import FunctionTool
from agents.tool_context import ToolContext

from agentexec_otel import activity
from agentexec_otel._errors import guarded
from agentexec_otel._runtime import process as _runtime

TOOL_NAME: Final = "report_activity"
MESSAGE_LIMIT: Final = 1_000  # characters kept of one report
ARGUMENTS_LIMIT: Final = 32_768  # characters of JSON that are looked at
LINES: Final = 500  # reports stored per runner, that is per activity
BURST: Final = 30  # reports stored at once, refilled by
PER_SECOND: Final = 5.0

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


class Quota:
    """How many reports may still be stored: a total for the activity, and a rate.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        lines: int = LINES,
        burst: int = BURST,
        per_second: float = PER_SECOND,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lines = lines
        self._burst = float(burst)
        self._per_second = per_second
        self._clock = clock
        self._at_hand = float(burst)
        self._refilled = clock()

    def refusal(self) -> str | None:
        """Take one report; what to answer the model when there is none to take."""
        if self._lines <= 0:
            return _TOO_MANY
        now = self._clock()
        self._at_hand = min(self._burst, self._at_hand + (now - self._refilled) * self._per_second)
        self._refilled = now
        if self._at_hand < 1:
            return _TOO_FAST
        self._at_hand -= 1
        self._lines -= 1
        return None


def report_tool(agent_id: UUID, quota: Quota | None = None) -> FunctionTool:
    """The tool for one activity, whose id the model can neither see nor choose. It never raises into the model loop."""
    left = quota or Quota()

    async def report(context: ToolContext[Any], arguments: str) -> str:
        if refusal := left.refusal():
            return refusal
        answer = _FAILED
        with guarded(f"the tool {TOOL_NAME}"):
            answer = await _store(agent_id, arguments)
        return answer  # noqa: RET504  # it is _FAILED where the guard has swallowed something

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
    had_ended = _has_ended(agent_id)  # The row of one that has is read again, but not waited for.
    accepted = await activity.aio.update(agent_id, message, percentage)
    if had_ended or _has_ended(agent_id):
        return _ENDED
    return _STORED if accepted else _FAILED


def _has_ended(agent_id: UUID) -> bool:
    known = _runtime.active().spans.known(agent_id)
    return known is not None and known.status.terminal


def parse(arguments: str) -> tuple[str, int | None]:
    """Message and percentage out of whatever a model has sent; an empty message when there is none."""
    try:
        value: object = json.loads(arguments) if len(arguments) <= ARGUMENTS_LIMIT else None
    except (ValueError, RecursionError):
        return "", None
    if not isinstance(value, dict):
        return "", None
    given = cast("dict[str, object]", value)
    message = given.get("message")
    text = " ".join(str(message).split()) if isinstance(message, str | int | float) else ""
    return _cut(text), percentage_of(given.get("percentage"))


def percentage_of(value: object) -> int | None:
    """The percentage a model means by `value`, clamped to 0 to 100; None when it means none."""
    if isinstance(value, str):
        value = _number(value.strip().removesuffix("%"))
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:  # NaN
        return None
    return int(max(0, min(100, value)))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _cut(text: str) -> str:
    return text if len(text) <= MESSAGE_LIMIT else f"{text[: MESSAGE_LIMIT - 1]}…"
