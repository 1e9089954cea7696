"""A process that runs an agent until it waits for an approval: `start(URL, HOW, AGENT_ID)` prints the run's state."""

import asyncio
import json
import time
from typing import Any

import agents
from agents import Agent, Runner, RunState, function_tool

import agentexec_otel as ax
from tests.chaos.producer import say
from tests.e2e.scripted import Answer, agent, call, look_ups


@function_tool(needs_approval=True)
async def pay() -> str:
    """Pay."""
    return "paid"


def payer(*answers: Answer) -> Agent[Any]:
    """An agent that may pay, with approval, and gives these answers."""
    return agent(*answers, tools=[pay], name="Payer")


async def run(how: str, agent_id: str, what: Agent[Any], given: str | RunState[Any]) -> Any:
    """One run, streamed or not, by an `OpenAIRunner` or by the instrumented `Runner`."""
    runner: Any = ax.OpenAIRunner(agent_id) if "OpenAIRunner" in how else Runner
    if "streamed" not in how:
        return await runner.run(what, given)
    result = runner.run_streamed(what, given)
    async for _ in result.stream_events():
        pass
    return result


def start(url: str, how: str, agent_id: str) -> None:
    """The program, which then waits to be killed."""
    agents.set_trace_processors([])
    ax.configure(url)
    if "OpenAIRunner" not in how:
        ax.AgentExecInstrumentor().instrument()
    result = asyncio.run(run(how, agent_id, payer(*look_ups(1), call("pay")), "go"))
    assert ax.flush()
    say(f"state {json.dumps(result.to_state().to_json())}")
    say("waits")
    time.sleep(300)
