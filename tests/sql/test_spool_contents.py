"""`ax.spool` and `ax.recover(dead_letters=True)`: what waits, what was refused, and how it is stored after all."""

import json
import os
import stat
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

import agentexec_otel as ax
from agentexec_otel._model.codec import encode
from agentexec_otel.export._dead_letters import FILE_NAME, keep_dead_letter, keep_message, taking_events
from agentexec_otel.export.spool import Spool
from agentexec_otel_exporters.sql import SQLExporter
from tests.databases import Database
from tests.sql.rows import count_rows, event, lines, opening
from tests.unit.spool_kit import Child, fork

pytestmark = [pytest.mark.one_python, pytest.mark.parametrize("database", ["sqlite"], indirect=True)]


def base() -> Path:
    found = ax.spool.directory()
    assert found is not None
    return found


def spool_of(database: Database) -> Spool:
    exporter = SQLExporter(database.url)
    exporter.shutdown(0.0)
    return Spool(base(), identity=exporter.identity)


def spooling(database: Database, *payloads: bytes) -> Child:
    """A process that has spooled these, and lives until it is killed."""
    reads, writes = os.pipe()

    def work() -> None:
        spool = spool_of(database)
        for payload in payloads:
            spool.append(payload)
        os.write(writes, b".")
        threading.Event().wait()

    child = fork(work)
    os.close(writes)
    assert os.read(reads, 1) == b"."
    os.close(reads)
    return child


# -- what waits ------------------------------------------------------------------------------------------------------


def test_nothing_waits(database: Database) -> None:
    """Looking needs no spool and makes none, and finds none in a process that has stored everything."""
    assert (ax.spool.contents(), ax.spool.dead_letters()) == ([], [])
    assert not base().exists()
    ax.configure(database.url)
    ax.activity.complete(ax.activity.create("research"))
    assert ax.flush()
    ax.shutdown()
    (folder,) = ax.spool.contents()
    assert (folder.files, folder.events, folder.bytes, folder.dead_letters) == (0, 0, 0, 0)


def test_what_processes_have_left(database: Database, tmp_path: Path) -> None:
    """Events of a process that runs, then of one that was killed, with their database and the time of the oldest."""
    created = opening(at_ns=1_700_000_000_000_000_000)
    child = spooling(database, *(encode(one) for one in (created, event(created.agent_id), event(created.agent_id))))
    (folder,) = ax.spool.contents()
    assert folder.target == f"sqlite:///{tmp_path / 'test.db'}#agentexec_activity"
    assert (folder.files, folder.events, folder.orphaned) == (1, 3, 0)
    assert folder.oldest == datetime.fromtimestamp(1_700_000_000, UTC)
    assert folder.bytes == sum(path.stat().st_size for path in folder.path.iterdir())
    child.kill()
    assert ax.spool.contents()[0].orphaned == 3
    ax.configure(database.url)
    ax.recover()
    assert count_rows(database.engine) == (1, 3)
    assert ax.spool.contents()[0].events == 0


def test_hostile_folder(database: Database) -> None:
    """Damaged files, foreign ones, pipes and records that are no events raise nothing."""
    child = spooling(database, b"no event", encode(opening()))
    child.kill()
    (folder,) = ax.spool.contents()
    (segment,) = folder.path.glob("*.seg")
    os.mkfifo(folder.path / "h-1-1-00000000-000001.seg")
    (folder.path / "h-1-1-00000000-000002.seg").write_bytes(b"damaged")
    (folder.path / "h-1-1-00000000-000003.corrupt").write_bytes(segment.read_bytes())
    (folder.path / "h-1-1-00000000-000004.seg").touch()
    (folder.path / "notes.txt").touch()
    (base() / "notes.txt").touch()
    (folder,) = ax.spool.contents()
    assert (folder.files, folder.events, folder.damaged_files, folder.oldest) == (2, 2, 3, None)


def test_own_files_are_not_opened(database: Database) -> None:
    """Closing a file of its own would release a process's lock: it counts by its size."""
    spool = spool_of(database)
    spool.append(encode(opening()))
    (folder,) = ax.spool.contents()
    assert (folder.files, folder.events, folder.bytes, folder.orphaned) == (1, 0, spool.size(), 0)


def test_spool_that_cannot_be_used(database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`check` says why, in one sentence; with the spool off there is nothing to say."""
    ax.spool.check()
    assert list(base().iterdir()) == []
    (tmp_path / "file").touch()
    monkeypatch.setattr(ax.CONF, "spool_dir", str(tmp_path / "file" / "spool"))
    with pytest.raises(ax.ConfigurationError, match="cannot be used: Not a directory"):
        ax.spool.check()
    monkeypatch.setattr(ax.CONF, "spool_dir", str(tmp_path / "file"))
    for look in (ax.spool.contents, ax.spool.dead_letters):
        with pytest.raises(ax.ConfigurationError, match="cannot be used: Not a directory"):
            look()
    monkeypatch.setattr(ax.CONF, "spool_dir", "OFF")
    ax.spool.check()
    assert (ax.spool.directory(), ax.spool.contents(), ax.spool.dead_letters()) == (None, [], [])


# -- what was refused ------------------------------------------------------------------------------------------------


@pytest.fixture
def mend(database: Database) -> Callable[[], None]:
    """The database refuses the message "venom" until this is called."""
    with database.engine.begin() as connection:
        connection.execute(
            text(
                "CREATE TRIGGER refuse BEFORE INSERT ON agentexec_activity_log WHEN NEW.message = 'venom'"
                " BEGIN SELECT RAISE(ABORT, 'refused'); END"
            )
        )

    def drop() -> None:
        with database.engine.begin() as connection:
            connection.execute(text("DROP TRIGGER refuse"))

    return drop


def refused(database: Database) -> UUID:
    """An activity with a log that the database has refused."""
    ax.configure(database.url)
    agent_id = ax.activity.create("research")
    for message in ("before", "venom", "after"):
        ax.activity.update(agent_id, message, 50)
    assert ax.flush()
    assert ax.health()["exporters"][0]["dead_lettered"] == 1
    return agent_id


def test_dead_letters_are_replayed_once_mended(database: Database, mend: Callable[[], None]) -> None:
    """An event that was refused is stored later, once, and messages of task queues stay."""
    agent_id = refused(database)
    (letter,) = ax.spool.dead_letters()
    assert (letter.agent_id, letter.message, letter.status) == (agent_id, "venom", ax.activity.Status.RUNNING)
    assert letter.reason.startswith("the database refuses a value")
    assert letter.occurred_at is not None
    keep_message(spool_of(database), "no task", "it cannot be read")

    assert ax.recover(dead_letters=True) == 1  # not mended yet
    assert sorted(one.message for one in ax.spool.dead_letters()) == ["no task", "venom"]

    mend()
    assert ax.recover() == 0
    assert ax.recover(dead_letters=True) == 1
    assert [log.message for log in lines(database.engine, agent_id)][1:] == ["before", "after", "venom"]
    assert [one.message for one in ax.spool.dead_letters()] == ["no task"]
    assert ax.recover(dead_letters=True) == 0
    path = letter.folder / FILE_NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [found.name for found in letter.folder.iterdir() if found.suffix != ".seg"] == [FILE_NAME]


def test_replay_survives_its_interruption(database: Database, mend: Callable[[], None]) -> None:
    """Killed after the events are in the spool and before they are off the file: they are stored once."""
    agent_id = refused(database)
    (letter,) = ax.spool.dead_letters()
    before = (letter.folder / FILE_NAME).read_bytes()
    mend()
    assert ax.recover(dead_letters=True) == 1
    (letter.folder / FILE_NAME).write_bytes(before)
    assert ax.recover(dead_letters=True) == 1
    assert [log.message for log in lines(database.engine, agent_id)][1:] == ["before", "after", "venom"]
    assert ax.health()["exporters"][0]["duplicate"] == 1


def test_damaged_dead_letters(database: Database) -> None:
    """Lines that are no dead letters are listed as such, and stay."""
    ax.configure(database.url)
    ax.activity.create("research")
    (folder,) = ax.spool.contents()
    hostile = [b"\xff", b"{}", b"[1]", b'{"reason": 1}', b'{"reason": "r", "event": [9]}', b"[" * 9_000, b"null"]
    (folder.path / FILE_NAME).write_bytes(b"\n".join(hostile) + b"\n")
    assert [one.reason for one in ax.spool.dead_letters()] == ["the line is damaged"] * len(hostile)
    assert ax.recover(dead_letters=True) == 0
    assert (folder.path / FILE_NAME).read_bytes() == b"\n".join(hostile) + b"\n"


def test_letters_that_come_during_a_replay(database: Database) -> None:
    """Events that are refused while the file is replaced are in the new one."""
    spool = spool_of(database)
    for _ in range(5):
        keep_dead_letter(spool, event(uuid4()), "refused")
    threads = [threading.Thread(target=keep_dead_letter, args=(spool, event(uuid4()), "later")) for _ in range(8)]
    with taking_events(spool.path) as taken:
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 5
    kept = [json.loads(line)["reason"] for line in (spool.path / FILE_NAME).read_text().splitlines()]
    assert kept == ["later"] * 8


def test_spool_without_room_keeps_the_letters(
    database: Database, mend: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the events cannot be spooled, one sentence says so, and none is lost."""
    refused(database)
    ax.shutdown()
    with (ax.spool.contents()[0].path / "h-1-1-00000000-000001.corrupt").open("wb") as other:
        other.truncate(1 << 20)
    monkeypatch.setattr(ax.CONF, "spool_max_bytes", 1 << 20)
    ax.configure(database.url)
    with pytest.raises(ax.ConfigurationError, match="cannot be replayed: the spool has reached its limit"):
        ax.recover(dead_letters=True)
    assert [one.message for one in ax.spool.dead_letters()] == ["venom"]
