"""The set-up of environments for `make demo` and `make test`, on a machine that has no network or runs two at once."""

import fcntl
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.one_python

ROOT = Path(__file__).resolve().parents[2]


def set_up(folder: Path) -> subprocess.Popen[str]:
    """Set up the environment `made` in a folder, without a network."""
    command = [sys.executable, str(ROOT / ".ci" / "environment.py"), "made", "--editable", str(ROOT)]
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "UV_OFFLINE": "1", "PIP_CONFIG_FILE": os.devnull}
    return subprocess.Popen(
        command, cwd=folder, env={**os.environ, **offline}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_failure_says_what_was_tried_and_why_it_failed(tmp_path: Path) -> None:
    """Each step is named when it starts. Without a network the last lines are pip's reason and where to read more."""
    with set_up(tmp_path) as process:
        lines = process.communicate(timeout=100)[0].splitlines()
    assert process.returncode == 1
    assert lines[0].startswith("Setting up made with Python 3.")
    steps = [line for line in lines if line.startswith("  ") and not line.startswith("    ")]
    assert steps[:2] == ["  Creating the environment", "  Fetching the installer uv"]
    assert "No matching distribution found" in lines[-2]
    assert lines[-1] == "All of it: made.log"
    assert not (tmp_path / "made" / ".ready").exists()


def test_second_set_up_waits_for_the_first(tmp_path: Path) -> None:
    """Two at once in one checkout: the second says that it waits, then uses the environment that the first has made."""
    checkout = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(checkout, fcntl.LOCK_EX)
        with set_up(tmp_path) as process:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("Waiting for another make")
            venv.create(tmp_path / "made", with_pip=True, symlinks=True)
            (tmp_path / "made" / ".ready").touch()
            fcntl.flock(checkout, fcntl.LOCK_UN)
            assert process.communicate(timeout=100)[0] == ""
    finally:
        os.close(checkout)
    assert process.returncode == 0
