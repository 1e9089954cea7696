"""`ax.configure()`: whatever names a database, and one sentence for what does not."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread, Timer
from threading import enumerate as threads
from typing import Any
from uuid import UUID, uuid4

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import URL, Engine, create_engine, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool, QueuePool, StaticPool

import agentexec_otel as ax
from agentexec_otel.activity.models import Status
from agentexec_otel.export import Outcome, PoisonExportError
from agentexec_otel.testing import InMemoryActivityExporter
from agentexec_otel_exporters.sql import SQLExporter
from agentexec_otel_exporters.sql.connect import parse_url
from tests.databases import Database
from tests.sql.recorder import Recorder
from tests.sql.rows import count_rows, event, eventually, lines, opening, row

only_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

WAYS: list[Callable[[Database], Any]] = [
    lambda database: database.url,
    lambda database: make_url(database.url),
    lambda database: database.async_url,
    lambda database: create_engine(database.url, poolclass=NullPool),
    lambda database: create_async_engine(database.async_url, poolclass=NullPool),
]


def test_ways_to_name_a_database(database: Database) -> None:
    """A URL, as text or object, sync or async, and an engine of either kind: a life is stored."""
    for way in WAYS:
        ax.configure(way(database))
        with ax.activity.run("task") as run:
            run.update("Half way.", 50)
        assert row(database.engine, run.agent_id).status is Status.COMPLETE
        assert len(lines(database.engine, run.agent_id)) == 4


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_mariadb_by_its_own_name(database: Database) -> None:
    """`mariadb+pymysql://` is another dialect of SQLAlchemy, and works on the same tables."""
    url = make_url(database.url).set(drivername="mariadb+pymysql")
    ax.configure(url)
    agent_id = ax.activity.create("task", metadata={"tenant": "acme"})
    ax.activity.complete(agent_id)
    engine = create_engine(url, poolclass=NullPool)
    with Session(engine) as session:
        assert ax.activity.list(session, metadata_filter={"tenant": "acme"}).total == 1
        other = ax.activity.create("other", session=session)
    assert row(database.engine, other).status is Status.QUEUED
    assert row(database.engine, agent_id).status is Status.COMPLETE


def test_from_the_environment(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a database in the settings the first call configures by itself."""
    monkeypatch.setattr(ax.CONF, "database_url", database.url)
    agent_id = ax.activity.create("task")
    assert row(database.engine, agent_id).status is Status.QUEUED
    assert ax.health()["configured"]


@only_sqlite
def test_nothing_named(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unconfigured, a call says in one sentence what to do; `ax.configure()` alone makes a file here, with tables."""
    calls: list[Callable[[], object]] = [
        lambda: ax.activity.create("task"),
        ax.activity.cancel_pending,
        lambda: ax.activity.update(UUID(int=1), "x"),
    ]
    for call in calls:
        with pytest.raises(ax.ConfigurationError, match=r"call ax\.configure\(engine_or_url\), or set"):
            call()
    assert ax.flush()
    assert ax.shutdown()
    assert not ax.health()["configured"]
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    ax.configure()
    agent_id = ax.activity.create("task")
    made = create_engine(f"sqlite:///{folder}/agentexec.db")
    assert row(made, agent_id).status is Status.QUEUED
    made.dispose()


def test_engine_is_borrowed(database: Database) -> None:
    """The writer connects as the application's engine does, but never through its pool, which may be exhausted."""
    engine = create_engine(database.url, poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=1)
    ax.configure(engine)
    with engine.connect() as held:
        held.execute(text("SELECT 1"))
        agent_id = ax.activity.create("task")
        assert ax.activity.complete(agent_id)
        assert isinstance(engine.pool, QueuePool)
        assert engine.pool.checkedout() == 1
    assert ax.shutdown()
    with engine.connect() as alive:
        assert alive.execute(text("SELECT 1")).scalar() == 1
    engine.dispose()
    assert count_rows(database.engine) == (1, 2)


@pytest.mark.parametrize("level", ["AUTOCOMMIT", "SERIALIZABLE"])
def test_engine_does_not_lend_its_isolation(database: Database, level: Any) -> None:
    """A batch is one transaction also where the application's engine commits each statement, or isolates more."""
    exporter = SQLExporter(create_engine(database.url, isolation_level=level))
    agent_id = uuid4()
    exporter.export([opening(agent_id)])
    with pytest.raises(PoisonExportError):
        exporter.export([event(agent_id, outcome=Outcome(input_tokens=2**70))])  # refused with the row, behind its line
    assert count_rows(database.engine) == (1, 1)
    if database.kind != "sqlite":
        with exporter.engine.connect() as connection:
            assert connection.get_isolation_level() == "READ COMMITTED"
    exporter.shutdown(1.0)


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_encoding_of_the_client(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every text is stored, whatever encoding clients of PostgreSQL are told to use."""
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    ax.configure(database.url)
    agent_id = ax.activity.create("task", "日本 🦉")
    ax.activity.complete(agent_id, "日本 🦉")
    monkeypatch.delenv("PGCLIENTENCODING")
    assert [log.message for log in lines(database.engine, agent_id)] == ["日本 🦉", "日本 🦉"]


@pytest.mark.parametrize("database", ["postgres", "mariadb"], indirect=True)
def test_engine_lends_its_connect_arguments(database: Database) -> None:
    """What the application's engine needs to connect, beyond its URL, is used by the writer as well."""
    url = make_url(database.url)
    hidden = {"user": url.username, "dbname" if database.kind == "postgres" else "database": url.database}
    engine = create_engine(url.set(username=None, database=None), connect_args=hidden)
    ax.configure(engine)
    agent_id = ax.activity.create("task")
    assert row(database.engine, agent_id).status is Status.QUEUED
    engine.dispose()


def test_rolled_back_application(database: Database) -> None:
    """A line written while the application's transaction is open does not vanish with it."""
    ax.configure(database.engine)
    agent_id = ax.activity.create("task")
    with Session(database.engine) as session:
        session.execute(text("SELECT count(*) FROM agentexec_activity"))
        assert ax.activity.update(agent_id, "Meanwhile.")
        assert ax.flush()
        session.rollback()
    assert lines(database.engine, agent_id)[-1].message == "Meanwhile."


def test_memory_database_of_the_application() -> None:
    """An in-memory SQLite engine with StaticPool is used as it is, and not closed."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    ax.configure(engine, create_tables=True)
    with ax.activity.run("task") as run:
        run.update("Half way.", 50)
    assert ax.shutdown()
    assert row(engine, run.agent_id).status is Status.COMPLETE
    engine.dispose()


SECRET = "canary"
REFUSED: list[tuple[Any, str]] = [
    ("sqlite://", "in-memory SQLite"),
    ("sqlite:///:memory:", "in-memory SQLite"),
    ("sqlite:///file::memory:?cache=shared&uri=true", "in-memory SQLite"),
    ("sqlite:///file:x?mode=memory&cache=shared&uri=true", "in-memory SQLite"),
    ("sqlite+aiosqlite:///:memory:", "in-memory SQLite"),
    ("", "is no database URL"),
    ("nonsense", "is no database URL"),
    (f"postgresql//user:{SECRET}@host/name", "is no database URL"),
    (f"postgresql://user:{SECRET}@host:port/name", "is no database URL"),
    (f"oracle://user:{SECRET}@host/name", "'oracle' is not supported: use PostgreSQL, MySQL, MariaDB or SQLite"),
    (f"mssql+pyodbc://user:{SECRET}@host/name", "'mssql' is not supported"),
    (f"postgresql+nope://user:{SECRET}@host/name", r"no driver 'postgresql\+nope': write postgresql\+psycopg://"),
    (f"postgresql+psycopg2://user:{SECRET}@host/name", "psycopg2 is not installed"),
    (f"mysql+mysqldb://user:{SECRET}@host/name", "MySQLdb is not installed"),
    (f"postgres://user:{SECRET}@host/name", "'postgres' is not supported: write postgresql://"),
    (3, "3 is no database: hand in its URL or a SQLAlchemy engine"),
]


@pytest.mark.parametrize(("database_url", "expected"), REFUSED, ids=[str(url)[:24] for url, _ in REFUSED])
def test_refused_databases(database_url: Any, expected: str) -> None:
    """What cannot be used is refused when it is configured, in one sentence, without its password."""
    with pytest.raises(ax.ConfigurationError, match=expected) as caught:
        ax.configure(database_url)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not ax.health()["configured"]


@pytest.mark.parametrize("exporter", [1, InMemoryActivityExporter], ids=["a number", "a class"])
def test_refused_exporters(exporter: Any) -> None:
    """What is no exporter is refused when it is configured, in one sentence."""
    with pytest.raises(ax.ConfigurationError, match=r"is no exporter: hand in an object"):
        ax.configure(exporters=[exporter])
    assert not ax.health()["configured"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"exporters": InMemoryActivityExporter()}, "exporters is <InMemoryActivityExporter>: hand in a list"),
        ({"tracer_provider": 3}, "tracer_provider is 3: hand in a provider of OpenTelemetry"),
        ({"logger_provider": "x"}, "logger_provider is 'x': hand in a provider"),
        ({"meter_provider": 3}, "meter_provider is 3: hand in a provider"),
        ({"redact": "password"}, "redact is 'password': hand in a function"),
        ({"otlp_endpoint": "localhost:4318"}, "otlp_endpoint is 'localhost:4318': write it like http://localhost:4318"),
        ({"otlp_endpoint": "http://user:canary@x:4318/v1/traces"}, "otlp_endpoint is 'http://…': write it like"),
        ({"otlp_endpoint": ""}, "otlp_endpoint is '': write it like"),
    ],
)
def test_refused_arguments(tmp_path: Path, arguments: dict[str, Any], expected: str) -> None:
    """What cannot work is refused when it is configured, in one sentence, and leaves what was set up before."""
    ax.configure(exporters=[InMemoryActivityExporter()])
    before = ax.health()["worker_id"], [one["exporter"] for one in ax.health()["exporters"]]
    with pytest.raises(ax.ConfigurationError, match=re.escape(expected)):
        ax.configure(f"sqlite:///{tmp_path}/a.db", **arguments)
    assert (ax.health()["worker_id"], [one["exporter"] for one in ax.health()["exporters"]]) == before


def test_tables_that_cannot_be_created(tmp_path: Path) -> None:
    """Asked to create the tables where it cannot, `configure()` says what is wrong."""
    with pytest.raises(ax.ConfigurationError, match=r"tables cannot be created: .* check that its folder exists"):
        ax.configure(f"sqlite:///{tmp_path}/none/a.db", create_tables=True)
    assert not ax.health()["configured"]


def test_memory_database_per_thread_is_refused() -> None:
    """An engine that gives each thread a memory of its own is refused, with what to do instead."""
    engine = create_engine("sqlite://")
    if isinstance(engine.pool, StaticPool):
        pytest.skip("this SQLAlchemy shares it by itself")
    with pytest.raises(ax.ConfigurationError, match="poolclass=StaticPool"):
        ax.configure(engine)
    with pytest.raises(ax.ConfigurationError, match="StaticPool"):
        ax.configure(create_async_engine("sqlite+aiosqlite://"))
    engine.dispose()


def test_encryption_survives_another_driver() -> None:
    """What asyncpg is told in a URL reaches psycopg: encryption above all, and nothing that it would not know."""

    def query_of(query: str) -> dict[str, Any]:
        return dict(parse_url(f"postgresql+asyncpg://u:p@host/name?{query}").query)

    assert query_of("ssl=require") == {"sslmode": "require"}
    assert query_of("ssl=verify-full&application_name=x") == {"sslmode": "verify-full", "application_name": "x"}
    assert query_of("ssl=true&prepared_statement_cache_size=0&timeout=5") == {"sslmode": "require"}
    assert parse_url(URL.create("postgresql+psycopg", query={"sslmode": "verify-ca"})).query == {"sslmode": "verify-ca"}
    assert parse_url("postgresql+asyncpg://u:p@host/name").drivername == "postgresql+psycopg"


MISSING = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in ("psycopg", "pymysql", "greenlet"):
            return None
        return super().find_spec(name, path, target)

sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
import agentexec_otel as ax

for url in ("postgresql://u:canary@h/n", "postgresql+asyncpg://u:canary@h/n", "mysql+aiomysql://u:canary@h/n", "mariadb://h/n"):
    try:
        ax.configure(url)
    except ax.MissingExtraError as missing:
        print(isinstance(missing, (ImportError, ax.ConfigurationError)), missing)
ax.configure("sqlite:///" + sys.argv[1], create_tables=True)
print(ax.activity.complete(ax.activity.create("task")), "greenlet" in sys.modules)
"""


def test_missing_driver(tmp_path: Path) -> None:
    """Without the driver: one sentence with the package and the pip command. SQLite needs none, and no greenlet."""
    command = [sys.executable, "-c", MISSING, str(tmp_path / "x.db")]
    result = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    sentence = (
        "True storing activities on {} needs the package {}, which is not installed: pip install 'agentexec-otel[{}]'"
    )
    assert result.stdout.splitlines() == [
        sentence.format("postgresql", "psycopg", "postgres"),
        sentence.format("postgresql", "psycopg", "postgres"),
        sentence.format("mysql", "PyMySQL", "mysql"),
        sentence.format("mariadb", "PyMySQL", "mysql"),
        "True False",
    ]


# -- again ----------------------------------------------------------------------------------------------------------


def test_configured_again(database: Database, tmp_path: Path) -> None:
    """What was emitted before is stored where it belongs; what comes after goes to the new database."""
    ax.configure(database.url)
    first = ax.activity.create("first")
    ax.activity.update(first, "Working.")
    ax.configure(f"sqlite:///{tmp_path}/other.db", create_tables=True)
    second = ax.activity.create("second")
    assert ax.flush()
    assert row(database.engine, first).last_seq == 2
    other = create_engine(f"sqlite:///{tmp_path}/other.db")
    assert row(other, second).last_seq == 1
    assert count_rows(other) == (1, 1)
    other.dispose()


def test_run_that_is_open_meanwhile(database: Database) -> None:
    """A block that is open while the SDK is configured again ends as it would have, and nobody waits for it."""
    ax.configure(database.url)
    with ax.activity.run("task") as run:
        run.update("Before.")
        ax.configure(database.url)
        run.update("After.")
    assert ax.flush()
    assert [log.message for log in lines(database.engine, run.agent_id)] == [
        "Waiting to start.", "Task started.", "Before.", "After.", "Task completed successfully.",
    ]  # fmt: skip
    assert row(database.engine, run.agent_id).status is Status.COMPLETE


def test_line_that_is_on_its_way_meanwhile(database: Database) -> None:
    """A line that is being said while the SDK is configured again is stored."""

    def configuring(text: str) -> str:
        if text == "Said meanwhile.":
            ax.configure(database.url)
        return text

    ax.configure(database.url, redact=configuring)
    agent_id = ax.activity.create("task")
    assert ax.activity.update(agent_id, "Said meanwhile.")
    assert ax.flush()
    assert [log.message for log in lines(database.engine, agent_id)][1:] == ["Said meanwhile."]


def test_end_that_is_on_its_way_meanwhile(
    monkeypatch: pytest.MonkeyPatch, tracer_provider: TracerProvider, span_exporter: InMemorySpanExporter
) -> None:
    """The span of an activity whose end the previous writer has still to store is ended by it, not only at exit."""
    monkeypatch.setattr(ax.CONF, "terminal_timeout", 0.0)
    stored = Event()
    stored.set()
    ax.configure(exporters=[Recorder(gate=stored)], tracer_provider=tracer_provider)
    agent_id = ax.activity.create("task")
    ax.activity.update(agent_id, "Working.")
    assert ax.flush()
    stored.clear()
    assert ax.activity.complete(agent_id)
    Timer(0.2, stored.set).start()
    ax.configure(exporters=[Recorder()], tracer_provider=tracer_provider)
    assert [span.name for span in span_exporter.get_finished_spans()] == ["task"]


def test_refused_again_keeps_what_was(database: Database) -> None:
    """A refused set-up leaves the one that works in force."""
    ax.configure(database.url)
    agent_id = ax.activity.create("task")
    with pytest.raises(ax.ConfigurationError):
        ax.configure("nonsense")
    assert ax.activity.complete(agent_id)


@only_sqlite
def test_first_calls_at_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several threads whose first calls configure from the environment share one runtime."""
    monkeypatch.setattr(ax.CONF, "database_url", database.url)
    threads = [Thread(target=lambda: ax.activity.create("task")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (writer,) = ax.health()["exporters"]
    assert writer["committed"] == 8
    assert count_rows(database.engine) == (8, 8)


def test_exporter_by_hand(database: Database) -> None:
    """`SQLExporter` is public: handed in, it is the store, and its identity names the database without a password."""
    exporter = SQLExporter(make_url(database.url).update_query_dict({}))
    assert isinstance(exporter.engine, Engine)
    assert "root@" not in str(exporter.identity)
    ax.configure(exporters=[exporter])
    agent_id = ax.activity.create("task")
    assert ax.activity.cancel_pending() == 1
    assert row(database.engine, agent_id).status is Status.CANCELED


PLACES = [
    (
        "postgresql+psycopg://host/db?options=-csearch_path%3Da",
        "postgresql+psycopg://host/db?options=-csearch_path%3Db",
    ),
    ("postgresql+psycopg:///db?host=/run/a", "postgresql+psycopg:///db?host=/run/b"),
    ("postgresql+psycopg:///?service=staging", "postgresql+psycopg:///?service=production"),
    ("mysql+pymysql://user@/db?unix_socket=/run/a.sock", "mysql+pymysql://user@/db?unix_socket=/run/b.sock"),
]


@pytest.mark.parametrize(("one", "other"), PLACES)
def test_places_are_told_apart(one: str, other: str) -> None:
    """What a dead process has spooled for a schema or server goes to no other, whichever part of the URL names it."""
    assert SQLExporter(one).identity != SQLExporter(other).identity
    impatient = make_url(one).update_query_dict({"connect_timeout": "3", "sslmode": "require", "password": "canary"})
    assert SQLExporter(impatient).identity == SQLExporter(one).identity


@only_sqlite
def test_configured_often(database: Database) -> None:
    """No thread of what was set up before stays."""
    before = set(threads())  # of earlier tests

    def names() -> list[str]:
        return sorted(one.name for one in set(threads()) - before if one.name.startswith("agentexec"))

    for _ in range(5):
        ax.configure(database.url)
        ax.activity.create("task")
    assert eventually(lambda: names() == OURS), names()


OURS = ["agentexec-watchdog", "agentexec-writer"]  # and the mirror, which ends spans, where there are any


def test_translated_schema_is_refused() -> None:
    """An engine that puts tables into another schema than the writer would is not misunderstood in silence."""
    mapped = {"schema_translate_map": {None: "tenant"}}
    url = "postgresql+psycopg://host/db"
    engines = create_engine(url, execution_options=mapped), create_async_engine(url, execution_options=mapped)
    for engine in engines:
        with pytest.raises(ax.ConfigurationError, match="schema_translate_map"):
            ax.configure(engine)
    ax.configure(create_engine(url, execution_options={"schema_translate_map": {"other": "tenant"}}))
