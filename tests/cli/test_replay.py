"""`agentexec-otel replay`."""

import subprocess
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import update

from agentexec_otel.activity.models import Activity, Status
from agentexec_otel.export import Outcome, SpanRef
from agentexec_otel_exporters.sql import SQLExporter
from tests.cli.terminal import COMMAND, environment, run
from tests.databases import Database
from tests.sql.rows import event, opening

pytestmark = pytest.mark.one_python


@pytest.fixture
def lost(database: Database) -> list[UUID]:
    """Three activities whose worker was lost, and whose spans were never exported."""
    exporter = SQLExporter(database.url)
    created = [opening(task="research") for _ in range(3)]
    exporter.export(created)
    for number, one in enumerate(created, 1):
        span = SpanRef(f"{number:032x}", f"{number:016x}", sampled=True)
        exporter.export([event(one.agent_id, span=span, worker_id="dead:1")])
        exporter.export([event(one.agent_id, Status.ERROR, "lost", outcome=Outcome("WorkerLost", "lost"))])
    exporter.shutdown(1)
    return [one.agent_id for one in created]


def test_all_or_some(database: Database, lost: list[UUID], monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, then one by its id, then the others; each is exported once."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    assert run("replay", "--lost", "--dry-run", "--json", url=database.url).json == {"replayed": 0, "found": 3}
    one = run("replay", "--id", str(lost[0])[:13], url=database.url)
    assert (one.code, one.err) == (0, "1 span replayed\n")
    assert run("replay", "--since", "1h", "--type", "another", url=database.url).err == "0 spans replayed\n"
    assert run("replay", "--since", "1h", url=database.url).err == "2 spans replayed\n"
    assert run("replay", "--lost", url=database.url).err == "0 spans replayed\n"


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_what_is_wrong(database: Database, lost: list[UUID], monkeypatch: pytest.MonkeyPatch) -> None:
    """A forgotten filter does not mean everything; without an exporter, the error says how to name one."""
    wrong = run("replay", url=database.url)
    assert (wrong.code, "give --lost, --id, or filters" in wrong.complaint) == (2, True)
    nowhere = run("replay", "--lost", url=database.url)
    assert (nowhere.code, "set OTEL_TRACES_EXPORTER" in nowhere.complaint) == (1, True)
    assert run("replay", "--id", "ffff0000", url=database.url).code == 1
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    away = run("replay", "--lost", url=database.url)
    assert (away.code, "3 spans were not exported" in away.complaint) == (1, True)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_reap_replays(database: Database) -> None:
    """The command that ends the activities of lost workers exports their spans before it ends."""
    exporter = SQLExporter(database.url)
    created = opening(task="research")
    span = SpanRef("a" * 32, "b" * 16, sampled=True)
    exporter.export([created, event(created.agent_id, span=span, worker_id="dead:1")])
    exporter.shutdown(1)
    with database.engine.begin() as connection:
        connection.execute(update(Activity).values(lease_expires_at=datetime.now(UTC) - timedelta(minutes=1)))
    done = subprocess.run(
        [COMMAND, "reap"],
        check=True,
        env=environment(database.url, OTEL_TRACES_EXPORTER="console"),
        capture_output=True,
        text=True,
    )
    assert done.stderr == "1 activity ended as lost\n"
    assert f'"span_id": "0x{"b" * 16}"' in done.stdout
