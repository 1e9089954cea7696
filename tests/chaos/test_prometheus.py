"""What Prometheus has scraped of several processes is what the rows say."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from agentexec_otel.activity.models import Activity, ActivityLog, Status
from tests.databases import Database
from tests.prometheus import Prometheus, Worker
from tests.sql.rows import eventually

pytestmark = [pytest.mark.one_python, pytest.mark.parametrize("database", ["postgres"], indirect=True)]
TERMINAL = (Status.COMPLETE, Status.ERROR, Status.CANCELED)
Endings = Counter[tuple[str, str]]


@pytest.fixture
def workers(database: Database) -> Iterator[list[Worker]]:
    """Four of them, with leases of two seconds."""
    environment = {"AGENTEXEC_LEASE_SECONDS": "2", "AGENTEXEC_SWEEP_INTERVAL": "0"}
    started = [Worker("tests.chaos.metrics_worker", database.url, **environment) for _ in range(4)]
    yield started
    for worker in started:
        worker.kill()


@pytest.fixture
def prometheus(workers: list[Worker], tmp_path: Path) -> Iterator[Prometheus]:
    """It scrapes the workers."""
    started = Prometheus(tmp_path, [worker.port for worker in workers])
    yield started
    started.kill()


def scraped(prometheus: Prometheus, name: str) -> Endings:
    """By type and status. A process that is gone counts with what was scraped last."""
    labels = "agentexec_agent_type, agentexec_status"
    found = prometheus.query(f"sum by ({labels}) (last_over_time({name}[1h]))")
    return Counter({(one["agentexec_agent_type"], one["agentexec_status"]): int(value) for one, value in found})


def stored(database: Database) -> Endings:
    """The logs that have ended an attempt, by type and status."""
    with Session(database.engine) as session:
        ends = (
            select(Activity.agent_type, ActivityLog.status)
            .join(ActivityLog, ActivityLog.activity_id == Activity.id)
            .where(ActivityLog.status.in_(TERMINAL), ActivityLog.late.is_(False))
        )
        return Counter((agent_type, status.value) for agent_type, status in session.execute(ends))


@pytest.mark.parametrize("runs", [pytest.param(1_000, marks=pytest.mark.slow), 100])
def test_metrics_are_what_the_rows_say(
    database: Database, workers: list[Worker], prometheus: Prometheus, runs: int
) -> None:
    """Runs over four processes, with failures, cancellations, retries, a bulk cancellation, and a killed worker."""
    for number, worker in enumerate(workers):
        worker.begin("run", runs // len(workers), number)
    for worker in workers:
        worker.wait()
    workers[1].begin("cancel", 30)
    workers[1].wait()
    workers[0].begin("hang", 10)
    workers[0].wait()
    active = prometheus.value('max(agentexec_activity_active{agentexec_agent_type="hang"})', 10)
    assert active == 10
    # What a killed process has counted since the last scrape is lost.
    assert eventually(lambda: scraped(prometheus, "agentexec_activity_ended_total") == stored(database), timeout=15)
    workers[0].process.kill()
    workers[2].begin("reap", 10)
    workers[2].wait()
    rows = stored(database)
    assert sum(rows.values()) >= runs + 40
    assert rows["hang", "ERROR"] == 10
    assert eventually(lambda: scraped(prometheus, "agentexec_activity_ended_total") == rows, timeout=15)
    never_started = scraped(prometheus, "agentexec_activity_duration_seconds_count") - rows
    assert not never_started
