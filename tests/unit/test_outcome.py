"""What an exception says about how a run ended."""

import asyncio
import importlib
from uuid import uuid4

import pytest
from agents import UserError

from agentexec_otel._errors import ActivityCanceledError
from agentexec_otel._model.event import Outcome, Status
from agentexec_otel._model.outcome import _REASONS, outcome_of, qualified_name, reason_of  # pyright: ignore[reportPrivateUsage]


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


CANCELED = (Status.CANCELED, Outcome(reason="cancelled"))


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
        (ExceptionGroup("g", [TimeoutError()]), (Status.ERROR, Outcome("ExceptionGroup", "other"))),
        (BaseExceptionGroup("g", [ActivityCanceledError(uuid4()), KeyboardInterrupt()]), CANCELED),
        (
            ExceptionGroup("g", [ActivityCanceledError(uuid4()), ValueError()]),
            (Status.ERROR, Outcome("ExceptionGroup", "other")),
        ),
        (silent(), (Status.ERROR, Outcome(f"{__name__}.SilentError", "user_error"))),
        (MemoryError(), (Status.ERROR, Outcome("MemoryError", "other"))),
    ],
    ids=lambda given: type(given).__name__,
)
def test_how_a_run_ended(exc: BaseException | None, expected: tuple[Status, Outcome | None]) -> None:
    """Its end is COMPLETE, a cancellation or a polite exit CANCELED, everything else ERROR with a type and a reason."""
    assert outcome_of(exc) == expected


def test_names_are_those_of_existing_exceptions() -> None:
    """Every exception that has a reason of its own exists under that name in the installed packages."""
    for name in _REASONS:
        module, _, attribute = name.rpartition(".")
        found = getattr(importlib.import_module(module), attribute)
        assert issubclass(found, BaseException)
        assert f"{found.__module__}.{found.__qualname__}" == name
        assert reason_of(found) == _REASONS[name]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MaxTurnsExceeded", "max_turns"),
        ("InputGuardrailTripwireTriggered", "guardrail_input"),
        ("OutputGuardrailTripwireTriggered", "guardrail_output"),
        ("ModelBehaviorError", "model_behavior"),
        ("UserError", "user_error"),
        ("AgentsException", "other"),
    ],
)
def test_exceptions_of_the_agents_sdk(name: str, reason: str) -> None:
    """The SDK's exceptions, and an application's subclasses of them, have the documented reasons."""
    base: type[BaseException] = getattr(importlib.import_module("agents.exceptions"), name)
    derived = type("DerivedError", (OwnError, base), {})
    assert reason_of(base) == reason_of(derived) == reason


def test_qualified_names() -> None:
    """Built-ins are bare, everything else has its module."""
    assert qualified_name(KeyError) == "KeyError"
    assert qualified_name(asyncio.QueueFull) == "asyncio.queues.QueueFull"
