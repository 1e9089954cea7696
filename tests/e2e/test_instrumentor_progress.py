"""The lines that instrumented runs write about themselves, by ``AGENTEXEC_PROGRESS``."""

import time
from typing import Any
from uuid import uuid4

import agents
import pytest
from agents import Agent, RunConfig, Runner, function_tool
from agents.tracing import guardrail_span, mcp_tools_span
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import agentexec_otel as ax
from tests.databases import Database
from tests.e2e.instrumented import lines, only
from tests.e2e.scripted import agent, call, look_ups, say

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture(autouse=True)
def sdk(instrumented: None) -> None:
    """Every test has the SDK instrumented."""


def chain() -> Agent[Any]:
    """Calls a good and a bad tool, and hands over."""
    second = agent(call("fails"), say("done"), name="Second")
    return agent(*look_ups(1), call("transfer_to_second"), name="First", handoffs=[second])


async def test_steps_are_told(database: Database) -> None:
    """By default: turns, tools, what failed (without its text), and handoffs with the agent that really took over."""
    await Runner.run(chain(), "go")
    assert lines(only(database)) == [
        "Turn 1: First",
        "Calling look_up",
        "Turn 2: First",
        "First → Second",
        "Turn 3: Second",
        "Calling fails",
        "fails failed",
        "Turn 4: Second",
    ]
    assert {line.percentage for line in only(database).logs[:-1]} == {None}


async def test_nothing_is_told_when_off(database: Database) -> None:
    """Only how it began and ended."""
    ax.CONF.progress = "off"
    await Runner.run(chain(), "go")
    assert lines(only(database)) == []


async def test_spans_of_the_application_are_reported(database: Database) -> None:
    """Guardrails and MCP servers that the application uses itself, also while it handles an exception."""
    ax.CONF.progress = "detail"
    with agents.trace("Parts"):
        try:
            raise LookupError("some earlier trouble")
        except LookupError:
            for tools in (["read", "write"], ["read", "write"], ["read"]):
                with mcp_tools_span(server="files", result=tools):
                    pass
            with guardrail_span("politeness"):
                pass
        with pytest.raises(ValueError, match="broken"), guardrail_span("taste"):
            raise ValueError("broken")
    assert lines(only(database)) == [
        "files offers 2 tools",
        "files offers 1 tool",
        "Guardrail politeness passed",
        "Guardrail taste failed",
    ]


async def test_reports_of_the_application_win(database: Database) -> None:
    """From its first line on, turns and tool calls are left out, failures are not; its percentage stays."""

    @function_tool
    async def report() -> str:
        """Report."""
        run = ax.activity.current()
        assert run is not None
        run.update("Half of it is done", 50)
        return "ok"

    await Runner.run(agent(call("report"), *look_ups(2), call("fails"), say("done"), tools=[report]), "go")
    assert lines(only(database)) == ["Turn 1: Agent", "Calling report", "Half of it is done", "fails failed"]
    assert [line.percentage for line in only(database).logs if line.percentage is not None] == [50, 100]


async def test_lines_are_throttled(database: Database) -> None:
    """A run that spins writes ten lines, then one a second. What is notable has an allowance of its own."""
    began = time.monotonic()
    await Runner.run(agent(*look_ups(50), call("fails"), say("done")), "go", max_turns=None)
    seconds = time.monotonic() - began
    told = lines(only(database))
    routine = [line for line in told if line != "fails failed"]
    assert 10 <= len(routine) <= 10 + seconds + 1
    assert "fails failed" in told


@pytest.mark.parametrize(
    "how", ["run", "streamed", "in a trace", "in a block", "OpenAIRunner", "OpenAIRunner streamed"]
)
@pytest.mark.parametrize("ends_by", ["a tool", "the model", "an unknown tool"])
async def test_no_text_of_a_failure_is_stored_where_the_run_says_so(
    database: Database, spans: InMemorySpanExporter, how: str, ends_by: str
) -> None:
    """``trace_include_sensitive_data=False`` keeps what tools and models say out of rows and spans."""
    secret = uuid4().hex

    @function_tool
    async def leaky() -> str:
        """Leak into a message for the model."""
        raise ValueError(secret)

    @function_tool(failure_error_function=lambda _, error: str(error))
    async def talkative() -> str:
        """Leak into a message of the application's own."""
        raise ValueError(secret)

    @function_tool(failure_error_function=None)
    async def fatal() -> str:
        """Leak into the run."""
        raise ValueError(secret)

    last: dict[str, Any] = {"a tool": call("fatal"), "the model": ValueError(secret), "an unknown tool": call(secret)}
    what = agent(call("leaky"), call("talkative"), last[ends_by], tools=[leaky, talkative, fatal])
    ax.CONF.progress = "detail"
    with pytest.raises((agents.AgentsException, ValueError), match=secret):
        await run_discreetly(what, how)
    activity = only(database)
    assert (activity.status, activity.reason) == (
        "ERROR",
        {"a tool": "tool", "the model": "other", "an unknown tool": "model_behavior"}[ends_by],
    )
    assert secret not in " ".join(line.message for line in activity.logs)
    assert secret not in " ".join(span.to_json() for span in spans.get_finished_spans())
    if ends_by == "a tool":
        assert activity.error_type == "agents.exceptions.UserError"
        assert activity.logs[-1].message == "Task failed: Error running tool"


async def run_discreetly(what: Agent[Any], how: str) -> None:
    """Run it in one of several ways, with a configuration that keeps texts out of traces."""
    config = RunConfig(trace_include_sensitive_data=False)
    runner: Any = Runner
    if how.startswith("OpenAIRunner"):
        runner = ax.OpenAIRunner(await ax.activity.aio.create("task"))
    if how.endswith("streamed"):
        async for _ in runner.run_streamed(what, "go", run_config=config).stream_events():
            pass
    elif how == "in a trace":
        with agents.trace("Traced"):
            await runner.run(what, "go", run_config=config)
    elif how == "in a block":
        async with ax.activity.run("block"):
            await runner.run(what, "go", run_config=config)
    else:
        await runner.run(what, "go", run_config=config)
