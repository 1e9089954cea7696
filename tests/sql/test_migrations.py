"""`ax.db`: the tables are created, adopted, upgraded and downgraded without a loss, on each database."""

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Connection, Engine, Integer, MetaData, Table, create_engine, event, inspect, select, text
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity.models import Activity, ActivityLog, Status
from agentexec_otel.export import MisconfiguredExportError, TransientExportError
from agentexec_otel_exporters.sql import SQLExporter
from agentexec_otel_exporters.sql.migrations import schema_1
from agentexec_otel_exporters.sql.migrations.version import HEAD, REVISIONS, VERSION_TABLE
from tests.conftest import reset_runtime
from tests.databases import KINDS, Database, Servers, open_database
from tests.sql.foreign import MAKERS, Told, activities, agentexec, first_version, page, write_as_schema_1
from tests.sql.rows import opening

pytestmark = pytest.mark.one_python


@pytest.fixture(params=KINDS)
def bare(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Iterator[Database]:
    """An empty database. What a test leaves in it is gone behind it."""
    with open_database(request.param, servers, tmp_path) as opened:
        yield opened
        reset_runtime()
        everything = MetaData()
        everything.reflect(opened.engine)
        everything.drop_all(opened.engine)


def history(engine: Engine) -> dict[Any, list[tuple[Any, ...]]]:
    """All logs by activity, and the documented columns of each."""
    with Session(engine) as session:
        found = session.execute(
            select(
                Activity.agent_id,
                Activity.agent_type,
                Activity.status,
                Activity.latest_percentage,
                Activity.metadata_,
                Activity.created_at,
                Activity.updated_at,
                Activity.started_at,
                ActivityLog.id,
                ActivityLog.seq,
                ActivityLog.event_id,
                ActivityLog.message,
                ActivityLog.status,
                ActivityLog.percentage,
                ActivityLog.created_at,
            )
            .join(ActivityLog)
            .order_by(Activity.agent_id, ActivityLog.seq)
        ).all()
    logs: dict[Any, list[tuple[Any, ...]]] = {}
    for agent_id, *rest in found:
        logs.setdefault(agent_id, []).append(tuple(rest))
    return logs


def assert_same(engine: Engine, told: list[Told], *, with_metadata: bool = True) -> None:
    """Each activity reads as it was told, by the list, the detail and in the stats."""
    with Session(engine) as session:
        items = {
            item.agent_id: item
            for number in range(-(-len(told) // 1_000))
            for item in ax.activity.list(session, page=number + 1, page_size=1_000).items
        }
        assert len(items) == len(told)
        for one in told:
            item, ended = items[one.agent_id], one.status not in ("QUEUED", "RUNNING")
            assert (item.agent_type, item.status, item.percentage) == (one.agent_type, one.status, one.percentage)
            assert (item.latest_log_message, item.created_at) == (one.logs[-1][0], one.created_at)
            assert item.started_at == (None if one.status == "QUEUED" else one.at(1))
            assert (item.ended_at, item.updated_at) == (
                one.at(len(one.logs) - 1) if ended else None,
                one.at(len(one.logs) - 1),
            )
            if with_metadata:
                assert item.metadata == one.metadata
        for one in told[::50]:
            detail = ax.activity.detail(session, one.agent_id)
            assert detail is not None
            assert [(log.message, log.status, log.percentage) for log in detail.logs] == one.logs
            assert [log.created_at for log in detail.logs] == [one.at(place) for place in range(len(one.logs))]
        stats = ax.activity.stats(session)
        assert stats.total == len(told)
        assert {status: count for status, count in stats.by_status.items() if count} == Counter(
            Status(one.status) for one in told
        )
        assert {one.agent_type: one.total for one in stats.by_type} == Counter(one.agent_type for one in told)
        durations = [item.duration_seconds for item in items.values() if item.status.terminal]
        assert stats.duration_seconds.count == sum(one is not None for one in durations)


def live_through(database: Database, told: list[Told]) -> None:
    """New runs are stored beside the old ones, and old ones go on."""
    ax.configure(database.url)
    with ax.activity.run("new") as run:
        run.update("half", 50)
    queued = next(one for one in told if one.status == "QUEUED")
    assert ax.activity.complete(queued.agent_id)
    assert ax.flush()
    with Session(database.engine) as session:
        for agent_id in (run.agent_id, queued.agent_id):
            detail = ax.activity.detail(session, agent_id)
            assert detail is not None
            assert (detail.status, detail.logs[-1].percentage, detail.ended_at is None) == ("COMPLETE", 100, False)
    reset_runtime()


@pytest.mark.parametrize("maker", MAKERS)
def test_adopts_with_all_rows(bare: Database, maker: str) -> None:
    """A thousand activities of each program are there afterwards; downgrade and upgrade again lose nothing."""
    told = activities(1_000)
    MAKERS[maker](bare.engine, told)
    ax.db.upgrade(bare.engine)
    assert (ax.db.current(bare.engine), ax.db.check(bare.engine)) == (HEAD, [])
    assert_same(bare.engine, told, with_metadata=maker != "page")
    before = history(bare.engine)
    ax.db.downgrade(bare.url)
    assert ax.db.current(bare.engine) == "0001"
    assert "ended_at" not in {one["name"] for one in inspect(bare.engine).get_columns(Activity.__tablename__)}
    ax.db.upgrade(bare.url)
    assert history(bare.engine) == before
    assert_same(bare.engine, told, with_metadata=maker != "page")
    live_through(bare, told)
    assert set(inspect(bare.engine).get_table_names()) == {*ax.Base.metadata.tables, VERSION_TABLE}


def test_reasons_of_the_first_version_are_renamed(bare: Database) -> None:
    """`cancelled` becomes `canceled`, and `user_error` becomes `other`."""
    first_version(bare.engine, activities(10))
    ax.db.upgrade(bare.engine)
    with Session(bare.engine) as session:
        found = {(item.status.value, item.reason) for item in ax.activity.list(session).items}
    assert found >= {("CANCELED", "canceled"), ("ERROR", "other"), ("COMPLETE", None)}


def test_adopts_tables_of_todays_models(bare: Database) -> None:
    """Tables that `create_all()` has made of today's models are upgraded as well."""
    ax.Base.metadata.create_all(bare.engine)
    told = activities(10)
    write_as_schema_1(bare.engine, told)
    ax.db.upgrade(bare.engine)
    assert (ax.db.current(bare.engine), ax.db.check(bare.engine)) == (HEAD, [])
    assert_same(bare.engine, told)


def test_creates_the_tables(bare: Database) -> None:
    """In an empty database the upgrade makes the tables that `create_all()` makes."""
    assert ax.db.current(bare.engine) is None
    assert [one.split(":")[0] for one in ax.db.check(bare.engine)] == [
        "the table agentexec_activity is missing",
        "the table agentexec_activity_log is missing",
    ]
    ax.db.upgrade(bare.engine)
    assert (ax.db.current(bare.engine), ax.db.check(bare.engine)) == (HEAD, [])
    made = shape(bare.engine)
    ax.Base.metadata.drop_all(bare.engine)
    ax.Base.metadata.create_all(bare.engine)
    assert shape(bare.engine) == made


def test_creates_the_table_that_is_missing(bare: Database) -> None:
    """If only one of our tables is there, because its creation was interrupted, the upgrade makes the other."""
    schema_1.ACTIVITY.create(bare.engine)
    ax.db.upgrade(bare.engine)
    assert (ax.db.current(bare.engine), ax.db.check(bare.engine)) == (HEAD, [])


def shape(engine: Engine) -> list[object]:
    """Names and types of columns, indexes, constraints."""
    inspector = inspect(engine)
    return [
        found
        for name in ax.Base.metadata.tables
        for found in (
            sorted((one["name"], str(one["type"]), one["nullable"]) for one in inspector.get_columns(name)),
            sorted((str(one["name"]), str(one["column_names"]), one["unique"]) for one in inspector.get_indexes(name)),
            sorted(str(one["name"]) for one in inspector.get_check_constraints(name)),
            [one.get("options") for one in inspector.get_foreign_keys(name)],
        )
    ]


def test_create_tables_states_the_revision(bare: Database) -> None:
    """`create_tables=True` makes the tables of this version and their revision: there is nothing to upgrade."""
    ax.configure(bare.url, create_tables=True)
    assert (ax.db.current(bare.engine), ax.db.check(bare.engine)) == (HEAD, [])


def test_create_tables_leaves_old_tables_alone(bare: Database) -> None:
    """`create_tables=True` on tables of schema 1 states no revision; writing says in one sentence what to do."""
    first_version(bare.engine, activities(5))
    exporter = SQLExporter(bare.url)
    exporter.create_tables()
    assert ax.db.current(bare.engine) is None
    with pytest.raises(MisconfiguredExportError, match=r"run agentexec-otel db upgrade") as refused:
        exporter.export([opening()])
    assert "\n" not in str(refused.value)
    exporter.shutdown(1.0)


@pytest.mark.parametrize("maker", MAKERS)
def test_two_upgrades_at_once(bare: Database, maker: str) -> None:
    """One works, the others wait and find nothing left to do."""
    told = activities(200)
    MAKERS[maker](bare.engine, told)
    start = threading.Barrier(3)

    def upgrade(_: int) -> None:
        start.wait()
        ax.db.upgrade(bare.url)

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(upgrade, range(3)))
    assert (ax.db.current(bare.engine), ax.db.check(bare.engine)) == (HEAD, [])
    assert_same(bare.engine, told, with_metadata=maker != "page")


def test_upgrade_while_schema_1_writes(bare: Database) -> None:
    """Expand, then contract: programs of schema 1 write before, during and after the first step, and lose nothing."""
    told = activities(600)
    first_version(bare.engine, told[:100])
    writer, stop = (
        create_engine(bare.url, connect_args={"timeout": 60} if bare.kind == "sqlite" else {}),
        threading.Event(),
    )
    written = 100

    def produce() -> None:
        nonlocal written
        while written < 500 and not stop.is_set():
            write_as_schema_1(writer, told[written : written + 10])
            written += 10

    with ThreadPoolExecutor(1) as threads:
        producing = threads.submit(produce)
        ax.db.upgrade(bare.url, pre_deploy=True)
        stop.set()
        producing.result()
    assert ax.db.current(bare.engine) == "0002"
    write_as_schema_1(writer, told[written : written + 50])
    ax.db.upgrade(bare.url)
    writer.dispose()
    assert (ax.db.current(bare.engine), ax.db.check(bare.engine)) == (HEAD, [])
    assert_same(bare.engine, told[: written + 50])


def test_pre_deploy_after_the_upgrade_changes_nothing(bare: Database) -> None:
    """A deployment that starts again does not go back."""
    ax.db.upgrade(bare.engine)
    ax.db.upgrade(bare.engine, pre_deploy=True)
    assert ax.db.current(bare.engine) == HEAD


def test_refuses_what_would_be_lost(bare: Database) -> None:
    """Columns, references and words that our tables have no place for end the upgrade before it changes anything."""
    told = activities(5)
    agentexec(bare.engine, told)
    before = rows(bare.engine)
    for change, undo, reason in [
        ("ALTER TABLE agentexec_activity ADD COLUMN owner INTEGER",
         "ALTER TABLE agentexec_activity DROP COLUMN owner", "columns of another program"),
        ("CREATE TABLE theirs (id INTEGER, activity_id UUID REFERENCES agentexec_activity (id))",
         "DROP TABLE theirs", "refers to ours"),
    ]:  # fmt: skip
        execute(bare.engine, change)
        with pytest.raises(ax.ConfigurationError, match=reason):
            ax.db.upgrade(bare.url)
        execute(bare.engine, undo)
        assert rows(bare.engine) == before
    ax.db.upgrade(bare.url)
    assert_same(bare.engine, told)


def test_refuses_logs_it_does_not_understand(bare: Database) -> None:
    """A status that is none of ours, or a log without an activity, is named instead of dropped."""
    told = activities(5)
    page(bare.engine, told)
    for change, undo, reason in [
        ("UPDATE agentexec_activity_log SET status = 'PAUSED' WHERE id = 1",
         "UPDATE agentexec_activity_log SET status = 'QUEUED' WHERE id = 1", "unknown status 'PAUSED'"),
        ("INSERT INTO agentexec_activity_log (id, message, status) VALUES (99, 'x', 'QUEUED')",
         "DELETE FROM agentexec_activity_log WHERE id = 99", "1 rows of agentexec_activity_log belong to no activity"),
    ]:  # fmt: skip
        execute(bare.engine, change)
        with pytest.raises(ax.ConfigurationError, match=reason):
            ax.db.upgrade(bare.url)
        execute(bare.engine, undo)
    ax.db.upgrade(bare.url)
    assert_same(bare.engine, told, with_metadata=False)


def rows(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        return sorted(map(str, connection.execute(text("SELECT * FROM agentexec_activity_log")).all()))


def execute(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement))


def test_sloppy_values_are_put_right(bare: Database) -> None:
    """Percentages out of range, empty names and the JSON null become what our columns hold."""
    (told,) = activities(1)
    agentexec(bare.engine, [told])
    execute(bare.engine, "UPDATE agentexec_activity SET agent_type = NULL, metadata = 'null'")
    execute(bare.engine, "UPDATE agentexec_activity_log SET percentage = 250")
    ax.db.upgrade(bare.engine)
    with Session(bare.engine) as session:
        detail = ax.activity.detail(session, told.agent_id)
        assert session.scalar(text("SELECT COUNT(*) FROM agentexec_activity WHERE metadata IS NULL")) == 1
    assert detail is not None
    assert (detail.agent_type, detail.latest_percentage) == ("unknown", 100)


@pytest.mark.parametrize("bare", ["mariadb"], indirect=True)
def test_adoption_continues_after_a_crash(bare: Database) -> None:
    """MariaDB commits each step: an upgrade that was killed after it had renamed the tables is finished by the next."""
    told = activities(50)
    agentexec(bare.engine, told)
    execute(
        bare.engine,
        "RENAME TABLE agentexec_activity TO agentexec_activity_adopted,"
        " agentexec_activity_log TO agentexec_activity_log_adopted",
    )
    schema_1.METADATA.create_all(bare.engine)
    newer = activities(1)
    write_as_schema_1(bare.engine, newer)
    with pytest.raises(ax.ConfigurationError, match="1 activities were stored after an upgrade was killed"):
        ax.db.upgrade(bare.engine)
    execute(bare.engine, "DELETE FROM agentexec_activity")
    ax.db.upgrade(bare.engine)
    assert_same(bare.engine, told)
    assert set(inspect(bare.engine).get_table_names()) == {*ax.Base.metadata.tables, VERSION_TABLE}


UPGRADE = "import sys, agentexec_otel as ax; print(flush=True); ax.db.upgrade(sys.argv[1])"


@pytest.mark.chaos
@pytest.mark.parametrize("kills", [3, pytest.param(12, marks=pytest.mark.slow)])
def test_killed_upgrades_lose_nothing(bare: Database, kills: int) -> None:
    """Upgrades that are killed at any moment are finished by the next one, with all rows."""
    told = activities(1_000)
    agentexec(bare.engine, told)
    for step in range(0, 12, 12 // kills):
        with subprocess.Popen([sys.executable, "-c", UPGRADE, bare.url], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.1 + step * 0.05)
            process.kill()
    ax.db.upgrade(bare.url)
    assert (ax.db.current(bare.engine), ax.db.check(bare.engine)) == (HEAD, [])
    assert_same(bare.engine, told)
    assert set(inspect(bare.engine).get_table_names()) == {*ax.Base.metadata.tables, VERSION_TABLE}


@pytest.mark.parametrize("bare", ["sqlite"], indirect=True)
def test_engine_that_begins_transactions_itself(bare: Database) -> None:
    """An engine with foreign keys on and SQLAlchemy's recipe for transactions can be upgraded; its settings stay."""
    told = activities(20)
    agentexec(bare.engine, told)
    engine = create_engine(bare.url)

    def connected(connection: Any, record: object) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys = ON")

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begin)
    ax.db.upgrade(engine)
    assert_same(engine, told)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    engine.dispose()


def test_later_revision_is_one_sentence(bare: Database) -> None:
    """Tables of a later version are left alone, and the sentence says what to install."""
    ax.db.upgrade(bare.engine)
    execute(bare.engine, f"UPDATE {VERSION_TABLE} SET version_num = '0099'")
    for call in (ax.db.upgrade, ax.db.downgrade):
        with pytest.raises(ax.ConfigurationError, match=r"revision 0099, of a later version: install"):
            call(bare.engine)
    assert ["later version" in one for one in ax.db.check(bare.engine)] == [True]


def test_stamp(bare: Database) -> None:
    """`stamp` states a revision, and nothing else happens."""
    schema_1.METADATA.create_all(bare.engine)
    ax.db.stamp(bare.engine, "0001")
    assert ax.db.current(bare.engine) == "0001"
    assert len(ax.db.check(bare.engine)) > 1
    with pytest.raises(ax.ConfigurationError, match=r"'x' is no revision: use one of 0001, 0002, 0003"):
        ax.db.stamp(bare.engine, "x")


def test_downgrade_without_a_revision_is_one_sentence(bare: Database) -> None:
    """There is nothing to go back from."""
    with pytest.raises(ax.ConfigurationError, match="no revision to go back from"):
        ax.db.downgrade(bare.engine)


def test_sql_makes_the_same_tables(bare: Database) -> None:
    """The statements of `ax.db.sql`, run by hand, make what `upgrade` makes; also those that start from schema 1."""
    schema_1.METADATA.create_all(bare.engine)
    ax.db.stamp(bare.engine, "0001")
    told = activities(10)
    write_as_schema_1(bare.engine, told)
    url = bare.url.replace("mysql+", "mariadb+")
    run_script(bare.engine, ax.db.sql(url, start="0001"))
    assert (ax.db.current(bare.engine), ax.db.check(bare.engine)) == (HEAD, [])
    assert_same(bare.engine, told)
    for table in (*ax.Base.metadata.sorted_tables[::-1], Table(VERSION_TABLE, MetaData())):
        table.drop(bare.engine)
    run_script(bare.engine, ax.db.sql(url))
    assert (ax.db.current(bare.engine), ax.db.check(bare.engine)) == (HEAD, [])


def run_script(engine: Engine, script: str) -> None:
    code = "\n".join(line for line in script.splitlines() if not line.startswith("--"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in filter(str.strip, code.split(";\n")):
            connection.exec_driver_sql(statement.replace("%", "%%") if engine.dialect.name == "mysql" else statement)


def test_applications_with_their_own_alembic(bare: Database) -> None:
    """With our metadata among theirs, or with `include_object`, autogenerate finds nothing to do with our tables."""
    ax.db.upgrade(bare.engine)
    theirs = MetaData()
    Table("theirs", theirs, Column("id", Integer, primary_key=True))
    theirs.create_all(bare.engine)
    with bare.engine.connect() as connection:
        both = MigrationContext.configure(connection, opts={"target_metadata": [theirs, ax.Base.metadata]})
        found = compare_metadata(both, [theirs, ax.Base.metadata])  # type: ignore[arg-type]
        assert [one for one in found if getattr(one[1], "name", None) != VERSION_TABLE] == []
        without = MigrationContext.configure(connection, opts={"include_object": ax.db.include_object})
        assert compare_metadata(without, theirs) == []


def test_revisions_are_those_of_the_scripts() -> None:
    """The revisions that are known without Alembic are those that Alembic finds, in one line."""
    config = Config()
    config.set_main_option("script_location", "agentexec_otel_exporters.sql:migrations")
    script = ScriptDirectory.from_config(config)
    assert tuple(one.revision for one in script.walk_revisions())[::-1] == REVISIONS
    assert script.get_heads() == [HEAD]


def test_missing_indexes_are_built(bare: Database) -> None:
    """An index that is missing is built by the upgrade, and a shorter one is replaced; on PostgreSQL concurrently."""
    first_version(bare.engine, activities(10))
    table, of_table = "agentexec_activity", " ON agentexec_activity" if bare.kind == "mariadb" else ""
    execute(bare.engine, f"DROP INDEX ix_{table}_created_at{of_table}")
    statements: list[str] = []

    def executed(connection: Connection, cursor: object, statement: str, *_: object) -> None:
        statements.append(statement.strip())

    event.listen(bare.engine, "before_cursor_execute", executed)
    ax.db.upgrade(bare.engine)
    how = "INDEX CONCURRENTLY" if bare.kind == "postgres" else "INDEX"
    assert [one for one in statements if one.startswith(("CREATE INDEX", "DROP INDEX"))] == [
        f"CREATE {how} ix_{table}_created_at ON {table} (created_at, id)",
        f"CREATE {how} ix_{table}_agent_type ON {table} (agent_type, created_at, id)",
        f"CREATE {how} ix_{table}_status_created_at ON {table} (status, created_at, id)",
        f"DROP {how} ix_{table}_status{of_table}",
    ]
    assert ax.db.check(bare.engine) == []
    ax.db.downgrade(bare.engine)
    assert {index["name"] for index in inspect(bare.engine).get_indexes(table)} == {
        str(index.name) for index in schema_1.ACTIVITY.indexes
    }


@pytest.mark.parametrize("bare", ["postgres"], indirect=True)
def test_broken_indexes_are_built_again(bare: Database) -> None:
    """An index that an interrupted build has left invalid is dropped and built again."""
    first_version(bare.engine, activities(10))
    name = "ix_agentexec_activity_created_at"
    execute(bare.engine, f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{name}'::regclass")
    ax.db.upgrade(bare.engine)
    valid = text(f"SELECT indisvalid FROM pg_index WHERE indexrelid = '{name}'::regclass")
    with bare.engine.connect() as connection:
        assert connection.scalar(valid) is True


@pytest.mark.parametrize("bare", ["postgres"], indirect=True)
def test_upgrade_does_not_block_writers_for_long(bare: Database) -> None:
    """Behind a long transaction the upgrade gives up, in one sentence, and can be run again."""
    first_version(bare.engine, activities(10))
    with bare.engine.connect() as reader:
        reader.execute(text("SELECT * FROM agentexec_activity"))
        with pytest.raises(TransientExportError, match="away or busy"):
            ax.db.upgrade(bare.url)
    ax.db.upgrade(bare.url)
    assert ax.db.check(bare.engine) == []
