"""What a database can do to a writer: poison rows, missing tables, held locks, refusals. Nothing is lost silently."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Barrier, Timer
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import URL, Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

import agentexec_otel as ax
from agentexec_otel.activity.models import Activity, Status
from agentexec_otel.export import (
    ActivityProcessor,
    ExportError,
    MisconfiguredExportError,
    Outcome,
    PoisonExportError,
    TransientExportError,
    _delivery,
)
from agentexec_otel_exporters.sql import SQLExporter
from tests.databases import Database
from tests.sql.rows import count_rows, event, eventually, gap_free, lines, opening, row

pytestmark = pytest.mark.one_python

POISON: list[dict[str, Any]] = [
    {"message": "secret lone \ud800 surrogate"},
    {"message": "secret", "percentage": 101},
    {"message": "secret", "outcome": Outcome(input_tokens=2**70)},
]


@pytest.fixture
def processor(database: Database) -> Iterator[ActivityProcessor]:
    made = ActivityProcessor(SQLExporter(database.url))
    yield made
    made.shutdown(2.0)


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration error is tried again soon, not after half a minute."""
    monkeypatch.setattr(_delivery, "MISCONFIGURED_BACKOFF", 0.1)


def test_poison_is_found_and_the_rest_stored(
    database: Database, processor: ActivityProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    """Events in a batch of 500 that the database refuses are set aside and counted; the others are stored, in order."""
    agent_id = uuid4()
    told = [opening(agent_id), *(event(agent_id, message=str(number)) for number in range(496))]
    for place, poison in zip((497, 250, 1), POISON, strict=True):
        told.insert(place, event(agent_id, **poison))
    for one in told:
        assert processor.emit(one)
    assert processor.force_flush(30.0)
    assert [log.message for log in lines(database.engine, agent_id)[1:]] == [str(number) for number in range(496)]
    assert gap_free(lines(database.engine, agent_id))
    health = processor.health()
    assert (health["committed"], health["dead_lettered"], health["pending"], health["dropped"]) == (497, 3, 0, 0)
    assert health["last_error"] is None
    assert "secret" not in caplog.text


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_nul_is_poison_on_postgresql(database: Database, processor: ActivityProcessor) -> None:
    """An event that was built by hand, with what our own calls never let through, harms nobody but itself."""
    good, bad = uuid4(), uuid4()
    for one in (opening(good), opening(bad), event(bad, message="a\x00b"), event(good), event(bad)):
        processor.emit(one)
    assert processor.force_flush(10.0)
    assert count_rows(database.engine) == (2, 4)
    assert gap_free(lines(database.engine, bad))


def test_create_without_tables(
    empty: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`create()` raises at once, and its sentence says how to make the tables. Made, the next one works at once."""
    ax.configure(empty)
    began = time.monotonic()
    for _ in range(2):
        with pytest.raises(
            ax.ActivityNotStoredError,
            match=r"tables agentexec_activity and agentexec_activity_log are not there: .*Base\.metadata\.create_all\(",
        ):
            ax.activity.create("task")
    monkeypatch.setattr(ax.CONF, "create_timeout", 0.5)
    with pytest.raises(ax.ActivityNotStoredError, match="create_all"):
        ax.activity.cancel_pending()
    with pytest.raises(ax.ActivityNotStoredError, match="create_all"):
        ax.activity.retry(uuid4())
    ax.Base.metadata.create_all(empty)
    assert ax.activity.cancel_pending() == 0
    agent_id = ax.activity.create("task")
    assert time.monotonic() - began < 5
    assert ax.activity.complete(agent_id)
    assert count_rows(empty) == (1, 2)
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) <= 2


def test_tables_of_another_program(empty: Engine) -> None:
    """Tables of the same names and other columns, such as agentexec's own, are told from missing ones."""
    with empty.begin() as connection:
        connection.execute(text("CREATE TABLE agentexec_activity (id INTEGER PRIMARY KEY, agent_id CHAR(32))"))
        connection.execute(text("CREATE TABLE agentexec_activity_log (id INTEGER PRIMARY KEY, message VARCHAR(99))"))
    ax.configure(empty, create_tables=True)
    with pytest.raises(ax.ActivityNotStoredError, match=r"lack columns of this version: .* AGENTEXEC_TABLE_PREFIX"):
        ax.activity.create("task")


def test_file_that_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SQLite file that may not be written to is not called away or busy."""
    engine = create_engine(f"sqlite:///{tmp_path}/a.db")
    ax.Base.metadata.create_all(engine)
    engine.dispose()
    monkeypatch.setattr(ax.CONF, "create_timeout", 0.3)
    ax.configure(f"sqlite:///file:{tmp_path}/a.db?mode=ro&uri=true")
    with pytest.raises(ax.ActivityNotStoredError, match=r"SQLITE_READONLY.*: check its rights"):
        ax.activity.create("task")


def test_create_tables_makes_what_is_missing(empty: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `create_tables` the tables are made when the SDK is configured, as often as it is."""
    ax.configure(empty, create_tables=True)
    agent_id = ax.activity.create("task")
    monkeypatch.setattr(ax.CONF, "create_tables", True)
    ax.configure(empty)
    assert ax.activity.complete(agent_id)
    with Session(empty) as session:
        assert ax.activity.list(session).total == 1


@pytest.mark.parametrize("empty_database", ["sqlite", "postgres", "mariadb"], indirect=True)
def test_create_tables_at_once(empty_database: Database) -> None:
    """Several processes that start at the same time, and are to make the tables, all find them."""
    exporters = [SQLExporter(empty_database.url) for _ in range(6)]
    together = Barrier(len(exporters))

    def start(exporter: SQLExporter) -> None:
        together.wait()
        exporter.create_tables()

    with ThreadPoolExecutor(len(exporters)) as threads:
        assert list(threads.map(start, exporters)) == [None] * len(exporters)
    for exporter in exporters:
        exporter.shutdown(1.0)
    assert count_rows(empty_database.engine) == (0, 0)


def test_lines_wait_for_their_table(database: Database, quick_retries: None) -> None:
    """Lines of a running activity are kept while a table is gone, said to be in trouble, and stored once it is back."""
    ax.configure(database.url)
    with ax.activity.run("task") as run:
        assert ax.flush()
        hide(database, back=False)
        for number in range(5):
            assert run.update(f"Line {number}.", number)
        assert not ax.flush(0.3)
        health = ax.health()
        assert not health["ok"]
        assert "create_all" in health["exporters"][0]["last_error"]
        hide(database, back=True)
    assert ax.flush()
    assert ax.health()["ok"]
    logs = lines(database.engine, run.agent_id)
    assert [log.message for log in logs[2:-1]] == [f"Line {number}." for number in range(5)]
    assert gap_free(logs)
    assert row(database.engine, run.agent_id).status is Status.COMPLETE


def hide(database: Database, *, back: bool) -> None:
    """Take the log table away by renaming it, and give it back."""
    old, new = "agentexec_activity_log", "agentexec_hidden"
    if back:
        old, new = new, old
    with database.engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {old} RENAME TO {new}")


@pytest.mark.parametrize("seconds", [0.3, pytest.param(8.0, marks=pytest.mark.slow)])
def test_lock_of_another_session(database: Database, seconds: float) -> None:
    """While another session holds the activity's row, lines wait; after it they are stored, each once and in order."""
    ax.configure(database.url)
    agent_id = ax.activity.create("task")
    with database.engine.connect() as holder:
        lock(holder, agent_id)
        release = Timer(seconds, holder.rollback)
        release.start()
        for number in range(3):
            assert ax.activity.update(agent_id, f"Line {number}.")
        assert not ax.flush(seconds / 2)
        assert ax.flush(30.0)
        release.join()
    logs = lines(database.engine, agent_id)
    assert [log.message for log in logs[1:]] == ["Line 0.", "Line 1.", "Line 2."]
    assert ax.health()["exporters"][0]["pending"] == 0


def test_reporting_behind_the_end_does_not_wait(database: Database) -> None:
    """Who goes on reporting on an activity that has ended is not held up: the writer reads its row, not each line."""
    ax.configure(database.url)
    agent_id = ax.activity.create("task")
    with Session(database.engine) as session:
        ax.activity.cancel(agent_id, session=session)
    with database.engine.begin() as connection:
        lock(connection, agent_id)
        began = time.monotonic()
        for number in range(20):
            assert ax.activity.update(agent_id, f"Step {number}")
        assert time.monotonic() - began < ax.CONF.lookup_timeout / 2
    assert ax.flush()
    assert [line.late for line in lines(database.engine, agent_id)][2:] == [True] * 20


def lock(connection: Connection, agent_id: UUID) -> None:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.execute(Activity.__table__.select().where(Activity.agent_id == agent_id).with_for_update())


NO_DATABASE = {"database": "agentexec_no_such_database"}
NO_USER = {"username": "agentexec_no_such_user", "password": "canary-secret"}
NO_SERVER = {"port": 1}
SERVERS_WORDS: list[tuple[str, dict[str, Any], str]] = [
    (
        "postgres",
        NO_DATABASE,
        'database "agentexec_no_such_database" does not exist (OperationalError, SQLSTATE 3D000)',
    ),
    ("postgres", NO_USER, 'role "agentexec_no_such_user" does not exist (OperationalError, SQLSTATE 28000)'),
    ("postgres", NO_SERVER, "the database is away or busy: Connection refused (OperationalError)"),
    ("mariadb", NO_DATABASE, "Unknown database 'agentexec_no_such_database' (OperationalError, error 1049)"),
    ("mariadb", NO_USER, "Access denied for user 'agentexec_no_such_user'@"),
    ("mariadb", NO_SERVER, "the database is away or busy: Can't connect to MySQL server on"),
]


@pytest.mark.parametrize(("kind", "changed", "words"), SERVERS_WORDS)
def test_refusals_and_absence(
    kind: str,
    changed: dict[str, Any],
    words: str,
    servers: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`create()` raises at once if the database refuses, in time if it is away. It says why and where, no secret."""
    monkeypatch.setattr(ax.CONF, "create_timeout", 0.7)
    url = make_url(servers.get(kind).url).set(**changed)
    ax.configure(url)
    began = time.monotonic()
    with pytest.raises(ax.ActivityNotStoredError) as caught:
        ax.activity.create("task")
    assert time.monotonic() - began < (2.0 if changed is NO_SERVER else 0.7)
    told = f"{caught.value} {caplog.text} {ax.health()}"
    assert words in str(caught.value)
    assert f'at {url.host}:{url.port}, database "{url.database}"' in str(caught.value)
    assert isinstance(caught.value.__cause__, ExportError)
    assert isinstance(caught.value.__cause__.__cause__, DBAPIError)
    assert "canary" not in told
    assert not ax.health()["ok"]


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_words_of_a_refused_table(database: Database) -> None:
    """An error about a right names the table, the code, the place and what to grant."""
    url = make_url(database.url)
    reader = f"agentexec_reader_{os.getpid()}"
    with database.engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {reader} LOGIN PASSWORD 'canary-secret'")
    try:
        ax.configure(url.set(username=reader, password="canary-secret"))
        with pytest.raises(ax.ActivityNotStoredError) as caught:
            ax.activity.create("task")
    finally:
        ax.shutdown()
        with database.engine.begin() as connection:
            connection.exec_driver_sql(f"DROP ROLE {reader}")
    assert "permission denied for table agentexec_activity (InsufficientPrivilege, SQLSTATE 42501) at" in str(
        caught.value
    )
    assert "grant the user SELECT, INSERT, UPDATE and DELETE on the tables" in str(caught.value)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_sqlite_file_moved_away(database: Database, tmp_path: Path, quick_retries: None) -> None:
    """While the database's file is away `create()` raises, and lines wait until it is back."""
    ax.configure(database.url)
    agent_id = ax.activity.create("task")
    assert ax.activity.update(agent_id, "before")
    assert ax.flush()
    file, moved = tmp_path / "test.db", tmp_path / "moved.db"
    file.rename(moved)
    with pytest.raises(ax.ActivityNotStoredError, match="was deleted or moved"):
        ax.activity.create("another")
    assert ax.activity.update(agent_id, "meanwhile")
    assert not ax.flush(0.5)
    assert not file.exists()
    moved.rename(file)
    assert ax.activity.complete(agent_id)
    assert ax.flush()
    told = ["Waiting to start.", "before", "meanwhile", "Task completed successfully."]
    assert [line.message for line in lines(database.engine, agent_id)] == told
    assert count_rows(database.engine) == (1, 4)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_sqlite_file_made_anew(database: Database, tmp_path: Path, quick_retries: None) -> None:
    """Behind the deletion of the database's file the next activities are in the new one, once it has tables."""
    ax.configure(database.url)
    ax.activity.create("task")
    database.engine.dispose()
    for file in tmp_path.glob("test.db*"):
        file.unlink()
    with pytest.raises(ax.ActivityNotStoredError, match="make a new one"):
        ax.activity.create("task")
    ax.Base.metadata.create_all(database.engine)
    agent_id = ax.activity.create("task")
    assert row(database.engine, agent_id).status is Status.QUEUED
    assert count_rows(database.engine) == (1, 1)


def test_nobody_waits_for_a_database_that_refuses(database: Database) -> None:
    """A run of an activity that this process has not seen goes on at once, and its lines come when the tables do."""
    ax.configure(database.url)
    agent_id, *others = told = [uuid4() for _ in range(4)]
    other_process = SQLExporter(database.url)
    other_process.export([opening(one) for one in told])
    other_process.shutdown(1.0)
    ax.activity.update(agent_id, "Found.")
    assert ax.flush()

    async def run(one: UUID) -> None:
        async with ax.activity.run(one) as block:
            block.leave_open()

    with renamed(database, "agentexec_activity_log"):
        ax.activity.update(agent_id, "Waits.")
        assert eventually(lambda: not ax.health()["ok"])
        began = time.monotonic()
        ax.activity.update(others[0], "Waits.")
        asyncio.run(run(others[1]))
        assert time.monotonic() - began < ax.CONF.lookup_timeout / 2
    asyncio.run(run(others[2]))  # Has the writer try again, half a minute before its time.
    assert eventually(lambda: ax.health()["ok"])
    assert ax.flush()
    assert [len(lines(database.engine, one)) for one in told] == [3, 2, 2, 2]


@contextmanager
def renamed(database: Database, table: str) -> Generator[None]:
    """The table is missing meanwhile."""

    def rename(old: str, new: str) -> None:
        with database.engine.begin() as connection:
            connection.exec_driver_sql(f"ALTER TABLE {old} RENAME TO {new}")

    rename(table, f"{table}_away")
    yield
    rename(f"{table}_away", table)


STATEMENTS: list[tuple[str, type[Exception]]] = [
    ("SELECT * FROM agentexec_no_such_table", MisconfiguredExportError),
    ("SELECT no_such_column FROM agentexec_activity", MisconfiguredExportError),
    ("UPDATE agentexec_activity SET latest_percentage = 101", PoisonExportError),
    ("UPDATE agentexec_activity SET agent_id = NULL", PoisonExportError),
]


def test_driver_errors_by_class(database: Database) -> None:
    """The same fault is the same kind of failure on every database, told without SQL or parameters."""
    from agentexec_otel_exporters.sql._errors import translated

    exporter = SQLExporter(database.url)
    exporter.export([opening()])
    for statement, expected in STATEMENTS:
        with pytest.raises(expected) as caught, translated(exporter.engine.url), exporter.engine.begin() as connection:
            connection.exec_driver_sql(statement)
        assert statement not in str(caught.value)
        assert "101" not in str(caught.value)
    exporter.shutdown(1.0)


def test_lock_waits_are_transient(database: Database) -> None:
    """A lock that is not had in time is a failure that will pass, on every database."""
    from agentexec_otel_exporters.sql._errors import translated

    options: dict[str, Any] = {
        "sqlite": {"timeout": 0.1},
        "postgres": {"options": "-c lock_timeout=100"},
        "mariadb": {"init_command": "SET innodb_lock_wait_timeout = 1"},
    }
    exporter = SQLExporter(database.url)
    agent_id = uuid4()
    exporter.export([opening(agent_id)])
    impatient = create_engine(database.url, connect_args=options[database.kind])
    with database.engine.connect() as holder:
        lock(holder, agent_id)
        with pytest.raises(TransientExportError), translated(impatient.url), impatient.connect() as waiting:
            lock(waiting, agent_id)
        holder.rollback()
    impatient.dispose()
    exporter.shutdown(1.0)


AWAY: list[str | int] = ["0A000", "42P05", "55000", 1021, 1030, 1114, 1180, 1206, 1412]
REFUSED: list[str | int] = ["42883", "XX001", 1034, 1665, 1814]


@pytest.mark.parametrize(
    ("database", "code"),
    [("postgres" if isinstance(code, str) else "mariadb", code) for code in (*AWAY, *REFUSED)],
    indirect=["database"],
)
def test_trouble_that_is_no_lines_fault(database: Database, code: str | int, quick_retries: None) -> None:
    """While the server has no room for a line, or trouble with a table, lines wait; none becomes a dead letter."""
    ax.configure(database.url)
    agent_id = ax.activity.create("task")
    with a_table_that_fails(database, code):
        assert ax.activity.update(agent_id, "Waits.")
        assert not ax.flush(0.5)
        expected = "away or busy" if code in AWAY else "agentexec-otel db check"
        assert expected in ax.health()["exporters"][0]["last_error"]
    assert ax.flush(10.0)
    assert [log.message for log in lines(database.engine, agent_id)[1:]] == ["Waits."]
    assert ax.health()["exporters"][0]["dead_lettered"] == 0


@contextmanager
def a_table_that_fails(database: Database, code: str | int) -> Generator[None]:
    """Each line that is inserted meets this error."""
    trigger = "CREATE TRIGGER agentexec_fail BEFORE INSERT ON agentexec_activity_log FOR EACH ROW"
    make = [f"{trigger} SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = 'fails'"]
    drop = "DROP TRIGGER agentexec_fail"
    if database.kind == "postgres":
        body = f"BEGIN RAISE EXCEPTION USING ERRCODE = '{code}'; END"
        function = f"CREATE FUNCTION agentexec_fail() RETURNS trigger LANGUAGE plpgsql AS $${body}$$"
        make = [function, f"{trigger} EXECUTE FUNCTION agentexec_fail()"]
        drop = "DROP FUNCTION agentexec_fail CASCADE"
    with database.engine.begin() as connection:
        for statement in make:
            connection.exec_driver_sql(statement)
    try:
        yield
    finally:
        with database.engine.begin() as connection:
            connection.exec_driver_sql(drop)


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_column_of_another_type(database: Database, quick_retries: None) -> None:
    """Lines wait for tables that the application has made otherwise, here with an enumeration for the status."""
    log = "ALTER TABLE agentexec_activity_log"
    ax.configure(database.url)
    agent_id = ax.activity.create("task")
    with database.engine.begin() as connection:
        connection.exec_driver_sql("DROP TYPE IF EXISTS agentexec_status")
        words = ", ".join(f"'{status}'" for status in Status)
        connection.exec_driver_sql(f"CREATE TYPE agentexec_status AS ENUM ({words})")
        connection.exec_driver_sql(f"{log} DROP CONSTRAINT ck_agentexec_activity_log_status")
        connection.exec_driver_sql(f"{log} ALTER COLUMN status TYPE agentexec_status USING status::agentexec_status")
    assert ax.activity.update(agent_id, "Waits.")
    assert not ax.flush(1.0)
    assert "agentexec-otel db check" in ax.health()["exporters"][0]["last_error"]
    with database.engine.begin() as connection:
        connection.exec_driver_sql(f"{log} ALTER COLUMN status TYPE varchar(16)")
        connection.exec_driver_sql(f"{log} ADD CONSTRAINT ck_agentexec_activity_log_status CHECK (status IN ({words}))")
    assert ax.flush(10.0)
    assert [log.message for log in lines(database.engine, agent_id)[1:]] == ["Waits."]


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
@pytest.mark.parametrize("refused", ["too many connections", "account locked"])
def test_mariadb_that_lets_nobody_in(database: Database, refused: str, quick_retries: None) -> None:
    """What no connection can be had for is not the fault of any line: they wait, and none becomes a dead letter."""
    user = f"axtest_{os.getpid()}"
    url = make_url(database.url).set(username=user, password="test-only")
    with a_user(database, user) as change:
        ax.configure(url)
        agent_id = ax.activity.create("task")
        change("ACCOUNT LOCK" if refused == "account locked" else "WITH MAX_USER_CONNECTIONS 1")
        end_sessions(database, user)
        hog = None if refused == "account locked" else connected(url)
        for number in range(3):
            assert ax.activity.update(agent_id, f"Line {number}.")
        assert not ax.flush(1.0)
        change("ACCOUNT UNLOCK")
        if hog is not None:
            hog.close()
        assert ax.flush(10.0)
        assert [log.message for log in lines(database.engine, agent_id)[1:]] == ["Line 0.", "Line 1.", "Line 2."]
        assert ax.health()["exporters"][0]["dead_lettered"] == 0
        ax.shutdown(1.0)


@contextmanager
def a_user(database: Database, name: str) -> Generator[Callable[[str], None]]:
    """A user of the server who may use the test's database; what is given back changes the account."""

    def each(statement: str) -> None:
        with database.engine.begin() as connection:
            for host in ("127.0.0.1", "localhost"):
                connection.exec_driver_sql(statement.format(f"{name}@'{host}'"))

    each("CREATE OR REPLACE USER {} IDENTIFIED BY 'test-only'")
    try:
        each(f"GRANT ALL ON {make_url(database.url).database}.* TO {{}}")
        yield lambda what: each(f"ALTER USER {{}} {what}")
    finally:
        each("DROP USER {}")


def end_sessions(database: Database, user: str) -> None:
    with database.engine.begin() as connection:
        sessions = connection.execute(
            text("SELECT id FROM information_schema.processlist WHERE user = :user"), {"user": user}
        )
        for (session_id,) in sessions.all():
            connection.exec_driver_sql(f"KILL {session_id}")


def connected(url: URL) -> Connection:
    """A connection in use, once the server has noticed that the others are gone."""
    for _ in range(50):
        with suppress(OperationalError):
            return create_engine(url, poolclass=NullPool).connect()
        time.sleep(0.02)
    pytest.fail("no connection was free")
