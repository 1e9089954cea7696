"""What each endpoint of the status API returns."""

import subprocess
import sys
from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import TracerProvider

import agentexec_otel as ax
from agentexec_otel.activity import aio
from agentexec_otel.activity.schemas import ActivityListItemSchema
from tests.databases import Database
from tests.web.conftest import ACT, Serve

pytestmark = pytest.mark.one_python

UNKNOWN = UUID(int=7)


async def activity(name: str = "research", *, ended: bool = False, **metadata: Any) -> UUID:
    """An activity with two logs, or three if it has ended."""
    agent_id = await aio.create(name, metadata=metadata)
    await aio.update(agent_id, "Reading.", 20)
    if ended:
        await aio.error(agent_id, "No answer.")
    ax.flush()
    return agent_id


async def test_list(serve: Serve) -> None:
    """A page has the items of `ax.activity.list`, with metadata, newest first."""
    client = serve()
    first, second = await activity(tenant="acme", priority=5), await activity("write", ended=True)
    page = (await client.get("/activities")).json()
    assert [item["agent_id"] for item in page["items"]] == [str(second), str(first)]
    assert (page["total"], page["page"], page["pages"], page["next_cursor"]) == (2, 1, 1, None)
    assert page["items"][1]["metadata"] == {"tenant": "acme", "priority": 5}
    assert page["items"][1]["latest_log"] == "Reading."
    assert page["items"][0]["status"] == "ERROR"


async def test_link_to_the_trace(serve: Serve, tracer_provider: TracerProvider, database: Database) -> None:
    """An item and a detail have `trace_url` if there is a template; otherwise it is null."""
    ax.configure(database.url, tracer_provider=tracer_provider)
    client, agent_id = serve(), await activity()
    paths = ("/activities", f"/activities/{agent_id}")
    before = [(await client.get(path)).json() for path in paths]
    assert [before[0]["items"][0]["trace_url"], before[1]["trace_url"]] == [None, None]
    ax.CONF.trace_url_template = "phoenix:http://localhost:6006"
    page, detail = [(await client.get(path)).json() for path in paths]
    expected = f"http://localhost:6006/redirects/spans/{detail['span_id']}"
    assert page["items"][0]["trace_url"] == detail["trace_url"] == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("status=ERROR", ["write"]),
        ("status=ERROR&status=RUNNING", ["write", "research"]),
        ("agent_type=research", ["research"]),
        ("metadata=tenant=acme&metadata=priority:=5", ["research"]),
        ("metadata=priority=5", []),
        ("text=ANSWER", ["write"]),
        ("order=oldest", ["research", "write"]),
        ("reason=other", []),
        ("waiting=true", []),
        (f"agent_id={UNKNOWN}", []),
        ("created_after=2100-01-01T00:00:00%2B00:00", []),
        ("ended_after=2020-01-01", ["write"]),
    ],
)
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_filters(serve: Serve, query: str, expected: list[str]) -> None:
    """The query parameters are the filters of `ax.activity.list`."""
    client = serve()
    await activity(tenant="acme", priority=5)
    await activity("write", ended=True)
    page = (await client.get(f"/activities?{query}")).json()
    assert [item["agent_type"] for item in page["items"]] == expected


async def test_cursor(serve: Serve) -> None:
    """Pages behind a cursor follow each other without a count."""
    client = serve()
    made = [str(await activity()) for _ in range(3)]
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = (await client.get("/activities", params={"cursor": cursor, "page_size": 2})).json()
        assert page["total"] is None
        seen += [item["agent_id"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert seen == made[::-1]


async def test_detail_and_logs(serve: Serve) -> None:
    """The detail has the logs; `logs` returns what comes after a cursor; without them it is the item of the list."""
    client = serve()
    agent_id = await activity(tenant="acme")
    detail = (await client.get(f"/activities/{agent_id}")).json()
    assert [log["message"] for log in detail["logs"]] == ["Waiting to start.", "Reading."]
    assert detail["metadata"] == {"tenant": "acme"}
    item = (await client.get(f"/activities/{agent_id}", params={"logs": False})).json()
    assert "logs" not in item
    assert item["latest_log"] == "Reading."
    logs = (await client.get(f"/activities/{agent_id}/logs", params={"after_seq": 1})).json()
    assert [log["seq"] for log in logs] == [2]
    assert (await client.get(f"/activities/{agent_id}/logs", params={"after_seq": 2})).json() == []


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_etag_of_an_ended_activity(serve: Serve) -> None:
    """What has ended is not sent twice; what still runs has no ETag."""
    client = serve()
    running, ended = await activity(), await activity(ended=True)
    assert "etag" not in (await client.get(f"/activities/{running}")).headers
    etag = (await client.get(f"/activities/{ended}")).headers["etag"]
    again = await client.get(f"/activities/{ended}", headers={"If-None-Match": etag})
    assert (again.status_code, again.content) == (304, b"")
    await aio.update(ended, "Late.")
    ax.flush()
    late = await client.get(f"/activities/{ended}?include_late=true", headers={"If-None-Match": etag})
    assert late.status_code == 200


async def test_stats(serve: Serve) -> None:
    """Counts, percentiles and a series, of what meets the filters."""
    client = serve()
    await activity(tenant="acme")
    await activity("write", ended=True)
    answer = await client.get("/stats?bucket=3600")
    assert answer.status_code == 200, answer.text
    stats = answer.json()
    assert (stats["total"], stats["by_status"]["ERROR"], stats["by_status"]["QUEUED"]) == (2, 1, 0)
    assert sum(bucket["failed"] for bucket in stats["series"]) == 1
    assert (await client.get("/stats?metadata=tenant=acme")).json()["total"] == 1
    assert (await client.get("/stats?bucket=-1")).status_code == 422


async def test_cancel(serve: Serve) -> None:
    """Canceling ends the activity with the given message. It answers false if the activity had ended."""
    client = serve()
    agent_id = await activity()
    url = f"/activities/{agent_id}/cancel"
    assert (await client.post(url, headers=ACT, json={"message": "Stop."})).json() == {"canceled": True}
    assert (await client.post(url, headers=ACT)).json() == {"canceled": False}
    detail = (await client.get(f"/activities/{agent_id}")).json()
    assert (detail["status"], detail["logs"][-1]["message"]) == ("CANCELED", "Stop.")


async def test_cancel_by_filter(serve: Serve) -> None:
    """Only what meets the filters is canceled; without a filter `all=true` is needed."""
    client = serve()
    kept, canceled = await activity("keep"), await activity("stop")
    refused = await client.post("/cancel", headers=ACT)
    assert (refused.status_code, refused.json()["detail"][:13]) == (422, "Name a filter")
    assert (await client.post("/cancel?agent_type=stop", headers=ACT)).json() == {"canceled": 1}
    statuses = {item["agent_id"]: item["status"] for item in (await client.get("/activities")).json()["items"]}
    assert statuses == {str(kept): "RUNNING", str(canceled): "CANCELED"}
    assert (await client.post("/cancel?all=true", headers=ACT)).json() == {"canceled": 1}


async def test_retry(serve: Serve) -> None:
    """A retry opens the next attempt, and hands the activity to the application."""
    handed: list[ActivityListItemSchema] = []
    client = serve(on_retry=handed.append)
    one, other, running = await activity(ended=True), await activity("write", ended=True), await activity()
    assert (await client.post(f"/activities/{one}/retry", headers=ACT)).json() == {"attempt": 2}
    many = (await client.post("/retry?all=true", headers=ACT)).json()
    assert many == {"attempts": {str(other): 2}, "refused": {}}
    assert [(item.agent_id, item.status, item.attempt) for item in handed] == [(one, "QUEUED", 2), (other, "QUEUED", 2)]
    refused = await client.post(f"/activities/{running}/retry", headers=ACT)
    assert refused.status_code == 409


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_retry_that_is_not_taken(serve: Serve) -> None:
    """An activity that the application cannot run does not stay QUEUED."""

    async def refuse(item: ActivityListItemSchema) -> None:
        raise ConnectionError("no broker")

    client = serve(on_retry=refuse)
    agent_id = await activity(ended=True)
    answer = await client.post(f"/activities/{agent_id}/retry", headers=ACT)
    assert answer.status_code == 502
    detail = (await client.get(f"/activities/{agent_id}")).json()
    assert (detail["status"], detail["attempt"]) == ("ERROR", 2)
    assert "ConnectionError" in detail["logs"][-1]["message"]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_retry_is_offered_with_a_handler_only(serve: Serve) -> None:
    """Without `on_retry` there is nothing that would run the activity."""
    client = serve()
    agent_id = await activity(ended=True)
    assert (await client.post(f"/activities/{agent_id}/retry", headers=ACT)).status_code == 404


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        (f"/activities/{UNKNOWN}", 404, "no activity has the agent_id"),
        (f"/activities/{UNKNOWN}/logs", 404, "no activity has the agent_id"),
        ("/activities/x", 422, "path.agent_id"),
        ("/activities?page_size=1000", 422, "query.page_size"),
        ("/activities?stats=ERROR", 422, "query.stats: Extra inputs"),
        ("/activities?metadata=tenant", 422, "write key=text"),
        ("/activities?metadata=:=5", 422, "write key=text"),
        ("/activities?metadata=tenant:=acme", 422, "no JSON"),
        ("/activities?cursor=x", 422, "cursor"),
        ("/activities?status=DONE", 422, "query.status"),
    ],
)
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_problems(serve: Serve, path: str, status: int, words: str) -> None:
    """An error is a problem detail, as RFC 9457 has it."""
    answer = await serve().get(path)
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (answer.status_code, problem["status"], problem["type"]) == (status, status, "about:blank")
    assert words in problem["detail"]


@pytest.mark.parametrize("empty_database", ["sqlite", "postgres"], indirect=True)
def test_missing_tables(empty_database: Database) -> None:
    """Without tables the API says how to make them."""
    app = FastAPI()
    app.include_router(ax.web.router(authorize=ax.web.public, database=empty_database.url))
    answer = TestClient(app).get("/activities")
    assert answer.status_code == 503
    assert "agentexec-otel db upgrade" in answer.json()["detail"]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_default_database(database: Database) -> None:
    """Without `database` the API reads what `ax.configure()` was given."""
    app = FastAPI()
    app.include_router(ax.web.router(authorize=ax.web.public))
    client = TestClient(app)
    assert "no database is configured" in client.get("/activities").json()["detail"]
    ax.configure(database.engine)
    ax.activity.create("research")
    assert client.get("/activities").json()["total"] == 1
    assert ax.configured_database() is database.engine


def test_import_needs_the_extra() -> None:
    """`import agentexec_otel` loads no web framework; without one, `ax.web` says what to install."""
    code = (
        "import sys, agentexec_otel as ax; assert 'fastapi' not in sys.modules\n"
        "sys.modules['fastapi'] = None\n"
        "try: ax.web\n"
        "except ax.MissingExtraError as exc: print(exc)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("pip install 'agentexec-otel[web]'"), done.stderr
