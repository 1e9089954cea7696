"""The outcome of a run by the exception that ended it. Exceptions are known by name, so nothing is imported."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, cast

from agentexec_otel._model.event import Outcome, Status

_REASONS: Final[dict[str, str]] = {
    "agents.exceptions.MaxTurnsExceeded": "max_turns",
    "agents.exceptions.InputGuardrailTripwireTriggered": "guardrail_input",
    "agents.exceptions.OutputGuardrailTripwireTriggered": "guardrail_output",
    "agents.exceptions.ToolInputGuardrailTripwireTriggered": "guardrail_input",
    "agents.exceptions.ToolOutputGuardrailTripwireTriggered": "guardrail_output",
    "agents.exceptions.ModelBehaviorError": "model_behavior",
    "agents.exceptions.ModelRefusalError": "model_behavior",
    "agents.exceptions.ModelTimeoutError": "timeout",
    "agents.exceptions.ToolTimeoutError": "tool",
    "agents.exceptions.UserError": "user_error",
    "agentexec_otel._errors.TaskResultError": "result",
    "billiard.exceptions.SoftTimeLimitExceeded": "timeout",
    "builtins.TimeoutError": "timeout",
}
_CANCELLATIONS: Final = (asyncio.CancelledError, KeyboardInterrupt, GeneratorExit)
_CANCELED: Final = "agentexec_otel._errors.ActivityCanceledError"
_TEXT: Final = "__agentexec_otel_text__"


def replace_text(exc: BaseException, text: str) -> None:
    """Have `text` stored instead of this exception's own text."""
    with suppress(Exception):
        setattr(exc, _TEXT, text)


def text_of(exc: BaseException) -> str:
    """The text to store for an exception: the name of its type if it has no text or cannot be converted."""
    with suppress(Exception):
        return str(getattr(exc, _TEXT, "") or exc) or type(exc).__name__
    return type(exc).__name__


def qualified_name(exc_type: type[BaseException]) -> str:
    """The type's name for ``error.type``: fully qualified, except for built-ins."""
    module = exc_type.__module__
    return exc_type.__qualname__ if module == "builtins" else f"{module}.{exc_type.__qualname__}"


def reason_of(exc_type: type[BaseException]) -> str:
    """The reason of the nearest known base class, else ``other``."""
    return next((_REASONS[name] for name in _names(exc_type) if name in _REASONS), "other")


def _is_cancellation(exc: BaseException) -> bool:
    if isinstance(exc, BaseExceptionGroup):
        return all(map(_is_cancellation, cast("BaseExceptionGroup[BaseException]", exc).exceptions))
    return isinstance(exc, _CANCELLATIONS) or _CANCELED in _names(type(exc))


def _names(exc_type: type[BaseException]) -> Iterator[str]:
    """The full names of the type and its bases, nearest first."""
    return (f"{base.__module__}.{base.__qualname__}" for base in exc_type.__mro__)


def outcome_of(exc: BaseException | None) -> tuple[Status, Outcome | None]:
    """The status and outcome of a run that `exc` ended. None means that it returned."""
    if exc is None:
        return Status.COMPLETE, None
    if (isinstance(exc, SystemExit) and not exc.code) or _is_cancellation(exc):
        return Status.CANCELED, Outcome(reason="cancelled")
    reason = reason_of(type(exc))
    if reason == "user_error" and exc.__cause__ is not None and text_of(exc).startswith("Error running tool"):
        reason = "tool"  # The Agents SDK wraps exceptions of tools so.
    return Status.ERROR, Outcome(error_type=qualified_name(type(exc)), reason=reason)
