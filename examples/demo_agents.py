"""The demo's agents: tools and handoffs of the real OpenAI Agents SDK, with a scripted model in place of an LLM."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from agents import Agent, function_tool
from agents.items import TResponseOutputItem
from agents.testing import ModelCall, ModelStep, ScriptedModel, assistant_message, function_call
from agents.usage import Usage
from opentelemetry import trace

import agentexec_otel as ax

_calls = itertools.count(1)


@function_tool
async def search(topic: str) -> str:
    """Search the archive for a topic."""
    with trace.get_tracer("demo").start_as_current_span("search archive", attributes={"topic": topic}):
        await asyncio.sleep(0.3)
    return f"4 articles about {topic}"


@function_tool
async def read_article(number: int) -> str:
    """Read one article."""
    with trace.get_tracer("demo").start_as_current_span("read article", attributes={"number": number}):
        await asyncio.sleep(0.2)
    return f"Article {number}: installations doubled, prices fell by a third."


def research_team(runner: ax.OpenAIRunner) -> Agent[None]:
    """A planner that hands off to a researcher, who hands off to a writer. All of them report their progress."""
    writer = _agent(
        runner,
        "Writer",
        "Write the report.",
        [_report("Writing the summary", 80)],
        [_report("Checking the figures once more", 95)],
        [assistant_message("Heat pumps: installations doubled in three years while prices fell by a third.")],
    )
    researcher = _agent(
        runner,
        "Researcher",
        "Find facts, then hand off to the writer.",
        [_report("Searching the archive", 20), _call("search", topic="heat pumps")],
        [_report("Found 4 articles, reading the best two", 40), _call("read_article", number=1)],
        [_call("read_article", number=2), _call("search", topic="heat pump prices")],
        [_report("Installations doubled in three years", 65), _call("transfer_to_writer")],
        handoffs=[writer],
    )
    return _agent(
        runner,
        "Planner",
        "Split the question into parts, then hand off to the researcher.",
        [_report("Splitting the question into two parts", 5)],
        [_call("transfer_to_researcher")],
        handoffs=[researcher],
    )


def fact_checker(runner: ax.OpenAIRunner) -> Agent[None]:
    """An agent that goes round in circles, and never comes to an answer."""
    rounds = [[_report(f"Checking claim {n}", 15 * n), _call("search", topic=f"claim {n}")] for n in range(1, 7)]
    return _agent(runner, "Fact checker", "Check every claim.", *rounds)


def archivist(runner: ax.OpenAIRunner) -> Agent[None]:
    """An agent with a long list of articles to read; somebody loses patience with it."""
    rounds = [[_report(f"Read {n} of 25 articles", 4 * n), _call("read_article", number=n)] for n in range(1, 26)]
    return _agent(runner, "Archivist", "Read everything.", *rounds)


def _agent(
    runner: ax.OpenAIRunner, name: str, task: str, *answers: list[TResponseOutputItem], handoffs: Any = ()
) -> Agent[None]:
    return Agent(
        name=name,
        instructions=f"{task}\n\n{runner.prompts.report_status}",
        tools=[runner.tools.report_status, search, read_article],
        handoffs=list(handoffs),
        model=ScriptedModel(
            [_after_a_thought(each) for each in answers], default_usage=Usage(1, 220, output_tokens=40)
        ),
    )


def _after_a_thought(answer: list[TResponseOutputItem]) -> ModelStep:
    async def respond(_: ModelCall) -> list[TResponseOutputItem]:
        await asyncio.sleep(0.25)
        return answer

    return ModelStep.respond(respond)


def _call(tool: str, **arguments: Any) -> TResponseOutputItem:
    return function_call(tool, arguments, call_id=f"call_{next(_calls)}")


def _report(message: str, percentage: int) -> TResponseOutputItem:
    return _call("report_activity", message=message, percentage=percentage)
