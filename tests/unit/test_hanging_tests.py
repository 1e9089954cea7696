"""A test process that hangs ends, with the stacks of its threads: CI does not wait for it until it is killed."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.processes import ROOT, environment_with

pytestmark = pytest.mark.one_python

HANGS = """
import time
import pytest

@pytest.fixture
def hangs():
    yield
    time.sleep(60)

def test_that_fails(hangs):
    {body}
"""


@pytest.mark.parametrize("body", ["pass", "raise ValueError"])
def test_hanging_teardown(tmp_path: Path, body: str) -> None:
    """A teardown that hangs is ended, whether its test has failed or not."""
    (tmp_path / "test_it.py").write_text(HANGS.format(body=body))
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-c", str(ROOT / "pyproject.toml")]
    command += ["-o", "faulthandler_timeout=1", str(tmp_path / "test_it.py")]
    done = subprocess.run(
        command, cwd=ROOT, env=environment_with({}), capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 1
    assert "Timeout (0:00:01)!" in done.stderr
    assert "in hangs" in done.stderr
