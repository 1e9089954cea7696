"""The quickest start works: the page's program, run and listed by its commands, as a reader types them."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, blocks_of

pytestmark = pytest.mark.one_python

PAGE = ROOT / "docs" / "how-to" / "run-any-program.md"


def start(page: Path) -> str:
    (console,) = [block.code for block in blocks_of(page) if block.language == "console"]
    return console


def test_readme_shows_the_same() -> None:
    """What the README shows is what the next test runs."""
    assert start(ROOT / "README.md") == start(PAGE)


def test_quickest_start(tmp_path: Path) -> None:
    """Each command of the page's console prints what the page shows: all but the ids and times of the list."""
    (program,) = [block.code for block in blocks_of(PAGE) if 'title="app.py"' in block.info]
    (tmp_path / "app.py").write_text(program, encoding="utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shown = [part.partition("\n") for part in f"\n{start(PAGE)}".split("\n$ ")[1:]]
    assert [command.split()[1] for command, _, _ in shown] == ["run", "list"]
    for command, _, expected in shown:
        done = subprocess.run(
            shlex.split(command),
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=100,
            check=True,
        )
        printed = done.stdout.split()
        varying = {word for line in expected.splitlines()[1:] for word in line.split()[:1] + line.split()[4:6]}
        stable = [word for word in expected.split() if "list" not in command or word not in varying]
        assert [word for word in stable if word not in printed] == []
