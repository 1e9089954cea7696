"""The one reason that an exception gives, with the real exceptions of the installed packages.

langgraph and litellm are not development tools: classes with the same names stand in for theirs.
"""

import asyncio
import importlib
import socket
import ssl
from collections.abc import Iterator
from typing import Any, get_args

import agents
import agents.exceptions
import aiohttp
import anthropic
import anyio
import httpx
import httpx2
import openai
import pytest
import requests
import taskiq
import websockets.exceptions
from agents.models.openai_responses import ResponsesWebSocketError
from mcp.shared.exceptions import MCPError
from pydantic_ai import exceptions as pydantic_ai
from yarl import URL

import agentexec_otel as ax
from agentexec_otel._model import reasons
from agentexec_otel._model.event import Outcome, Status
from agentexec_otel._model.outcome import outcome_of
from agentexec_otel._model.reasons import Reason, reason_of

billiard_exceptions: Any = importlib.import_module("billiard.exceptions")  # It and Celery have no types.
celery_exceptions: Any = importlib.import_module("celery.exceptions")
REQUEST = httpx2.Request("POST", "http://localhost/v1")
OLD_REQUEST = httpx.Request("POST", "http://localhost/v1")
# Not installed here: another version's name, an optional extra, and packages that are not development tools.
ELSEWHERE = ("mcp.shared.exceptions.McpError", "agents.voice.", "langgraph.", "litellm.")


def imitated(name: str, base: type[Exception] = Exception, *args: object) -> Exception:
    """An exception of a class with this full name."""
    module, _, qualname = name.rpartition(".")
    imitation: type[Exception] = type(qualname, (base,), {"__module__": module})
    return imitation(*args)


def told(error: type[openai.APIStatusError] | type[anthropic.APIStatusError], status: int, **body: str) -> Exception:
    """What a client of a model provider raises for an answer."""
    return error("refused", response=httpx2.Response(status, request=REQUEST), body=body or None)


def requests_error(status: int) -> Exception:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError("refused", response=response)


def http_error(status: int) -> Exception:
    return httpx.HTTPStatusError("refused", request=OLD_REQUEST, response=httpx.Response(status))


def aiohttp_error(status: int) -> Exception:
    info = aiohttp.RequestInfo(URL("http://localhost"), "GET", Any, URL("http://localhost"))  # type: ignore[arg-type]
    return aiohttp.ClientResponseError(info, (), status=status)


KNOWN: list[tuple[BaseException, Reason]] = [
    (agents.MaxTurnsExceeded("25"), "max_turns"),
    (imitated("langgraph.errors.GraphRecursionError", RecursionError), "max_turns"),
    (agents.ModelBehaviorError("no such tool"), "model_behavior"),
    (agents.exceptions.ModelRefusalError("no"), "model_behavior"),
    (openai.ContentFilterFinishReasonError(), "model_behavior"),
    (pydantic_ai.UnexpectedModelBehavior("what?"), "model_behavior"),
    (pydantic_ai.ContentFilterError("filtered"), "model_behavior"),
    (told(openai.InternalServerError, 500), "model_unavailable"),
    (told(openai.APIStatusError, 503), "model_unavailable"),
    (told(anthropic.InternalServerError, 529), "model_unavailable"),
    (told(openai.RateLimitError, 429), "rate_limit"),
    (told(anthropic.RateLimitError, 429), "rate_limit"),
    (told(openai.RateLimitError, 429, code="insufficient_quota"), "usage_limit"),
    (told(openai.AuthenticationError, 401), "auth"),
    (told(openai.PermissionDeniedError, 403), "auth"),
    (told(anthropic.AuthenticationError, 401), "auth"),
    (told(openai.BadRequestError, 400), "other"),
    (told(openai.NotFoundError, 404), "other"),
    (openai.APIError("overloaded", REQUEST, body={"type": "server_error"}), "model_unavailable"),
    (openai.APIError("slow down", REQUEST, body={"code": "rate_limit_exceeded"}), "rate_limit"),
    (openai.APIError("?", REQUEST, body=None), "other"),
    (ResponsesWebSocketError({"error": {"code": "rate_limit_exceeded"}}), "rate_limit"),
    (
        agents.ModelBehaviorError(
            "Responses stream ended with terminal event `response.failed`. status=failed;"
            " error=ResponseError(code='server_error', message='try again')."
        ),
        "model_unavailable",
    ),
    (openai.APITimeoutError(REQUEST), "timeout"),
    (anthropic.APITimeoutError(REQUEST), "timeout"),
    (openai.APIConnectionError(request=REQUEST), "connection"),
    (anthropic.APIConnectionError(request=REQUEST), "connection"),
    (anthropic.CredentialsError("none"), "auth"),
    (pydantic_ai.UsageLimitExceeded("1000 tokens"), "usage_limit"),
    (pydantic_ai.ModelHTTPError(429, "model"), "rate_limit"),
    (pydantic_ai.ModelHTTPError(401, "model"), "auth"),
    (pydantic_ai.ModelHTTPError(503, "model"), "model_unavailable"),
    (
        pydantic_ai.ModelHTTPError.for_category(
            pydantic_ai.ModelQuotaExceededError, status_code=429, model_name="model"
        ),
        "usage_limit",
    ),
    (pydantic_ai.ModelConnectionError("model", "reset"), "connection"),
    (pydantic_ai.ModelTimeoutError("model", "slow"), "timeout"),
    (pydantic_ai.RunTimedOut("late"), "timeout"),
    (imitated("litellm.exceptions.BudgetExceededError"), "usage_limit"),
    (
        imitated("litellm.exceptions.Timeout", type("APITimeoutError", (Exception,), {"__module__": "openai"})),
        "timeout",
    ),
    (httpx.ReadTimeout("slow"), "timeout"),
    (httpx2.PoolTimeout("slow"), "timeout"),
    (httpx.RemoteProtocolError("cut"), "connection"),
    (httpx2.RemoteProtocolError("cut"), "connection"),
    (httpx.ReadError("cut"), "connection"),
    (httpx2.ConnectError("refused"), "connection"),
    (httpx.UnsupportedProtocol("ftp"), "other"),
    (http_error(429), "rate_limit"),
    (http_error(500), "other"),
    (requests_error(403), "auth"),
    (requests.ConnectTimeout(), "timeout"),
    (requests.ConnectionError(), "connection"),
    (aiohttp_error(429), "rate_limit"),
    (aiohttp.ServerTimeoutError(), "timeout"),
    (aiohttp.ServerDisconnectedError(), "connection"),
    (websockets.exceptions.ConnectionClosedError(None, None), "connection"),
    (ConnectionResetError(104, "reset"), "connection"),
    (socket.gaierror(-2, "Name or service not known"), "connection"),
    (ssl.SSLEOFError(8, "EOF"), "connection"),
    (FileNotFoundError(2, "No such file"), "other"),
    (MCPError(-32000, "Connection closed"), "connection"),
    (MCPError(-32000, "out of stock"), "other"),
    (MCPError(-32001, "Request 'tools/call' timed out"), "timeout"),
    (MCPError(-32602, "Unknown tool"), "other"),
    (anyio.ClosedResourceError(), "connection"),
    (anyio.BrokenResourceError(), "connection"),
    (agents.exceptions.MCPToolCancellationError("canceled"), "connection"),
    (agents.exceptions.ModelTimeoutError(1), "timeout"),
    (agents.exceptions.ToolTimeoutError("look_up", 1), "timeout"),
    (TimeoutError(), "timeout"),
    (TimeoutError(), "timeout"),
    (celery_exceptions.TimeoutError(), "timeout"),
    (billiard_exceptions.SoftTimeLimitExceeded(), "timeout"),
    (billiard_exceptions.TimeLimitExceeded(3), "timeout"),
    (billiard_exceptions.WorkerLostError(), "lost"),
    (taskiq.TaskiqResultTimeoutError(timeout=1), "timeout"),
    (agents.UserError("no handler"), "other"),
    (agents.AgentsException("?"), "other"),
    (pydantic_ai.UserError("no model"), "other"),
    (RecursionError(), "other"),
]


@pytest.mark.parametrize(("exc", "reason"), KNOWN, ids=lambda given: type(given).__name__)
def test_reason_of_a_known_exception(exc: BaseException, reason: Reason) -> None:
    """Each exception has its reason."""
    assert reason_of(exc) == reason


class OwnError(Exception):
    """An application's own, of which nothing is known."""


class OwnTurnsError(OwnError, agents.MaxTurnsExceeded):
    """A subclass of a known class, behind an unknown one."""


class OwnStatusError(openai.APIStatusError):
    """A subclass of a class whose attributes decide."""


def test_reason_of_a_subclass() -> None:
    """A subclass that an application derives has the reason of its nearest known base class."""
    assert reason_of(OwnTurnsError("25")) == "max_turns"
    assert reason_of(told(OwnStatusError, 429)) == "rate_limit"


def test_length_limit_of_an_answer() -> None:
    """An answer that was cut at its length is the model's behavior."""
    completion: Any = type("Completion", (), {"usage": None})()
    assert reason_of(openai.LengthFinishReasonError(completion=completion)) == "model_behavior"


def test_names_are_those_of_existing_exceptions() -> None:
    """Every exception that we know exists under that name in the installed packages."""
    names = [*reasons._KNOWN, *reasons._CLASSIFIERS]  # pyright: ignore[reportPrivateUsage]
    for name in names:
        if name.startswith(ELSEWHERE):
            continue
        module, _, attribute = name.rpartition(".")
        found = getattr(importlib.import_module(module), attribute)
        assert issubclass(found, BaseException)
        assert f"{found.__module__}.{found.__qualname__}" == name


# -- causes and groups --------------------------------------------------------------------------------------------


def from_cause(exc: BaseException, cause: BaseException) -> BaseException:
    exc.__cause__ = cause
    return exc


def group(*members: BaseException) -> BaseException:
    return BaseExceptionGroup("g", members)


def tool_failed(cause: BaseException | None) -> BaseException:
    """How the Agents SDK passes on what a tool has raised."""
    return from_cause(agents.UserError(f"Error running tool look_up: {cause}"), cause or ValueError())


CAUSED: list[tuple[str, BaseException, Reason]] = [
    ("a cause", from_cause(OwnError(), told(openai.RateLimitError, 429)), "rate_limit"),
    ("a cause of a cause", from_cause(OwnError(), from_cause(ValueError(), TimeoutError())), "timeout"),
    ("the outer one is known", from_cause(agents.MaxTurnsExceeded(""), TimeoutError()), "max_turns"),
    ("the outer one is an answer without a reason", from_cause(http_error(500), TimeoutError()), "timeout"),
    ("a group of timeouts", group(TimeoutError(), httpx.ReadTimeout("")), "timeout"),
    ("a group of unknown ones", group(ValueError(), KeyError()), "other"),
    ("the first known member", group(ValueError(), ConnectionError(), TimeoutError()), "connection"),
    (
        "a member's cause before the next member",
        group(tool_failed(TimeoutError()), ConnectionError()),
        "timeout",
    ),
    ("a group in a group", group(group(TimeoutError())), "timeout"),
    ("a group's members before its cause", from_cause(group(TimeoutError()), ConnectionError()), "timeout"),
    ("a group's cause", from_cause(group(ValueError()), ConnectionError()), "connection"),
    ("a group as a cause", from_cause(OwnError(), group(TimeoutError())), "timeout"),
    ("a cancellation as a cause", from_cause(OwnError(), asyncio.CancelledError()), "other"),
    ("a tool that raised", tool_failed(ZeroDivisionError()), "tool"),
    ("a tool that raised a known one", tool_failed(httpx.ReadTimeout("slow")), "timeout"),
    ("an MCP tool", agents.AgentsException("Error invoking MCP tool look_up on server 'x': ?"), "tool"),
    ("a dead MCP server", tool_failed(MCPError(-32000, "Connection closed")), "connection"),
    ("an application's text like the SDK's", OwnError("Error running tool look_up: ?"), "other"),
]


@pytest.mark.parametrize(("exc", "reason"), [case[1:] for case in CAUSED], ids=[case[0] for case in CAUSED])
def test_reason_of_causes_and_groups(exc: BaseException, reason: Reason) -> None:
    """An exception without a known reason has that of the first member or explicit cause that has one."""
    assert reason_of(exc) == reason


def test_exception_raised_while_another_was_handled() -> None:
    """A bug in an `except` block has its own reason, not that of what was handled."""

    def failing() -> None:
        try:
            raise TimeoutError
        except TimeoutError:
            raise KeyError("bug")  # noqa: B904

    with pytest.raises(KeyError) as caught:
        failing()
    assert isinstance(caught.value.__context__, TimeoutError)
    assert reason_of(caught.value) == "other"


def test_causes_that_lead_back() -> None:
    """A cycle of causes ends, as does a chain of a hundred thousand."""
    first, second = OwnError("1"), OwnError("2")
    first.__cause__, second.__cause__ = second, first
    assert reason_of(first) == "other"
    longest: BaseException = TimeoutError()
    for _ in range(100_000):
        longest = from_cause(OwnError(), longest)
    assert reason_of(longest) == "other"
    while longest.__cause__ is not None:  # The interpreter frees a chain recursively.
        longest, longest.__cause__ = longest.__cause__, None


def test_exception_whose_attributes_raise() -> None:
    """An exception that cannot tell its code or its text has a reason all the same."""

    class HostileError(openai.APIStatusError, agents.UserError):
        def __init__(self) -> None:
            Exception.__init__(self)

        def __getattribute__(self, name: str) -> Any:
            if name.startswith("__"):
                return object.__getattribute__(self, name)
            raise RuntimeError

        def __str__(self) -> str:
            raise RuntimeError

    assert reason_of(HostileError()) == "other"


# -- cancellations ------------------------------------------------------------------------------------------------


def test_cancellation_of_a_framework() -> None:
    """pydantic-ai's own cancellation ends a run as CANCELED; the deadline that it derives from it does not."""
    assert outcome_of(pydantic_ai.RunCancelled("stopped")) == (Status.CANCELED, Outcome(reason="canceled"))
    assert outcome_of(pydantic_ai.RunTimedOut("late"))[0] is Status.ERROR


def test_failure_beside_a_cancellation() -> None:
    """A group of a failure and a cancellation is an ERROR, for the failure's reason."""
    mixed = BaseExceptionGroup("g", [asyncio.CancelledError(), TimeoutError()])
    assert outcome_of(mixed) == (Status.ERROR, Outcome("BaseExceptionGroup", "timeout"))


# -- the registry -------------------------------------------------------------------------------------------------


@pytest.fixture
def clean_registry() -> Iterator[None]:
    """What a test registers is forgotten."""
    registered = reasons._registered  # pyright: ignore[reportPrivateUsage]
    before = dict(registered)
    yield
    registered.clear()
    registered.update(before)


class StoppedByBudgetError(OwnError):
    """A subclass."""


@pytest.mark.usefixtures("clean_registry")
def test_register() -> None:
    """A registered class has its reason, subclasses have that of the nearest, and the last call counts."""
    ax.reasons.register(OwnError, "tool")
    assert reason_of(StoppedByBudgetError()) == reason_of(OwnError()) == "tool"
    ax.reasons.register(StoppedByBudgetError, "usage_limit")
    assert (reason_of(StoppedByBudgetError()), reason_of(OwnError())) == ("usage_limit", "tool")
    ax.reasons.register(OwnError, "auth")
    assert reason_of(OwnError()) == "auth"
    assert reason_of(from_cause(OwnError(), TimeoutError())) == "auth"
    assert reason_of(from_cause(ValueError(), StoppedByBudgetError())) == "usage_limit"


@pytest.mark.usefixtures("clean_registry")
def test_register_a_class_that_we_know() -> None:
    """The application's reason for a class replaces ours; a nearer class keeps its own."""
    ax.reasons.register(openai.APIConnectionError, "model_unavailable")
    assert reason_of(openai.APIConnectionError(request=REQUEST)) == "model_unavailable"
    assert reason_of(openai.APITimeoutError(REQUEST)) == "timeout"


@pytest.mark.usefixtures("clean_registry")
def test_register_a_cancellation() -> None:
    """An exception that is registered as `canceled` ends its activity as CANCELED."""
    ax.reasons.register(OwnError, "canceled")
    assert outcome_of(OwnError()) == (Status.CANCELED, Outcome(reason="canceled"))


@pytest.mark.parametrize(
    ("exception_type", "reason", "text"),
    [
        (ValueError, "cancelled", "reason='cancelled' is not in the vocabulary: use one of max_turns, .*, other"),
        (ValueError, "", "reason='' is not in the vocabulary"),
        (ValueError, None, "reason=None is not in the vocabulary"),
        (ValueError, ["tool"], r"reason=\['tool'\] is not in the vocabulary"),
        (int, "tool", "exception_type=<class 'int'> is not a class of exceptions: pass the class, such as Time"),
        (ValueError("x"), "tool", r"exception_type=ValueError\('x'\) is not a class of exceptions"),
        ("ValueError", "tool", "exception_type='ValueError' is not a class of exceptions"),
    ],
)
def test_register_bad_input(exception_type: Any, reason: Any, text: str) -> None:
    """What is not a class of exceptions, or not of the vocabulary, is refused with the value and the fix."""
    with pytest.raises(ValueError, match=text):
        ax.reasons.register(exception_type, reason)
    assert reason_of(ValueError()) == "other"


def test_vocabulary() -> None:
    """The reasons are those that the type allows, each once."""
    assert get_args(Reason) == ax.reasons.REASONS
    assert len(set(ax.reasons.REASONS)) == len(ax.reasons.REASONS) == 15
