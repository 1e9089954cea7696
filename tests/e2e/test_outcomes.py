"""How runs end, as the row, our span and other libraries' root spans tell it; and the page that shows it.

``AGENTEXEC_TEST_WRITE_DOCS=1 pytest tests/e2e/test_outcomes.py`` writes the page anew.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.outcome_scenarios import LIBRARIES, OTHERS, OURS, SCENARIOS, Scenario, installed

# All is played once, before the first test.
pytestmark = [pytest.mark.one_python, pytest.mark.timeout(600)]

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "outcomes.md"
TITLES = {"openinference": "OpenInference", "logfire": "Logfire", "official": "OpenTelemetry GenAI"}

Verdicts = dict[str, dict[str, Any]]

# What cannot be seen without the wrapper, and what no trace encloses once the application has none.
BLIND = {
    ("processor", "max turns in `run_streamed`"),
    ("processor", '`cancel(mode="after_turn")` on a stream'),
    ("untraced", "`trace()` around a failing run, caught, and a good one"),
}

HEAD = """# How runs end

How a run ended is the first thing a dashboard asks, and the hardest to get right: a failed tool may have been recovered
from, a stream may be left by its reader, a cancellation leaves no error behind. Here each case is played for real, with
a scripted model, and beside the truth stands what the **root** of each library's trace says.

This page is written by `tests/e2e/test_outcomes.py`, which also fails when it is out of date.

- **agentexec-otel** is what `AgentExecInstrumentor` stores: `status` and `reason` of the row. Its span always says the
  same: `agentexec.status`, `agentexec.reason` and `error.type`, and the span status `ERROR` for `ERROR` alone.
- The other columns are the span status of the root. ✗ means that it cannot tell this ending from another: no error
  where the run failed, an error where it did not, or nothing of a cancellation. They do mark spans further down, such
  as that of a failed tool; which of those decided the run is then left to the reader.
"""

TAIL = """
The column is the same with all four at work in one process, which the test plays, too. Without the wrapper, where a
runner of the application's own replaces `AgentRunner`, the trace processor decides alone: it is right as well, but for
two endings of a stream of which no exception tells, the turn limit and `cancel(mode="after_turn")`.

With `set_tracing_disabled(True)` or `RunConfig(tracing_disabled=True)` the column agentexec-otel stays as it is, but
for `trace()`: there is no trace then, and each of its two runs is an activity.

All values of `reason`: [reasons](reasons.md).
"""


@pytest.fixture(scope="module")
def played() -> dict[str, Verdicts]:
    """What each installed library says; a fork of one process per library."""
    present = [library for library in LIBRARIES if installed(library) is not None]
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.outcome_scenarios", *present],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    verdicts: dict[str, Verdicts] = json.loads(done.stdout)
    return verdicts


@pytest.mark.parametrize("library", OURS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.title)
def test_ours_is_right(played: dict[str, Verdicts], library: str, scenario: Scenario) -> None:
    """One activity, one root span, and both say what happened, with the same reason and error type."""
    if (library, scenario.title) in BLIND:
        pytest.skip("cannot be known there; see the page")
    verdict = played[library][scenario.title]
    assert verdict["row"] == [scenario.status, scenario.reason, verdict["error_type"]]
    assert (verdict["status"], verdict["reason"], verdict["roots"]) == (scenario.status, scenario.reason, 1)
    assert (verdict["code"] == "ERROR") == (scenario.status == "ERROR")
    assert (verdict["error_type"] is not None) == (scenario.status == "ERROR")


def test_the_page_shows_what_was_played(played: dict[str, Verdicts]) -> None:
    """Ours always; another library where the version is the one of the page."""
    committed = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    if os.environ.get("AGENTEXEC_TEST_WRITE_DOCS"):
        PAGE.write_text(page(played, {}), encoding="utf-8")
        return
    others = {library: versions(committed).get(library) for library in OTHERS}
    same = {library for library, shown in others.items() if shown is not None and shown == installed(library)}
    kept = {library: column(committed, library) for library in OTHERS if library not in same}
    assert committed == page(played, kept, versions(committed)), "out of date: see the top of this file"
    if kept:
        pytest.skip(f"taken from the page, since other versions are installed or none: {', '.join(kept)}")


# -- the page ---------------------------------------------------------------------------------------------------


def page(played: dict[str, Verdicts], kept: dict[str, list[str]], shown: dict[str, str] | None = None) -> str:
    """The page as it should be; `kept` are columns that could not be played."""
    versions_shown = {name: (shown or {}).get(name) or installed(name) or "none" for name in OTHERS}
    with_versions = ", ".join(f"{TITLES[name]} {number}" for name, number in versions_shown.items())
    header = ["what happens", "agentexec-otel", *(TITLES[name] for name in OTHERS)]
    columns = [
        [scenario.title for scenario in SCENARIOS],
        [ours(played["ours"][scenario.title]) for scenario in SCENARIOS],
        *(kept.get(name) or [theirs(one, played[name][one.title]) for one in SCENARIOS] for name in OTHERS),
    ]
    rows = [header, ["---"] * len(header), *map(list, zip(*columns, strict=True))]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{HEAD}\nPlayed with {with_versions}.\n\n{table}\n{TAIL}"


def ours(verdict: dict[str, Any]) -> str:
    """Status and reason."""
    status, reason, _ = verdict["row"]
    return f"{status}, `{reason}`" if reason else str(status)


def theirs(scenario: Scenario, verdict: dict[str, Any]) -> str:
    """The root's span status, and whether it is right."""
    right = verdict["status"] == scenario.status
    roots = f", {verdict['roots']} roots" if verdict["roots"] > 1 else ""
    return f"{'✓' if right else '✗'} {verdict['code']}{roots}"


def versions(text: str) -> dict[str, str]:
    """The versions that a page was made with."""
    line = next((line for line in text.splitlines() if line.startswith("Played with ")), "")
    found = {name: re.search(rf"{re.escape(title)} ([0-9][\w.]*\w)", line) for name, title in TITLES.items()}
    return {name: match[1] for name, match in found.items() if match}


def column(text: str, library: str) -> list[str]:
    """What a page shows of a library."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    index = rows[0].index(TITLES[library])
    return [row[index] for row in rows[2:]]
