"""`make app`: the example's web service works as its pages say, in process and as real processes."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import httpx
import pytest
import redis
from fastapi.testclient import TestClient

import agentexec_otel as ax
from agentexec_otel.activity.models import Status
from tests.brokers import REDIS, need
from tests.databases import Database
from tests.e2e.app_service import EXAMPLES, Service, service
from tests.sql.rows import row

STOPPED = "Canceled by the user."
ACT = {"X-AgentExec-Action": "test"}

pytestmark = pytest.mark.one_python

on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


# -- in process -------------------------------------------------------------------------------------------------


@pytest.fixture
def start(database: Database, monkeypatch: pytest.MonkeyPatch, no_uploads: None) -> Iterator[Callable[..., TestClient]]:
    """Gives the application, imported anew with these settings; `with` starts it."""
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("APP_DATABASE", database.url)

    def load(pace: float = 0.01, **variables: str) -> TestClient:
        monkeypatch.setenv("APP_PACE", str(pace))
        for name, value in variables.items():
            monkeypatch.setenv(f"APP_{name.upper()}", value)
        from fastapi_app.main import app

        return TestClient(app)

    forget_the_application()
    yield load
    forget_the_application()


def forget_the_application() -> None:
    if settings := sys.modules.get("fastapi_app.settings"):
        settings.engine.dispose()
    for name in [name for name in sys.modules if name.split(".")[0] == "fastapi_app"]:
        del sys.modules[name]


def research(client: TestClient | httpx.Client, company: str) -> str:
    """Start it, as a user of Acme who has opened the page."""
    assert client.get("/").status_code == 200
    answer = client.post("/api/research", json={"company": company})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["agent_id"])


def followed(client: TestClient | httpx.Client, agent_id: str) -> list[dict[str, Any]]:
    """The logs of the stream, to its end."""
    text = client.get(f"/api/activities/{agent_id}/events").text
    assert len(re.findall(r"^event: end$", text, re.MULTILINE)) == 1
    return [json.loads(data) for data in re.findall(r"^event: log\nid: \d+\ndata: (.*)$", text, re.MULTILINE)]


def found(client: TestClient | httpx.Client, agent_id: str) -> dict[str, Any]:
    """The activity, without its logs."""
    return dict(client.get(f"/api/activities/{agent_id}", params={"logs": False}).json())


def wait_for_progress(client: TestClient | httpx.Client, agent_id: str) -> None:
    deadline = time.monotonic() + 30
    while not found(client, agent_id)["latest_percentage"]:
        assert time.monotonic() < deadline, found(client, agent_id)
        time.sleep(0.02)


def cancel(client: TestClient | httpx.Client, agent_id: str) -> bool:
    answer = client.post(f"/api/activities/{agent_id}/cancel", json={"message": STOPPED}, headers=ACT)
    return bool(answer.json()["canceled"])


@on_sqlite
def test_research_is_followed_to_its_end(start: Callable[..., TestClient]) -> None:
    """Followed live: the reports of the agent, in order, and what it has found."""
    with start() as client:
        agent_id = research(client, "Acme")
        lines = followed(client, agent_id)
        assert [line["status"] for line in lines] == ["QUEUED", *["RUNNING"] * (len(lines) - 2), "COMPLETE"]
        percentages = [line["percentage"] for line in lines if line["percentage"] is not None]
        assert len(percentages) >= 8
        assert percentages == sorted(percentages)
        assert lines[-2]["message"] == "Acme has grown by 15 %, and its competitors have not."
        listed = client.get("/api/activities", params={"status": "COMPLETE"}).json()
        assert [item["metadata"] for item in listed["items"]] == [{"tenant": "acme", "company": "Acme"}]


@on_sqlite
def test_retry(start: Callable[..., TestClient]) -> None:
    """A failure says why. It can be retried, and runs again as attempt 2."""
    with start() as client:
        agent_id = research(client, "Nobody")
        assert "the archive has nothing about Nobody" in followed(client, agent_id)[-1]["message"]
        assert client.post(f"/api/activities/{agent_id}/retry", headers=ACT).json() == {"attempt": 2}
        lines = followed(client, agent_id)
        assert [line["attempt"] for line in lines if line["status"] == "ERROR"] == [1, 2]
        assert (found(client, agent_id)["status"], found(client, agent_id)["attempt"]) == ("ERROR", 2)


@on_sqlite
def test_cancel(start: Callable[..., TestClient]) -> None:
    """A run that is canceled stops; canceling it once more reports that it had ended."""
    with start(pace=0.3) as client:
        agent_id = research(client, "Acme")
        wait_for_progress(client, agent_id)
        assert cancel(client, agent_id)
        lines = [line for line in followed(client, agent_id) if not line["late"]]
        assert (lines[-1]["status"], lines[-1]["message"]) == ("CANCELED", STOPPED)
        assert not cancel(client, agent_id)


@on_sqlite
def test_tenants(start: Callable[..., TestClient]) -> None:
    """Users of another tenant neither see nor cancel it; without a tenant, everything is refused."""
    with start() as client:
        agent_id = research(client, "Acme")
        followed(client, agent_id)
        client.get("/", params={"tenant": "globex"})
        assert client.get("/api/activities").json()["items"] == []
        for path in ("", "/logs", "/events"):
            assert client.get(f"/api/activities/{agent_id}{path}").status_code == 404
        assert client.post(f"/api/activities/{agent_id}/cancel", headers=ACT).status_code == 404
        client.cookies.clear()
        assert client.get("/api/activities").status_code == 403
        assert client.post("/api/research", json={"company": "Acme"}).status_code == 403


@on_sqlite
def test_malformed_research(start: Callable[..., TestClient]) -> None:
    """Bad input is 422 and stores nothing."""
    with start() as client:
        client.get("/")
        for context in ({}, {"company": ""}, {"company": 7}):
            assert client.post("/api/research", json=context).status_code == 422
        assert client.get("/api/activities").json()["total"] == 0


def left_behind(database: Database) -> dict[str, UUID]:
    """What an earlier process, and another application, have in the database."""
    ax.configure(database.url)
    names, acme = ("research/queued", "research/running", "other"), {"tenant": "acme"}
    left = {name: ax.activity.create(name.split("/")[0], metadata=acme) for name in names}
    ax.activity.update(left["research/running"], "At work", 20)
    assert ax.flush()
    return left


@on_sqlite
def test_clean_up_on_start(
    start: Callable[..., TestClient], database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a broker, what an earlier process has left is canceled; what belongs to others is left alone."""
    left = left_behind(database)
    with start() as client:
        client.get("/")
        statuses = {name: found(client, str(agent_id))["status"] for name, agent_id in left.items()}
    assert statuses == {"research/queued": "CANCELED", "research/running": "CANCELED", "other": "QUEUED"}
    assert "Canceled 2 activities" in capsys.readouterr().out


@on_sqlite
def test_broker_that_is_away(start: Callable[..., TestClient], database: Database) -> None:
    """With a broker nothing is canceled at the start; while it is away the list works, and new tasks are a 503."""
    left = left_behind(database)
    with start(broker="redis://127.0.0.1:1") as client:
        client.get("/")
        assert client.post("/api/research", json={"company": "Acme"}).status_code == 503
        items = client.get("/api/activities").json()["items"]
    ends = {item["agent_id"]: (item["status"], item["reason"]) for item in items}
    assert [ends.pop(str(agent_id))[0] for agent_id in left.values()] == ["QUEUED", "RUNNING", "QUEUED"]
    assert list(ends.values()) == [("ERROR", "enqueue")]


# -- as processes -----------------------------------------------------------------------------------------------


@on_sqlite
def test_ctrl_c(database: Database, tmp_path: Path) -> None:
    """Ctrl-C while a browser follows a run: the stream ends, the run may finish, and nothing is said; exit code 0."""
    with service(tmp_path, database=database.url, pace="0.2") as (app, client):
        agent_id = research(client, "Acme")
        with client.stream("GET", f"/api/activities/{agent_id}/events") as stream:
            lines = stream.iter_lines()
            assert next(lines) == "event: log"
            os.killpg(app.process.pid, signal.SIGINT)
            assert len(list(lines)) < 40
        assert app.stopped() == 0
        assert app.stderr.read_text() == ""
        assert "Traceback" not in app.said()
    assert row(database.engine, UUID(agent_id)).status is Status.COMPLETE


@on_sqlite
def test_port_that_is_taken(database: Database, tmp_path: Path) -> None:
    """A second service on the same port ends with one line, before it cancels what the first one works on."""
    with service(tmp_path, database=database.url, pace="0.2") as (_, client):
        agent_id = research(client, "Acme")
        second = tmp_path / "second"
        second.mkdir()
        other = Service(second, "--port", str(client.base_url.port), database=database.url)
        assert other.stopped() == 3
        assert "Address already in use" in other.said()
        assert "Traceback" not in other.said()
        assert followed(client, agent_id)[-1]["status"] == "COMPLETE"


@pytest.fixture
def queue() -> Iterator[str]:
    """A queue of this test alone on a Redis that answers, and nothing of it afterwards."""
    need("redis")
    name = f"app-{uuid4().hex}"
    yield name
    client: Any = cast("Any", redis.Redis).from_url(REDIS)
    client.delete(name, *client.scan_iter(f"{name}*"))
    client.close()


@pytest.mark.parametrize("empty_database", ["postgres"], indirect=True)
def test_with_workers(empty_database: Database, queue: str, tmp_path: Path) -> None:
    """PostgreSQL, Redis and worker processes: one run ends well, one is canceled, one finishes though we stop."""
    database, began = empty_database, time.monotonic()
    with service(tmp_path, database=database.url, broker=REDIS, queue=queue, pace="0.2") as (app, client):
        done, canceled = research(client, "Acme"), research(client, "Globex")
        wait_for_progress(client, canceled)
        assert cancel(client, canceled)
        assert followed(client, done)[-1]["status"] == "COMPLETE"
        last = research(client, "Initech")
        wait_for_progress(client, last)
        app.process.send_signal(signal.SIGTERM)
        assert app.stopped() == 0
        assert "Traceback" not in app.said()
    rows = [row(database.engine, UUID(agent_id)) for agent_id in (done, canceled, last)]
    assert [each.status for each in rows] == [Status.COMPLETE, Status.CANCELED, Status.COMPLETE]
    assert {(each.worker_id or "").split(":")[1] for each in rows}.isdisjoint({str(app.process.pid), str(os.getpid())})
    assert time.monotonic() - began < 60


@on_sqlite
def test_workers_without_their_broker(database: Database, tmp_path: Path) -> None:
    """While the broker is away, workers say so in one line, try again, and can be stopped."""
    with service(tmp_path, database=database.url, broker="redis://127.0.0.1:1") as (app, client):
        deadline = time.monotonic() + 30
        while app.said().count("the broker is away, or refuses us (ConnectionError)") < 3:
            assert time.monotonic() < deadline, app.said()
            time.sleep(0.1)
        assert client.get("/").status_code == 200
        assert client.get("/api/activities").status_code == 200
        os.killpg(app.process.pid, signal.SIGINT)
        assert app.stopped() == 0
        assert "Traceback" not in app.said()
