"""Runs that wait for an approval while their process is killed."""

import time
from pathlib import Path
from typing import Any

import agents
import pytest
from agents import RunState

import agentexec_otel as ax
from agentexec_otel.activity.models import Status
from tests.chaos.approvals import payer, run
from tests.chaos.conftest import SERVERS
from tests.chaos.processes import Program, await_that, worker
from tests.chaos.proxy import Proxy
from tests.databases import Database
from tests.e2e.instrumented import activities
from tests.e2e.scripted import INPUT_TOKENS
from tests.e2e.scripted import say as answer
from tests.sql.rows import gap_free, lines, row

LEASE = 1.0
QUICK = {"AGENTEXEC_LEASE_SECONDS": f"{LEASE}", "AGENTEXEC_SWEEP_INTERVAL": "0.2"}
WAYS = [
    ("postgres", "Runner"),
    ("sqlite", "Runner streamed"),
    ("mariadb", "OpenAIRunner"),
    ("sqlite", "OpenAIRunner streamed"),
]


def leases_end(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """All leases expire, this process sweeps, and reaps by hand: nothing is lost."""
    monkeypatch.setattr(ax.CONF, "lease_seconds", LEASE)
    monkeypatch.setattr(ax.CONF, "sweep_interval", 0.2)
    ax.configure(database.url)
    time.sleep(2.5 * LEASE)
    assert ax.activity.reap() == 0
    assert ax.health()["reaped"] == 0


@pytest.mark.one_python
@pytest.mark.parametrize(("database", "how"), WAYS, indirect=["database"])
async def test_a_run_that_waits_outlives_its_process(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Killed -9 while it waits, it is never lost; another process resumes it: one activity, one attempt, COMPLETE."""
    ax.configure(database.url)
    agent_id = ax.activity.create("Payer") if "OpenAIRunner" in how else None
    with Program(tmp_path, "approvals", str(database.url), how, str(agent_id), **QUICK) as first:
        first.says("waits")
        written = next(line for line in first.stdout.splitlines() if line.startswith("state "))
        (before,) = activities(database)
        first.kill()
    agent_id = agent_id or before.agent_id
    assert before.waiting is not None
    (item,) = before.waiting["items"]
    assert (before.status, before.waiting["for"], item["tool"]) == ("RUNNING", "approval", "pay")
    assert row(database.engine, agent_id).lease_expires_at is None
    leases_end(database, monkeypatch)

    what = payer(answer("done"))
    state: Any = await RunState.from_string(what, written.removeprefix("state "))
    (interruption,) = state.get_interruptions()
    assert interruption.call_id == item["call_id"]
    state.approve(interruption)
    agents.set_trace_processors([])
    instrumentor = ax.AgentExecInstrumentor()
    if "OpenAIRunner" not in how:
        instrumentor.instrument()
    try:
        result = await run(how, str(agent_id), what, state)
    finally:
        if "OpenAIRunner" not in how:
            instrumentor.uninstrument()
    assert result.final_output == "done"
    (after,) = activities(database)
    assert (after.agent_id, after.status, after.attempt, after.waiting) == (agent_id, "COMPLETE", 1, None)
    assert (after.requests, after.input_tokens) == (3, 3 * INPUT_TOKENS)
    assert "Stopped for the approval of 1 tool call." in [log.message for log in after.logs]


def test_a_block_that_waits_outlives_its_process(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost of a wait that the application has set, nor before the other process has said what it does."""
    ax.configure(database.url)
    agent_id = ax.activity.create("task")
    with worker(tmp_path, database.url, "first", **QUICK) as first:
        first.do(f"run {agent_id}")
        first.do("wait call_1")
        # The process lives on for some heartbeats, and its block is entered.
        time.sleep(1.5 * LEASE)
        assert row(database.engine, agent_id).lease_expires_at is None
        first.kill()
    leases_end(database, monkeypatch)
    with ax.activity.run(agent_id, "Approved.") as block:
        assert ax.flush()
        stored = row(database.engine, agent_id)
        assert (stored.waiting, stored.worker_id) == (None, ax.health()["worker_id"])
        assert stored.lease_expires_at is not None
        assert block.owner
    stored, logs = row(database.engine, agent_id), lines(database.engine, agent_id)
    assert (stored.status, stored.attempt, stored.waiting) == (Status.COMPLETE, 1, None)
    assert gap_free(logs)
    assert [log.message for log in logs[-3:]] == [
        "Waiting for approval: pay.",
        "Approved.",
        "Task completed successfully.",
    ]


@SERVERS
def test_a_wait_is_replayed(database: Database, proxy: Proxy, tmp_path: Path) -> None:
    """A process that is killed during an outage leaves its wait in the spool; the next process stores it."""
    ax.configure(database.url)
    agent_id = ax.activity.create("task")
    assert ax.shutdown()
    with worker(tmp_path, proxy.url, "first", **QUICK) as first:
        first.do(f"run {agent_id}")
        await_that(lambda: row(database.engine, agent_id).status is Status.RUNNING, what="the start")
        proxy.refuse()
        first.do("wait call_1")
        first.kill()
    assert row(database.engine, agent_id).waiting is None
    proxy.let_pass()
    ax.configure(proxy.url)
    assert ax.recover() == 1
    stored = row(database.engine, agent_id)
    assert stored.waiting is not None
    assert (stored.waiting["items"], stored.lease_expires_at) == ([{"tool": "pay", "call_id": "call_1"}], None)
