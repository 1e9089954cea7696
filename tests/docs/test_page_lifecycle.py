"""The activity page's blocks about the life of an activity run as written and do what the text around them says."""

import ast
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from agents import Agent
from agents.testing import ScriptedModel, assistant_message
from sqlalchemy import Engine

import agentexec_otel as ax
from agentexec_otel.activity.models import Status
from tests.docs.blocks import Block
from tests.docs.page import Line, on_sqlite, run_as_written, runs, stored

pytestmark = on_sqlite


class APIError(Exception):
    """What the page's `api_call` raises."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


def started(agent_type: str = "long_task") -> UUID:
    agent_id = ax.activity.create(agent_type)
    ax.activity.update(agent_id, "Task started.")
    return agent_id


def failing_with(error: Exception) -> Callable[[], Awaitable[None]]:
    async def call() -> None:
        raise error

    return call


@runs("Overview")
def test_the_drawn_history(block: Block, names: dict[str, Any]) -> None:
    """A run that reports what the drawing shows leaves exactly the drawn history, default messages included."""
    drawn = [
        Line(Status(status), message, int(percentage) if percentage else None)
        for status, message, percentage in re.findall(r'\] ([A-Z]+) - "(.*?)"(?: \((\d+)%\))?', block.code)
    ]
    (agent_type,) = re.findall(r'agent_type: "(\w+)"', block.code)
    agent_id = ax.activity.create(agent_type)
    with ax.activity.run(agent_id) as run:
        for line in drawn:
            if line.status is Status.RUNNING and line.percentage is not None:
                run.update(line.message, line.percentage)
    assert stored(names["engine"], agent_id) == (Status.COMPLETE, 100, drawn)
    assert len(drawn) == 6


@runs("Status Lifecycle")
def test_the_drawn_statuses(block: Block, names: dict[str, Any]) -> None:
    """The drawing names every status there is, and an activity goes along each of its arrows."""
    assert set(re.findall(r"[A-Z]{5,}", block.code)) == {status.value for status in Status}
    ends: dict[Status, Callable[[UUID], bool]] = {
        Status.COMPLETE: ax.activity.complete,
        Status.ERROR: ax.activity.error,
        Status.CANCELED: ax.activity.cancel,
    }
    for terminal, end in ends.items():
        agent_id = started()
        end(agent_id)
        status, _, lines = stored(names["engine"], agent_id)
        assert [line.status for line in lines] == [Status.QUEUED, Status.RUNNING, terminal]
        assert status is terminal


@runs("Creating Activities", 2)
def test_manual_creation(block: Block, names: dict[str, Any]) -> None:
    """The activity is committed when the block is left, QUEUED, under an id that was generated for it."""
    agent_id = run_as_written(block, names)["agent_id"]
    assert isinstance(agent_id, UUID)
    queued = Line(Status.QUEUED, "Starting custom operation")
    assert stored(names["engine"], agent_id) == (Status.QUEUED, None, [queued])


@runs("Completing Tasks")
def test_automatic_completion(block: Block, names: dict[str, Any]) -> None:
    """The runner's result completes the activity; completing it once more by hand changes nothing."""
    agent_id = ax.activity.create("research")
    model = ScriptedModel([[assistant_message("done")]])
    given: dict[str, Any] = {
        "agent": Agent(name="Researcher", model=model),
        "runner": ax.OpenAIRunner(agent_id=agent_id),
    }
    left = run_as_written(block, names, agent_id=agent_id, **given)
    assert left["result"].final_output == "done"
    status, percentage, lines = stored(names["engine"], agent_id)
    assert (status, percentage) == (Status.COMPLETE, 100)
    assert lines[-1] == Line(Status.COMPLETE, "Task completed successfully.", 100)


@runs("Completing Tasks")
def test_manual_completion(block: Block, names: dict[str, Any]) -> None:
    """The block's last statement alone completes a running activity with the message that it gives."""
    statements = ast.parse(block.code).body
    manual = replace(block, code=ast.unparse(statements[-1]))
    agent_id = started()
    run_as_written(manual, names, agent_id=agent_id)
    status, percentage, lines = stored(names["engine"], agent_id)
    assert (status, percentage) == (Status.COMPLETE, 100)
    assert lines[-1] == Line(Status.COMPLETE, "All processing finished", 100)


@runs("Recording Errors")
def test_recording_an_error(block: Block, names: dict[str, Any]) -> None:
    """The error goes on to the caller and the activity ends in ERROR with the block's own message, percentage kept."""
    agent_id = ax.activity.create("risky")

    def worker() -> None:
        risky_operation = failing_with(OSError("disk {0} is on fire"))
        with ax.activity.run(agent_id) as run:
            run.update("Half way", 50)
            run_as_written(block, names, agent_id=agent_id, risky_operation=risky_operation)

    with pytest.raises(OSError, match="on fire"):
        worker()
    status, percentage, lines = stored(names["engine"], agent_id)
    assert (status, percentage) == (Status.ERROR, 50)
    assert lines[-1][:2] == (Status.ERROR, "Operation failed: disk {0} is on fire")


@runs("Canceling Pending Tasks")
def test_canceling_pending_tasks(block: Block, names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """What is queued or running is canceled and counted; what has ended stays as it ended."""
    assert_pending_are_canceled(block, names)
    assert capsys.readouterr().out == "Canceled 2 pending tasks\n"


@runs("4. Clean Up on Startup")
def test_clean_up_on_startup(block: Block, names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Stale activities of an earlier run are canceled and reported once; the next start has nothing to say."""
    assert_pending_are_canceled(block, names)
    assert capsys.readouterr().out == "Cleaned up 2 stale activities from previous run\n"
    run_as_written(block, names)
    assert capsys.readouterr().out == ""


def assert_pending_are_canceled(block: Block, names: dict[str, Any]) -> None:
    queued, running, complete = ax.activity.create("queued"), started(), started()
    ax.activity.complete(complete)
    assert ax.flush()
    run_as_written(block, names)
    found = [stored(names["engine"], agent_id)[0] for agent_id in (queued, running, complete)]
    assert found == [Status.CANCELED, Status.CANCELED, Status.COMPLETE]


@runs("2. Include Meaningful Messages")
def test_messages(block: Block, names: dict[str, Any]) -> None:
    """Both messages, the good one and the bad one, are stored in the order they were given."""
    agent_id = started()
    run_as_written(block, names, agent_id=agent_id, results=[1, 2, 3])
    assert stored(names["engine"], agent_id)[2][-2:] == [
        Line(Status.RUNNING, "Found 3 matching documents, analyzing...", 50),
        Line(Status.RUNNING, "Working...", 50),
    ]


@runs("3. Handle Errors Gracefully")
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (APIError("quota exceeded", 429), "API call failed: quota exceeded (code: 429)"),
        (TimeoutError(), "API call timed out after 30 seconds"),
    ],
    ids=["api-error", "timeout"],
)
def test_errors_with_a_message(block: Block, names: dict[str, Any], error: Exception, message: str) -> None:
    """Each kind of failure is stored with its own message and goes on to the caller."""
    agent_id = started()
    with pytest.raises(type(error)):
        run_as_written(block, names, agent_id=agent_id, api_call=failing_with(error), APIError=APIError)
    assert_last(names["engine"], agent_id, Line(Status.ERROR, message))


@runs("3. Handle Errors Gracefully")
def test_no_error_no_message(block: Block, names: dict[str, Any]) -> None:
    """A call that succeeds leaves the activity running."""
    agent_id = started()

    async def api_call() -> str:
        return "answer"

    left = run_as_written(block, names, agent_id=agent_id, api_call=api_call, APIError=APIError)
    assert left["result"] == "answer"
    assert_last(names["engine"], agent_id, Line(Status.RUNNING, "Task started."))


def assert_last(engine: Engine, agent_id: UUID, line: Line) -> None:
    status, _, lines = stored(engine, agent_id)
    assert (status, lines[-1]) == (line.status, line)
