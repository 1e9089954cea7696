"""`AgentExecInstrumentor` beside OpenInference, Logfire and the official instrumentation, in any order."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.processes import environment_with
from tests.e2e import instrumented_beside
from tests.e2e.forked import Forked
from tests.e2e.outcome_scenarios import installed

pytestmark = [pytest.mark.one_python, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    "others",
    [["openinference", "official"], ["logfire"], ["logfire", "openinference", "official"]],
    ids=" and ".join,
)
def test_every_order_does(tmp_path: Path, others: list[str]) -> None:
    """One activity and span for each run, told in full, nothing left current; and nothing once uninstrumented."""
    if missing := [library for library in others if installed(library) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    out, err = tmp_path / "stdout.txt", tmp_path / "stderr.txt"
    code = Forked(instrumented_beside, environment_with({}), out, err, *others).wait(250)
    assert code == 0, err.read_text()[-2_000:]
    assert {order: wrong for order, wrong in json.loads(out.read_text()).items() if wrong} == {}
    assert "detach" not in err.read_text()
    assert "Context" not in err.read_text()


def test_beside_logfire_runs_in_an_older_trace_and_behind_another_run_are_tracked() -> None:
    """Though its traces are not the SDK's own, whoever is to end an activity is known, and nothing is skipped."""
    pytest.importorskip("logfire")
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.instrumented_behind"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    assert json.loads(done.stdout) == [["Older", "COMPLETE", 2], ["First", "COMPLETE", 2], ["Later", "COMPLETE", 1]]
    assert done.stderr == ""
