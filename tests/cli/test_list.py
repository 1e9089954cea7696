"""`agentexec-otel list`."""

from uuid import UUID

import pytest
from rich.cells import cell_len

import agentexec_otel as ax
from tests.cli.conftest import LONG_TYPE
from tests.cli.terminal import Terminal, run

pytestmark = pytest.mark.one_python

HEAD = ["ID", "TYPE", "STATUS", "%", "AGE", "TIME", "LOG"]


def test_a_pipe_gets_whole_lines(url: str, some: dict[str, UUID]) -> None:
    """In a pipe, nothing is cut: whole ids, types and logs, one line each, newest first."""
    done = run("list", url=url)
    assert (done.code, done.err) == (0, "")
    head, *lines = done.lines
    assert head.split() == HEAD
    assert [line.split()[0] for line in lines] == [str(some[name]) for name in reversed(some)]
    assert any(LONG_TYPE in line and line.endswith("everything else in the market") for line in lines)


def test_a_terminal_gets_80_columns(url: str, some: dict[str, UUID]) -> None:
    """In a terminal, what is too long is cut between words, and each activity has one line."""
    with Terminal("list", url=url) as terminal:
        assert terminal.end() == 0
        head, *lines = [line for line in terminal.lines if line]
    assert head.split() == HEAD
    assert len(lines) == len(some)
    assert all(cell_len(line) <= 80 for line in lines)
    (running,) = [line for line in lines if "RUNNING" in line]
    assert running.startswith(f"{str(some['running'])[:8]}  research.")
    assert running.endswith("Analyzing competitors…")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--status", "running"], ["running"]),
        (["--status", "QUEUED", "-s", "running"], ["running", "queued"]),
        (["--type", "research"], ["canceled", "error", "complete"]),
        (["--metadata", "tenant=acme"], ["running", "queued"]),
        (["-m", "tenant=acme", "-m", "order:=7"], ["running"]),
        (["-m", "order=7"], []),
        (["--since", "1h"], ["canceled", "error", "complete", "running", "queued"]),
        (["--until", "2020-01-01"], []),
        (["--updated-since", "1h", "--updated-until", "2999-01-01T00:00+02:00", "-s", "error"], ["error"]),
        (["--ended-since", "2d3h", "--ended-until", "2999-01-01"], ["canceled", "error", "complete"]),
        (["--reason", "timeout", "--reason", "lost"], ["error"]),
        (["--error-type", "TimeoutError"], ["error"]),
        (["--text", "Competitors"], ["running"]),
        (["--trace", "0" * 32], []),
        (["--worker", "nobody"], []),
        (["--limit", "2"], ["canceled", "error"]),
        (["-n", "2", "--page", "3"], ["queued"]),
        (["--oldest", "-n", "1"], ["queued"]),
    ],
    ids=" ".join,
)
def test_filters(url: str, some: dict[str, UUID], options: list[str], names: list[str]) -> None:
    """Each filter of the query API is an option, and each value means there what it means here."""
    done = run("list", "--quiet", *options, url=url)
    assert done.code == 0
    assert done.lines == [str(some[name]) for name in names]


def test_nothing_matches(url: str, some: dict[str, UUID]) -> None:
    """An empty list is no failure: nothing on stdout, a remark on stderr."""
    done = run("list", "--type", "nothing", url=url)
    assert (done.code, done.out, done.err) == (0, "", "no activity matches\n")


def test_json_is_the_schema(url: str, some: dict[str, UUID]) -> None:
    """`--json` prints what the query API returns."""
    found = run("list", "--json", "-n", "2", url=url).json
    page = ax.activity.ActivityListSchema.model_validate(found)
    assert (page.total, len(page.items), page.pages) == (5, 2, 3)
    assert found["items"][0]["agent_id"] == str(some["canceled"])


def test_cursor(url: str, some: dict[str, UUID]) -> None:
    """A cursor continues where the page before has ended, and counts nothing."""
    first = run("list", "--json", "-n", "3", "--cursor", "", url=url).json
    assert first["total"] is None
    second = run("list", "--json", "--cursor", first["next_cursor"], url=url).json
    seen = [item["agent_id"] for page in (first, second) for item in page["items"]]
    assert seen == [str(agent_id) for agent_id in reversed(some.values())]


def test_watch(url: str) -> None:
    """`--watch` shows bars and durations that tick, and ends with Ctrl-C."""
    agent_id = ax.activity.create("research")
    ax.activity.update(agent_id, "Reading", 25)
    ax.flush()
    with Terminal("list", "--watch", url=url) as terminal:
        shown = terminal.wait_for("Reading")
        assert "━━╌╌╌╌╌╌" in shown
        assert "live; Ctrl-C ends" in shown
        ax.activity.update(agent_id, "Writing", 50)
        shown = terminal.wait_for("Writing")
        assert "━━━━╌╌╌╌" in shown
        assert "Reading" not in shown, "it is the same table, not another one"
        ticking = [line for line in terminal.lines if "Writing" in line]
        terminal.wait_for(lambda text: ticking[0] not in text.splitlines() and "Writing" in text)
        assert terminal.interrupt() == 130
        assert "Traceback" not in terminal.text


def test_watch_needs_a_terminal(url: str) -> None:
    """A pipe cannot be redrawn: the command names the one that suits."""
    done = run("list", "--watch", url=url)
    assert done.code == 2
    assert "tail --json" in done.complaint
