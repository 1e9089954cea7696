"""`examples/observability`: each query runs against real servers, and what is provisioned fits together."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from sqlalchemy import inspect
from sqlalchemy.orm import Session

from agentexec_otel._model import attributes as semconv
from agentexec_otel.activity.models import Activity, Status
from tests.chaos.proxy import Proxy
from tests.databases import Database
from tests.docs.blocks import ROOT
from tests.e2e.collector import Collector, collecting
from tests.e2e.grafana import (
    DASHBOARDS,
    FOLDER,
    Query,
    alert_query,
    alerts,
    data_sources,
    panels,
    provisioned,
    targets,
    variables,
)
from tests.prometheus import Prometheus, Worker
from tests.sql.rows import count_rows, eventually

pytestmark = pytest.mark.one_python
ON_POSTGRES = pytest.mark.parametrize("database", ["postgres"], indirect=True)


def parts(value: dict[str, Any] | list[Any] | str | float | None) -> dict[str, Any]:
    """What is in an object or an array of JSON, by its place there."""
    if isinstance(value, dict):
        return {f".{key}": one for key, one in value.items()}
    if isinstance(value, list):
        return {f"[{number}]": one for number, one in enumerate(value)}
    return {}


def lost(written: Any, read: Any, path: str = "") -> Iterator[str]:
    """Where Grafana's model has nothing, or something else."""
    inner, found = parts(written), parts(read)
    if not inner and written != read:
        yield path
    for place, value in inner.items():
        yield from lost(value, found.get(place, ...), path + place)


def unknown_fields(dashboard: dict[str, Any]) -> list[str]:
    """Fields that are lost if the published model of Grafana loads the dashboard and writes it again."""
    register_default_plugins()
    model = Dashboard.from_json(dashboard)
    return list(lost(dashboard, json.loads(JSONEncoder(sort_keys=True).encode(model))))


@pytest.mark.parametrize("name", DASHBOARDS)
def test_dashboards_follow_grafanas_model(name: str) -> None:
    """Each field is one of Grafana's; a field that it does not know is found."""
    dashboard = DASHBOARDS[name]
    assert unknown_fields(dashboard) == []
    first, *others = panels(dashboard)
    misspelled = {**first, "options": {**first["options"], "color_mode": "value"}}
    assert unknown_fields({**dashboard, "panels": [misspelled, *others]}) == [".panels[0].options.color_mode"]


def test_dashboards_fit_together() -> None:
    """Ids are unique, data sources are provisioned, panels do not overlap, and each has a query and a description."""
    sources = data_sources()
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS)
    for name, dashboard in DASHBOARDS.items():
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert len(ids) == len(set(ids)), name
        cells: set[tuple[int, int]] = set()
        for panel in dashboard["panels"]:
            at = panel["gridPos"]
            new = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
            assert not new & cells, (name, panel["title"])
            cells |= new
        assert max(x for x, _ in cells) < 24
        for panel in panels(dashboard):
            assert panel["description"]
            assert panel["targets"]
            for used in (panel, *panel["targets"]):
                assert sources[used["datasource"]["uid"]] == used["datasource"]["type"], (name, panel["title"])
        for link in dashboard["links"]:
            assert link["url"] in {f"/d/{other['uid']}" for other in DASHBOARDS.values()}


def test_alerts_fit_together() -> None:
    """Each rule has a provisioned data source, a condition, and a panel that shows what it watches."""
    found = {
        (dashboard["uid"], str(panel["id"])): panel for dashboard in DASHBOARDS.values() for panel in panels(dashboard)
    }
    for rule in alerts().values():
        query, condition = rule["data"]
        assert query["datasourceUid"] in data_sources()
        assert (condition["refId"], condition["model"]["expression"]) == (rule["condition"], query["refId"])
        annotations = rule["annotations"]
        panel = found[annotations["__dashboardUid__"], annotations["__panelId__"]]
        assert panel["datasource"]["uid"] == query["datasourceUid"]
    titles = {rule["title"] for rule in alerts().values()}
    runbook = (ROOT / "docs" / "how-to" / "runbook.md").read_text()
    assert titles <= set(re.findall(r"^#+ (.+)$", runbook, re.MULTILINE))


@contextmanager
def example(database: Database, folder: Path, endpoint: str) -> Generator[None]:
    """Run the example's producer as its README says, at other addresses."""
    lines = (FOLDER / "producer.env").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    command = Path(sys.executable).with_name("opentelemetry-instrument")
    program = ROOT / "examples" / "live_activities.py"
    process = subprocess.Popen(
        [command, sys.executable, program, "--database", database.url, "--activities", "100", "--seed", "1"],
        env={
            **os.environ,
            **settings,
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_METRIC_EXPORT_INTERVAL": "1000",
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "*",  # the environment of the tests has many
            "AGENTEXEC_SPOOL_DIR": str(folder / "spool"),
        },
    )
    try:
        yield
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def rows_of(database: Database, query: Query) -> list[Any]:
    """What the query returns, in a transaction that can change nothing."""
    with database.engine.connect().execution_options(postgresql_readonly=True) as connection:
        return list(connection.exec_driver_sql(query.sql).mappings())


def is_filled(database: Database, query: Query) -> bool:
    """Whether the query returns something other than zeros, and the rows of a series begin with their time."""
    rows = rows_of(database, query)
    assert not query.time_series or all(next(iter(row)) == "time" for row in rows), query.where
    return any(any(row.values()) for row in rows)


def has_history(database: Database) -> bool:
    """Whether the producer has written its history."""
    return inspect(database.engine).has_table("agentexec_activity") and count_rows(database.engine)[0] > 0


@ON_POSTGRES
def test_the_example_fills_its_panels(database: Database, tmp_path: Path) -> None:
    """Its producer sends spans, logs and metrics; each SQL panel shows something, and others ask for what is sent."""
    empty = [*targets("postgres"), *variables("postgres")]

    def all_filled() -> bool:
        empty[:] = [query for query in empty if not is_filled(database, query)]
        return not empty and {"/v1/logs", "/v1/metrics"} <= set(Collector.paths)

    with collecting() as endpoint, example(database, tmp_path, endpoint):
        assert eventually(lambda: has_history(database), timeout=60)
        store(database, [activity(1, status=Status.ERROR, ended_at=datetime.now(UTC), reason="lost")])
        assert eventually(all_filled, timeout=60), [query.where for query in empty] or Collector.paths
        assert eventually(lambda: any(record.span_id for record in Collector.records), timeout=60)
    sent = {attribute.key for span in Collector.spans for attribute in span.attributes}
    for query in targets("tempo"):
        asked = set(re.findall(r"\bspan\.([\w.]+)", query.text))
        assert semconv.AGENT_TYPE in asked
        assert asked <= sent | {semconv.ERROR_TYPE, semconv.REASON}, query.where
    sent = {attribute.key.replace(".", "_") for record in Collector.records for attribute in record.attributes}
    for query in targets("loki"):
        asked = set(re.findall(r"\bagentexec_\w+", query.text))
        assert "agentexec_agent_type" in asked
        assert asked <= sent, query.where


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    """Between a worker and the database."""
    with Proxy(database.url) as running:
        yield running


@pytest.fixture
def worker(proxy: Proxy) -> Iterator[Worker]:
    """A process with metrics."""
    started = Worker("tests.chaos.metrics_worker", proxy.url)
    yield started
    started.kill()


@pytest.fixture
def prometheus(worker: Worker, tmp_path: Path) -> Iterator[Prometheus]:
    """It scrapes the worker. While the database is away, the gauges of activities take two seconds."""
    started = Prometheus(tmp_path, [worker.port], interval=3)
    yield started
    started.kill()


@ON_POSTGRES
def test_prometheus_answers_each_panel(proxy: Proxy, worker: Worker, prometheus: Prometheus) -> None:
    """Each query returns numbers while a process runs activities; the alerts about storing see an outage."""
    for task in ("wait", "hang"):
        worker.begin(task, 1)
        worker.wait()
    silent = list(targets("prometheus"))

    def all_answer() -> bool:
        worker.begin("run", 5, len(silent))
        worker.wait()
        silent[:] = [query for query in silent if not numbers(prometheus, query)]
        return not silent

    assert eventually(all_answer, timeout=30), [query.where for query in silent]
    rules = [alert_query(rule) for rule in alerts().values()]
    queries = [query for source, query, _ in rules if source == "prometheus"]
    # A scrape may have seen what was on its way.
    assert eventually(lambda: [numbers(prometheus, query) for query in queries] == [[0.0], [0.0]], timeout=30)
    proxy.refuse()
    worker.begin("report", 3)
    worker.wait()
    assert eventually(lambda: all(any(numbers(prometheus, query)) for query in queries), timeout=30)


def numbers(prometheus: Prometheus, query: Query) -> list[float]:
    """The values of all series. A quantile of nothing is not a number."""
    return [value for _, value in prometheus.query(query.promql) if not math.isnan(value)]


def activity(number: int, **columns: Any) -> Activity:
    """A row of an activity that began an hour ago."""
    began = datetime.now(UTC) - timedelta(hours=1)
    given = {"agent_type": "research", "created_at": began, "started_at": began, "updated_at": began, **columns}
    return Activity(agent_id=UUID(int=number), attempt=1, last_seq=1, **given)


@ON_POSTGRES
def test_alerts_fire(database: Database) -> None:
    """Those over SQL fire for what they are about, and not for healthy activities."""
    now = datetime.now(UTC)
    healthy = [
        *(activity(number, status=Status.COMPLETE, ended_at=now) for number in range(9)),
        activity(10, status=Status.ERROR, ended_at=now, reason="tool"),
        activity(11, status=Status.RUNNING, waiting={"for": "approval"}),
        activity(12, status=Status.RUNNING, updated_at=now),
        activity(13, status=Status.ERROR, ended_at=now - timedelta(minutes=50), reason="lost"),
    ]
    assert firing(database, healthy) == set()
    broken = [
        *(activity(number, status=Status.ERROR, ended_at=now, reason="tool") for number in range(20, 24)),
        activity(30, status=Status.ERROR, ended_at=now, reason="lost"),
        activity(31, status=Status.RUNNING),
    ]
    assert firing(database, broken) == {"agentexec-error-rate", "agentexec-lost-workers", "agentexec-stuck-runs"}


def store(database: Database, rows: list[Activity]) -> None:
    """Add rows."""
    with Session(database.engine) as session, session.begin():
        session.add_all(rows)


def firing(database: Database, rows: list[Activity]) -> set[str]:
    """The rules over SQL that fire once these rows are stored, too."""
    store(database, rows)
    found: set[str] = set()
    for uid, rule in alerts().items():
        source, query, threshold = alert_query(rule)
        if source == "postgres" and any([*row.values()][-1] > threshold for row in rows_of(database, query)):
            found.add(uid)
    return found


def test_the_services_fit_together() -> None:
    """Images are pinned, ports are open to this machine only, mounted files exist, and addresses are services."""
    services: dict[str, dict[str, Any]] = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    for name, service in services.items():
        assert re.search(r":v?\d+\.\d+(\.\d+)?$", service["image"]), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        for volume in service.get("volumes", []):
            assert (FOLDER / volume.split(":")[0]).exists(), volume
    exporters = yaml.safe_load((FOLDER / "collector.yaml").read_text())["exporters"].values()
    hosts = [re.split(r"[/:]+", exporter["endpoint"])[1] for exporter in exporters]
    sources = provisioned("datasources/datasources.yaml")["datasources"]
    hosts += [source["url"].removeprefix("http://").split(":")[0] for source in sources]
    assert set(hosts) == set(services) - {"collector", "grafana"}


def test_compose_accepts_the_file() -> None:
    """`docker compose config`, which needs no engine."""
    command = ["docker", "compose", "--file", str(FOLDER / "compose.yaml"), "config", "--quiet"]
    try:
        subprocess.run([*command[:2], "version"], check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("docker compose is not installed")
    subprocess.run(command, check=True)
