"""`make demo`: what the README promises to somebody who has just cloned the repository."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Shown:
    """What the demo has printed, and what came before the two tables."""

    live: str
    afterwards: str
    stderr: str
    exit_code: int


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """The demo, run as a user does whose output goes into a file; without a key, and with every warning on."""
    folder = tmp_path_factory.mktemp("demo")
    environment = {name: value for name, value in os.environ.items() if name not in ("OPENAI_API_KEY", "COLUMNS")}
    done = subprocess.run(
        [sys.executable, "-W", "always", str(ROOT / "examples" / "demo.py")],
        env={**environment, "TMPDIR": str(folder), "PYTHONIOENCODING": "utf-8"},
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        timeout=100,
        check=False,
    )
    live, _, afterwards = done.stdout.partition("List ─")
    return Shown(live, afterwards, done.stderr, done.returncode)


def test_it_succeeds_without_noise(shown: Shown) -> None:
    """Exit code 0, nothing on stderr, and no control codes where the output is no terminal."""
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert re.search(r"[\x00-\x09\x0b-\x1f\x7f]", shown.live + shown.afterwards) is None


def test_progress_is_seen_before_the_end(shown: Shown) -> None:
    """The second process has seen lines of every run while they were new, in order, and the ends behind them."""
    assert int(re.findall(r"(\d+) lines seen live", shown.live)[0]) >= 20
    for task, end in (("research_market", "COMPLETE"), ("check_facts", "ERROR"), ("read_archive", "CANCELED")):
        lines = [line for line in shown.live.splitlines() if f"  {task} " in line and "(late" not in line]
        assert "Waiting to start." in lines[0]
        percentages = [int(found) for found in re.findall(r" (\d+)% ", "\n".join(lines))]
        assert len(percentages) >= 5
        assert percentages == sorted(percentages)
        assert end in lines[-1]


def test_the_delay_is_measured(shown: Shown) -> None:
    """A number of milliseconds from one process to the other: well under a second, also on a busy machine."""
    (median,) = re.findall(r"median (\d+) ms", shown.live)
    assert int(median) < 1000


def test_all_ends_are_in_the_list(shown: Shown) -> None:
    """One run of each kind, with its reason."""
    rows = {row[0]: row for row in re.findall(r"│ (\w+) +│ (\w+) +│ ([\d %]*?) *│ (\w*)", shown.afterwards)}
    assert rows["research_market"] == ("research_market", "COMPLETE", "100 %", "")
    assert rows["check_facts"][1::2] == ("ERROR", "max_turns")
    assert rows["read_archive"][1] == "CANCELED"


def test_the_trace_has_one_span_per_run(shown: Shown) -> None:
    """Each beneath the request that created it, with the runs' lines in it and the tools' spans beneath."""
    tree = shown.afterwards.partition("Trace ─")[2]
    assert re.search(r"^POST /research ", tree, re.MULTILINE)
    assert re.findall(r"^[├└]── (\w+) .* (COMPLETE|ERROR|CANCELED)$", tree, re.MULTILINE) == [
        ("research_market", "COMPLETE"),
        ("check_facts", "ERROR"),
        ("read_archive", "CANCELED"),
    ]
    assert re.search(r"^│   ├── \+\d\.\d\d s  Searching the archive$", tree, re.MULTILINE)
    assert "│   ├── search archive " in tree
