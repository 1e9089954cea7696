"""`archive`: whole ended activities are in the database or in the archive, whatever interrupts it."""

import asyncio
import json
import re
import stat
import sys
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any, cast
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, create_engine, delete, event, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import agentexec_otel as ax
from agentexec_otel.activity import ActivityFilters
from agentexec_otel.activity.models import Activity, ActivityLog, Status
from tests.databases import Database
from tests.sql.archives import ACTIVITY, ENDED, LOG, LONG_AGO, OLD, Rows, Seen, archived, contents, fill, records
from tests.sql.plans import plan_of, scans_the_log
from tests.sql.rows import count_rows, row, store
from tests.sql.rows import event as reported

pytestmark = pytest.mark.one_python

ONE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
SERVERS = pytest.mark.parametrize("database", ["postgres", "mariadb"], indirect=True)
KINDS = pytest.mark.parametrize("name", ["archive.jsonl", "archive"])


class InterruptionError(Exception):
    """What ends a call of `archive` in the middle."""


@contextmanager
def interrupted(engine: Engine, name: Any, after: int) -> Generator[None]:
    """The n-th event of this name on the engine's connections raises."""
    seen = 0

    def interrupt(*_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == after:
            raise InterruptionError

    event.listen(engine, name, interrupt)
    try:
        with pytest.raises(InterruptionError):
            yield
    finally:
        event.remove(engine, name, interrupt)


@contextmanager
def at_transaction(engine: Engine, number: int, work: Callable[[], object]) -> Generator[None]:
    """Do the work when the n-th transaction on the engine begins."""
    seen = 0

    def begin(_: Connection) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            work()

    event.listen(engine, "begin", begin)
    try:
        yield
    finally:
        event.remove(engine, "begin", begin)


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    """The engine that archives, beside that of the test."""
    made = create_engine(database.url)
    yield made
    made.dispose()


# -- what is archived ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["archive.jsonl", "archive", None])
def test_what_ended_long_ago(database: Database, tmp_path: Path, name: str | None) -> None:
    """Activities that ended before the time are moved with all their logs; recent and active ones stay as they are."""
    now = datetime.now(UTC)
    rows = Rows()
    old = [rows.add(status, LONG_AGO + timedelta(hours=number)) for number, status in enumerate(ENDED)]
    old.append(rows.add(Status.COMPLETE, LONG_AGO + timedelta(hours=9), ended_at=None))  # a producer of schema 1
    old.append(rows.add(Status.COMPLETE, now, created_at=LONG_AGO + timedelta(hours=10), ended_at=now - 2 * OLD))
    for status in (Status.QUEUED, Status.RUNNING):
        rows.add(status)
    rows.add(Status.COMPLETE, now, ended_at=None, created_at=LONG_AGO)
    rows.add(Status.COMPLETE, now, created_at=LONG_AGO)
    rows.insert(database.engine)
    before = contents(database.engine)
    to = None if name is None else tmp_path / name
    assert ax.activity.archive(database.engine, OLD, to=to) == len(old)
    assert contents(database.engine) == {agent_id: before[agent_id] for agent_id in before.keys() - set(old)}
    assert count_rows(database.engine) == (len(before) - len(old), 2 * (len(before) - len(old)))
    if to is not None:
        assert archived(to) == old
        assert [len(record["logs"]) for record in records(to)] == [2] * len(old)
    assert ax.activity.archive(database.engine, OLD, to=to) == 0


FILTERS: list[tuple[ActivityFilters, set[str]]] = [
    ({}, {"a", "b", "c"}),
    ({"status": "ERROR"}, {"b"}),
    ({"status": [Status.ERROR, Status.RUNNING]}, {"b"}),
    ({"status": "RUNNING"}, set()),
    ({"agent_type": ["a", "running"]}, {"a"}),
    ({"metadata_filter": {"tenant": "c"}}, {"c"}),
    ({"text": "„2“"}, {"a", "b", "c"}),
    ({"reason": "none"}, set()),
]


@pytest.mark.parametrize(("filters", "expected"), FILTERS)
def test_filters(database: Database, tmp_path: Path, filters: ActivityFilters, expected: set[str]) -> None:
    """What meets the filters of `list` is archived, as far as it has ended."""
    rows, ids = Rows(), dict[str, UUID]()
    for name, status in zip(("a", "b", "c", "running"), (*ENDED, Status.RUNNING), strict=True):
        ids[name] = rows.add(status, agent_type=name, metadata={"tenant": name}, logs=2)
    for log in rows.logs:
        log["late"] = False
    rows.insert(database.engine)
    to = tmp_path / "archive.jsonl"
    assert ax.activity.archive(database.engine, OLD, to=to, **filters) == len(expected)
    assert set(archived(to)) == {ids[name] for name in expected}
    assert count_rows(database.engine)[0] == 4 - len(expected)


@KINDS
def test_batches(database: Database, tmp_path: Path, name: str) -> None:
    """Batches of any size append to the archive, oldest first, and the progress is that of the whole."""
    ids = fill(database.engine, 7)
    seen = Seen()
    to = tmp_path / name
    filters: ActivityFilters = {"created_before": LONG_AGO + timedelta(seconds=5)}
    assert ax.activity.archive(database.engine, OLD, to=to, batch_size=2, progress=seen, **filters) == 5
    assert seen == [(0, 5), (2, 5), (4, 5), (5, 5)]
    assert ax.activity.archive(database.engine, LONG_AGO + timedelta(days=1), to=str(to), batch_size=1) == 2
    assert archived(to) == ids
    assert stat.S_IMODE(to.stat().st_mode) == (0o600 if to.is_file() else 0o700)


@ONE
def test_a_batch_is_small_if_activities_have_many_logs(database: Database, tmp_path: Path) -> None:
    """No batch has many more than 20,000 logs."""
    rows = Rows()
    for number in range(3):
        rows.add(at=LONG_AGO + timedelta(seconds=number), last_seq=12_000)
    rows.insert(database.engine)
    seen = Seen()
    assert ax.activity.archive(database.engine, OLD, to=tmp_path / "archive.jsonl", progress=seen) == 3
    assert seen == [(0, 3), (2, 3), (3, 3)]


def test_line(database: Database, tmp_path: Path) -> None:
    """A line is an activity by the names of its columns, with times in UTC and to the microsecond."""
    rows = Rows()
    rows.add(logs=1, metadata={"tenant": "ü"})
    rows.insert(database.engine)
    to = tmp_path / "archive.jsonl"
    ax.activity.archive(database.engine, OLD, to=to)
    (line,) = to.read_text(encoding="utf-8").split("\n")[:-1]
    record = json.loads(line)
    assert line.startswith('{"archive_format":1,"archive_batch":0,')
    assert '"ü"' in line
    assert record.keys() == {"archive_format", "archive_batch", "logs", *ACTIVITY.columns.keys()}
    assert (record["status"], record["created_at"]) == ("COMPLETE", "2026-01-02T03:04:05.678901+00:00")
    assert record["logs"][0] | {"id": 1, "event_id": "…"} == {
        "id": 1, "message": "„1“ 🦀\u2028\t\\", "status": "COMPLETE", "percentage": 1,
        "created_at": "2026-01-02T03:04:05.678902+00:00", "seq": 1, "event_id": "…", "attempt": 1, "late": False,
    }  # fmt: skip


# -- interrupted --------------------------------------------------------------------------------------------------


@KINDS
def test_not_deleted_after_it_was_written(database: Database, engine: Engine, tmp_path: Path, name: str) -> None:
    """A call that ends between writing and committing leaves what the next one removes: nothing is there twice."""
    ids = fill(database.engine, 6)
    to = tmp_path / name
    with interrupted(engine, "commit", 6):  # of a batch the rows are read, then the logs; then it is deleted
        ax.activity.archive(engine, OLD, to=to, batch_size=2)
    assert archived(to) == ids[:4]
    assert contents(database.engine).keys() == set(ids[2:])
    assert ax.activity.archive(engine, OLD, to=to, batch_size=3) == 4
    assert archived(to) == ids
    assert count_rows(database.engine) == (0, 0)


@KINDS
def test_changed_after_it_was_written(database: Database, engine: Engine, tmp_path: Path, name: str) -> None:
    """Of a batch that was not committed, the archive keeps what is gone; retried activities are active ones."""
    ids = fill(database.engine, 5)
    to = tmp_path / name
    ax.activity.archive(engine, OLD, to=to, created_before=LONG_AGO + timedelta(seconds=1))
    with interrupted(engine, "commit", 4):
        ax.activity.archive(engine, OLD, to=to)
    assert archived(to) == ids
    if to.is_file():
        (tmp_path / f".{name}.tmp").write_bytes(b"of a call that was killed while it replaced the file")
        to = tmp_path / "link.jsonl"
        to.symlink_to(name)
    with database.engine.begin() as connection:
        gone = select(Activity.id).where(Activity.agent_id == ids[2])  # as another archiver may delete it
        connection.execute(delete(ActivityLog).where(ActivityLog.activity_id.in_(gone)))
        connection.execute(delete(Activity).where(Activity.agent_id == ids[2]))
        connection.execute(update(Activity).where(Activity.agent_id == ids[3]).values(status=Status.QUEUED))
    assert ax.activity.archive(engine, OLD, to=to) == 2
    assert archived(tmp_path / name) == [ids[0], ids[2], ids[1], ids[4]]
    assert not list(tmp_path.glob(".*"))
    assert contents(database.engine).keys() == {ids[3]}


@SERVERS
def test_commit_on_its_way(database: Database, engine: Engine, tmp_path: Path) -> None:
    """If the commit of a killed call is still on its way to the server, the next call waits for what becomes of it."""
    ids = fill(database.engine, 3)
    to = tmp_path / "archive.jsonl"
    with interrupted(engine, "commit", 3):
        ax.activity.archive(engine, OLD, to=to)
    with ThreadPoolExecutor(1) as pool, database.engine.connect() as connection:
        connection.execute(select(ACTIVITY.c.id).with_for_update())
        connection.execute(delete(ActivityLog))
        connection.execute(delete(Activity))
        call = pool.submit(ax.activity.archive, engine, OLD, to=to)
        with pytest.raises(TimeoutError):
            call.result(0.5)
        connection.commit()
        assert call.result(30) == 0
    assert archived(to) == ids


@ONE
@KINDS
def test_interrupted_after_a_commit(database: Database, tmp_path: Path, name: str) -> None:
    """What was committed stays archived if the application's `progress` raises."""
    ids = fill(database.engine, 4)

    def progress(done: int, _: int) -> None:
        if done == 2:
            raise InterruptionError

    to = tmp_path / name
    with pytest.raises(InterruptionError):
        ax.activity.archive(database.engine, OLD, to=to, batch_size=2, progress=progress)
    assert ax.activity.archive(database.engine, OLD, to=to, batch_size=2) == 2
    assert archived(to) == ids


@ONE
@pytest.mark.parametrize("cut", [1, 40, 700])
def test_torn_line(database: Database, tmp_path: Path, cut: int) -> None:
    """A line that was not written to its end is cut off, whether others are before it or not."""
    ids = fill(database.engine, 3)
    whole = tmp_path / "whole.jsonl"
    with interrupted(database.engine, "commit", 3):
        ax.activity.archive(database.engine, OLD, to=whole)
    first, second, _ = whole.read_bytes().splitlines(keepends=True)
    for torn in (b"", first, first + second):
        to = tmp_path / f"{len(torn)}.jsonl"
        to.write_bytes(torn + first[:cut])
        with interrupted(database.engine, "commit", 3 + bool(torn)):
            ax.activity.archive(database.engine, OLD, to=to)
        assert archived(to) == ids


@ONE
def test_unfinished_part(database: Database, tmp_path: Path) -> None:
    """A part that was not written to its end is none, and is replaced."""
    to = tmp_path / "archive"
    to.mkdir()
    (to / ".part-00000001.parquet.tmp").write_bytes(b"PAR1")
    ids = fill(database.engine, 2)
    assert ax.activity.archive(database.engine, OLD, to=to) == 2
    assert archived(to) == ids
    assert sorted(path.name for path in to.iterdir()) == [".lock", "part-00000001.parquet"]


def test_with_autocommit(database: Database, tmp_path: Path) -> None:
    """An engine with AUTOCOMMIT has transactions here as well: a batch is deleted as a whole, or not at all."""
    ids = fill(database.engine, 3)
    engine = create_engine(database.url, isolation_level="AUTOCOMMIT")
    to = tmp_path / "archive.jsonl"
    with interrupted(engine, "commit", 3):
        ax.activity.archive(engine, OLD, to=to)
    assert count_rows(database.engine) == (3, 6)
    assert ax.activity.archive(engine, OLD, to=to) == 3
    assert archived(to) == ids
    engine.dispose()


# -- beside others ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["archive.jsonl", "archive", None])
def test_changed_meanwhile(database: Database, engine: Engine, tmp_path: Path, name: str | None) -> None:
    """What is retried, or gets a late log, after it was read and before it is locked, stays as it is."""
    retried, late, unchanged = fill(database.engine, 3)

    def change() -> None:
        again = reported(retried, Status.QUEUED, "again", reopens=True, expects_row=True)
        store(database.url, [again, reported(late, Status.RUNNING, "late")])

    to = None if name is None else tmp_path / name
    with at_transaction(engine, 2 if to is None else 3, change):
        assert ax.activity.archive(engine, OLD, to=to) == 1
    if to is not None:
        assert archived(to) == [unchanged]
    found = contents(database.engine)
    assert {agent_id: (row["status"], len(logs)) for agent_id, (row, logs) in found.items()} == {
        retried: (Status.QUEUED, 3), late: (Status.ERROR, 3),
    }  # fmt: skip


@SERVERS
def test_locked_by_others(database: Database, tmp_path: Path) -> None:
    """A row that another transaction has locked is left for the next call."""
    ids = fill(database.engine, 3)
    to = tmp_path / "archive.jsonl"
    with database.engine.begin() as connection:
        connection.execute(select(ACTIVITY).where(ACTIVITY.c.agent_id == ids[1]).with_for_update())
        assert ax.activity.archive(database.engine, OLD, to=to) == 2
    assert ax.activity.archive(database.engine, OLD, to=to) == 1
    assert archived(to) == [ids[0], ids[2], ids[1]]


def test_several_archivers(database: Database, tmp_path: Path) -> None:
    """Archivers with different files at the same time never take the same activity."""
    ids = fill(database.engine, 120)
    together = Barrier(3)

    def run(number: int) -> int:
        engine = create_engine(database.url)
        together.wait(30)
        try:
            return ax.activity.archive(engine, OLD, to=tmp_path / f"{number}.jsonl", batch_size=7)
        finally:
            engine.dispose()

    with ThreadPoolExecutor(3) as pool:
        counts = list(pool.map(run, range(3)))
    found = [archived(tmp_path / f"{number}.jsonl") for number in range(3)]
    assert [len(ids) for ids in found] == counts
    rest = list(contents(database.engine))  # locked by one that was behind, when another one passed
    assert sorted([*rest, *(agent_id for one in found for agent_id in one)]) == sorted(ids)


@SERVERS
@KINDS
def test_deadlock(database: Database, engine: Engine, tmp_path: Path, name: str) -> None:
    """A batch that is rolled back for another transaction is not in the archive, even if that one has deleted it."""
    first, taken, last = fill(database.engine, 3)
    to = tmp_path / name
    seen = 0

    def fail(_: Connection) -> None:
        nonlocal seen
        seen += 1
        if seen == 6:  # of a batch the rows are read, then the logs; then it is deleted
            delete_after_rollback()
            code: Any = type("Deadlock", (Exception,), {"sqlstate": "40P01"})("deadlock detected")
            raise OperationalError("COMMIT", {}, code)

    def delete_after_rollback() -> None:
        @event.listens_for(engine, "rollback", once=True)
        def rolled_back(connection: Connection) -> None:
            connection.connection.rollback()
            with database.engine.begin() as other:
                gone = select(Activity.id).where(Activity.agent_id == taken)
                other.execute(delete(ActivityLog).where(ActivityLog.activity_id.in_(gone)))
                other.execute(delete(Activity).where(Activity.agent_id == taken))

    event.listen(engine, "commit", fail)
    assert ax.activity.archive(engine, OLD, to=to, batch_size=1) == 2
    assert archived(to) == [first, last]
    assert count_rows(database.engine) == (0, 0)


@ONE
def test_progress_may_write(database: Database, tmp_path: Path) -> None:
    """No lock is held while the application's code runs."""
    fill(database.engine, 2)
    ax.configure(database.url)
    made: list[UUID] = []

    def progress(done: int, total: int) -> None:
        made.append(ax.activity.create("beside"))

    ax.activity.archive(database.engine, OLD, to=tmp_path / "archive.jsonl", batch_size=1, progress=progress)
    assert len(contents(database.engine)) == len(made) == 3


def test_report_on_an_archived_activity(database: Database, tmp_path: Path) -> None:
    """An archived activity does not exist: calls raise, and what was reported before they knew is a dead letter."""
    (agent_id,) = fill(database.engine, 1)
    ax.configure(database.url)
    known = ax.activity.create("task")
    ax.activity.complete(known)
    assert ax.activity.archive(database.engine, timedelta(0), to=tmp_path / "archive.jsonl") == 2
    assert ax.activity.update(known, "late")
    assert ax.flush()
    assert ax.health()["exporters"][0]["dead_lettered"] == 1
    for call in (partial(ax.activity.update, message="late"), ax.activity.retry):
        for one in (agent_id, known):
            with pytest.raises(ax.ActivityNotFoundError):
                call(one)
    assert count_rows(database.engine) == (0, 0)


def test_plan(database: Database) -> None:
    """Each batch reads a range of the index on `created_at`, and logs by the index on their activity."""
    fill(database.engine, 3_000)
    with Session(database.engine) as session:
        if database.kind != "sqlite":
            for table in (ACTIVITY, LOG):
                table_word = "TABLE " if database.kind == "mariadb" else ""
                session.connection().exec_driver_sql(f"ANALYZE {table_word}{table.name}").close()
            session.commit()

        def archive(_: Session) -> None:
            ax.activity.archive(database.engine, LONG_AGO + timedelta(seconds=20), batch_size=10)

        plan = plan_of(session, archive)
    assert plan.count("created_at") >= 3, plan
    assert not scans_the_log(plan), plan
    assert not re.search(r"Seq Scan|\bSCAN \w|\bALL \w", plan), plan


# -- what it is given ---------------------------------------------------------------------------------------------


def test_session(database: Database, tmp_path: Path) -> None:
    """A session that is in no transaction lends its engine, and stays usable."""
    fill(database.engine, 2)
    to = tmp_path / "archive.jsonl"
    sessions = sessionmaker(database.engine)
    with sessions() as session:
        assert ax.activity.archive(session, OLD, to=to, batch_size=1) == 2
        assert not session.in_transaction()
        assert ax.activity.restore(session, to) == 2
        assert ax.activity.list(session).total == 2
    registry = scoped_session(sessions)
    assert ax.activity.archive(registry, OLD) == 2
    registry.remove()


@ONE
def test_session_in_a_transaction(database: Database, tmp_path: Path) -> None:
    """A session that is in a transaction is refused, also if only its connection is."""
    with Session(database.engine) as session:
        ax.activity.list(session)
        with pytest.raises(ax.ConfigurationError, match="the session is in a transaction"):
            ax.activity.archive(session, OLD)
    with (
        database.engine.begin() as connection,
        Session(connection) as session,
        pytest.raises(ax.ConfigurationError, match="the session is in a transaction"),
    ):
        ax.activity.restore(session, tmp_path / "archive.jsonl")


@KINDS
async def test_asyncio(database: Database, tmp_path: Path, name: str) -> None:
    """The twins archive and restore with an AsyncEngine."""
    fill(database.engine, 5)
    before = contents(database.engine)
    engine = create_async_engine(database.async_url)
    to, seen = tmp_path / name, Seen()
    assert await ax.activity.aio.archive(engine, OLD, to=to, batch_size=2, progress=seen) == 5
    assert seen == [(0, 5), (2, 5), (4, 5), (5, 5)]
    assert count_rows(database.engine) == (0, 0)
    assert await ax.activity.aio.restore(engine, to, batch_size=2) == 5
    assert contents(database.engine) == before
    await engine.dispose()


async def test_canceled(database: Database, tmp_path: Path) -> None:
    """A task that is canceled while a file is written leaves the next one something to continue."""
    ids = fill(database.engine, 3)
    engine = create_async_engine(database.async_url)
    to = tmp_path / "archive.jsonl"

    def cancel(*_: object) -> None:
        task = asyncio.current_task()
        assert task
        task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await ax.activity.aio.archive(engine, OLD, to=to, batch_size=1, progress=cancel)
    assert await ax.activity.aio.archive(engine, OLD, to=to) >= 2
    assert archived(to) == ids
    await engine.dispose()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"older_than": timedelta(seconds=-1)}, "older_than is -1 seconds"),
    ({"older_than": 30}, "older_than is 30: pass a timedelta or a datetime"),
    ({"batch_size": 0}, "batch_size is 0: pass 1 to 10,000"),
    ({"batch_size": 10_001}, "batch_size is 10001"),
    ({"to": "archive.json"}, "to is 'archive.json': name a file that ends in .jsonl, or a directory"),
    ({"to": Path("archive.csv")}, "to is 'archive.csv'"),
    ({"to": ""}, "to is ''"),
    ({"to": 7}, "to is 7"),
    ({"status": "DONE"}, "DONE"),
]


@ONE
@pytest.mark.parametrize(("arguments", "sentence"), REFUSED)
def test_refused_arguments(database: Database, arguments: dict[str, Any], sentence: str) -> None:
    """A malformed argument is named, before anything is read or written."""
    given = {"older_than": OLD} | arguments
    with pytest.raises(ValueError, match=sentence):
        ax.activity.archive(database.engine, **cast(Any, given))


@ONE
def test_refused_engines(database: Database) -> None:
    """An engine of the other kind is refused with the place where it belongs."""
    wrong: Any = "sqlite://"
    with pytest.raises(TypeError, match="engine must be an Engine or a Session, got str"):
        ax.activity.archive(wrong, OLD)


@ONE
async def test_refused_engines_for_asyncio(database: Database) -> None:
    """An engine of the other kind is refused with the place where it belongs."""
    wrong: Any = database.engine
    with pytest.raises(TypeError, match="engine must be an AsyncEngine here, got Engine"):
        await ax.activity.aio.archive(wrong, OLD)


@ONE
@KINDS
def test_in_use(database: Database, tmp_path: Path, name: str) -> None:
    """A second archive or restore with the same files is refused, and the first one goes on."""
    ids = fill(database.engine, 2)
    to = tmp_path / name
    refused = 0

    def beside(done: int, total: int) -> None:
        nonlocal refused
        in_use = f"^{re.escape(str(to))} is in use by another archive or restore: wait "
        with pytest.raises(ax.ConfigurationError, match=in_use):
            ax.activity.archive(database.engine, OLD, to=to)
        with pytest.raises(ax.ConfigurationError, match=in_use):
            ax.activity.restore(database.engine, to)
        refused += 1

    assert ax.activity.archive(database.engine, OLD, to=to, batch_size=1, progress=beside) == 2
    assert archived(to) == ids
    assert refused == 3


@ONE
@pytest.mark.parametrize("content", [b"my notes", b'{"a": 1}\n', b"\0" * 30, b"{" * 30])
def test_another_file(database: Database, tmp_path: Path, content: bytes) -> None:
    """A file that is no archive is left as it is."""
    fill(database.engine, 1)
    to = tmp_path / "notes.jsonl"
    to.write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.jsonl is no archive of activities: name another file"):
        ax.activity.archive(database.engine, OLD, to=to)
    assert to.read_bytes() == content
    assert count_rows(database.engine) == (1, 2)


@ONE
@pytest.mark.parametrize("last", [b"{}\n", b'{"archive_format":1,"archive_batch":"x"}\n', b"\xff\n", b"[1]\n"])
def test_damaged_file(database: Database, tmp_path: Path, last: bytes) -> None:
    """An archive whose last line is none of ours is left as it is."""
    fill(database.engine, 2)
    to = tmp_path / "archive.jsonl"
    ax.activity.archive(database.engine, OLD, to=to, created_before=LONG_AGO + timedelta(seconds=1))
    content = to.read_bytes() + last
    to.write_bytes(content)
    with pytest.raises(ValueError, match=rf"archive\.jsonl is damaged: the line at byte {len(content) - len(last)} "):
        ax.activity.archive(database.engine, OLD, to=to)
    assert to.read_bytes() == content
    assert count_rows(database.engine) == (1, 2)


@ONE
def test_no_directory(database: Database, tmp_path: Path) -> None:
    """A directory above that does not exist is not made."""
    for name in ("missing/archive.jsonl", "missing/archive"):
        with pytest.raises(FileNotFoundError, match="missing"):
            ax.activity.archive(database.engine, OLD, to=tmp_path / name)


def test_no_tables(empty: Engine, tmp_path: Path) -> None:
    """Missing tables are reported in one sentence with the command."""
    with pytest.raises(ax.ConfigurationError, match="are not there: create them with agentexec-otel db upgrade"):
        ax.activity.archive(empty, OLD, to=tmp_path / "archive.jsonl")


@ONE
def test_without_pyarrow(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet needs an extra, and nothing else does."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    fill(database.engine, 1)
    for call in (ax.activity.archive, ax.activity.restore):
        arguments = {"older_than": OLD, "to": tmp_path} if call is ax.activity.archive else {"source": tmp_path}
        with pytest.raises(ax.MissingExtraError, match=r"an archive in Parquet needs the package pyarrow.*\[parquet\]"):
            cast(Any, call)(database.engine, **arguments)
    assert ax.activity.archive(database.engine, OLD, to=tmp_path / "archive.jsonl") == 1


def test_row_of_a_new_activity(database: Database) -> None:
    """An activity made by the library is archived like those of the tests."""
    ax.configure(database.url)
    agent_id = ax.activity.create("task", metadata={"tenant": "a"})
    ax.activity.complete(agent_id)
    ax.flush()
    assert row(database.engine, agent_id).status is Status.COMPLETE
    assert ax.activity.archive(database.engine, OLD) == 0
    assert ax.activity.archive(database.engine, timedelta(0), metadata_filter={"tenant": "b"}) == 0
    assert ax.activity.archive(database.engine, timedelta(0), metadata_filter={"tenant": "a"}) == 1
