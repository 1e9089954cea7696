"""What an exception says about how a run ended."""

import asyncio
from uuid import uuid4

import pytest
from agents import UserError

from agentexec_otel._errors import ActivityCanceledError
from agentexec_otel._model.event import Outcome, Status
from agentexec_otel._model.outcome import outcome_of, qualified_name, replace_text, text_of


class OwnError(Exception):
    """An application's own."""

    class NestedError(Exception):
        """Defined inside another class."""


class SlowError(TimeoutError):
    """A time-out by another name."""


class SilentError(UserError):
    """One that cannot tell its text."""

    def __str__(self) -> str:
        raise RuntimeError


def silent() -> SilentError:
    error = SilentError("")
    error.__cause__ = ValueError()
    return error


CANCELED = (Status.CANCELED, Outcome(reason="canceled"))


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (None, (Status.COMPLETE, None)),
        (asyncio.CancelledError(), CANCELED),
        (KeyboardInterrupt(), CANCELED),
        (GeneratorExit(), CANCELED),
        (SystemExit(), CANCELED),
        (SystemExit(0), CANCELED),
        (SystemExit(2), (Status.ERROR, Outcome("SystemExit", "other"))),
        (SystemExit("text"), (Status.ERROR, Outcome("SystemExit", "other"))),
        (ValueError("x"), (Status.ERROR, Outcome("ValueError", "other"))),
        (TimeoutError(), (Status.ERROR, Outcome("TimeoutError", "timeout"))),
        (SlowError(), (Status.ERROR, Outcome(f"{__name__}.SlowError", "timeout"))),
        (OwnError.NestedError(), (Status.ERROR, Outcome(f"{__name__}.OwnError.NestedError", "other"))),
        (ExceptionGroup("g", [TimeoutError()]), (Status.ERROR, Outcome("ExceptionGroup", "timeout"))),
        (BaseExceptionGroup("g", [ActivityCanceledError(uuid4()), KeyboardInterrupt()]), CANCELED),
        (
            ExceptionGroup("g", [ActivityCanceledError(uuid4()), ValueError()]),
            (Status.ERROR, Outcome("ExceptionGroup", "other")),
        ),
        (silent(), (Status.ERROR, Outcome(f"{__name__}.SilentError", "other"))),
        (MemoryError(), (Status.ERROR, Outcome("MemoryError", "other"))),
    ],
    ids=lambda given: type(given).__name__,
)
def test_how_a_run_ended(exc: BaseException | None, expected: tuple[Status, Outcome | None]) -> None:
    """Its end is COMPLETE, a cancellation or a polite exit CANCELED, everything else ERROR with a type and a reason."""
    assert outcome_of(exc) == expected


def test_qualified_names() -> None:
    """Built-ins are bare, everything else has its module."""
    assert qualified_name(KeyError) == "KeyError"
    assert qualified_name(asyncio.QueueFull) == "asyncio.queues.QueueFull"


@pytest.mark.parametrize(
    ("exc", "text"),
    [
        (KeyError("bug"), "KeyError: 'bug'"),
        (KeyError(), "KeyError"),
        (IndexError("list index out of range"), "IndexError: list index out of range"),
        (StopIteration("done"), "StopIteration: done"),
        (StopAsyncIteration(3), "StopAsyncIteration: 3"),
        (SystemExit(3), "SystemExit: 3"),
        (ValueError(), "ValueError"),
        (ValueError("no such order"), "no such order"),
        (LookupError("no such order"), "no such order"),
        (OSError(2, "No such file or directory"), "[Errno 2] No such file or directory"),
        (silent(), "SilentError"),
    ],
)
def test_text_of_an_exception(exc: BaseException, text: str) -> None:
    """The type is named if the text says nothing without it, is empty or fails; any other text is as it is."""
    assert text_of(exc) == text


def test_replaced_text_stands_alone() -> None:
    """A text given in place of an exception's own is stored as it is, without the type."""
    exc = KeyError("bug")
    replace_text(exc, "the worker has no task 'bug'")
    assert text_of(exc) == "the worker has no task 'bug'"
