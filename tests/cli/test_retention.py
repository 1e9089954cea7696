"""`agentexec-otel archive` and `restore`."""

from pathlib import Path
from uuid import UUID

import pytest

import agentexec_otel as ax
from tests.cli.terminal import Terminal, run
from tests.databases import Database

pytestmark = pytest.mark.one_python


def test_there_and_back_on_each_database(database: Database, tmp_path: Path) -> None:
    """What is archived leaves the database, and comes back from the file as it was."""
    ax.configure(database.url)
    ids = [ax.activity.create("research") for _ in range(3)]
    for agent_id in ids[:2]:
        ax.activity.complete(agent_id)
    ax.shutdown()
    file = str(tmp_path / "old.jsonl")
    done = run("archive", "--older-than", "0s", "--to", file, "--yes", "--json", url=database.url)
    assert done.json == {"archived": 2, "to": file}
    assert run("list", "--quiet", url=database.url).lines == [str(ids[2])]
    assert run("restore", file, "--json", url=database.url).json == {"restored": 2}
    assert run("list", "-q", "-s", "complete", url=database.url).lines == [str(ids[1]), str(ids[0])]
    assert run("restore", file, url=database.url).err == "no activity restored\n"


def test_question_and_bar(url: str, some: dict[str, UUID], tmp_path: Path) -> None:
    """The number and the place are asked about first."""
    file = tmp_path / "old.jsonl"
    for answer, code in (("\r", 1), ("y\r", 0)):
        with Terminal("archive", "--older-than", "0s", "--to", "old.jsonl", url=url, folder=tmp_path) as terminal:
            terminal.wait_for("Move 3 activities to old.jsonl? [y/N]")
            terminal.type(answer)
            assert terminal.end() == code
            assert ("3 activities moved to old.jsonl" in terminal.text) is file.exists() is (code == 0)
    with Terminal("restore", "old.jsonl", url=url, folder=tmp_path) as terminal:
        assert terminal.end() == 0
        assert "3 activities restored" in terminal.text


def test_delete(url: str, some: dict[str, UUID]) -> None:
    """`--delete` keeps no copy; filters narrow it down; what has not ended stays."""
    done = run("archive", "--older-than", "0s", "--delete", "--status", "error", "-y", url=url)
    assert (done.code, done.err) == (0, "1 activity deleted\n")
    assert run("archive", "--older-than", "0s", "--delete", "-y", "--json", url=url).json["archived"] == 2
    assert run("list", "-q", url=url).lines == [str(some["running"]), str(some["queued"])]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["archive", "--older-than", "30d"], 2, "give either --to or --delete"),
        (["archive", "--older-than", "30d", "--to", "x.jsonl", "--delete"], 2, "give either --to or --delete"),
        (["archive", "--delete"], 2, "--older-than"),
        (["archive", "--older-than", "30d", "--delete"], 1, "there is no terminal to ask: give --yes"),
        (["archive", "--older-than", "30d", "--to", "/none/x.jsonl", "-y"], 1, "/none/x.jsonl: No such file"),
        (["archive", "--older-than", "30d", "--to", "x.txt", "-y"], 1, "ends in .jsonl"),
        (["restore", "/none/x.jsonl"], 1, "/none/x.jsonl: No such file"),
    ],
)
def test_errors(url: str, some: dict[str, UUID], arguments: list[str], code: int, words: str) -> None:
    """One sentence, and nothing is moved or deleted."""
    done = run(*arguments, url=url)
    assert (done.code, done.out) == (code, "")
    assert words in done.complaint
    assert len(run("list", "-q", url=url).lines) == len(some)
