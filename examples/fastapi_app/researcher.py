"""The agent: a real one of the OpenAI Agents SDK. Without OPENAI_API_KEY, a script plays its model."""

from __future__ import annotations

import asyncio
import itertools
import os
from typing import Any

from agents import Agent, Model, function_tool, set_tracing_disabled
from agents.items import TResponseOutputItem
from agents.testing import ModelCall, ModelStep, ScriptedModel, assistant_message, function_call
from agents.usage import Usage

import agentexec_otel as ax
from fastapi_app.settings import settings

OFFLINE = "OPENAI_API_KEY" not in os.environ
UNKNOWN = "Nobody"
ARTICLES = 5

_calls = itertools.count(1)

if OFFLINE:
    set_tracing_disabled(True)  # the SDK's own traces would go to OpenAI


@function_tool(failure_error_function=None)
async def search(company: str) -> str:
    """Search the archive for articles about a company."""
    await asyncio.sleep(settings.pace)
    if company == UNKNOWN:
        raise LookupError(f"the archive has nothing about {company}")
    return f"articles 1 to {ARTICLES} are about {company}"


@function_tool
async def read_article(number: int) -> str:
    """Read an article of the archive."""
    await asyncio.sleep(settings.pace)
    return f"Article {number}: revenue has grown by {3 * number} %."


def researcher(runner: ax.OpenAIRunner, company: str) -> Agent[None]:
    """An agent that looks a company up, and reports how far it is."""
    return Agent(
        name="Researcher",
        instructions=f"You research companies in the archive, and answer in one sentence.\n\n"
        f"{runner.prompts.report_status}",
        tools=[search, read_article, runner.tools.report_status],
        model=_script(company) if OFFLINE else None,
    )


def _script(company: str) -> Model:
    """What a model would answer, turn by turn."""
    reading = [
        [_report(f"Reading article {n} of {ARTICLES}", 10 + 80 * n // (ARTICLES + 1)), _call("read_article", number=n)]
        for n in range(1, ARTICLES + 1)
    ]
    turns = [
        [_report(f"Searching the archive for {company}", 10), _call("search", company=company)],
        *reading,
        [_report("Writing the summary", 90)],
        [assistant_message(f"{company} has grown by {3 * ARTICLES} %, and its competitors have not.")],
    ]
    return ScriptedModel([_after_a_thought(turn) for turn in turns], default_usage=Usage(1, 220, output_tokens=40))


def _after_a_thought(turn: list[TResponseOutputItem]) -> ModelStep:
    async def respond(_: ModelCall) -> list[TResponseOutputItem]:
        await asyncio.sleep(settings.pace)
        return turn

    return ModelStep.respond(respond)


def _call(tool: str, **arguments: Any) -> TResponseOutputItem:
    return function_call(tool, arguments, call_id=f"call_{next(_calls)}")


def _report(message: str, percentage: int) -> TResponseOutputItem:
    return _call("report_activity", message=message, percentage=percentage)
