"""The private parts of the Agents SDK that we use: a release without one of them fails here, by its name."""

import asyncio
from functools import cache
from types import SimpleNamespace
from typing import Any

import agents
import pytest
from agents import Agent, AgentBase, RunConfig, Runner, ToolInputGuardrail, ToolOutputGuardrail
from agents.exceptions import ToolTimeoutError
from agents.mcp import MCPUtil
from agents.run import AgentRunner
from agents.testing import ScriptedModel, assistant_message

from agentexec_otel.instrumentation.openai_agents import AgentExecInstrumentor, _sdk


@cache
def objects() -> dict[str, Any]:
    """One object of each class, as a run makes them."""

    def agent() -> Agent[Any]:
        return Agent(name="Agent", model=ScriptedModel([[assistant_message("done")]]))

    async def run() -> dict[str, Any]:
        config = RunConfig(tracing_disabled=True)
        streamed = Runner.run_streamed(agent(), "go", run_config=config)
        async for _ in streamed.stream_events():
            pass
        result = await Runner.run(agent(), "go", run_config=config)
        return {"RunResult": result, "RunResultStreaming": streamed, "RunState": result.to_state()}

    provider: Any = agents.tracing.get_trace_provider()
    multi = getattr(provider, "_multi_processor", SimpleNamespace())
    made = asyncio.run(run())
    return {**made, "MCPUtil": MCPUtil, "TraceProvider": provider, "SynchronousMultiTracingProcessor": multi}


@pytest.mark.parametrize(
    ("owner", "attribute"),
    [(owner, attribute) for owner, attributes in _sdk.PRIVATE.items() for attribute in attributes],
    ids=lambda part: part,
)
def test_sdk_has(owner: str, attribute: str) -> None:
    """The attribute is there, on an object that the SDK has made."""
    assert hasattr(objects()[owner], attribute)


def test_private_parts_have_the_types_that_we_rely_on() -> None:
    """Processors are a tuple that a lock guards, and the state of a run holds its usage and the state of its trace."""
    assert _sdk.change_processors(lambda found: found)
    state = objects()["RunState"]
    assert _sdk.usage_of(state).requests == 1  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
    _sdk.ensure_trace_state(objects()["RunResult"]).extra["key"] = "kept"
    again = _sdk.trace_state_of(objects()["RunResult"].to_state())
    assert again is not None
    assert again.extra["key"] == "kept"


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (AgentBase, "get_all_tools"),
        (AgentRunner, "run"),
        (AgentRunner, "run_streamed"),
        (AgentRunner, "run_sync"),
        (MCPUtil, _sdk.MCP_RESULT),
        (ToolInputGuardrail, "run"),
        (ToolOutputGuardrail, "run"),
        (ToolTimeoutError, "__init__"),
    ],
)
def test_the_sdk_has_what_is_wrapped(owner: type, name: str) -> None:
    """Each class defines the method itself, so that it can be restored, and gets it back."""
    original = vars(owner)[name]
    instrumentor = AgentExecInstrumentor()
    instrumentor.instrument()
    try:
        assert vars(owner)[name] is not original
    finally:
        instrumentor.uninstrument()
    assert vars(owner)[name] is original


def test_disabled_traces_are_recognized() -> None:
    """A disabled trace, which no processor receives, is recognized; an enabled one is not."""
    assert _sdk.is_disabled(agents.trace("Chat", disabled=True))
    assert not _sdk.is_disabled(agents.trace("Chat"))
