"""What Prometheus has scraped of several processes is what the rows say."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from agentexec_otel.activity.models import Activity, ActivityLog, Status
from tests.databases import Database
from tests.docs.blocks import ROOT
from tests.sql.rows import eventually

pytestmark = [pytest.mark.one_python, pytest.mark.parametrize("database", ["postgres"], indirect=True)]
TERMINAL = (Status.COMPLETE, Status.ERROR, Status.CANCELED)
Endings = Counter[tuple[str, str]]


class Worker:
    """A process that Prometheus scrapes; see `metrics_worker.py`."""

    def __init__(self, url: str, environment: dict[str, str]) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "tests.chaos.metrics_worker", url, str(self.port)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def begin(self, task: str, number: int, seed: int = 0) -> None:
        """Ask for a task."""
        assert self.process.stdin is not None
        print(task, number, seed, file=self.process.stdin, flush=True)

    def wait(self) -> None:
        """Wait for its end."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "done\n"


class Prometheus:
    """A real one, that scrapes each second."""

    def __init__(self, folder: Path, targets: list[int]) -> None:
        binary = shutil.which("prometheus")
        if binary is None:
            pytest.fail("prometheus is missing: install Debian's prometheus")
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
            "scrape_configs": [
                {"job_name": "workers", "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in targets]}]}
            ],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        arguments = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        with (folder / "prometheus.log").open("w") as log:
            self.process = subprocess.Popen(
                [binary, *arguments, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log
            )
        assert eventually(self._is_ready, timeout=30)

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self._url}/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def query(self, promql: str) -> list[tuple[dict[str, str], float]]:
        """The labels and the value of each series."""
        answer: dict[str, Any] = httpx.get(f"{self._url}/api/v1/query", params={"query": promql}).json()
        assert answer["status"] == "success", answer
        return [(one["metric"], float(one["value"][1])) for one in answer["data"]["result"]]

    def endings(self, name: str) -> Endings:
        """By type and status. A process that is gone counts with what was scraped last."""
        labels = "agentexec_agent_type, agentexec_status"
        found = self.query(f"sum by ({labels}) (last_over_time({name}[1h]))")
        return Counter({(one["agentexec_agent_type"], one["agentexec_status"]): int(value) for one, value in found})


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def workers(database: Database) -> Iterator[list[Worker]]:
    """Four of them, with leases of two seconds."""
    environment = {**os.environ, "AGENTEXEC_LEASE_SECONDS": "2", "AGENTEXEC_SWEEP_INTERVAL": "0"}
    started = [Worker(database.url, environment) for _ in range(4)]
    yield started
    for worker in started:
        worker.process.kill()
        worker.process.communicate()


@pytest.fixture
def prometheus(workers: list[Worker], tmp_path: Path) -> Iterator[Prometheus]:
    """It scrapes the workers."""
    started = Prometheus(tmp_path, [worker.port for worker in workers])
    yield started
    started.process.kill()
    started.process.wait()


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
    active = prometheus_value(prometheus, 'max(agentexec_activity_active{agentexec_agent_type="hang"})', 10)
    assert active == 10
    workers[0].process.kill()
    workers[2].begin("reap", 10)
    workers[2].wait()
    rows = stored(database)
    assert sum(rows.values()) >= runs + 40
    assert rows["hang", "ERROR"] == 10
    assert eventually(lambda: prometheus.endings("agentexec_activity_ended_total") == rows, timeout=15)
    never_started = prometheus.endings("agentexec_activity_duration_seconds_count") - rows
    assert not never_started


def prometheus_value(prometheus: Prometheus, promql: str, expected: float) -> float:
    """The value of one series, once it is as expected, or after 15 s."""
    deadline = time.monotonic() + 15
    while True:
        found = prometheus.query(promql)
        value = found[0][1] if found else float("nan")
        if value == expected or time.monotonic() > deadline:
            return value
        time.sleep(0.2)
