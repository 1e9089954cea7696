"""Ours beside Logfire, whose traces wrap those of the SDK: runs in a trace, and one behind the run it came from.

``python -m tests.e2e.instrumented_behind`` prints JSON: the activities, the oldest first. A process of its own, since
Logfire cannot be taken off again.
"""

import asyncio
import json
import tempfile
import warnings
from pathlib import Path

import agents
import logfire
from agents import Runner, function_tool
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import agentexec_otel as ax
from tests.e2e.scripted import agent, call, say


async def in_an_older_trace() -> None:
    """Two runs in a trace that was opened before we were there."""
    with agents.trace("Older"):
        ax.AgentExecInstrumentor().instrument()
        await Runner.run(agent(say("done")), "go")
        await Runner.run(agent(say("done")), "go")


async def behind_another_run() -> None:
    """A task that a tool has started, and that outlives the run of that tool."""
    over = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def behind() -> None:
        await over.wait()
        await Runner.run(agent(say("done"), name="Later"), "go")

    @function_tool
    async def start() -> str:
        """Leave something to be done later."""
        tasks.append(asyncio.create_task(behind()))
        return "started"

    await Runner.run(agent(call("start"), say("done"), name="First", tools=[start]), "go")
    over.set()
    await asyncio.gather(*tasks)


def main() -> None:
    """Play both, and print what is stored."""
    warnings.simplefilter("ignore")
    agents.set_trace_processors([])
    with tempfile.TemporaryDirectory() as folder:
        engine = create_engine(f"sqlite:///{Path(folder) / 'activities.db'}")
        ax.CONF.spool_dir = "off"
        logfire.configure(send_to_logfire=False, console=False)  # first, as applications do
        ax.configure(engine, create_tables=True)
        logfire.instrument_openai_agents()
        asyncio.run(in_an_older_trace())
        asyncio.run(behind_another_run())
        ax.shutdown()
        with Session(engine) as session:
            found = [
                ax.activity.detail(session, item.agent_id, include_late=True)
                for item in ax.activity.list(session).items
            ]
        engine.dispose()
    print(json.dumps([(each.agent_type, each.status, each.requests) for each in reversed(found) if each]))


if __name__ == "__main__":
    main()
