"""`AGENTEXEC_EXPORTERS=otlp`: activities as log records, as a real receiver (Rotel) gets them."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, SeverityNumber
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import select
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity.models import Activity, ActivityLog
from agentexec_otel_exporters.otlp import OTLPActivityExporter
from tests.databases import Database
from tests.e2e.rotel import Rotel, plain, rotel

pytestmark = [
    pytest.mark.one_python,
    pytest.mark.skipif(sys.version_info >= (3, 14), reason="Rotel has no wheel for Python 3.14"),
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rotel]:
    """One Rotel for all tests here."""
    with rotel(tmp_path_factory.mktemp("rotel")) as found:
        yield found


@pytest.fixture
def receiver(running: Rotel) -> Rotel:
    """Rotel, with nothing passed on yet."""
    running.forget()
    return running


def exporter(receiver: Rotel, protocol: str) -> OTLPActivityExporter:
    address = receiver.grpc if protocol == "grpc" else f"{receiver.http}/v1/logs"
    return OTLPActivityExporter(address, protocol=protocol)


def named(records: list[LogRecord]) -> list[tuple[str, str, int]]:
    prefix = "agentexec.activity."
    return [(one.event_name.removeprefix(prefix), one.body.string_value, one.severity_number) for one in records]


INFO, WARN, ERROR = (
    SeverityNumber.SEVERITY_NUMBER_INFO,
    SeverityNumber.SEVERITY_NUMBER_WARN,
    SeverityNumber.SEVERITY_NUMBER_ERROR,
)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_run_is_read_back(
    receiver: Rotel,
    database: Database,
    tracer_provider: TracerProvider,
    span_exporter: InMemorySpanExporter,
    protocol: str,
) -> None:
    """Each log is one record: event name, body, severity, ids, the span's context, type, attempt, wait and outcome."""
    ax.configure(database.url, exporters=[exporter(receiver, protocol)], tracer_provider=tracer_provider)
    agent_id = ax.activity.create("research", metadata={"tenant": "acme"})
    with ax.activity.run(agent_id) as run:
        run.update("Reading \U0001f4d6 \x00", 20)
        run.waiting("approval", items=[{"tool": "pay"}])
        run.update("Approved")
    with pytest.raises(ValueError, match="bad"), ax.activity.run("failing"):
        raise ValueError("bad")
    assert ax.flush(10.0)
    records = receiver.wait_for(9)
    assert named(records) == [
        ("created", "Waiting to start.", INFO),
        ("started", "Task started.", INFO),
        ("log", "Reading \U0001f4d6 \u2400", INFO),
        ("waiting", "Waiting for approval: pay.", INFO),
        ("log", "Approved", INFO),
        ("ended", "Task completed successfully.", INFO),
        ("created", "Waiting to start.", INFO),
        ("started", "Task started.", INFO),
        ("ended", "Task failed: bad", ERROR),
    ]
    with Session(database.engine) as session:
        statement = select(ActivityLog.event_id, ActivityLog.message).join(Activity).order_by(ActivityLog.seq)
        logs = list(session.execute(statement.where(Activity.agent_id == agent_id)))
    attributes = [plain(record.attributes) for record in records]
    assert [(UUID(one["log.record.uid"]), one["agentexec.log.message"]) for one in attributes[:6]] == logs
    assert {one["agentexec.agent_id"] for one in attributes[:6]} == {str(agent_id)}
    assert {one["agentexec.agent_type"] for one in attributes[:6]} == {"research"}
    assert {one["agentexec.attempt"] for one in attributes} == {1}
    assert attributes[0]["agentexec.metadata.tenant"] == "acme"
    assert attributes[2]["agentexec.log.percentage"] == 20
    assert attributes[3]["agentexec.waiting.for"] == "approval"
    assert json.loads(attributes[3]["agentexec.waiting.items"]) == [{"tool": "pay"}]
    assert (attributes[8]["error.type"], attributes[8]["agentexec.reason"]) == ("ValueError", "other")
    span = next(one for one in span_exporter.get_finished_spans() if one.name == "research")
    assert span.context is not None
    own = {(int.from_bytes(one.trace_id), int.from_bytes(one.span_id), one.flags & 1) for one in records[1:6]}
    assert own == {(span.context.trace_id, span.context.span_id, 1)}


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_endings_of_many_and_attempts_are_records(receiver: Rotel, database: Database) -> None:
    """`cancel_pending()` gives a record for each activity, and `retry()` one that names the next attempt."""
    ax.configure(database.url, exporters=[exporter(receiver, "http/protobuf")])
    ids = [ax.activity.create("batch") for _ in range(3)]
    assert ax.activity.cancel_pending() == 3
    assert ax.activity.retry(ids[0])
    ax.activity.update(ids[0], "Again")
    assert ax.flush(10.0)
    records = receiver.wait_for(8)
    assert sorted(named(records[3:6])) == [("ended", "Task canceled.", WARN)] * 3
    assert [one[0] for one in named(records[6:])] == ["retried", "started"]
    assert [plain(one.attributes)["agentexec.attempt"] for one in records[6:]] == [2, 2]
    assert {plain(one.attributes)["agentexec.agent_id"] for one in records[3:6]} == {str(one) for one in ids}


APPLICATION = """
import agentexec_otel as ax
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import set_tracer_provider

set_tracer_provider(TracerProvider())
agent_id = ax.activity.create("research")
with ax.activity.run(agent_id) as run:
    run.update("Reading", 20)
ax.activity.cancel(agent_id)
ax.activity.retry(agent_id)
ax.activity.update(agent_id, "Again")
ax.activity.complete(agent_id)
assert ax.flush(10.0)
print([one["exporter"] for one in ax.health()["exporters"]])
"""


def python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "AGENTEXEC_SPOOL_DIR": str(folder / "spool"), **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_without_sql_and_without_configure(receiver: Rotel, tmp_path: Path) -> None:
    """`AGENTEXEC_EXPORTERS=otlp` alone: no database is made, and the first ending of an attempt wins here as well."""
    done = python(
        APPLICATION,
        tmp_path,
        AGENTEXEC_EXPORTERS="otlp",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.http,
        OTEL_EXPORTER_OTLP_COMPRESSION="gzip",
        OTEL_SERVICE_NAME="shop",
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "['OTLPActivityExporter']\n")
    assert [path.name for path in tmp_path.iterdir()] == ["spool"]
    records = receiver.wait_for(8)
    assert [one[0] for one in named(records)] == [
        "created", "started", "log", "ended", "ended", "retried", "started", "ended",
    ]  # fmt: skip
    attributes = [plain(record.attributes) for record in records]
    assert [one.get("agentexec.log.late", False) for one in attributes] == [False] * 4 + [True] + [False] * 3
    assert [one["agentexec.attempt"] for one in attributes[6:]] == [2, 2]
    assert {one["agentexec.agent_type"] for one in attributes} == {"research"}
    assert len({record.span_id for record in records[1:4]}) == 1
    assert all(record.span_id for record in records[1:4])


def test_by_name_beside_the_database(receiver: Rotel, tmp_path: Path) -> None:
    """`AGENTEXEC_EXPORTERS=sql,otlp` by gRPC: the database decides. `AGENTEXEC_EVENT_MODE=log` gives one warning."""
    done = python(
        APPLICATION,
        tmp_path,
        AGENTEXEC_EXPORTERS="sql,otlp",
        AGENTEXEC_EVENT_MODE="log",
        AGENTEXEC_DATABASE_URL=f"sqlite:///{tmp_path}/app.db",
        AGENTEXEC_CREATE_TABLES="1",
        OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.grpc,
    )
    assert (done.returncode, done.stdout) == (0, "['SQLExporter', 'OTLPActivityExporter']\n"), done.stderr
    assert done.stderr == (
        "AGENTEXEC_EVENT_MODE=log sends each log as a log record of the LoggerProvider, and the exporter otlp sends it"
        " again: leave one of them out\n"
    )
    assert len(receiver.wait_for(8)) == 8


def test_beside_otlp_endpoint(receiver: Rotel, tmp_path: Path) -> None:
    """`configure(otlp_endpoint=…)` says where `otlp` sends to, and an exporter that is given is not added again."""
    code = f"""
import agentexec_otel as ax
from agentexec_otel_exporters.otlp import OTLPActivityExporter
ax.configure("sqlite:///app.db", create_tables=True, otlp_endpoint={receiver.http!r})
print(len(ax.health()["exporters"]))
with ax.activity.run("research"):
    pass
ax.configure("sqlite:///app.db", exporters=[OTLPActivityExporter({receiver.http + "/v1/logs"!r})],
             otlp_endpoint={receiver.http!r})
print(len(ax.health()["exporters"]))
"""
    done = python(code, tmp_path, AGENTEXEC_EXPORTERS="otlp")
    assert (done.returncode, done.stdout) == (0, "2\n2\n"), done.stderr
    assert len(receiver.wait_for(3)) == 3


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_forked_child_sends_on_its_own(receiver: Rotel, tmp_path: Path, protocol: str) -> None:
    """A child of a process that has sent logs sends its own; the parent goes on."""
    code = """
import os
import agentexec_otel as ax
ax.configure()
with ax.activity.run("parent"):
    pass
assert ax.flush(10.0)
child = os.fork()
if child == 0:
    with ax.activity.run("child"):
        pass
    os._exit(0 if ax.flush(10.0) else 1)
assert os.waitpid(child, 0)[1] == 0
with ax.activity.run("parent"):
    pass
assert ax.flush(10.0)
"""
    address = receiver.grpc if protocol == "grpc" else receiver.http
    environment = {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol, "OTEL_EXPORTER_OTLP_ENDPOINT": address}
    done = python(code, tmp_path, AGENTEXEC_EXPORTERS="otlp", **environment)
    assert done.returncode == 0, done.stderr
    types = [plain(record.attributes)["agentexec.agent_type"] for record in receiver.wait_for(9)]
    assert types == ["parent"] * 3 + ["child"] * 3 + ["parent"] * 3


def test_large_batches_are_cut(receiver: Rotel, caplog: pytest.LogCaptureFixture) -> None:
    """2,000 logs of 8 KiB, more than a receiver takes in one request, arrive once and in order, by gRPC."""
    before = len(receiver.bodies)
    ax.configure(exporters=[exporter(receiver, "grpc")])
    with ax.activity.run("large") as run:
        for number in range(2000):
            run.update(f"{number} {'x' * 8000}")
    assert ax.flush(30.0)
    assert len(receiver.wait_for(2003)) == 2003
    bodies = receiver.bodies[before:]
    assert [int(body.partition(" ")[0]) for body in bodies[2:-1]] == list(range(2000))
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
