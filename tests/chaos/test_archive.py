"""kill -9 of `archive` and `restore`: no activity is lost, and after the next call none is there twice."""

import random
import threading
import time
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import pytest

import agentexec_otel as ax
from agentexec_otel.activity.models import Status
from tests.chaos.archiver import BATCH, OLD
from tests.chaos.processes import Program
from tests.databases import Database
from tests.sql.archives import archived, contents, fill, records

KILLS = pytest.mark.parametrize(
    ("name", "kills"),
    [
        ("archive.jsonl", 4),
        pytest.param("archive.jsonl", 20, marks=pytest.mark.slow),
        pytest.param("archive", 20, marks=pytest.mark.slow),
    ],
)
PER_KILL = 60


@KILLS
def test_killed_archive(database: Database, tmp_path: Path, name: str, kills: int) -> None:
    """Killed at random moments, beside a writer that retries: every activity is whole, and in exactly one place."""
    to = tmp_path / name
    ids: set[UUID] = set()
    ax.configure(database.url)
    with Retries() as retries:
        for number in range(kills):
            new = fill(database.engine, PER_KILL, logs=3)
            ids.update(new)
            retries.choose(new[::10])
            kill_at_random(tmp_path / str(number), "archive", database.url, to)
            assert complete_lines(to) | contents(database.engine).keys() == ids
    ax.activity.archive(database.engine, OLD, to=to, batch_size=BATCH)
    found = archived(to)
    left = contents(database.engine)
    assert len(found) == len(set(found))
    assert set(found) | left.keys() == ids
    assert set(found) & left.keys() == set()
    assert left.keys() == retries.retried
    assert {row["status"] for row, _ in left.values()} == {Status.QUEUED}
    assert len(found) > kills
    for record in records(to):
        assert [log["seq"] for log in record["logs"]] == list(range(1, record["last_seq"] + 1))


@KILLS
def test_killed_restore(database: Database, tmp_path: Path, name: str, kills: int) -> None:
    """Killed at random moments: after the last call every activity is as it was."""
    to = tmp_path / name
    fill(database.engine, PER_KILL * kills, logs=3)
    before = contents(database.engine)
    ax.activity.archive(database.engine, OLD, to=to)
    for number in range(kills):
        kill_at_random(tmp_path / str(number), "restore", database.url, to)
        found = contents(database.engine)
        assert found == {agent_id: before[agent_id] for agent_id in found}
    ax.activity.restore(database.engine, to)
    assert contents(database.engine) == before


def kill_at_random(folder: Path, call: str, url: str, path: Path) -> None:
    with Program(folder, "archiver", call, url, str(path)) as program:
        program.says("ready")
        time.sleep(random.uniform(0.0, 0.25))
        program.kill()


def complete_lines(path: Path) -> set[UUID]:
    """What the archive has, a torn last line aside."""
    if path.suffix != ".jsonl" or not path.exists():
        return set(archived(path))
    whole = path.with_name("whole.jsonl")
    content = path.read_bytes()
    whole.write_bytes(content[: content.rfind(b"\n") + 1])
    return set(archived(whole))


class Retries:
    """Retries activities, in a thread, while they are archived."""

    def __init__(self) -> None:
        self.retried: set[UUID] = set()
        self._chosen: list[UUID] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def choose(self, ids: list[UUID]) -> None:
        self._chosen.extend(ids)

    def __enter__(self) -> "Retries":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            while self._chosen:
                agent_id = self._chosen.pop(random.randrange(len(self._chosen)))
                with suppress(ax.ActivityNotFoundError):  # archived
                    ax.activity.retry(agent_id)
                    self.retried.add(agent_id)
