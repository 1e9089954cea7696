"""What all commands share: errors, exit codes, colors, help, completion."""

import os
import re
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest

import agentexec_otel as ax
from tests.cli.terminal import COMMAND, Terminal, environment, run

pytestmark = pytest.mark.one_python

READERS = [
    ["list"],
    ["show", "abcd"],
    ["tail"],
    ["tail", "abcd"],
    ["stats"],
    ["cancel", "--all", "-y"],
    ["retry", "--all", "-y"],
    ["reap"],
    ["archive", "--older-than", "1d", "--delete", "-y"],
    ["db", "check"],
]


@pytest.mark.parametrize("arguments", READERS, ids=" ".join)
def test_no_database(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No database, no file, no tables, no server, no URL: one sentence, exit code 1, and nothing is created."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.db").touch()
    for url, words in [
        (None, "no database is named: give --database, or set AGENTEXEC_DATABASE_URL"),
        ("sqlite:///missing.db", "there is no file missing.db"),
        ("sqlite:///empty.db", "agentexec-otel db upgrade"),
        ("postgresql+asyncpg://joe:secret@127.0.0.1:1/x", "127.0.0.1"),
        ("mysql+aiomysql://joe:secret@127.0.0.1:1/x", "127.0.0.1"),
        ("oracle://joe:secret@127.0.0.1:1/x", "is not supported"),
        ("nonsense", "is no database URL"),
    ]:
        done = run(*arguments, url=url)
        assert done.code == 1
        assert words in done.out + done.err
        assert "secret" not in done.err
        assert len(done.err.splitlines()) <= 1
    assert [path.name for path in tmp_path.iterdir()] == ["empty.db"]
    assert (tmp_path / "empty.db").stat().st_size == 0


def test_colors_are_for_terminals(url: str, some: dict[str, UUID]) -> None:
    """A terminal gets colors, a pipe none, and NO_COLOR is respected."""
    colors = re.compile(rb"\x1b\[[0-9;]*3[0-9]")
    with Terminal("list", url=url) as terminal:
        terminal.end()
    assert colors.search(terminal.written)
    with Terminal("list", url=url, variables={"NO_COLOR": "1"}) as terminal:
        terminal.end()
    assert not colors.search(terminal.written)
    assert (
        b"\x1b" not in subprocess.run([COMMAND, "list"], env=environment(url), capture_output=True, check=True).stdout
    )


def test_any_encoding(url: str) -> None:
    """A stream that cannot encode a character gets an escape for it."""
    ax.activity.create("r\u00e9sum\u00e9")
    variables = environment(url, PYTHONIOENCODING="ascii")
    done = subprocess.run([COMMAND, "list"], env=variables, capture_output=True, check=True)
    assert rb"r\xe9sum\xe9" in done.stdout


def test_a_closed_pipe_is_no_traceback(url: str, some: dict[str, UUID]) -> None:
    """`agentexec-otel list | head -1` ends quietly."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([COMMAND, "list"], env=environment(url), stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert b"Traceback" not in done.stderr


def test_help_has_80_columns() -> None:
    """Each command explains itself within 80 columns."""
    listed = run("--help").out
    for command in ("list", "show", "tail", "stats", "cancel", "retry", "reap", "archive", "restore", "db", "worker"):
        assert f" {command} " in listed
        done = run(command, "--help")
        assert done.code == 0
        assert max(len(line) for line in done.lines) <= 80


def test_completion() -> None:
    """The shell asks the command for its completions."""
    words = {"_AGENTEXEC_OTEL_COMPLETE": "complete_bash", "COMP_WORDS": "agentexec-otel ca", "COMP_CWORD": "1"}
    done = subprocess.run([COMMAND], env=environment(**words), capture_output=True, text=True, check=False)
    assert "cancel" in done.stdout.split()
    shown = subprocess.run(
        [COMMAND, "--show-completion"], env=environment(SHELL="/bin/bash"), capture_output=True, text=True, check=False
    )
    assert "--install-completion" in run("--help").out
    assert "Traceback" not in shown.stderr


def test_help_loads_no_driver_and_no_engine() -> None:
    """What a command needs is imported when it runs."""
    script = (
        "import sys; sys.argv = ['agentexec-otel', '--help']\n"
        "from agentexec_otel.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "late = {'psycopg', 'pymysql', 'alembic', 'taskiq', 'agents', 'pyarrow', 'rich.live'}\n"
        "print(*late & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""
