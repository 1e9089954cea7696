"""An application that calls `Runner.run` and knows nothing of activities, followed through SQL. No key, no network.

python examples/auto_instrumented.py
"""

from __future__ import annotations

import asyncio

from agents import Agent, MaxTurnsExceeded, RunConfig, Runner, function_tool, set_trace_processors
from agents.testing import ScriptedModel, assistant_message, function_call
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import agentexec_otel as ax


@function_tool
async def look_up(topic: str) -> str:
    """Look something up."""
    await asyncio.sleep(0.2)
    return f"facts about {topic}"


def researcher(*topics: str) -> Agent[None]:
    """An agent whose scripted model looks these topics up, then answers."""
    calls = [[function_call("look_up", {"topic": topic}, call_id=topic)] for topic in topics]
    model = ScriptedModel([*calls, [assistant_message("Tea is better.")]])
    return Agent(name="Researcher", model=model, tools=[look_up])


async def application() -> None:
    """What was there before: one run that works out, and one that does not."""
    await Runner.run(researcher("tea", "coffee"), "Tea or coffee?", run_config=RunConfig(group_id="chat 7"))
    try:
        await Runner.run(researcher("tea", "coffee", "water"), "And water?", max_turns=2)
    except MaxTurnsExceeded as exc:
        print(f"the application sees: {exc}\n")


def main() -> None:
    """Two lines more than the application, and what they bring."""
    engine = create_engine("sqlite:///auto_instrumented.db")
    set_trace_processors([])  # no uploads to the SDK's own dashboard
    ax.configure(engine, create_tables=True)
    ax.instrument("openai_agents")

    asyncio.run(application())

    ax.flush()
    with Session(engine) as session:
        for item in reversed(ax.activity.list(session, page_size=2).items):
            activity = ax.activity.detail(session, item.agent_id)
            assert activity is not None
            print(f"{activity.agent_type} {activity.status} {activity.reason or ''} ({activity.requests} requests)")
            for line in activity.logs:
                print(f"    {line.status:<9} {line.message}")


if __name__ == "__main__":
    main()
