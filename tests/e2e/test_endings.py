"""How runs end, with the real client: status, reason, error type, span and history of each ending, word for word."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

import pytest
from agents import RunConfig, SQLiteSession
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import agentexec_otel as ax
from agentexec_otel._model.outcome import qualified_name
from agentexec_otel.activity.schemas import ActivityDetailSchema, ActivityLogSchema
from tests.databases import Database
from tests.e2e.instrumented import only
from tests.e2e.openai_server import Cut, Fail, Garble, GiveUp, Hang, OpenAIServer, Say, call
from tests.e2e.runs import (
    DONE,
    LOOK_UP,
    LOOK_UPS,
    PRIVATE,
    UNTRACED,
    Api,
    BrokenSession,
    Raising,
    Verdict,
    asked,
    broken,
    canceled_after_turn,
    canceled_consumer,
    canceled_stream,
    canceled_task,
    cannot_filter,
    caught,
    handed_over,
    handle_limit,
    in_block,
    in_trace,
    left_early,
    no_secrets,
    on_topic,
    paid,
    polite,
    resumed,
    run,
    run_sync,
    stream,
    thorough,
    timed_out_block,
    unread,
    with_mcp,
    wrapped_up,
)

pytestmark = pytest.mark.one_python

Level = Literal["steps", "detail"]


@dataclass(frozen=True, slots=True)
class Ending:
    """One way to end.

    Attributes:
        history: The logs after "Task started.", separated by bars. One that begins with ``+`` is stored with
            ``AGENTEXEC_PROGRESS=detail`` only, one that begins with ``-`` with ``steps`` only.
        error_type: Also that of the exception that the application gets.
    """

    title: str
    play: Callable[[Api], object]
    history: str
    status: str = "COMPLETE"
    reason: str | None = None
    error_type: str | None = None

    def logs(self, level: Level) -> list[str]:
        """The history with this setting of ``AGENTEXEC_PROGRESS``."""
        other = {"steps": "+ ", "detail": "- "}[level]
        kept = (log for log in self.history.split(" | ") if not log.startswith(other))
        return [log.removeprefix("+ ").removeprefix("- ") for log in kept]


ENDINGS: Final = [
    Ending("a run", run(DONE), "Turn 1: Agent | Task completed successfully."),
    Ending("a run, Chat Completions", run(DONE, agent={"chat": True}), "Turn 1: Agent | Task completed successfully."),
    Ending("a stream", stream(DONE), "Turn 1: Agent | Task completed successfully."),
    Ending(
        "a stream, Chat Completions", stream(DONE, agent={"chat": True}), "Turn 1: Agent | Task completed successfully."
    ),
    Ending(
        "`run_sync`",
        run_sync(LOOK_UP, DONE),
        "Turn 1: Agent | Calling look_up | + look_up is done | Turn 2: Agent | Task completed successfully.",
    ),
    Ending(
        "a tool call",
        run(LOOK_UP, DONE),
        "Turn 1: Agent | Calling look_up | + look_up is done | Turn 2: Agent | Task completed successfully.",
    ),
    Ending(
        "a tool call in a stream, Chat Completions",
        stream(LOOK_UP, DONE, agent={"chat": True}),
        "Turn 1: Agent | Calling look_up | + look_up is done | Turn 2: Agent | Task completed successfully.",
    ),
    Ending(
        "two tool calls at once",
        run(Say(calls=(*LOOK_UP.calls, *call("guarded").calls)), DONE),
        (
            "Turn 1: Agent | Calling look_up | Calling guarded | + look_up is done | + guarded is done | "
            "Turn 2: Agent | Task completed successfully."
        ),
    ),
    Ending(
        "a structured output",
        run(Say('{"is_good": true}'), agent={"output_type": Verdict}),
        "Turn 1: Agent | Task completed successfully.",
    ),
    Ending(
        "an input guardrail passes",
        run(DONE, agent={"input_guardrails": [polite]}),
        "+ Guardrail polite passed | Turn 1: Agent | Task completed successfully.",
    ),
    Ending(
        "HTTP 500, and the client's retry succeeds",
        run(Fail(500), DONE, agent={"retries": 1}),
        "Turn 1: Agent | Task completed successfully.",
    ),
    Ending(
        "HTTP 401",
        run(Fail(401)),
        "Turn 1: Agent | Task failed: Error code: 401 - Unauthorized",
        "ERROR",
        "auth",
        "openai.AuthenticationError",
    ),
    Ending(
        "HTTP 403",
        run(Fail(403)),
        "Turn 1: Agent | Task failed: Error code: 403 - Forbidden",
        "ERROR",
        "auth",
        "openai.PermissionDeniedError",
    ),
    Ending(
        "HTTP 400",
        run(Fail(400)),
        "Turn 1: Agent | Task failed: Error code: 400 - Bad Request",
        "ERROR",
        "other",
        "openai.BadRequestError",
    ),
    Ending(
        "HTTP 429",
        run(Fail(429)),
        "Turn 1: Agent | Task failed: Error code: 429 - Too Many Requests",
        "ERROR",
        "rate_limit",
        "openai.RateLimitError",
    ),
    Ending(
        "HTTP 429, a stream, Chat Completions",
        stream(Fail(429), agent={"chat": True}),
        "Turn 1: Agent | Task failed: Error code: 429 - Too Many Requests",
        "ERROR",
        "rate_limit",
        "openai.RateLimitError",
    ),
    Ending(
        "HTTP 500",
        run(Fail(500)),
        "Turn 1: Agent | Task failed: Error code: 500 - Internal Server Error",
        "ERROR",
        "model_unavailable",
        "openai.InternalServerError",
    ),
    Ending(
        "HTTP 500 at the second turn of a stream",
        stream(LOOK_UP, Fail(500)),
        (
            "Turn 1: Agent | Calling look_up | + look_up is done | Turn 2: Agent | "
            "Task failed: Error code: 500 - Internal Server Error"
        ),
        "ERROR",
        "model_unavailable",
        "openai.InternalServerError",
    ),
    Ending(
        "HTTP 503, Chat Completions",
        run(Fail(503), agent={"chat": True}),
        "Turn 1: Agent | Task failed: Error code: 503 - Service Unavailable",
        "ERROR",
        "model_unavailable",
        "openai.InternalServerError",
    ),
    Ending(
        "the client's timeout",
        run(Hang(), agent={"timeout": 0.1}),
        "Turn 1: Agent | Task failed: Request timed out.",
        "ERROR",
        "timeout",
        "openai.APITimeoutError",
    ),
    Ending(
        "the client's timeout, a stream",
        stream(Hang(), agent={"timeout": 0.1}),
        "Turn 1: Agent | Task failed: Request timed out.",
        "ERROR",
        "timeout",
        "openai.APITimeoutError",
    ),
    Ending(
        "no server",
        run(agent={"url": "http://127.0.0.1:9/v1"}),
        "Turn 1: Agent | Task failed: Connection error.",
        "ERROR",
        "connection",
        "openai.APIConnectionError",
    ),
    Ending(
        "the connection is cut before the answer",
        run(Cut()),
        "Turn 1: Agent | Task failed: Connection error.",
        "ERROR",
        "connection",
        "openai.APIConnectionError",
    ),
    Ending(
        "the connection is cut within the answer",
        run(Cut(midway=True), agent={"chat": True}),
        "Turn 1: Agent | Task failed: Connection error.",
        "ERROR",
        "connection",
        "openai.APIConnectionError",
    ),
    Ending(
        "a stream is cut",
        stream(Cut(midway=True)),
        "Turn 1: Agent | Task failed: Connection error.",
        "ERROR",
        "connection",
        "openai.APIConnectionError",
    ),
    Ending(
        "a stream is cut, Chat Completions",
        stream(LOOK_UP, Cut(midway=True), agent={"chat": True}),
        "Turn 1: Agent | Calling look_up | + look_up is done | Turn 2: Agent | Task failed: Connection error.",
        "ERROR",
        "connection",
        "openai.APIConnectionError",
    ),
    Ending(
        "an answer that is not JSON",
        run(Garble()),
        ("Turn 1: Agent | Task failed: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        "ERROR",
        "other",
        "json.decoder.JSONDecodeError",
    ),
    Ending(
        "a stream that is not JSON",
        stream(Garble()),
        ("Turn 1: Agent | Task failed: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        "ERROR",
        "other",
        "json.decoder.JSONDecodeError",
    ),
    Ending(
        "the provider gives up",
        run(GiveUp()),
        (
            "Turn 1: Agent | "
            "Task failed: Responses stream ended with terminal event `response.failed`. status=failed; "
            "error=ResponseError(code='server_error', message='The model failed.', misalignment=None, "
            "param=None, type=None)."
        ),
        "ERROR",
        "model_unavailable",
        "agents.exceptions.ModelBehaviorError",
    ),
    Ending(
        "the provider gives up, a stream",
        stream(GiveUp()),
        (
            "Turn 1: Agent | "
            "Task failed: Responses stream ended with terminal event `response.failed`. status=failed; "
            "error=ResponseError(code='server_error', message='The model failed.', misalignment=None, "
            "param=None, type=None)."
        ),
        "ERROR",
        "model_unavailable",
        "agents.exceptions.ModelBehaviorError",
    ),
    Ending(
        "the provider gives up, a stream, Chat Completions",
        stream(GiveUp(), agent={"chat": True}),
        "Turn 1: Agent | Task failed: The model failed.",
        "ERROR",
        "model_unavailable",
        "openai.APIError",
    ),
    Ending(
        "the model refuses",
        run(Say(refusal="I will not.")),
        "Turn 1: Agent | Task failed: Model refused to produce output: I will not.",
        "ERROR",
        "model_behavior",
        "agents.exceptions.ModelRefusalError",
    ),
    Ending(
        "the model refuses, a stream, Chat Completions",
        stream(Say(refusal="I will not."), agent={"chat": True}),
        "Turn 1: Agent | Task failed: Model refused to produce output: I will not.",
        "ERROR",
        "model_behavior",
        "agents.exceptions.ModelRefusalError",
    ),
    Ending(
        "the token limit",
        run(Say("ha", stops="length")),
        (
            "Turn 1: Agent | "
            "Task failed: Responses stream ended with terminal event `response.incomplete`. status=incomplete; "
            "incomplete_details=IncompleteDetails(reason='max_output_tokens')."
        ),
        "ERROR",
        "model_behavior",
        "agents.exceptions.ModelBehaviorError",
    ),
    Ending(
        "the token limit, Chat Completions",
        run(Say("ha", stops="length"), agent={"chat": True}),
        "Turn 1: Agent | Task completed successfully.",
    ),
    Ending(
        "the content filter, a stream",
        stream(Say("ha", stops="content_filter")),
        (
            "Turn 1: Agent | "
            "Task failed: Responses stream ended with terminal event `response.incomplete`. status=incomplete; "
            "incomplete_details=IncompleteDetails(reason='content_filter')."
        ),
        "ERROR",
        "model_behavior",
        "agents.exceptions.ModelBehaviorError",
    ),
    Ending(
        "an invalid structured output",
        run(Say("{}"), agent={"output_type": Verdict}),
        "Turn 1: Agent | Task failed: Invalid JSON when parsing model output",
        "ERROR",
        "model_behavior",
        "agents.exceptions.ModelBehaviorError",
    ),
    Ending(
        "an unknown tool",
        run(call("nowhere")),
        "Turn 1: Agent | Task failed: Tool nowhere not found in agent Agent",
        "ERROR",
        "model_behavior",
        "agents.exceptions.ModelBehaviorError",
    ),
    Ending(
        "max turns",
        run(*LOOK_UPS, max_turns=2),
        (
            "Turn 1: Agent | Calling look_up | + look_up is done | Turn 2: Agent | Calling look_up | "
            "+ look_up is done | Max turns (2) exceeded | Task failed: Max turns (2) exceeded"
        ),
        "ERROR",
        "max_turns",
        "agents.exceptions.MaxTurnsExceeded",
    ),
    Ending(
        "max turns, a stream",
        stream(*LOOK_UPS, max_turns=2),
        (
            "Turn 1: Agent | Calling look_up | + look_up is done | Turn 2: Agent | Calling look_up | "
            "+ look_up is done | Max turns (2) exceeded | Task failed: Max turns (2) exceeded"
        ),
        "ERROR",
        "max_turns",
        "agents.exceptions.MaxTurnsExceeded",
    ),
    Ending(
        "max turns, `run_sync`",
        run_sync(*LOOK_UPS, max_turns=1),
        (
            "Turn 1: Agent | Calling look_up | + look_up is done | Max turns (1) exceeded | "
            "Task failed: Max turns (1) exceeded"
        ),
        "ERROR",
        "max_turns",
        "agents.exceptions.MaxTurnsExceeded",
    ),
    Ending(
        "max turns, with an error handler",
        run(*LOOK_UPS, max_turns=1, error_handlers={"max_turns": handle_limit}),
        ("Turn 1: Agent | Calling look_up | + look_up is done | Max turns (1) exceeded | Task completed successfully."),
    ),
    Ending(
        "max turns, wrapped up by `OpenAIRunner`",
        wrapped_up(LOOK_UP, DONE),
        (
            "Turn 1: Agent | Calling look_up | + look_up is done | Max turns (1) exceeded | "
            "Max turns (1) exceeded; the agent was asked to wrap up. | Turn 2: Agent | "
            "Task completed successfully."
        ),
    ),
    Ending(
        "max turns, and wrapping up fails",
        wrapped_up(LOOK_UP, Fail(500)),
        (
            "Turn 1: Agent | Calling look_up | + look_up is done | Max turns (1) exceeded | "
            "Max turns (1) exceeded; the agent was asked to wrap up. | Turn 2: Agent | "
            "Task failed: Max turns (1) exceeded"
        ),
        "ERROR",
        "max_turns",
        "agents.exceptions.MaxTurnsExceeded",
    ),
    Ending(
        "an input guardrail trips beside the model",
        run(DONE, agent={"input_guardrails": [on_topic]}),
        "Guardrail on_topic tripped | Task failed: Guardrail InputGuardrail triggered tripwire",
        "ERROR",
        "guardrail_input",
        "agents.exceptions.InputGuardrailTripwireTriggered",
    ),
    Ending(
        "an input guardrail trips before the model",
        run(DONE, agent={"input_guardrails": [paid]}),
        "Guardrail paid tripped | Task failed: Guardrail InputGuardrail triggered tripwire",
        "ERROR",
        "guardrail_input",
        "agents.exceptions.InputGuardrailTripwireTriggered",
    ),
    Ending(
        "an input guardrail trips in a stream",
        stream(DONE, agent={"input_guardrails": [on_topic]}),
        "Guardrail on_topic tripped | Turn 1: Agent | Task failed: Guardrail InputGuardrail triggered tripwire",
        "ERROR",
        "guardrail_input",
        "agents.exceptions.InputGuardrailTripwireTriggered",
    ),
    Ending(
        "an input guardrail trips, another is canceled",
        run(DONE, agent={"input_guardrails": [thorough, on_topic]}),
        "Guardrail on_topic tripped | Task failed: Guardrail InputGuardrail triggered tripwire",
        "ERROR",
        "guardrail_input",
        "agents.exceptions.InputGuardrailTripwireTriggered",
    ),
    Ending(
        "an input guardrail fails",
        run(DONE, agent={"input_guardrails": [broken]}),
        "Guardrail broken failed | Task failed: the guardrail broke",
        "ERROR",
        "other",
        "ValueError",
    ),
    Ending(
        "an output guardrail trips",
        run(DONE, agent={"output_guardrails": [no_secrets]}),
        ("Turn 1: Agent | Guardrail no_secrets tripped | Task failed: Guardrail OutputGuardrail triggered tripwire"),
        "ERROR",
        "guardrail_output",
        "agents.exceptions.OutputGuardrailTripwireTriggered",
    ),
    Ending(
        "an output guardrail trips in a stream",
        stream(DONE, agent={"output_guardrails": [no_secrets]}),
        ("Turn 1: Agent | Guardrail no_secrets tripped | Task failed: Guardrail OutputGuardrail triggered tripwire"),
        "ERROR",
        "guardrail_output",
        "agents.exceptions.OutputGuardrailTripwireTriggered",
    ),
    Ending(
        "a tool's guardrail rejects the call",
        run(call("refused"), DONE),
        (
            "Turn 1: Agent | Guardrail no_calls rejected the call of refused | Turn 2: Agent | "
            "Task completed successfully."
        ),
    ),
    Ending(
        "a tool's guardrail trips at the call",
        run(call("forbidden"), DONE),
        (
            "Turn 1: Agent | Guardrail trips_at_calls rejected the call of forbidden | "
            "Task failed: Tool input guardrail ToolInputGuardrail triggered tripwire"
        ),
        "ERROR",
        "guardrail_input",
        "agents.exceptions.ToolInputGuardrailTripwireTriggered",
    ),
    Ending(
        "a tool's guardrail rejects the output",
        run(call("talkative"), DONE),
        (
            "Turn 1: Agent | Calling talkative | Guardrail no_outputs rejected the output of talkative | "
            "Turn 2: Agent | Task completed successfully."
        ),
    ),
    Ending(
        "a tool's guardrail trips at the output",
        run(call("leaky"), DONE),
        (
            "Turn 1: Agent | Calling leaky | Guardrail trips_at_outputs rejected the output of leaky | "
            "Task failed: Tool output guardrail ToolOutputGuardrail triggered tripwire"
        ),
        "ERROR",
        "guardrail_output",
        "agents.exceptions.ToolOutputGuardrailTripwireTriggered",
    ),
    Ending(
        "a tool fails, the model is told",
        run(call("fails"), DONE),
        (
            "Turn 1: Agent | Calling fails | - fails failed | "
            "+ fails failed: Tool execution failed. Error details are redacted. | Turn 2: Agent | "
            "Task completed successfully."
        ),
    ),
    Ending(
        "a tool fails, the model is told, a stream",
        stream(call("fails"), DONE),
        (
            "Turn 1: Agent | Calling fails | - fails failed | "
            "+ fails failed: Tool execution failed. Error details are redacted. | Turn 2: Agent | "
            "Task completed successfully."
        ),
    ),
    Ending(
        "a tool fails, the model is told in the application's words",
        run(call("explains"), DONE),
        (
            "Turn 1: Agent | Calling explains | - explains failed | + explains failed: the tool failed | "
            "Turn 2: Agent | Task completed successfully."
        ),
    ),
    Ending(
        "a tool raises",
        run(call("raises")),
        (
            "Turn 1: Agent | Calling raises | - raises failed | + raises failed: the tool broke | "
            "Task failed: Error running tool raises: the tool broke"
        ),
        "ERROR",
        "tool",
        "agents.exceptions.UserError",
    ),
    Ending(
        "a tool raises in a stream",
        stream(call("raises")),
        (
            "Turn 1: Agent | Calling raises | - raises failed | + raises failed: the tool broke | "
            "Task failed: Error running tool raises: the tool broke"
        ),
        "ERROR",
        "tool",
        "agents.exceptions.UserError",
    ),
    Ending(
        "a tool raises KeyError",
        run(call("lacks_key")),
        (
            "Turn 1: Agent | Calling lacks_key | - lacks_key failed | + lacks_key failed: 'bug' | "
            "Task failed: Error running tool lacks_key: 'bug'"
        ),
        "ERROR",
        "tool",
        "agents.exceptions.UserError",
    ),
    Ending(
        "one of two tools fails",
        run(Say(calls=(*LOOK_UP.calls, *call("fails").calls)), DONE),
        (
            "Turn 1: Agent | Calling look_up | Calling fails | - fails failed | + look_up is done | "
            "+ fails failed: Tool execution failed. Error details are redacted. | Turn 2: Agent | "
            "Task completed successfully."
        ),
    ),
    Ending(
        "a tool times out, the model is told",
        run(call("slow"), DONE),
        ("Turn 1: Agent | Calling slow | slow timed out after 0.05 s | Turn 2: Agent | Task completed successfully."),
    ),
    Ending(
        "a tool times out, the model is told politely",
        run(call("slow_and_polite"), DONE),
        (
            "Turn 1: Agent | Calling slow_and_polite | slow_and_polite timed out after 0.05 s | Turn 2: Agent | "
            "Task completed successfully."
        ),
    ),
    Ending(
        "a tool times out and raises",
        run(call("slow_and_strict"), DONE),
        (
            "Turn 1: Agent | Calling slow_and_strict | slow_and_strict timed out after 0.05 s | "
            "Task failed: Tool 'slow_and_strict' timed out after 0.05 seconds."
        ),
        "ERROR",
        "timeout",
        "agents.exceptions.ToolTimeoutError",
    ),
    Ending(
        "a tool times out, tracing disabled",
        run(call("slow"), DONE, run_config=UNTRACED),
        ("Turn 1: Agent | Calling slow | slow timed out after 0.05 s | Turn 2: Agent | Task completed successfully."),
    ),
    Ending(
        "a tool fails, tracing disabled",
        run(call("fails"), DONE, run_config=UNTRACED),
        "Turn 1: Agent | Calling fails | fails failed | Turn 2: Agent | Task completed successfully.",
    ),
    Ending(
        "a tool call, tracing disabled",
        run(LOOK_UP, DONE, run_config=UNTRACED),
        "Turn 1: Agent | Calling look_up | Turn 2: Agent | Task completed successfully.",
    ),
    Ending(
        "arguments that are not JSON",
        run(Say(calls=(("look_up", "{]"),)), DONE),
        (
            "Turn 1: Agent | Calling look_up | look_up was called with invalid arguments | Turn 2: Agent | "
            "Task completed successfully."
        ),
    ),
    Ending(
        "an argument is missing",
        run(call("look_up", subject="tea"), DONE, agent={"chat": True}),
        (
            "Turn 1: Agent | Calling look_up | look_up was called with invalid arguments | Turn 2: Agent | "
            "Task completed successfully."
        ),
    ),
    Ending(
        "wrong arguments raise",
        run(call("strict", subject="tea"), DONE),
        (
            "Turn 1: Agent | Calling strict | strict was called with invalid arguments | "
            "Task failed: Invalid JSON input for tool strict"
        ),
        "ERROR",
        "model_behavior",
        "agents.exceptions.ModelBehaviorError",
    ),
    Ending(
        "a run waits for an approval",
        run(call("delete")),
        "Turn 1: Agent | Stopped for the approval of 1 tool call.",
        "RUNNING",
    ),
    Ending(
        "an approved call",
        resumed(call("delete"), LOOK_UP, DONE, approve=True),
        (
            "Turn 1: Agent | Stopped for the approval of 1 tool call. | Task started. | Calling delete | "
            "+ delete is done | Turn 2: Agent | Calling look_up | + look_up is done | Turn 3: Agent | "
            "Task completed successfully."
        ),
    ),
    Ending(
        "an approved call, resumed as a stream",
        resumed(call("delete"), DONE, approve=True, streamed=True),
        (
            "Turn 1: Agent | Stopped for the approval of 1 tool call. | Task started. | Calling delete | "
            "+ delete is done | Turn 2: Agent | Task completed successfully."
        ),
    ),
    Ending(
        "a rejected call",
        resumed(LOOK_UP, call("delete"), DONE, approve=False),
        (
            "Turn 1: Agent | Calling look_up | + look_up is done | Turn 2: Agent | "
            "Stopped for the approval of 1 tool call. | Task started. | delete was not approved | "
            "Turn 3: Agent | Task completed successfully."
        ),
    ),
    Ending(
        "a call rejected for good",
        resumed(call("delete"), call("delete"), DONE, approve=False, always=True),
        (
            "Turn 1: Agent | Stopped for the approval of 1 tool call. | Task started. | "
            "delete was not approved | Turn 2: Agent | delete was not approved | Turn 3: Agent | "
            "Task completed successfully."
        ),
    ),
    Ending(
        "a rejected call, resumed as a stream",
        resumed(call("delete"), DONE, approve=False, streamed=True),
        (
            "Turn 1: Agent | Stopped for the approval of 1 tool call. | Task started. | "
            "delete was not approved | Turn 2: Agent | Task completed successfully."
        ),
    ),
    Ending(
        "a rejected call of an agent that is a tool",
        resumed(call("ask", input="go"), DONE, approve=False, inner=[call("delete"), DONE]),
        (
            "Turn 1: Agent | Calling ask | Turn 1: Inner | Stopped for the approval of 1 tool call. | Task started. | "
            "delete was not approved | Turn 2: Inner | + ask is done | Turn 2: Agent | Task completed successfully."
        ),
    ),
    Ending(
        "an MCP tool",
        with_mcp(call("read"), call("read"), DONE),
        (
            "+ files offers 3 tools | Turn 1: Agent | Calling read | + read is done | Turn 2: Agent | "
            "Calling read | + read is done | Turn 3: Agent | Task completed successfully."
        ),
    ),
    Ending(
        "an MCP tool answers with an error",
        with_mcp(call("refuse"), DONE),
        (
            "+ files offers 3 tools | Turn 1: Agent | Calling refuse | - refuse answered with an error | "
            "+ refuse answered with an error: no such file | Turn 2: Agent | Task completed successfully."
        ),
    ),
    Ending(
        "an MCP tool answers with an error, which is private",
        with_mcp(call("refuse"), DONE, run_config=PRIVATE),
        (
            "+ files offers 3 tools | Turn 1: Agent | Calling refuse | refuse answered with an error | "
            "Turn 2: Agent | Task completed successfully."
        ),
    ),
    Ending(
        "an MCP tool answers with an error, tracing disabled",
        with_mcp(call("refuse"), DONE, run_config=UNTRACED),
        (
            "Turn 1: Agent | Calling refuse | - refuse answered with an error | "
            "+ refuse answered with an error: no such file | Turn 2: Agent | Task completed successfully."
        ),
    ),
    Ending(
        "an MCP server dies",
        with_mcp(call("die"), DONE),
        (
            "+ files offers 3 tools | Turn 1: Agent | Calling die | - die failed | "
            "+ die failed: Tool execution failed. Error details are redacted. | files did not list its tools | "
            "Task failed: Connection closed"
        ),
        "ERROR",
        "connection",
        "mcp.shared.exceptions.MCPError",
    ),
    Ending(
        "an MCP server dies, and its tool raises",
        with_mcp(call("die"), failure_error_function=None),
        (
            "+ files offers 3 tools | Turn 1: Agent | Calling die | - die failed | "
            "+ die failed: Connection closed | Task failed: Error running tool die: Connection closed"
        ),
        "ERROR",
        "connection",
        "agents.exceptions.UserError",
    ),
    Ending(
        "an MCP server cannot list its tools",
        with_mcp(DONE, arguments=("unlisted",)),
        "files did not list its tools | Task failed: The index is broken.",
        "ERROR",
        "other",
        "mcp.shared.exceptions.MCPError",
    ),
    Ending(
        "a handoff", handed_over(DONE), "Turn 1: First | First → Second | Turn 2: Second | Task completed successfully."
    ),
    Ending(
        "a handoff to an agent that fails",
        handed_over(Fail(500)),
        "Turn 1: First | First → Second | Turn 2: Second | Task failed: Error code: 500 - Internal Server Error",
        "ERROR",
        "model_unavailable",
        "openai.InternalServerError",
    ),
    Ending(
        "an agent as a tool",
        asked(LOOK_UP, DONE, then=DONE),
        (
            "Turn 1: Outer | Calling ask | Turn 1: Inner | Calling look_up | + look_up is done | Turn 2: Inner | "
            "+ ask is done | Turn 2: Outer | Task completed successfully."
        ),
    ),
    Ending(
        "an agent as a tool fails, the outer one is told",
        asked(Fail(500), then=DONE),
        (
            "Turn 1: Outer | Calling ask | Turn 1: Inner | - ask failed | "
            "+ ask failed: Tool execution failed. Error details are redacted. | Turn 2: Outer | "
            "Task completed successfully."
        ),
    ),
    Ending(
        "an agent as a tool raises",
        asked(Fail(429), then=DONE, failure_error_function=None),
        (
            "Turn 1: Outer | Calling ask | Turn 1: Inner | - ask failed | "
            "+ ask failed: Error code: 429 - Too Many Requests | "
            "Task failed: Error running tool ask: Error code: 429 - Too Many Requests"
        ),
        "ERROR",
        "rate_limit",
        "agents.exceptions.UserError",
    ),
    Ending("`task.cancel()`", canceled_task, "Turn 1: Agent | Task canceled.", "CANCELED", "canceled"),
    Ending(
        "`asyncio.timeout` around the run", timed_out_block, "Turn 1: Agent | Task canceled.", "CANCELED", "canceled"
    ),
    Ending("`cancel()` on a stream", canceled_stream, "Turn 1: Agent | Task canceled.", "CANCELED", "canceled"),
    Ending(
        '`cancel(mode="after_turn")` on a stream',
        canceled_after_turn,
        "Turn 1: Agent | Calling look_up | + look_up is done | Task canceled.",
        "CANCELED",
        "canceled",
    ),
    Ending(
        "the consumer of a stream breaks out of it",
        left_early,
        "Turn 1: Agent | Calling look_up | + look_up is done | Turn 2: Agent | Task completed successfully.",
    ),
    Ending(
        "a stream is not read",
        unread,
        "Turn 1: Agent | Calling look_up | + look_up is done | Turn 2: Agent | Task completed successfully.",
    ),
    Ending(
        "the consumer of a stream is canceled",
        canceled_consumer,
        "Turn 1: Agent | Task canceled.",
        "CANCELED",
        "canceled",
    ),
    Ending(
        "KeyboardInterrupt",
        run_sync(call("interrupt")),
        "Turn 1: Agent | Calling interrupt | Task canceled.",
        "CANCELED",
        "canceled",
    ),
    Ending(
        "the activity is canceled with words",
        run(call("cancel_with_words"), DONE),
        (
            "Turn 1: Agent | Calling cancel_with_words | Not needed any more. | "
            "+ (late) cancel_with_words is done | (late) Usage: input tokens 10, output tokens 3, requests 1."
        ),
        "CANCELED",
        "canceled",
    ),
    Ending(
        "the activity is canceled with words, a stream",
        stream(call("cancel_with_words"), DONE),
        (
            "Turn 1: Agent | Calling cancel_with_words | Not needed any more. | "
            "+ (late) cancel_with_words is done | (late) Usage: input tokens 10, output tokens 3, requests 1."
        ),
        "CANCELED",
        "canceled",
    ),
    Ending(
        "the activity is ended with words",
        run(call("end_with_words"), DONE),
        (
            "Turn 1: Agent | Calling end_with_words | The file is empty. | + (late) end_with_words is done | "
            "(late) Turn 2: Agent | (late) Task completed successfully."
        ),
        "ERROR",
    ),
    Ending(
        "SystemExit with a code",
        run_sync(DONE, hooks=Raising(SystemExit(3))),
        "Turn 1: Agent | Task failed: SystemExit: 3",
        "ERROR",
        "other",
        "SystemExit",
    ),
    Ending(
        "SystemExit without one",
        run_sync(DONE, hooks=Raising(SystemExit())),
        "Turn 1: Agent | Task canceled.",
        "CANCELED",
        "canceled",
    ),
    Ending(
        "a hook raises KeyError",
        run(DONE, hooks=Raising(KeyError("bug"))),
        "Turn 1: Agent | Task failed: KeyError: 'bug'",
        "ERROR",
        "other",
        "KeyError",
    ),
    Ending(
        "a hook raises an exception group",
        run(DONE, hooks=Raising(ExceptionGroup("two", [ValueError("a"), KeyError("b")]))),
        "Turn 1: Agent | Task failed: two (2 sub-exceptions)",
        "ERROR",
        "other",
        "ExceptionGroup",
    ),
    Ending(
        "a hook raises TimeoutError",
        run(DONE, hooks=Raising(TimeoutError())),
        "Turn 1: Agent | Task failed: TimeoutError",
        "ERROR",
        "timeout",
        "TimeoutError",
    ),
    Ending(
        "an input filter fails",
        run(DONE, run_config=RunConfig(call_model_input_filter=cannot_filter)),
        "Task failed: no such filter",
        "ERROR",
        "other",
        "LookupError",
    ),
    Ending(
        "a session fails",
        run(DONE, session=BrokenSession("one")),
        "Task failed: the session's database is away",
        "ERROR",
        "other",
        "OSError",
    ),
    Ending("a session", run(DONE, session=SQLiteSession("one")), "Turn 1: Agent | Task completed successfully."),
    Ending(
        "a block around a run that fails",
        in_block(run(Fail(500))),
        "Turn 1: Agent | Task failed: Error code: 500 - Internal Server Error",
        "ERROR",
        "model_unavailable",
        "openai.InternalServerError",
    ),
    Ending(
        "a block that catches the failure",
        in_block(caught(run(Fail(500)))),
        "Turn 1: Agent | Task completed successfully.",
    ),
    Ending(
        "a trace around a run that fails",
        in_trace(run(Fail(429))),
        "Turn 1: Agent | Task failed: Error code: 429 - Too Many Requests",
        "ERROR",
        "rate_limit",
        "openai.RateLimitError",
    ),
    Ending(
        "a trace that catches the failure",
        in_trace(caught(run(Fail(429)))),
        "Turn 1: Agent | Task completed successfully.",
    ),
]


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAIServer]:
    """The OpenAI APIs."""
    with OpenAIServer() as running:
        yield running


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("level", ["steps", "detail"])
@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.title)
def test_ending(
    database: Database,
    spans: InMemorySpanExporter,
    instrumented: None,
    server: OpenAIServer,
    ending: Ending,
    level: Level,
) -> None:
    """Row, span and history say what has happened, and the application gets the exception of the SDK."""
    ax.CONF.progress = level
    raised = play(ending, server)
    activity = only(database)
    assert [*map(text, activity.logs)][2:] == ending.logs(level)
    assert (activity.status, activity.reason, activity.error_type) == (ending.status, ending.reason, ending.error_type)
    if ending.error_type is not None:
        assert raised is not None
        assert qualified_name(type(raised)) == ending.error_type
    ended = [says(span) for span in spans.get_finished_spans()]
    assert ended == ([] if ending.status == "RUNNING" else [expected_of_span(activity)])


def play(ending: Ending, server: OpenAIServer) -> BaseException | None:
    """Run it on an event loop of its own, and return what it raises."""
    server.is_hanging.clear()
    api = Api(server)
    with asyncio.Runner() as runner:
        asyncio.set_event_loop(runner.get_loop())  # where `Runner.run_sync` runs
        try:
            running = ending.play(api)
            if asyncio.iscoroutine(running):
                runner.run(running)
        except BaseException as exc:  # noqa: BLE001  # KeyboardInterrupt and SystemExit are endings, too.
            return exc
        finally:
            runner.run(api.close())
            asyncio.set_event_loop(None)
    return None


def text(log: ActivityLogSchema) -> str:
    """The log as it is in the table."""
    return f"(late) {log.message}" if log.late else log.message


SpanSays = tuple[str, str | None, object, object, object]


def says(span: ReadableSpan) -> SpanSays:
    """How the activity has ended, by its span."""
    told = span.attributes or {}
    attributes = (told.get(name) for name in ("agentexec.status", "agentexec.reason", "error.type"))
    return (span.status.status_code.name, span.status.description, *attributes)  # type: ignore[return-value]


def expected_of_span(activity: ActivityDetailSchema) -> SpanSays:
    """What the span has to say: as the row, and the status ERROR, with the log that ended it, for ERROR alone."""
    failed = [log.message for log in activity.logs if log.status == "ERROR" and not log.late]
    code, description = ("ERROR", failed[0]) if failed else ("UNSET", None)
    return code, description, activity.status.value, activity.reason, activity.error_type
