"""Forks: what was queued, spooled, connected and open belongs to the parent, and the child works."""

import json
from pathlib import Path
from typing import Any

import pytest

import agentexec_otel as ax
from tests.chaos.conftest import MARIADB_FIRST, ONE_FIRST, POSTGRES_FIRST
from tests.chaos.journal import compare, promised
from tests.chaos.law import settled
from tests.chaos.processes import Program
from tests.chaos.proxy import Proxy
from tests.chaos.test_liveness import endings
from tests.databases import Database


def forker(folder: Path, url: str, how: str, **options: Any) -> Program:
    files = {"journal": str(folder / "forker.journal"), "spans": str(folder / "spans")}
    return Program(folder, "forker", json.dumps({"url": url, "how": how, **files, **options}))


@POSTGRES_FIRST
def test_a_fork_with_events_queued(database: Database, proxy: Proxy, tmp_path: Path) -> None:
    """Nine events wait at the fork: each is stored once, as is what both sides report afterwards."""
    with forker(tmp_path, proxy.url, "queued") as program:
        program.says("ready")
        proxy.refuse()
        program.tell("go")
        program.says("forked")
        proxy.let_pass()
        assert program.join() == 0, program.stderr
    verdict = compare(database.engine, [tmp_path / "forker.journal"])
    assert verdict.sound, verdict
    assert verdict.accepted == 1 + 9 + 3 + 3


@ONE_FIRST
def test_an_activity_open_across_a_fork(database: Database, tmp_path: Path) -> None:
    """Ended on both sides: one terminal status, the other line late, and one span."""
    with forker(tmp_path, database.url, "opened") as program:
        assert program.join() == 0, program.stderr
    (agent_id,) = promised([tmp_path / "forker.journal"])
    ends = [late for text, _, late in endings(database.engine, agent_id) if text == "Task completed successfully."]
    assert sorted(ends) == [False, True]
    assert (tmp_path / "spans").read_text() == "opened COMPLETE\n"


@pytest.mark.parametrize(
    ("database", "count"),
    [
        ("sqlite", 20),
        ("postgres", 20),
        pytest.param("sqlite", 200, marks=pytest.mark.slow),
        pytest.param("postgres", 200, marks=pytest.mark.slow),
        pytest.param("mariadb", 200, marks=pytest.mark.slow),
    ],
    indirect=["database"],
)
def test_forks_under_load(database: Database, tmp_path: Path, count: int) -> None:
    """Forks while four threads report: no child hangs, every child's line and every thread's line is stored once."""
    with forker(tmp_path, database.url, "under load", count=count) as program:
        assert program.join(300) == 0, program.stderr
    ax.configure(database.url)
    ax.recover()
    settled()
    verdict = compare(database.engine, [tmp_path / "forker.journal"])
    assert verdict.sound, verdict
    assert sum("child" in text for texts in promised([tmp_path / "forker.journal"]).values() for text in texts) == count


@ONE_FIRST
def test_a_fork_by_c_code(database: Database, tmp_path: Path) -> None:
    """No hook of Python's is called: the child reports, flushes and ends all the same; the span is its parent's."""
    with forker(tmp_path, database.url, "from C") as program:
        assert program.join() == 0, program.stderr
    (agent_id,) = promised([tmp_path / "forker.journal"])
    assert [(text, late) for text, _, late in endings(database.engine, agent_id)] == [
        ("by the child", False),
        ("parent 1", True),
        ("Task completed successfully.", True),
    ]
    assert (tmp_path / "spans").read_text() == "from C COMPLETE\n"


@MARIADB_FIRST
def test_connections_are_not_inherited(database: Database, tmp_path: Path) -> None:
    """Two processes, 300 statements each, at the same time: own answers only."""
    with forker(tmp_path, database.url, "statements") as program:
        assert program.join(60) == 0, program.stderr
