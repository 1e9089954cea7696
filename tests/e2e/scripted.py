"""Agents with a scripted model, and a look at what became of their activities."""

import asyncio
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from agents import Agent, FunctionTool, function_tool
from agents.items import TResponseOutputItem
from agents.testing import ModelCall, ModelStep, ScriptedModel, assistant_message, function_call
from agents.usage import Usage
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails
from sqlalchemy.orm import Session

import agentexec_otel as ax
from tests.databases import Database

INPUT_TOKENS, OUTPUT_TOKENS, CACHED_TOKENS, REASONING_TOKENS = 10, 3, 4, 2  # of each model call

_calls = itertools.count(1)

Answer = list[TResponseOutputItem] | Exception


@function_tool
async def look_up(topic: str) -> str:
    """Look something up."""
    await asyncio.sleep(0.01)
    return f"facts about {topic}"


@function_tool(failure_error_function=None)
async def broken() -> str:
    """Raise into the run."""
    raise ZeroDivisionError("the tool broke")


@function_tool
async def fails() -> str:
    """Raise into what the SDK makes a message for the model of."""
    raise ZeroDivisionError("the tool failed")


def call(tool: str, **arguments: Any) -> list[TResponseOutputItem]:
    """A model's answer: call this tool."""
    return [function_call(tool, arguments, call_id=f"call_{next(_calls)}")]


def say(text: str) -> list[TResponseOutputItem]:
    """A model's answer: this is the final output."""
    return [assistant_message(text)]


def look_ups(count: int) -> list[Answer]:
    """Answers that keep a run busy for that many turns."""
    return [call("look_up", topic=f"topic {number}") for number in range(count)]


def scripted(*answers: Answer, seconds: float = 0.0) -> ScriptedModel:
    """A model that gives these answers, each after `seconds`, and counts tokens."""

    def step(answer: Answer) -> ModelStep:
        async def respond(_: ModelCall) -> Answer:
            await asyncio.sleep(seconds)
            return answer

        return ModelStep.respond(respond)

    return ScriptedModel(
        [step(answer) for answer in answers],
        default_usage=Usage(
            1,
            INPUT_TOKENS,
            InputTokensDetails(cached_tokens=CACHED_TOKENS, cache_write_tokens=0),
            OUTPUT_TOKENS,
            OutputTokensDetails(reasoning_tokens=REASONING_TOKENS),
        ),
    )


def agent(*answers: Answer, seconds: float = 0.0, name: str = "Agent", **more: Any) -> Agent[Any]:
    """An agent that gives these answers in turn, with the tools of this module."""
    tools: list[FunctionTool] = [look_up, broken, fails, *more.pop("tools", ())]
    return Agent(name=name, model=scripted(*answers, seconds=seconds), tools=list(tools), **more)


def shown(items: Iterable[Any]) -> list[str]:
    """Input items by their type, messages of the user by their text."""
    return [item.get("type") or item["content"] for item in items]


@dataclass(frozen=True, slots=True)
class Told:
    """What the database says about an activity."""

    status: str
    reason: str | None
    error_type: str | None
    lines: list[str]
    tokens: tuple[int | None, int | None]
    percentage: int | None


def told(database: Database, agent_id: UUID) -> Told:
    """Wait until everything is stored, and read it on another connection."""
    assert ax.flush(5.0)
    with Session(database.engine) as session:
        detail = ax.activity.detail(session, agent_id, include_late=True)
    assert detail is not None
    return Told(
        detail.status.value,
        detail.reason,
        detail.error_type,
        [line.message for line in detail.logs],
        (detail.input_tokens, detail.output_tokens),
        detail.latest_percentage,
    )
