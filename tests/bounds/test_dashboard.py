"""A log is in the page of a browser soon after the call."""

import pytest

import agentexec_otel as ax
from benchmarks._measure import percentile
from benchmarks.dashboard import dashboard, latencies
from tests.databases import Database

pytestmark = [pytest.mark.one_python, pytest.mark.parametrize("database", ["sqlite"], indirect=True)]


def test_log_in_the_page(database: Database) -> None:
    """Within 0.5 s, by the benchmark; five times that here."""
    ax.configure(database.url)
    with dashboard(database.url) as url:
        assert percentile(latencies(url, 10), 0.9) < 5 * 500
