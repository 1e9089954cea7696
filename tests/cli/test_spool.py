"""`agentexec-otel spool`: what waits, what was refused, and its delivery."""

from pathlib import Path

import pytest
from rich.cells import cell_len
from sqlalchemy import create_engine, text

import agentexec_otel as ax
from tests.cli.terminal import Terminal, run
from tests.conftest import reset_runtime

pytestmark = pytest.mark.one_python

HOSTILE = "venom \x1b[31m\u202e" + "poison " * 40


@pytest.fixture
def refused(url: str) -> str:
    """A database with an activity whose second log it has refused; its process has ended."""
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE TRIGGER refuse BEFORE INSERT ON agentexec_activity_log WHEN NEW.message LIKE 'venom%'"
                " BEGIN SELECT RAISE(ABORT, 'refused'); END"
            )
        )
    ax.activity.update(ax.activity.create("research"), HOSTILE)
    assert ax.flush()
    reset_runtime()
    engine.dispose()
    return url


def mend(url: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("DROP TRIGGER refuse"))
    engine.dispose()


def test_nothing_waits(tmp_path: Path) -> None:
    """An empty spool, or none."""
    done = run("spool", "list")
    assert (done.code, done.err, done.lines[1]) == (0, "", "nothing waits")
    assert run("spool", "list", "--json").json == []
    assert run("spool", "dead-letters").out == "no dead letters\n"
    assert run("spool", "dead-letters", "--json").json == []
    done = run("spool", "dead-letters", "1")
    assert (done.code, done.out, done.complaint) == (
        1,
        "",
        "agentexec-otel: there is no dead letter 1: there are 0",
    )


def test_what_waits(refused: str, tmp_path: Path) -> None:
    """One line for each database, which is named without its password."""
    done = run("spool", "list")
    head, row = done.lines[1:]
    assert head.split() == ["TARGET", "FILES", "EVENTS", "ORPHANED", "KIB", "OLDEST", "DEAD"]
    assert row.split() == [f"sqlite:///{tmp_path}/app.db#agentexec_activity", "0", "0", "0", "0", "1"]
    (folder,) = run("spool", "list", "--json").json
    assert (folder["target"], folder["events"], folder["dead_letters"], folder["oldest"]) == (
        f"sqlite:///{tmp_path}/app.db#agentexec_activity",
        0,
        1,
        None,
    )
    assert "dead letters" in run("doctor", url=refused).out


def test_dead_letters(refused: str) -> None:
    """The list has the reason, one of them everything; nothing steers the terminal."""
    with Terminal("spool", "dead-letters", rows=60) as terminal:
        assert terminal.end() == 0
        lines = [line for line in terminal.lines if line]
    assert len(lines) == 2
    assert lines[1].split()[0] == "1"
    assert "the database refuses a value" in lines[1]
    with Terminal("spool", "dead-letters", "1", rows=60) as terminal:
        assert terminal.end() == 0
        shown = terminal.text
    assert all(cell_len(line) <= 80 for line in shown.splitlines())
    assert r"venom \x1b[31m\u202epoison" in " ".join(shown.split())
    assert "SQLITE_CONSTRAINT_TRIGGER" in shown
    assert b"\x1b[31m" not in terminal.written
    (letter,) = run("spool", "dead-letters", "--json").json
    assert (letter["status"], len(letter["agent_id"])) == ("RUNNING", 36)
    assert run("spool", "dead-letters", "1", "--json").json == letter


def test_replay(refused: str) -> None:
    """Dead letters are delivered on request; the exit code is 1 while they are refused."""
    done = run("spool", "replay", "--dead-letters", url=refused)
    assert (done.code, done.out) == (1, "1 events replayed: 0 stored, 0 had been stored, 1 refused\n")
    mend(refused)
    assert run("spool", "replay", "--json", url=refused).json["replayed"] == 0
    done = run("spool", "replay", "--dead-letters", "--json", url=refused)
    assert (done.code, done.json["stored"], done.json["refused"]) == (0, 1, 0)
    assert run("spool", "dead-letters").out == "no dead letters\n"


def test_replay_to_a_database_that_is_away(tmp_path: Path) -> None:
    """One line at once, instead of tries for a minute. No file is made."""
    for url, words in [
        ("postgresql://u@127.0.0.1:1/x", "Connection refused"),
        (f"sqlite:///{tmp_path}/none.db", "there is no file"),
    ]:
        done = run("spool", "replay", url=url)
        assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 1)
        assert words in done.err
    assert not (tmp_path / "none.db").exists()
