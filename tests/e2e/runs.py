"""Runs of agents whose models are on a local server of the OpenAI APIs, for each way in which a run can end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import agents
from agents import (
    Agent,
    GuardrailFunctionOutput,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    RunContextWrapper,
    RunErrorHandlerResult,
    RunHooks,
    Runner,
    SQLiteSession,
    ToolGuardrailFunctionOutput,
    function_tool,
    input_guardrail,
    output_guardrail,
    tool_input_guardrail,
    tool_output_guardrail,
)
from agents.mcp import MCPServerStdio
from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from pydantic import BaseModel

import agentexec_otel as ax
from tests.e2e.openai_server import Hang, OpenAIServer, Reply, Say, call

_MCP_SERVER: Final = str(Path(__file__).with_name("mcp_server.py"))

LOOK_UP: Final = call("look_up", topic="tea")
LOOK_UPS: Final = [LOOK_UP] * 9
DONE: Final = Say("done")
UNTRACED: Final = RunConfig(tracing_disabled=True)
PRIVATE: Final = RunConfig(trace_include_sensitive_data=False)


class Api:
    """Models and agents that talk to the server, each with a script of its own."""

    def __init__(self, server: OpenAIServer) -> None:
        self.server = server
        self._clients: list[AsyncOpenAI] = []

    def agent(
        self,
        *replies: Reply,
        name: str = "Agent",
        chat: bool = False,
        timeout: float = 20,
        retries: int = 0,
        url: str | None = None,
        **more: Any,
    ) -> Agent[Any]:
        """An agent whose model gives these replies, with the tools of this module.

        Args:
            chat: Use Chat Completions instead of Responses.
        """
        base_url = url or self.server.script(replies)
        # The server speaks plain HTTP: reading all certificates takes 50 ms.
        http = DefaultAsyncHttpxClient(verify=False)
        client = AsyncOpenAI(api_key="none", base_url=base_url, timeout=timeout, max_retries=retries, http_client=http)
        self._clients.append(client)
        kind = OpenAIChatCompletionsModel if chat else OpenAIResponsesModel
        tools = [*more.pop("tools", ()), *TOOLS]
        return Agent(name=name, model=kind("gpt-local", client), tools=tools, **more)

    async def is_hanging(self) -> None:
        """Wait until a request meets `Hang`."""
        assert await asyncio.to_thread(self.server.is_hanging.wait, 30)

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients:
            await client.close()


Play = Callable[[Api], Coroutine[Any, Any, object]]


# -- tools, guardrails, hooks -----------------------------------------------------------------------------------


@function_tool
async def look_up(topic: str) -> str:
    """Look something up."""
    return f"facts about {topic}"


@function_tool
async def fails() -> str:
    """Raise into what the SDK makes a message for the model of."""
    raise ValueError("the tool failed")


@function_tool(failure_error_function=lambda _, error: f"No: {error}")
async def explains() -> str:
    """Raise into a message of the application's own."""
    raise ValueError("the tool failed")


@function_tool(failure_error_function=None)
async def raises() -> str:
    """Raise into the run."""
    raise ValueError("the tool broke")


@function_tool(failure_error_function=None)
async def strict(topic: str) -> str:
    """Raise into the run if the arguments are wrong."""
    return topic


@function_tool(failure_error_function=None)
async def lacks_key() -> str:
    """Raise an exception whose text is only a key."""
    raise KeyError("bug")


@function_tool(timeout=0.05)
async def slow() -> str:
    """Take too long."""
    await asyncio.sleep(60)
    return "never"


@function_tool(timeout=0.05, timeout_error_function=lambda _, error: "Later, perhaps.")
async def slow_and_polite() -> str:
    """Take too long, and tell the model in the application's words."""
    await asyncio.sleep(60)
    return "never"


@function_tool(timeout=0.05, timeout_behavior="raise_exception")
async def slow_and_strict() -> str:
    """Take too long, and raise into the run."""
    await asyncio.sleep(60)
    return "never"


@function_tool(needs_approval=True)
async def delete() -> str:
    """Delete something."""
    return "deleted"


@tool_input_guardrail
def no_calls(data: Any) -> ToolGuardrailFunctionOutput:
    """Let no call through."""
    return ToolGuardrailFunctionOutput.reject_content("Not this.")


@tool_input_guardrail
def trips_at_calls(data: Any) -> ToolGuardrailFunctionOutput:
    """Stop the run at any call."""
    return ToolGuardrailFunctionOutput.raise_exception()


@tool_output_guardrail
def no_outputs(data: Any) -> ToolGuardrailFunctionOutput:
    """Let no output through."""
    return ToolGuardrailFunctionOutput.reject_content("Not this.")


@tool_output_guardrail
def trips_at_outputs(data: Any) -> ToolGuardrailFunctionOutput:
    """Stop the run at any output."""
    return ToolGuardrailFunctionOutput.raise_exception()


@tool_input_guardrail
def lets_calls(data: Any) -> ToolGuardrailFunctionOutput:
    """Let every call through."""
    return ToolGuardrailFunctionOutput.allow()


@function_tool(tool_input_guardrails=[no_calls])
async def refused() -> str:
    """Not called."""
    return "never"


@function_tool(tool_input_guardrails=[trips_at_calls])
async def forbidden() -> str:
    """Not called."""
    return "never"


@function_tool(tool_output_guardrails=[no_outputs])
async def talkative() -> str:
    """Say too much."""
    return "secret"


@function_tool(tool_output_guardrails=[trips_at_outputs])
async def leaky() -> str:
    """Say much too much."""
    return "secret"


@function_tool(tool_input_guardrails=[lets_calls])
async def guarded() -> str:
    """Pass its guardrail."""
    return "ok"


@function_tool
async def interrupt() -> str:
    """The user presses Ctrl-C."""
    raise KeyboardInterrupt


@function_tool
async def cancel_with_words() -> str:
    """Someone cancels the activity in the meantime."""
    run = ax.activity.current()
    assert run is not None
    ax.activity.cancel(run.agent_id, "Not needed any more.")
    return "ok"


@function_tool
async def end_with_words() -> str:
    """The application ends the activity itself."""
    run = ax.activity.current()
    assert run is not None
    ax.activity.error(run.agent_id, "The file is empty.")
    return "ok"


TOOLS: Final = (
    look_up,
    fails,
    explains,
    raises,
    strict,
    lacks_key,
    slow,
    slow_and_polite,
    slow_and_strict,
    delete,
    refused,
    forbidden,
    talkative,
    leaky,
    guarded,
    interrupt,
    cancel_with_words,
    end_with_words,
)


def tripped(*_: Any) -> GuardrailFunctionOutput:
    """A verdict."""
    return GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)


@input_guardrail
async def polite(context: RunContextWrapper[Any], by: Agent[Any], given: object) -> GuardrailFunctionOutput:
    """Pass."""
    return GuardrailFunctionOutput(output_info=None, tripwire_triggered=False)


@input_guardrail
async def on_topic(context: RunContextWrapper[Any], by: Agent[Any], given: object) -> GuardrailFunctionOutput:
    """Trip, while the model is asked."""
    return tripped()


@input_guardrail
async def thorough(context: RunContextWrapper[Any], by: Agent[Any], given: object) -> GuardrailFunctionOutput:
    """Take so long that it is canceled."""
    await asyncio.sleep(60)
    raise AssertionError


@input_guardrail(run_in_parallel=False)
async def paid(context: RunContextWrapper[Any], by: Agent[Any], given: object) -> GuardrailFunctionOutput:
    """Trip, before the model is asked."""
    return tripped()


@input_guardrail(run_in_parallel=False)
async def broken(context: RunContextWrapper[Any], by: Agent[Any], given: object) -> GuardrailFunctionOutput:
    """Fail."""
    raise ValueError("the guardrail broke")


@output_guardrail
async def no_secrets(context: RunContextWrapper[Any], by: Agent[Any], output: object) -> GuardrailFunctionOutput:
    """Trip at the answer."""
    return tripped()


class Raising(RunHooks[Any]):
    """Hooks of the application that raise when the model has answered."""

    def __init__(self, exc: BaseException) -> None:
        self._exc = exc

    async def on_llm_end(self, context: Any, agent: Any, response: Any) -> None:
        raise self._exc


class BrokenSession(SQLiteSession):
    """A session whose database is away."""

    async def get_items(self, *_: Any, **__: Any) -> Any:
        raise OSError("the session's database is away")


class Verdict(BaseModel):
    """A structured output."""

    is_good: bool


# -- ways to run ------------------------------------------------------------------------------------------------


def run(*replies: Reply, agent: dict[str, Any] | None = None, **options: Any) -> Play:
    """`Runner.run`."""

    async def play(api: Api) -> object:
        return await Runner.run(api.agent(*replies, **(agent or {})), "go", **options)

    return play


def stream(*replies: Reply, agent: dict[str, Any] | None = None, **options: Any) -> Play:
    """`Runner.run_streamed`, read to its end."""

    async def play(api: Api) -> object:
        result = Runner.run_streamed(api.agent(*replies, **(agent or {})), "go", **options)
        return [event async for event in result.stream_events()]

    return play


def run_sync(*replies: Reply, **options: Any) -> Callable[[Api], object]:
    """`Runner.run_sync`."""
    return lambda api: Runner.run_sync(api.agent(*replies), "go", **options)


def with_mcp(
    *replies: Reply, arguments: tuple[str, ...] = (), run_config: RunConfig | None = None, **options: Any
) -> Play:
    """`Runner.run` with an MCP server that is a process."""

    async def play(api: Api) -> object:
        command: Any = {"command": sys.executable, "args": ["-I", _MCP_SERVER, *arguments]}
        async with MCPServerStdio(command, name="files", **options) as server:
            return await Runner.run(api.agent(*replies, mcp_servers=[server]), "go", run_config=run_config)

    return play


def resumed(
    *replies: Reply, approve: bool, streamed: bool = False, always: bool = False, inner: Sequence[Reply] = ()
) -> Play:
    """A run that waits for an approval, and is resumed.

    Args:
        inner: Replies to another agent, which is the tool ``ask``.
    """

    async def play(api: Api) -> object:
        tools = [api.agent(*inner, name="Inner").as_tool("ask", "Ask.")] if inner else []
        agent = api.agent(*replies, tools=tools)
        state = (await Runner.run(agent, "go")).to_state()
        for item in state.get_interruptions():
            state.approve(item) if approve else state.reject(item, always_reject=always)
        if not streamed:
            return await Runner.run(agent, state)
        return [event async for event in Runner.run_streamed(agent, state).stream_events()]

    return play


async def canceled_task(api: Api) -> object:
    """`task.cancel()` while the model is asked."""
    task = asyncio.create_task(Runner.run(api.agent(Hang()), "go"))
    await api.is_hanging()
    task.cancel()
    return await task


async def timed_out_block(api: Api) -> object:
    """`asyncio.timeout` around a run."""
    async with asyncio.timeout(60) as limit:
        run = asyncio.create_task(Runner.run(api.agent(Hang()), "go"))
        await api.is_hanging()
        limit.reschedule(0)
        return await run


def handed_over(*replies: Reply, **more: Any) -> Play:
    """The first agent hands over to the second, which has these replies."""

    async def play(api: Api) -> object:
        second = api.agent(*replies, name="Second", **more)
        return await Runner.run(api.agent(call("transfer_to_second"), name="First", handoffs=[second]), "go")

    return play


def asked(*replies: Reply, then: Reply, **more: Any) -> Play:
    """The outer agent asks an inner one, which has these replies, as a tool."""

    async def play(api: Api) -> object:
        inner = api.agent(*replies, name="Inner").as_tool("ask", "Ask.", **more)
        return await Runner.run(api.agent(call("ask", input="go"), then, name="Outer", tools=[inner]), "go")

    return play


async def canceled_stream(api: Api) -> None:
    """`result.cancel()` while the model is asked."""
    result = Runner.run_streamed(api.agent(Hang()), "go")
    await api.is_hanging()
    result.cancel()
    await done(result)


async def canceled_after_turn(api: Api) -> None:
    """`result.cancel(mode="after_turn")` at the first tool call."""
    result = Runner.run_streamed(api.agent(LOOK_UP, DONE), "go")
    async for event in result.stream_events():
        if event.type == "run_item_stream_event":
            result.cancel(mode="after_turn")
    await done(result)


async def done(result: Any) -> None:
    """Wait for the background task of a stream, whose callbacks end the activity."""
    await asyncio.wait([result.run_loop_task], timeout=30)
    await asyncio.sleep(0)


async def left_early(api: Api) -> None:
    """The consumer of a stream breaks out of it."""
    result = Runner.run_streamed(api.agent(LOOK_UP, DONE), "go")
    async for event in result.stream_events():
        if event.type == "run_item_stream_event":
            break
    await done(result)


async def unread(api: Api) -> None:
    """Nobody reads the stream."""
    await done(Runner.run_streamed(api.agent(LOOK_UP, DONE), "go"))


async def canceled_consumer(api: Api) -> None:
    """The task that reads a stream is canceled."""
    result = Runner.run_streamed(api.agent(Hang()), "go")

    async def consume() -> None:
        async for _ in result.stream_events():
            pass

    task = asyncio.create_task(consume())
    await api.is_hanging()
    task.cancel()
    await asyncio.wait([task])
    await done(result)


def wrapped_up(*replies: Reply) -> Play:
    """`OpenAIRunner` with recovery from the turn limit."""

    async def play(api: Api) -> object:
        runner = ax.OpenAIRunner(await ax.activity.aio.create("Agent"), max_turns_recovery=True)
        return await runner.run(api.agent(*replies), "go", max_turns=1)

    return play


def in_block(play: Play) -> Play:
    """The run is in a block of `ax.activity.run`."""

    async def outer(api: Api) -> None:
        async with ax.activity.run("Block"):
            await play(api)

    return outer


def in_trace(play: Play) -> Play:
    """The run is in a trace of the application."""

    async def outer(api: Api) -> None:
        with agents.trace("Trace"):
            await play(api)

    return outer


def caught(play: Play) -> Play:
    """The application catches what the run raises."""

    async def outer(api: Api) -> None:
        with suppress(Exception):
            await play(api)

    return outer


def cannot_filter(_: Any) -> Any:
    """An input filter that fails."""
    raise LookupError("no such filter")


def handle_limit(_: Any) -> RunErrorHandlerResult:
    """An error handler of the application."""
    return RunErrorHandlerResult(final_output="this far")
