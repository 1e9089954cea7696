"""The activity page's self-reporting agents are built as written and report through the real Agents SDK."""

import asyncio
import json
from typing import Any

import pytest
from agents import Agent
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call
from agents.testing.model import ModelCall, ModelStepResult

import agentexec_otel as ax
from agentexec_otel.activity.models import Status
from tests.docs.blocks import Block
from tests.docs.page import BLOCKS, Line, on_sqlite, run_as_written, runs, stored

pytestmark = on_sqlite


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, so nothing could leave this machine even if a test tried."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@runs("Built-in Reporting Tool")
def test_the_agent_is_told_of_its_tool(block: Block, names: dict[str, Any]) -> None:
    """The agent gets the tool and instructions that name it."""
    left = run_as_written(block, names, agent_id=ax.activity.create("research"), Agent=Agent)
    agent, runner = left["agent"], left["runner"]
    assert [tool.name for tool in agent.tools] == ["report_activity"]
    assert set(agent.tools[0].params_json_schema["properties"]) == {"message", "percentage"}
    assert "You are a research agent." in agent.instructions
    assert "report_activity" in runner.prompts.report_status
    assert runner.prompts.report_status in agent.instructions


@runs("How It Works")
def test_the_example_tool_call(block: Block, names: dict[str, Any]) -> None:
    """The documented call, made by a model, is in the database before the model is asked again."""
    call = json.loads(block.code)
    agent_id = ax.activity.create("research")
    left = run_as_written(BLOCKS["Built-in Reporting Tool/1"], names, agent_id=agent_id, Agent=Agent)
    agent, runner = left["agent"], left["runner"]
    reported = Line(Status.RUNNING, call["arguments"]["message"], call["arguments"]["percentage"])

    async def after_the_report(_: ModelCall) -> ModelStepResult:
        assert await asyncio.to_thread(stored, names["engine"], agent_id) == (
            Status.RUNNING,
            50,
            [Line(Status.QUEUED, "Waiting to start."), Line(Status.RUNNING, "Task started."), reported],
        )
        return [assistant_message("Five articles.")]

    reports = [function_call(call["name"], call["arguments"], call_id="call-1")]
    agent.model = ScriptedModel([reports, ModelStep.respond(after_the_report)])
    result = asyncio.run(runner.run(agent, input="Find articles"))
    agent.model.assert_complete()
    assert result.final_output == "Five articles."
    status, percentage, lines = stored(names["engine"], agent_id)
    assert (status, percentage, lines[2]) == (Status.COMPLETE, 100, reported)
    assert len(lines) == 4


@runs("Custom Reporting Prompts")
def test_custom_prompt(block: Block, names: dict[str, Any]) -> None:
    """The runner hands out the custom text instead of its own; the tool keeps its name."""
    runner = run_as_written(block, names, agent_id=ax.activity.create("research"))["runner"]
    prompt = runner.prompts.report_status
    assert "- Include specific details about what you found" in prompt
    assert ax.OpenAIRunner(agent_id=ax.activity.create("research")).prompts.report_status not in prompt
    assert runner.tools.report_status.name == "report_activity"
