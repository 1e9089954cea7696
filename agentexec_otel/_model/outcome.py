"""The outcome of a run by the exception that ended it."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from agentexec_otel._model.event import Outcome, Status
from agentexec_otel._model.reasons import is_cancellation, reason_of

_TEXT: Final = "__agentexec_otel_text__"
# Their texts, such as "'name'" or "3", say nothing without the name of the type.
_NAMED: Final = (KeyError, IndexError, StopIteration, StopAsyncIteration, SystemExit)


def replace_text(exc: BaseException, text: str) -> None:
    """Have `text` stored instead of this exception's own text."""
    with suppress(Exception):  # The application's exception may refuse attributes; then its own text is stored.
        setattr(exc, _TEXT, text)


def text_of(exc: BaseException) -> str:
    """The text to store for an exception: the name of its type if it has no text or cannot be converted."""
    name = type(exc).__name__
    with suppress(Exception):  # Its `__str__` may raise: the name is stored instead.
        if replaced := getattr(exc, _TEXT, ""):
            return str(replaced)
        text = str(exc)
        return (f"{name}: {text}" if isinstance(exc, _NAMED) else text) if text else name
    return name


def qualified_name(exc_type: type[BaseException]) -> str:
    """The type's name for ``error.type``: fully qualified, except for built-ins."""
    module = exc_type.__module__
    return exc_type.__qualname__ if module == "builtins" else f"{module}.{exc_type.__qualname__}"


def outcome_of(exc: BaseException | None) -> tuple[Status, Outcome | None]:
    """The status and outcome of a run that `exc` ended. None means that it returned."""
    if exc is None:
        return Status.COMPLETE, None
    if (isinstance(exc, SystemExit) and not exc.code) or is_cancellation(exc):
        return Status.CANCELED, Outcome(reason="canceled")
    return Status.ERROR, Outcome(error_type=qualified_name(type(exc)), reason=reason_of(exc))
