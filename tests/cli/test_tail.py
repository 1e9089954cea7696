"""`agentexec-otel tail`."""

import json
import subprocess
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import create_engine, delete, update

import agentexec_otel as ax
from agentexec_otel.activity import Activity, ActivityLog
from tests.cli.terminal import COMMAND, PATIENCE, Terminal, environment, run

pytestmark = pytest.mark.one_python

PROMISED_SECONDS = 0.3  # measured by the benchmark `tail`; a busy machine must not fail the test


def report_until(terminal: Terminal, agent_id: UUID) -> None:
    """Report until the command, which prints only what comes after its start, prints."""
    deadline = time.monotonic() + PATIENCE
    while "Is it there?" not in terminal.text:
        assert time.monotonic() < deadline
        ax.activity.update(agent_id, "Is it there?")
        terminal.read(0.2)


@pytest.mark.parametrize("which", ["one", "all"])
def test_a_log_is_shown_at_once(url: str, which: str) -> None:
    """A log that another process reports is on the screen within a moment."""
    agent_id = ax.activity.create("research")
    with Terminal("tail", *([str(agent_id)] if which == "one" else []), url=url) as terminal:
        report_until(terminal, agent_id)
        waits: list[float] = []
        for step in range(5):
            began = time.monotonic()
            ax.activity.update(agent_id, f"Step {step}", step * 10)
            terminal.wait_for(f"Step {step}")
            waits.append(time.monotonic() - began)
        assert sorted(waits)[2] < 5 * PROMISED_SECONDS
        assert any(line.split()[-3:] == ["40%", "Step", "4"] for line in terminal.lines)
        assert (str(agent_id)[:8] in terminal.text) is (which == "all")
        assert terminal.interrupt() == 130
        assert "Traceback" not in terminal.text


def test_one_activity_until_it_ends(url: str) -> None:
    """With an id, the command ends with the activity, after its last log."""
    agent_id = ax.activity.create("research")
    with Terminal("tail", str(agent_id), url=url) as terminal:
        terminal.wait_for("Waiting to start.")
        ax.activity.update(agent_id, "Working", 50)
        ax.activity.complete(agent_id, "Ready")
        assert terminal.end() == 0
        assert [line.split()[-1] for line in terminal.lines if line] == ["start.", "Working", "Ready"]


def test_earlier_logs_of_one(url: str) -> None:
    """The last ten of an activity's logs come first, or as many as asked for."""
    agent_id = ax.activity.create("research")
    for step in range(20):
        ax.activity.update(agent_id, f"Step {step}")
    ax.activity.complete(agent_id)
    ax.flush()
    assert len(run("tail", str(agent_id), url=url).lines) == 10
    assert [line.split()[-1] for line in run("tail", str(agent_id), "-n", "2", url=url).lines] == [
        "19",
        "successfully.",
    ]
    assert run("tail", str(agent_id), "-n", "0", url=url).out == ""
    assert len(run("tail", str(agent_id), "--since", "1h", url=url).lines) == 22
    assert run("tail", str(agent_id), "--since", "2999-01-01", url=url).out == ""


@contextmanager
def piped(*arguments: str, url: str) -> Generator[Iterator[str]]:
    """The lines that a command prints into a pipe as it goes."""
    command = [str(COMMAND), "tail", *arguments]
    with subprocess.Popen(command, env=environment(url), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield iter(process.stdout)
        process.terminate()


def test_json_lines_with_filters(url: str, some: dict[str, UUID]) -> None:
    """Earlier logs since a time, then those that come, in one stream: of those that meet the filters, each once."""
    with piped("--since", "1h", "--json", "-m", "tenant=acme", url=url) as lines:
        earlier = [json.loads(next(lines)) for _ in range(3)]
        assert {found["agent_id"] for found in earlier} == {str(some["queued"]), str(some["running"])}
        assert [found["created_at"] for found in earlier] == sorted(found["created_at"] for found in earlier)
        ax.activity.update(some["queued"], "\x1b[2J", 10)
        ax.activity.retry(some["error"])
        ax.activity.update(some["running"], "Last")
        first, second = (json.loads(next(lines)) for _ in range(2))
    assert (first["agent_type"], first["percentage"], first["message"]) == ("summarize", 10, r"\x1b[2J")
    assert second["message"] == "Last"
    assert ax.activity.ActivityLogSchema.model_validate(second).seq == 3


def test_since_takes_what_is_older_out(url: str, some: dict[str, UUID]) -> None:
    """Only logs since then come first, and of them as many as asked for."""
    engine = create_engine(url)
    with engine.begin() as connection:
        long_ago = datetime.now(UTC) - timedelta(days=2)
        connection.execute(
            update(ActivityLog).where(ActivityLog.message == "Half").values(created_at=long_ago, message="Long ago")
        )
    engine.dispose()
    with Terminal("tail", "--since", "1d", "-n", "3", url=url) as terminal:
        terminal.wait_for("CANCELED")
        assert len([line for line in terminal.lines if line]) == 3
    with Terminal("tail", "--since", "3d", url=url) as terminal:
        shown = terminal.wait_for("CANCELED")
        assert f"── {long_ago.astimezone().date()}" in shown
        assert "Long ago" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["abcd", "--type", "x"], "filters are for the logs of all activities"),
        (["--lines", "3"], "without an ID it needs --since"),
        (["--since", "soon"], "is no time"),
    ],
)
def test_usage(url: str, arguments: list[str], words: str) -> None:
    """A contradiction is a usage error."""
    done = run("tail", *arguments, url=url)
    assert (done.code, done.out) == (2, "")
    assert words in done.complaint


def test_an_activity_that_is_deleted(url: str) -> None:
    """If the activity goes while it is followed, the command ends with a sentence."""
    agent_id = ax.activity.create("research")
    with Terminal("tail", str(agent_id), url=url) as terminal:
        terminal.wait_for("Waiting to start.")
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(delete(ActivityLog))
            connection.execute(delete(Activity))
        engine.dispose()
        assert terminal.end() == 1
        assert "no activity has the agent_id" in terminal.text
