"""`runner.tools.report_status`: what a model may write into the history of its own activity, and what it may not."""

import asyncio
import json
import logging
import time
from typing import Any
from uuid import UUID, uuid4

import pytest
from agents.tool_context import ToolContext
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import text
from sqlalchemy.orm import Session

import agentexec_otel as ax
from tests.databases import Database
from tests.e2e.scripted import agent, call, say, told

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture(autouse=True)
def sdk(database: Database, spans: InMemorySpanExporter, no_uploads: None) -> None:
    """Every test has activities in SQL."""


@pytest.fixture
def agent_id(sdk: None) -> UUID:
    """An activity that waits to be run."""
    return ax.activity.create("research")


async def invoke(runner: ax.OpenAIRunner, arguments: object) -> str:
    """Call the tool as the SDK does."""
    given = arguments if isinstance(arguments, str) else json.dumps(arguments)
    tool = runner.tools.report_status
    context = ToolContext[Any](context=None, tool_name=tool.name, tool_call_id="call", tool_arguments=given)
    answer = await tool.on_invoke_tool(context, given)
    assert isinstance(answer, str)
    return answer


async def test_a_report_is_seen_while_the_run_goes_on(database: Database, agent_id: UUID) -> None:
    """Another connection reads the line and the percentage before the run has ended."""
    runner = ax.OpenAIRunner(agent_id)
    answers = [
        call("report_activity", message="Found 5 articles", percentage=50),
        call("look_up", topic="x"),
        say("done"),
    ]
    run = asyncio.create_task(runner.run(agent(*answers, tools=[runner.tools.report_status], seconds=0.2), "go"))
    while True:
        with Session(database.engine) as session:
            detail = ax.activity.detail(session, agent_id)
        assert detail is not None
        if detail.latest_percentage == 50:  # Read before the logs, which may be newer than the row.
            break
        assert not run.done()
        await asyncio.sleep(0.01)
    assert (detail.status.value, detail.logs[-1].message, run.done()) == ("RUNNING", "Found 5 articles", False)
    await run
    assert told(database, agent_id).status == "COMPLETE"


def test_the_model_is_shown_a_strict_schema() -> None:
    """Two arguments, both required, nothing else: and no way to name an activity or a status."""
    tool = ax.OpenAIRunner(uuid4()).tools.report_status
    assert (tool.name, tool.strict_json_schema) == ("report_activity", True)
    assert (
        sorted(tool.params_json_schema["properties"])
        == tool.params_json_schema["required"]
        == ["message", "percentage"]
    )
    assert tool.params_json_schema["additionalProperties"] is False


@pytest.mark.parametrize(
    ("percentage", "stored"),
    [
        *[(50, 50), (-5, 0), (250, 100), (33.7, 33), (float("inf"), 100), (10**400, 100), ("50", 50), ("50 %", 50)],
        *[("much", None), (None, None), (True, None), (float("nan"), None), ([50], None)],
    ],
)
async def test_percentages_are_taken_as_they_are_meant(
    database: Database, agent_id: UUID, percentage: object, stored: int | None
) -> None:
    """Clamped where they are numbers, ignored where they are none; the message is stored in any case."""
    await invoke(ax.OpenAIRunner(agent_id), {"message": "Working", "percentage": percentage})
    activity = told(database, agent_id)
    assert (activity.lines[-1], activity.percentage) == ("Working", stored)


@pytest.mark.parametrize("arguments", ["", "no json", "[]", "null", '"text"', '{"percentage": 5}', '{"message": ""}'])
async def test_a_call_without_a_message_stores_nothing(database: Database, agent_id: UUID, arguments: str) -> None:
    """The model is told what was missing."""
    assert "message" in await invoke(ax.OpenAIRunner(agent_id), arguments)
    assert told(database, agent_id).lines == ["Waiting to start."]


@pytest.mark.parametrize("arguments", ["[" * 200_000, json.dumps({"message": "x" * 10_000_000}), "9" * 5_000])
async def test_oversized_arguments_store_nothing(database: Database, agent_id: UUID, arguments: str) -> None:
    """However deep or long they are, they are neither parsed at length nor stored."""
    await invoke(ax.OpenAIRunner(agent_id), arguments)
    assert told(database, agent_id).lines == ["Waiting to start."]


async def test_long_messages_are_cut_and_lines_are_joined(database: Database, agent_id: UUID) -> None:
    """One report is one line of bounded length."""
    await invoke(ax.OpenAIRunner(agent_id), {"message": "one\n\ntwo\r\n" + "x" * 5_000, "percentage": None})
    line = told(database, agent_id).lines[-1]
    assert line.startswith("one two xxx")
    assert len(line) == 1_000


async def test_a_flood_of_reports_is_bounded_and_starves_nothing(database: Database, agent_id: UUID) -> None:
    """100,000 calls leave a bounded number of lines, and the run is COMPLETE behind them."""
    runner = ax.OpenAIRunner(agent_id)
    answers: set[str] = set()
    async with ax.activity.run(agent_id):
        for number in range(100_000):
            answers.add(await invoke(runner, {"message": f"Report {number}", "percentage": 1}))
    assert any(answer.startswith("Not recorded") for answer in answers)
    activity = told(database, agent_id)
    assert activity.status == "COMPLETE"
    assert len(activity.lines) <= 500 + 3


async def test_reports_are_limited_in_rate(database: Database, agent_id: UUID) -> None:
    """The first 30 reports are stored, then 5 a second; the model is told which were not."""
    runner = ax.OpenAIRunner(agent_id)

    async def stored() -> bool:
        return (await invoke(runner, {"message": "Working", "percentage": None})).startswith("Recorded")

    began = time.monotonic()
    recorded = [await stored() for _ in range(100)]
    assert all(recorded[:30])
    assert sum(recorded) <= 30 + 5 * (time.monotonic() - began) + 1
    await asyncio.sleep(0.3)
    assert await stored()
    assert told(database, agent_id).lines.count("Working") == sum(recorded) + 1


@pytest.mark.parametrize("word", ["COMPLETE", "ERROR", "CANCELED"])
async def test_a_model_cannot_end_its_activity(database: Database, agent_id: UUID, word: str) -> None:
    """Whatever else it sends along, all it writes is RUNNING."""
    smuggled = {"message": word, "percentage": 100, "status": word, "agent_id": str(uuid4())}
    await invoke(ax.OpenAIRunner(agent_id), smuggled)
    assert told(database, agent_id).status == "RUNNING"


async def test_a_report_behind_the_end_is_late_and_the_model_is_told(database: Database, agent_id: UUID) -> None:
    """It is kept, changes nothing, and the model learns that the activity has ended."""
    ax.activity.complete(agent_id)
    assert ax.flush()
    assert "ended" in await invoke(ax.OpenAIRunner(agent_id), {"message": "Still here", "percentage": 10})
    activity = told(database, agent_id)
    assert (activity.status, activity.percentage, activity.lines[-1]) == ("COMPLETE", 100, "Still here")


async def test_a_database_that_is_gone_is_no_matter_for_the_run(
    database: Database, agent_id: UUID, caplog: pytest.LogCaptureFixture
) -> None:
    """The tool answers, the agent goes on and the run returns, with no table left to write to."""
    runner = ax.OpenAIRunner(agent_id)
    with database.engine.begin() as connection:
        connection.execute(text("DROP TABLE agentexec_activity_log"))
    answers = [call("report_activity", message="Anybody there?", percentage=5), say("done")]
    result = await runner.run(agent(*answers, tools=[runner.tools.report_status]), "go")
    assert result.final_output == "done"


async def test_a_failure_of_telemetry_is_a_short_answer_and_one_log_line(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """For an activity that does not exist, as for any failure: no exception reaches the model loop."""
    with caplog.at_level(logging.WARNING):
        answer = await invoke(ax.OpenAIRunner(uuid4()), {"message": "Hello", "percentage": 1})
    assert "could not be recorded" in answer
    assert [record.getMessage() for record in caplog.records] == [
        "the tool report_activity failed and was skipped: ActivityNotFoundError"
    ]
