"""The activity page's status API answers over HTTP as its text says."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi.testclient import TestClient

import agentexec_otel as ax
from tests.docs.blocks import Block
from tests.docs.page import on_sqlite, run_as_written, runs

pytestmark = [on_sqlite, runs("Building a Status API")]


@pytest.fixture
def client(block: Block, names: dict[str, Any]) -> Iterator[TestClient]:
    """A client of the page's application, run as written."""
    with TestClient(run_as_written(block, names)["app"]) as client:
        yield client


def working() -> UUID:
    agent_id = ax.activity.create("research_company", metadata={"tenant": "acme"})
    ax.activity.update(agent_id, "Analyzing competitors...", percentage=50)
    assert ax.flush()
    return agent_id


def test_list(client: TestClient) -> None:
    """The list comes in pages, newest first, with status, percentage and latest line of each activity."""
    ids = [working() for _ in range(3)]
    first = client.get("/api/activities", params={"page_size": 2}).json()
    second = client.get("/api/activities", params={"page": 2, "page_size": 2}).json()
    assert [item["agent_id"] for item in first["items"] + second["items"]] == [str(agent_id) for agent_id in ids[::-1]]
    for page, answer in enumerate((first, second), 1):
        assert {name: answer[name] for name in ("total", "page", "page_size", "pages")} == {
            "total": 3,
            "page": page,
            "page_size": 2,
            "pages": 2,
        }
    item = first["items"][0]
    assert (item["agent_type"], item["status"]) == ("research_company", "RUNNING")
    assert (item["latest_log"], item["latest_percentage"]) == ("Analyzing competitors...", 50)
    assert "acme" not in client.get("/api/activities").text


def test_detail(client: TestClient) -> None:
    """An activity is served with its full history, and without its metadata; times say that they are UTC."""
    agent_id = working()
    response = client.get(f"/api/activities/{agent_id}")
    answer = response.json()
    assert (answer["agent_id"], answer["status"], answer["latest_percentage"]) == (str(agent_id), "RUNNING", 50)
    assert [(log["status"], log["message"], log["percentage"]) for log in answer["logs"]] == [
        ("QUEUED", "Waiting to start.", None),
        ("RUNNING", "Analyzing competitors...", 50),
    ]
    assert answer["created_at"].endswith(("Z", "+00:00"))
    assert "acme" not in response.text


def test_status(client: TestClient) -> None:
    """Just the status, the progress and the latest message."""
    agent_id = working()
    assert client.get(f"/api/activities/{agent_id}/status").json() == {
        "status": "RUNNING",
        "progress": 50,
        "message": "Analyzing competitors...",
    }


@pytest.mark.parametrize("path", ["", "/status"])
def test_unknown_activity(client: TestClient, path: str) -> None:
    """An id that no activity has is a 404 with the page's own words."""
    response = client.get(f"/api/activities/{uuid4()}{path}")
    assert (response.status_code, response.json()) == (404, {"detail": "Activity not found"})
