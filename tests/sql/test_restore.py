"""`restore`: what was archived is as it was, in the same database or in another one."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import create_engine, delete, update

import agentexec_otel as ax
from agentexec_otel.activity.models import Activity, ActivityLog, Status
from tests.databases import KINDS, Database, Servers, create_tables, open_database
from tests.sql.archives import ENDED, EVERYTHING, LONG_AGO, OLD, Rows, Seen, archived, contents, fill, without_log_ids
from tests.sql.rows import count_rows, event, gap_free, lines, store

pytestmark = pytest.mark.one_python

ONE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
NAMES = pytest.mark.parametrize("name", ["archive.jsonl", "archive"])


@pytest.fixture(params=KINDS)
def other(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Iterator[Database]:
    """Another database with our tables, beside that of `database` on SQLite."""
    (tmp_path / "other").mkdir()
    with open_database(request.param, servers, tmp_path / "other") as opened:
        create_tables(opened)
        yield opened


def various(engine: Any) -> None:
    """Activities with a value in every column and in none, with many logs and with none."""
    rows = Rows()
    rows.add(Status.ERROR, **EVERYTHING)
    rows.add(Status.COMPLETE, LONG_AGO + timedelta(microseconds=1), logs=120)
    rows.add(Status.CANCELED, LONG_AGO.replace(microsecond=0), logs=0, metadata={}, sampled=False, latest_percentage=0)
    rows.insert(engine)


@NAMES
def test_everything_as_it_was(database: Database, tmp_path: Path, name: str) -> None:
    """Every column of activities and logs has its value again, ids included."""
    various(database.engine)
    before = contents(database.engine)
    to = tmp_path / name
    assert ax.activity.archive(database.engine, OLD, to=to) == 3
    seen = Seen()
    assert ax.activity.restore(database.engine, to, batch_size=2, progress=seen) == 3
    assert contents(database.engine) == before
    assert seen == [(0, 3), (2, 3), (3, 3)]


@ONE
@NAMES
def test_into_another_database(database: Database, other: Database, tmp_path: Path, name: str) -> None:
    """An archive of SQLite is restored on any database; logs of new activities get ids of their own."""
    various(database.engine)
    before = contents(database.engine)
    to = tmp_path / name
    ax.activity.archive(database.engine, OLD, to=to)
    (agent_id,) = fill(other.engine, 1)  # has the first log ids already
    own = contents(other.engine)
    assert ax.activity.restore(other.engine, to) == 3
    found = contents(other.engine)
    assert found.pop(agent_id) == own[agent_id]
    assert without_log_ids(found) == without_log_ids(before)
    ax.configure(other.url)
    new = ax.activity.create("task")
    for number in range(150):
        ax.activity.update(new, str(number))
    assert ax.flush()
    assert gap_free(lines(other.engine, new))
    assert ax.activity.archive(other.engine, OLD) == 4


@NAMES
def test_again(database: Database, tmp_path: Path, name: str) -> None:
    """What exists already is skipped, whatever it is by now."""
    ids = fill(database.engine, 5)
    to = tmp_path / name
    ax.activity.archive(database.engine, OLD, to=to, batch_size=2)
    assert ax.activity.restore(database.engine, to, batch_size=3) == 5
    with database.engine.begin() as connection:
        connection.execute(update(Activity).values(status=Status.RUNNING))
        connection.execute(delete(ActivityLog))
        connection.execute(delete(Activity).where(Activity.agent_id == ids[3]))
    assert ax.activity.restore(database.engine, to, batch_size=3) == 1
    found = contents(database.engine)
    assert {agent_id: row["status"] for agent_id, (row, _) in found.items()} == {
        agent_id: ENDED[0] if agent_id == ids[3] else Status.RUNNING for agent_id in ids
    }
    assert count_rows(database.engine) == (5, 2)


@NAMES
@pytest.mark.parametrize("batch_size", [1, 500])
def test_archived_twice(database: Database, tmp_path: Path, name: str, batch_size: int) -> None:
    """Of an activity that was restored, retried and archived again, the later state is restored."""
    first, second = fill(database.engine, 2)
    to = tmp_path / name
    ax.activity.archive(database.engine, OLD, to=to, agent_type="task0")
    ax.activity.archive(database.engine, OLD, to=to)
    ax.activity.restore(database.engine, to)
    store(database.url, [event(first, Status.QUEUED, "again", reopens=True)], [event(first, Status.ERROR, "twice")])
    before = contents(database.engine)
    ax.activity.archive(database.engine, timedelta(0), to=to)
    assert archived(to) in ([first, first, second], [first, second, first])
    assert ax.activity.restore(database.engine, to, batch_size=batch_size) == 2
    assert contents(database.engine) == before


def test_at_the_same_time(database: Database, tmp_path: Path) -> None:
    """Two that restore the same activities at once insert each of them once."""
    fill(database.engine, 60)
    before = contents(database.engine)
    sources = [tmp_path / "0.jsonl", tmp_path / "1.jsonl"]
    ax.activity.archive(database.engine, OLD, to=sources[0])
    sources[1].write_bytes(sources[0].read_bytes())
    together = Barrier(2)

    def run(source: Path) -> int:
        engine = create_engine(database.url)
        together.wait(30)
        try:
            return ax.activity.restore(engine, source, batch_size=7)
        finally:
            engine.dispose()

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(run, sources)) == 60
    assert contents(database.engine) == before


@ONE
def test_torn_line(database: Database, tmp_path: Path) -> None:
    """A last line that was not written to its end is left out: its activity was not deleted."""
    fill(database.engine, 2)
    to = tmp_path / "archive.jsonl"
    ax.activity.archive(database.engine, OLD, to=to)
    content = to.read_bytes()
    to.write_bytes(content + content[:100])
    assert ax.activity.restore(database.engine, to) == 2
    to.write_bytes(content[:100])
    assert ax.activity.restore(database.engine, to) == 0
    to.write_bytes(b"")
    assert ax.activity.restore(database.engine, to) == 0


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"archive_format": 2}, "is an archive of a later version: upgrade agentexec-otel"),
    ({"color": "red"}, "line at byte 0, has the field 'color' of a later version: upgrade agentexec-otel"),
    ({"status": "RUNNING"}, "line at byte 0, has an activity that has not ended"),
    ({"status": "DONE"}, "line at byte 0, has something else than an archived activity"),
    ({"id": 7}, "line at byte 0, has something else than an archived activity"),
    ({"cost": "a lot"}, "line at byte 0, has something else than an archived activity"),
    ({"logs": None}, "line at byte 0, has something else than an archived activity"),
    ({"logs": [[]]}, "line at byte 0, has something else than an archived activity"),
    ({"logs": [{"color": "red"}]}, "line at byte 0, has the field 'color'"),
]


@ONE
@pytest.mark.parametrize(("changes", "sentence"), REFUSED)
def test_refused_lines(database: Database, tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    """A line that is none of ours is named, and nothing of its batch is inserted."""
    fill(database.engine, 2)
    to = tmp_path / "archive.jsonl"
    ax.activity.archive(database.engine, OLD, to=to)
    first, second = to.read_text(encoding="utf-8").split("\n")[:-1]
    to.write_text(json.dumps(json.loads(first) | changes).replace(": ", ":", 1) + f"\n{second}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"archive\.jsonl,? {sentence}"):
        ax.activity.restore(database.engine, to)
    assert count_rows(database.engine) == (0, 0)


@ONE
@pytest.mark.parametrize("content", [b"[1]\n", b"{}\n", b'{"archive_format":1}\n', b"\xff\n"])
def test_damaged_file(database: Database, tmp_path: Path, content: bytes) -> None:
    """A line that is no record is named by its place."""
    to = tmp_path / "archive.jsonl"
    fill(database.engine, 1)
    ax.activity.archive(database.engine, OLD, to=to)
    place = to.stat().st_size
    to.write_bytes(to.read_bytes() + content)
    with pytest.raises(ValueError, match=rf"archive\.jsonl is damaged: the line at byte {place} is no archived"):
        ax.activity.restore(database.engine, to)


@ONE
def test_refused_parts(database: Database, tmp_path: Path) -> None:
    """Another program's Parquet, one of a later version, and what is no Parquet, are refused."""
    arrow: Any = import_module("pyarrow")
    parquet: Any = import_module("pyarrow.parquet")

    fill(database.engine, 1)
    to = tmp_path / "archive"
    to.mkdir()
    with pytest.raises(ValueError, match="archive has no parts of an archive of activities"):
        ax.activity.restore(database.engine, to)
    part = to / "part-00000007.parquet"
    table: Any = arrow.table({"id": ["a"]})
    cases: list[tuple[Any, str]] = [
        (table, r"part-00000007\.parquet is no archive of activities: name another directory"),
        (table.replace_schema_metadata({"archive_format": "2"}), "is an archive of a later version"),
    ]
    for given, sentence in cases:
        parquet.write_table(given, part)
        with pytest.raises(ValueError, match=sentence):
            ax.activity.restore(database.engine, to)
        with pytest.raises(ValueError, match=sentence):
            ax.activity.archive(database.engine, OLD, to=to)
    part.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="is no archive of activities, or damaged"):
        ax.activity.restore(database.engine, to)
    assert count_rows(database.engine) == (1, 2)


@ONE
def test_refused_sources(database: Database, tmp_path: Path) -> None:
    """What is not there, or has another name, is named."""
    with pytest.raises(FileNotFoundError, match=r"missing\.jsonl"):
        ax.activity.restore(database.engine, tmp_path / "missing.jsonl")
    with pytest.raises(FileNotFoundError, match="missing"):
        ax.activity.restore(database.engine, tmp_path / "missing")
    with pytest.raises(ValueError, match=r"source is 'archive\.csv': name a file that ends in \.jsonl"):
        ax.activity.restore(database.engine, "archive.csv")
