"""The benchmarks run: each in its smallest size, and what they print is what the docs page is made of."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import queries
from benchmarks.__main__ import BENCHMARKS
from benchmarks._context import Context, Scale
from benchmarks._databases import Database, databases
from benchmarks._measure import Row, Section, Table, Target, interleaved
from benchmarks._report import BEGIN, END, markdown, write_markdown


def context(folder: Path, found: list[Database]) -> Context:
    def track(title: str, total: int, /) -> Callable[[str], None]:
        return lambda now: None

    return Context(found, Scale.SMOKE, folder, track)


LONG = ("cancel", "caller", "dashboard", "ingest", "instrumentation", "otlp", "tail", "tasks", "viewers")
CASES = [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in BENCHMARKS]


@pytest.mark.one_python
@pytest.mark.parametrize("name", CASES)
def test_it_measures(name: str, tmp_path: Path) -> None:
    """Each benchmark gives every database a table whose rows are compared with a baseline of the same run."""
    with databases(tmp_path) as found:
        section = BENCHMARKS[name](context(tmp_path, found))
        kinds = [database.title for database in found]
    about = [table.title for table in section.tables]
    assert about
    if name not in ("imports", "memory", "instrumentation"):  # not about a database
        assert all(any(title.startswith(kind) for title in about) for kind in kinds)
    for table in section.tables:
        assert any(row.baseline is not None for row in table.rows), table.title
        for row in table.rows:
            assert min(row.values) > 0, row.label
            assert row.baseline is None or len(row.ratios) == len(row.values)


def test_cases_take_turns() -> None:
    """A round runs every case once, and the next round in the opposite order."""
    ran: list[str] = []

    def case(name: str) -> Callable[[], int]:
        def run() -> int:
            ran.append(name)
            return len(ran)

        return run

    found = interleaved({"a": case("a"), "b": case("b")}, 3)
    assert ran == ["a", "b", "b", "a", "a", "b"]
    assert found == {"a": [1, 4, 5], "b": [2, 3, 6]}


@pytest.mark.parametrize(
    ("values", "target", "met"),
    [
        ([2.0, 9.0, 3.0], Target(3.0), True),
        ([2.0, 9.0, 4.0], Target(3.0), False),
        ([0.4, 0.6, 0.5], Target(0.5, at_least=True), True),
        ([0.4, 0.6, 0.4], Target(0.5, at_least=True), False),
    ],
)
def test_median_ratio_meets_the_target(values: list[float], target: Target, met: bool) -> None:
    """A target is judged by the median of the ratios, run by run, not by the best of them."""
    assert Row("ours", "ms", [10 * value for value in values], [10.0] * 3, target).met is met


@pytest.mark.parametrize(
    ("plan", "scans"),
    [
        ("Seq Scan on agentexec_activity_log", True),
        ("Parallel Seq Scan on agentexec_activity_log l", True),
        ("SCAN agentexec_activity_log", True),
        ("SCAN agentexec_activity_log USING COVERING INDEX ix", True),
        ("Seq Scan on agentexec_activity", False),
        ("SCAN agentexec_activity USING COVERING INDEX ix", False),
        ("SEARCH agentexec_activity_log USING INDEX ix (activity_id=? AND seq=?)", False),
        ("Index Scan using ix_agentexec_activity_log_activity_id on agentexec_activity_log", False),
    ],
)
def test_scan_of_the_log_is_recognized(plan: str, scans: bool) -> None:
    """The words with which both databases say that they read the log table from end to end."""
    assert queries.scans_the_log(plan) is scans


def test_results_replace_only_themselves(tmp_path: Path) -> None:
    """Writing results twice leaves the page around them alone, and the old results are gone."""
    page = tmp_path / "page.md"
    page.write_text(f"# Benchmarks\n\nHow to run.\n\n{BEGIN}\nold\n{END}\n\nThe end.\n")
    table = Table("SQLite", "by hand", [Row("ours", "ms", [3.0, 6.0], [1.0, 2.0], Target(3))])
    text = markdown([("machine", "a toaster")], [Section("live", "Live", [table])])
    for _ in range(2):
        write_markdown(page, text)
    written = page.read_text()
    assert written.startswith("# Benchmarks\n\nHow to run.\n")
    assert written.endswith("\nThe end.\n")
    assert "old" not in written
    assert "| ours | 4.50 | 3.00 to 6.00 | ms | 3.00x | 3.00 to 3.00 | ≤ 3x met |" in written
    assert "| machine | a toaster |" in written


def test_page_without_a_place_is_left_alone(tmp_path: Path) -> None:
    """A page without the two markers is not written to, and the error says which lines are missing."""
    page = tmp_path / "page.md"
    page.write_text("# Something else\n")
    with pytest.raises(ValueError, match="no place for the results"):
        write_markdown(page, "text")
    assert page.read_text() == "# Something else\n"
