"""Why a run ended, in one word of a fixed vocabulary. Exceptions are known by name, so nothing is imported."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, Literal, cast, get_args

Reason = Literal[
    "max_turns",
    "guardrail_input",
    "guardrail_output",
    "tool",
    "model_behavior",
    "model_unavailable",
    "rate_limit",
    "auth",
    "connection",
    "timeout",
    "usage_limit",
    "canceled",
    "lost",
    "enqueue",
    "other",
]
REASONS: Final[tuple[Reason, ...]] = get_args(Reason)

_Classifier = Callable[[Any], Reason | None]

_MOST_CAUSES: Final = 64
_MCP_CLOSED: Final = (-32000, "Connection closed")
_MCP_TIMEOUTS: Final = (-32001, 408)  # of version 2 and of version 1

_registered: Final[dict[type[BaseException], Reason]] = {}
"""What the application has registered. Only `register` writes it, one item at a time, which is atomic."""


def register(exception_type: type[BaseException], reason: Reason) -> None:
    """Store `reason` for activities that an exception of this type, or of a subclass, ends.

    The nearest class decides, and your reason for a class replaces ours. An exception with the reason ``canceled``
    ends its activity as CANCELED. Registering a type again replaces its reason. Call it where you import the exception;
    it is safe in any thread.

    Args:
        reason: One of `REASONS`. There are no others, so that a reason means the same for every application and
            framework, and dashboards and alerts know all of them. The exact class is stored beside it, as
            ``error_type``.

    Raises:
        ValueError: `exception_type` is not a class of exceptions, or `reason` is not one of `REASONS`.
    """
    given = cast(object, exception_type)
    if not (isinstance(given, type) and issubclass(given, BaseException)):
        raise ValueError(f"exception_type={given!r} is not a class of exceptions: pass the class, such as TimeoutError")
    if reason not in REASONS:
        raise ValueError(f"reason={reason!r} is not in the vocabulary: use one of {', '.join(REASONS)}")
    _registered[exception_type] = reason


def reason_of(exc: BaseException) -> Reason:
    """The reason of the first known exception among `exc`, the members of a group, and the explicit causes.

    ``__context__`` does not count: what was handled when a bug in the handler raised is not why the run failed.
    """
    chain = tuple(_with_causes(exc))
    for each in chain:
        reason = _own_reason(each)
        if reason is not None and reason not in {"other", "canceled"}:
            return reason
    return "tool" if any(map(_is_failed_tool, chain)) else "other"


def is_cancellation(exc: BaseException) -> bool:
    """Whether the exception, or each member of a group, has the reason ``canceled``. Causes do not count."""
    if isinstance(exc, BaseExceptionGroup):
        return all(map(is_cancellation, cast("BaseExceptionGroup[BaseException]", exc).exceptions))
    return _own_reason(exc) == "canceled"


def _with_causes(exc: BaseException) -> Iterator[BaseException]:
    """The exception, the members of a group, and the causes of each, depth first; each once, up to a limit."""
    todo, seen = [exc], set[int]()
    while todo and len(seen) < _MOST_CAUSES:
        each = todo.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        if each.__cause__ is not None:
            todo.append(each.__cause__)
        if isinstance(each, BaseExceptionGroup):
            todo.extend(reversed(cast("BaseExceptionGroup[BaseException]", each).exceptions))


def _own_reason(exc: BaseException) -> Reason | None:
    """The reason of the exception's nearest class that has one."""
    for base in type(exc).__mro__:
        name = _name(base)
        found = _registered.get(base) or _classify(_CLASSIFIERS.get(name), exc) or _KNOWN.get(name)
        if found is not None:
            return found
    return None


def _name(base: type) -> str:
    return f"{base.__module__}.{base.__qualname__}"


def _classify(classifier: _Classifier | None, exc: BaseException) -> Reason | None:
    with suppress(Exception):  # The attributes of a foreign exception may raise.
        return None if classifier is None else classifier(exc)
    return None


# -- exceptions with one reason -----------------------------------------------------------------------------------

_BY_REASON: Final[dict[Reason, tuple[str, ...]]] = {
    "max_turns": ("agents.exceptions.MaxTurnsExceeded", "langgraph.errors.GraphRecursionError"),
    "guardrail_input": (
        "agents.exceptions.InputGuardrailTripwireTriggered",
        "agents.exceptions.ToolInputGuardrailTripwireTriggered",
    ),
    "guardrail_output": (
        "agents.exceptions.OutputGuardrailTripwireTriggered",
        "agents.exceptions.ToolOutputGuardrailTripwireTriggered",
    ),
    "model_behavior": (
        "agents.exceptions.ModelBehaviorError",
        "agents.exceptions.ModelRefusalError",
        "openai.ContentFilterFinishReasonError",
        "openai.LengthFinishReasonError",
        "pydantic_ai.exceptions.UnexpectedModelBehavior",
    ),
    "model_unavailable": (
        "pydantic_ai.exceptions.ModelServerError",
        "pydantic_ai.exceptions.ModelUnavailableError",
    ),
    "rate_limit": ("pydantic_ai.exceptions.ModelRateLimitError",),
    "auth": (
        "anthropic.CredentialsError",
        "pydantic_ai.exceptions.ModelAuthenticationError",
    ),
    "connection": (
        "agents.exceptions.MCPToolCancellationError",  # The task of the tool's MCP server has ended.
        "agents.sandbox.errors.ExecTransportError",
        "agents.voice.exceptions.STTWebsocketConnectionError",
        "aiohttp.client_exceptions.ClientConnectionError",
        "aiohttp.client_exceptions.ClientPayloadError",
        "anthropic.APIConnectionError",
        "anyio.BrokenResourceError",
        "anyio.ClosedResourceError",
        "anyio.ConnectionFailed",
        "builtins.ConnectionError",
        *(f"{httpx}.{name}" for httpx in ("httpx", "httpx2") for name in ("NetworkError", "ProxyError")),
        *(f"{httpx}.RemoteProtocolError" for httpx in ("httpx", "httpx2")),
        "openai.APIConnectionError",
        "openai.WebSocketConnectionClosedError",
        "pydantic_ai.exceptions.ModelConnectionError",
        "requests.exceptions.ChunkedEncodingError",
        "requests.exceptions.ConnectionError",
        "socket.gaierror",
        "ssl.SSLError",
        "websockets.exceptions.ConnectionClosed",
    ),
    "timeout": (
        "agents.exceptions.ModelTimeoutError",
        "agents.exceptions.ToolTimeoutError",
        "agents.sandbox.errors.ExecTimeoutError",
        "aiohttp.client_exceptions.ServerTimeoutError",
        "anthropic.APITimeoutError",
        "billiard.exceptions.SoftTimeLimitExceeded",
        "billiard.exceptions.TimeLimitExceeded",
        "builtins.TimeoutError",
        "celery.exceptions.TimeoutError",
        "httpx.TimeoutException",
        "httpx2.TimeoutException",
        "langgraph.errors.NodeTimeoutError",
        "openai.APITimeoutError",
        "pydantic_ai.exceptions.ModelRequestTimeout",
        "pydantic_ai.exceptions.ModelTimeoutError",
        "pydantic_ai.exceptions.RunTimedOut",
        "requests.exceptions.ConnectTimeout",
        "requests.exceptions.Timeout",
        "taskiq.exceptions.TaskiqResultTimeoutError",
    ),
    "usage_limit": (
        "litellm.exceptions.BudgetExceededError",
        "pydantic_ai.exceptions.ModelQuotaExceededError",
        "pydantic_ai.exceptions.UsageLimitExceeded",
    ),
    "canceled": (
        "agentexec_otel._errors.ActivityCanceledError",
        "asyncio.exceptions.CancelledError",
        "builtins.GeneratorExit",
        "builtins.KeyboardInterrupt",
        "pydantic_ai.exceptions.RunCancelled",
    ),
    "lost": ("billiard.exceptions.WorkerLostError",),
}
_KNOWN: Final[dict[str, Reason]] = {name: reason for reason, names in _BY_REASON.items() for name in names}


# -- exceptions that say more in their attributes or their text ---------------------------------------------------

_BY_STATUS: Final[dict[int, Reason]] = {
    401: "auth",
    402: "usage_limit",
    403: "auth",
    408: "timeout",
    429: "rate_limit",
}
# The `code` or `type` that providers send in the body, also of an error in the middle of a stream.
_BY_CODE: Final[dict[str, Reason]] = {
    "api_error": "model_unavailable",
    "authentication_error": "auth",
    "billing_error": "usage_limit",
    "insufficient_quota": "usage_limit",
    "invalid_api_key": "auth",
    "overloaded_error": "model_unavailable",
    "permission_error": "auth",
    "rate_limit_error": "rate_limit",
    "rate_limit_exceeded": "rate_limit",
    "server_error": "model_unavailable",
    "timeout_error": "timeout",
}
# How the Agents SDK describes an HTTP error of an MCP server, whose cause it removes: the error may quote credentials.
_BY_MCP_TEXT: Final[dict[str, Reason]] = {
    "Connection lost. The server may have disconnected.": "connection",
    "Connection timeout.": "timeout",
    "Could not reach the server.": "connection",
    "Request failed.": "connection",
}
_MCP_STATUS: Final = re.compile(r"HTTP error (\d{3})(?: \(.*\))?$")
_STREAM_ERROR: Final = re.compile(r"Responses stream ended with terminal event .*?\bcode='?(\w+)", re.DOTALL)
_AGENTS: Final = "agents.exceptions.AgentsException"
_TOOL_FAILED: Final = ("Error running tool", "Error invoking MCP tool", "Failed to call tool")
"""How the Agents SDK's exceptions begin that it makes of a tool's exception."""


def _status_code(exc: Any) -> int:
    """The HTTP status of the answer, under whichever name the exception has it; 0 if there is none."""
    found = [getattr(exc, name, None) for name in ("status_code", "status")]
    found.append(getattr(getattr(exc, "response", None), "status_code", None))
    return next((code for code in found if isinstance(code, int)), 0)


def _of_http(exc: Any) -> Reason | None:
    """For HTTP clients that tools use, too: a 5xx says nothing of the model."""
    return _BY_STATUS.get(_status_code(exc))


def _of_model_api(exc: Any) -> Reason | None:
    codes = (getattr(exc, name, None) for name in ("code", "type", "error_type"))
    reason: Reason | None = next((_BY_CODE[code] for code in codes if isinstance(code, str) and code in _BY_CODE), None)
    if reason == "usage_limit":
        return reason  # Sent as 429, but waiting does not help.
    if 500 <= _status_code(exc) < 600:
        return "model_unavailable"
    return _of_http(exc) or reason


def _of_model_behavior(exc: Any) -> Reason | None:
    """The Agents SDK raises this for a stream, too, that the provider has ended with an error."""
    found = _STREAM_ERROR.match(str(exc))
    return None if found is None else _BY_CODE.get(found[1])


def _of_mcp(exc: Any) -> Reason | None:
    code, message = exc.error.code, exc.error.message
    if code in _MCP_TIMEOUTS:
        return "timeout"
    return "connection" if (code, message) == _MCP_CLOSED else None


def _of_mcp_text(exc: Any) -> Reason | None:
    text = str(exc)
    if " MCP server '" not in text:
        return None
    if status := _MCP_STATUS.search(text):
        return _BY_STATUS.get(int(status[1]))
    return next((reason for end, reason in _BY_MCP_TEXT.items() if text.endswith(end)), None)


def _is_failed_tool(exc: BaseException) -> bool:
    with suppress(Exception):  # Its `__str__` may raise: then it is no exception of the Agents SDK.
        return _AGENTS in map(_name, type(exc).__mro__) and str(exc).startswith(_TOOL_FAILED)
    return False


_CLASSIFIERS: Final[dict[str, _Classifier]] = {
    "agents.exceptions.ModelBehaviorError": _of_model_behavior,
    "agents.exceptions.UserError": _of_mcp_text,
    "agents.models.openai_responses.ResponsesWebSocketError": _of_model_api,
    "aiohttp.client_exceptions.ClientResponseError": _of_http,
    "anthropic.APIError": _of_model_api,
    "httpx.HTTPStatusError": _of_http,
    "httpx2.HTTPStatusError": _of_http,
    "mcp.shared.exceptions.MCPError": _of_mcp,
    "mcp.shared.exceptions.McpError": _of_mcp,
    "openai.APIError": _of_model_api,
    "pydantic_ai.exceptions.ModelHTTPError": _of_model_api,
    "requests.exceptions.HTTPError": _of_http,
}
