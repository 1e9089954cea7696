"""More than anybody takes: memory stays bounded, order is kept, and what goes missing is said."""

import json
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity.models import Activity, ActivityLog, Status
from agentexec_otel.export import ActivityEvent, ExportResult, TransientExportError
from agentexec_otel_exporters.sql import SQLExporter
from tests.chaos.journal import history
from tests.chaos.law import settled
from tests.chaos.processes import Program
from tests.databases import Database

pytestmark = pytest.mark.one_python

SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
QUEUE_MIB = 64


@pytest.mark.parametrize("count", [25_000, pytest.param(150_000, marks=pytest.mark.slow)])
def test_a_flood_is_bounded_in_memory(tmp_path: Path, count: int) -> None:
    """Far more events than the queue holds, and nobody takes them: they wait in the spool, and all arrive in order."""
    with Program(tmp_path, "flood", str(count)) as flood:
        assert flood.join(240) == 0, flood.stderr
        said: dict[str, Any] = json.loads(flood.stdout)
    assert said["pending"] >= count
    assert said["grown_mib"] < QUEUE_MIB
    assert said["flushed"]
    assert said["complete"]
    (exporter,) = said["health"]["exporters"]
    assert (exporter["dropped"], exporter["pending"]) == (0, 0)
    shown = {name: round(said[name]) for name in ("rate", "grown_mib", "spool_bytes", "drained")}
    print(f"{count} events: {shown}")


class Gated(SQLExporter):
    """The SQL exporter behind a gate."""

    shut = False

    def export(self, events: Sequence[ActivityEvent], *, replay: bool = False) -> Sequence[ExportResult]:
        if self.shut:
            raise TransientExportError("the gate is shut")
        return super().export(events, replay=replay)


@pytest.fixture
def gated(database: Database) -> Gated:
    """Configured with a queue that is soon full."""
    ax.CONF.max_queue_size = 16
    ax.CONF.terminal_timeout = 0.05
    return Gated(database.url)


@SQLITE
@pytest.mark.parametrize("spool", ["small spool", "no spool"])
def test_progress_gives_way_to_the_life_cycle(database: Database, gated: Gated, spool: str) -> None:
    """No room anywhere: progress is coalesced to its latest line and a line says how many went missing; every ending
    is stored, in its place. An `update` that returned True is stored as well."""
    ax.CONF.spool_max_bytes = 1 << 20
    if spool == "no spool":
        ax.CONF.spool_dir = "off"
    ax.configure(exporters=[gated])
    ids = [ax.activity.create("task") for _ in range(5)]
    gated.shut = True
    count = 8_000
    accepted = [
        ax.activity.update(ids[number % 4], f"line {number}, and some text to fill the spool with: {'x' * 200}")
        for number in range(count)
    ]
    with ax.activity.run(ids[4]) as run:
        assert not run.update("no room")
    for agent_id in ids[:4]:
        assert ax.activity.complete(agent_id)
    gated.shut = False
    assert ax.flush(30)
    (exporter,) = settled()["exporters"]
    assert exporter["dropped"] > 0
    stored = history(database.engine)
    for first, agent_id in enumerate(ids[:4]):
        texts = [line for _, line in stored[agent_id]]
        numbers = [int(line.split()[1].rstrip(",")) for line in texts if line.startswith("line ")]
        assert numbers == sorted(set(numbers))
        assert numbers[-1] == count - 4 + first
        assert {number for number in range(first, count, 4) if accepted[number]} < set(numbers)
        assert texts[-1] == "Task completed successfully."
        gaps = [line for line in texts if "dropped here" in line]
        assert sum(int(line.split()[0]) for line in gaps) + len(numbers) == count // 4
    assert all(late is False for late in lateness(database))
    assert [status(database, agent_id) for agent_id in ids] == [Status.COMPLETE] * 5


@SQLITE
def test_an_unusable_spool_is_said_once(database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nowhere to keep a spool: memory, one warning, and `health()` says so."""
    (tmp_path / "file").write_text("not a folder")
    ax.CONF.spool_dir = str(tmp_path / "file")
    ax.configure(database.url)
    agent_id = ax.activity.create("task")
    ax.activity.update(agent_id, "line")
    assert ax.flush()
    assert settled()["exporters"][0]["durability"] == "memory"
    assert [record.getMessage() for record in caplog.records if "memory" in record.getMessage()] != []
    assert len(caplog.records) == 1


REFUSE = {
    "sqlite": [
        """CREATE TRIGGER refuse BEFORE INSERT ON agentexec_activity_log WHEN NEW.message = 'venom'
           BEGIN SELECT RAISE(ABORT, 'refused'); END"""
    ],
    "postgres": ["ALTER TABLE agentexec_activity_log ADD CONSTRAINT refuse CHECK (message <> 'venom')"],
    "mariadb": ["ALTER TABLE agentexec_activity_log ADD CONSTRAINT refuse CHECK (message <> 'venom')"],
}


def test_one_poisoned_event_of_500(database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The database refuses one of 500: 499 are stored, one is in the dead letters, for its user's eyes, and counted."""
    with database.engine.begin() as connection:
        for statement in REFUSE[database.kind]:
            connection.execute(text(statement))
    ax.configure(database.url)
    agent_id = ax.activity.create("task")
    for number in range(500):
        ax.activity.update(agent_id, "venom" if number == 250 else f"line {number}")
    assert ax.flush(30)
    (exporter,) = settled()["exporters"]
    assert exporter["dead_lettered"] == 1
    lines = history(database.engine)[agent_id]
    assert [line for _, line in lines[1:]] == [f"line {number}" for number in range(500) if number != 250]
    assert [seq for seq, _ in lines] == list(range(1, 501))
    (letters,) = tmp_path.rglob("dead-letters.jsonl")
    assert stat.S_IMODE(letters.stat().st_mode) == 0o600
    (letter,) = [json.loads(line) for line in letters.read_text().splitlines()]
    assert "venom" in json.dumps(letter["event"])
    assert "venom" not in letter["reason"]
    assert not any("venom" in record.getMessage() for record in caplog.records)
    ax.shutdown()
    caplog.clear()
    ax.configure(database.url)
    ax.recover()
    assert not any("dead-letters" in record.getMessage() for record in caplog.records)


def lateness(database: Database) -> list[bool]:
    with Session(database.engine) as session:
        return list(session.scalars(select(ActivityLog.late)))


def status(database: Database, agent_id: UUID) -> Status:
    with Session(database.engine) as session:
        return session.scalars(select(Activity.status).where(Activity.agent_id == agent_id)).one()
