"""`agentexec-otel stats`."""

from datetime import UTC, datetime
from uuid import UUID

import pytest
from rich.cells import cell_len
from sqlalchemy import create_engine, update

from agentexec_otel.activity import Activity, ActivityStatsSchema
from agentexec_otel.cli._format import span
from tests.cli.terminal import Terminal, run

pytestmark = pytest.mark.one_python


def test_counts_and_measures(url: str, some: dict[str, UUID]) -> None:
    """Statuses, types, reasons, times and a series, each as a table of at most 80 columns."""
    with Terminal("stats", "--bucket", "1h", url=url, rows=60) as terminal:
        assert terminal.end() == 0
        lines = [line for line in terminal.lines if line]
    assert lines[0] == "5 activities created in the last 24 hours"
    assert all(cell_len(line) <= 80 for line in lines)
    text = terminal.text
    assert "RUNNING       1  ━━━━━" in text
    for head in ("STATUS", "TYPE", "REASON", "MEASURE", "FROM"):
        assert any(line.startswith(head) for line in lines), head
    (research,) = [line.split() for line in lines if line.startswith("research ")]
    assert research[:4] == ["research", "3", "0", "1"]


def test_json_and_filters(url: str, some: dict[str, UUID]) -> None:
    """`--json` prints what the query API returns, for the activities that meet the filters."""
    found = ActivityStatsSchema.model_validate(run("stats", "--type", "research", "--json", url=url).json)
    assert (found.total, found.by_reason) == (3, {"timeout": 1, "canceled": 1})
    assert run("stats", "-m", "tenant=nobody", "--since", "1d", url=url).out == "no activity\n"


def test_the_last_24_hours_by_default(url: str, some: dict[str, UUID]) -> None:
    """Without a time, older activities are not counted; with one they are."""
    engine = create_engine(url)
    with engine.begin() as connection:
        old = datetime(2026, 1, 1, tzinfo=UTC)
        connection.execute(update(Activity).where(Activity.agent_id == some["complete"]).values(created_at=old))
    engine.dispose()
    assert run("stats", "--json", url=url).json["total"] == 4
    assert run("stats", "--json", "--since", "2026-01-01", url=url).json["total"] == 5


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, ""),
        (0.0, "0.0s"),
        (0.04, "0.0s"),
        (9.94, "9.9s"),
        (9.96, "10s"),
        (59.6, "1m00s"),
        (125.4, "2m05s"),
        (3_599.9, "1h00m"),
        (11_220, "3h07m"),
        (86_400 * 12 + 4 * 3_600, "12d04h"),
        (86_400 * 1_234, "1234d"),
    ],
)
def test_durations(seconds: float | None, shown: str) -> None:
    """A duration has at most six characters, and two units from a minute on."""
    assert span(seconds) == shown
