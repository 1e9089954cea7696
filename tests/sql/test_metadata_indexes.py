"""`AGENTEXEC_INDEXED_METADATA`: filters by these keys read an index, and find the same. Upgrades build the indexes."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, MetaData, event, inspect, text
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity import ActivityFilters
from agentexec_otel.export import ActivityEvent, Opening
from agentexec_otel_exporters.sql.migrations.version import HEAD
from tests.conftest import reset_runtime
from tests.databases import KINDS, Database, Servers, open_database
from tests.sql.plans import analyze, plan_of
from tests.sql.rows import event as log
from tests.sql.rows import opening, store
from tests.sql.test_metadata_filter import VALUES

pytestmark = pytest.mark.one_python

TABLE = "agentexec_activity"
TENANT = f"ix_{TABLE}_metadata_tenant"


@pytest.fixture(params=KINDS)
def bare(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Iterator[Database]:
    """An empty database. What a test leaves in it is gone behind it."""
    with open_database(request.param, servers, tmp_path) as opened:
        yield opened
        reset_runtime()
        with opened.engine.begin() as connection:
            for table in ("agentexec_activity_log", TABLE, "agentexec_alembic_version"):
                connection.execute(text(f"DROP TABLE IF EXISTS {table}"))


@pytest.fixture(autouse=True)
def indexed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ax.CONF, "indexed_metadata", "tenant,user id")


def execute(engine: Engine, statement: str) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(statement))


def drop_index(database: Database, name: str = TENANT) -> None:
    execute(database.engine, f"DROP INDEX {name}" + (f" ON {TABLE}" if database.kind == "mariadb" else ""))


def fill(database: Database, metadata: list[dict[str, Any]]) -> None:
    """One activity each, oldest first, with an error, named by its place."""
    now = time.time_ns() - 3600 * 10**9
    for start in range(0, len(metadata), 500):
        events: list[ActivityEvent] = []
        for place, one in enumerate(metadata[start : start + 500], start):
            made = opening(uuid4(), f"task {place % 3}", at_ns=now + place * 10**9)
            events.append(made._replace(opening=Opening(str(place), one)))
        store(database.url, events)


# -- the setting ---------------------------------------------------------------------------------------------------


def test_keys_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spaces around a key and repeated keys do not count; a tuple is accepted as well."""
    for given, keys in (("tenant, user id,tenant", ("tenant", "user id")), (("a.b",), ("a.b",))):
        monkeypatch.setattr(ax.CONF, "indexed_metadata", given)
        assert ax.CONF.indexed_metadata == keys


@pytest.mark.parametrize("value", ["tenant,", "a'b", "a;b", "$", "K" * 129])
def test_a_key_that_cannot_be_filtered_by(value: str) -> None:
    """It is one sentence that names the variable, the value and what a key is made of."""
    program = "import agentexec_otel"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"AGENTEXEC_INDEXED_METADATA": value},
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.splitlines()[-1]
    assert f"AGENTEXEC_INDEXED_METADATA={value[:60]!r}"[:60] in last
    assert last.endswith("name keys such as tenant,user, of letters, digits, _ . : / - and spaces")


# -- the same answer, by the index ---------------------------------------------------------------------------------

LONG = ["x" * length + end for length in (199, 200, 201, 5_000) for end in ("", "y")]


def test_index_finds_the_same(bare: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter by an indexed key finds what it finds without the index, whatever types and lengths the values have."""
    values = [*VALUES, *LONG]
    monkeypatch.setattr(ax.CONF, "indexed_metadata", ("value",))
    ax.Base.metadata.create_all(bare.engine)
    fill(bare, [{"value": value, "other": 1} for value in values])

    def found(wanted: Any) -> list[str]:
        with Session(bare.engine) as session:
            page = ax.activity.list(session, page_size=200, metadata_filter={"value": wanted})
        return [item.agent_type for item in page.items]

    wanted = [value for value in values if isinstance(value, str | bool | int | float)]
    by_index = [found(value) for value in wanted]
    monkeypatch.setattr(ax.CONF, "indexed_metadata", ())
    assert by_index == [found(value) for value in wanted]
    assert all(by_index)


FILTERS: list[tuple[str, ActivityFilters]] = [
    (TENANT, {"metadata_filter": {"tenant": "acme"}}),
    (TENANT, {"metadata_filter": {"tenant": 7}}),
    (TENANT, {"metadata_filter": {"tenant": True}}),
    (f"ix_{TABLE}_metadata_user_id_", {"metadata_filter": {"user id": 7.0}}),
    (f"ix_{TABLE}_agent_type", {"agent_type": "task 1"}),
    (f"ix_{TABLE}_status_created_at", {"status": "QUEUED"}),
]


READ = {
    "sqlite": r"SEARCH \w+ USING (?:COVERING )?INDEX {}",
    "postgres": r"Limit .*\n +-> +Index (?:Only )?Scan (?:Backward )?using {}",
    "mariadb": r"(?:ref|range) \w+ {}",
}


@pytest.mark.parametrize("order", ["newest", "oldest"])
def test_pages_read_a_range_of_the_index(bare: Database, order: Any) -> None:
    """The first page and one behind a cursor are read from the index, in its order: nothing is sorted or skipped."""
    ax.Base.metadata.create_all(bare.engine)
    fill(bare, [{"tenant": ("acme", 7, True, "globex")[n % 4], "user id": n % 9} for n in range(1_000)])
    with bare.engine.begin() as connection:  # so that each value is rare enough for the planner
        connection.execute(text(f"UPDATE {TABLE} SET status = 'COMPLETE' WHERE agent_type LIKE '%1'"))
        connection.execute(text(f"UPDATE {TABLE} SET agent_type = 'task 1' WHERE agent_type LIKE '%5'"))
    with Session(bare.engine) as session:
        analyze(session)
        for name, filters in FILTERS:
            cursor = ax.activity.list(session, 6, 5, order=order, **filters).next_cursor
            assert cursor is not None
            for place in ("", cursor):
                page = partial(ax.activity.list, page_size=5, order=order, cursor=place, **filters)
                plan = plan_of(session, page)
                assert re.search(READ[bare.kind].format(name), plan), plan
                assert plan.count("USE TEMP B-TREE") <= 1, plan  # of the rows of the page


@pytest.mark.parametrize("bare", ["postgres"], indirect=True)
def test_progress_is_updated_in_place(bare: Database) -> None:
    """PostgreSQL updates the row of an activity in place (HOT) for each log that does not change the status."""
    ax.Base.metadata.create_all(bare.engine)
    execute(bare.engine, f"ALTER TABLE {TABLE} SET (fillfactor = 50)")
    fill(bare, [{"tenant": "acme", "user id": 7}])
    with Session(bare.engine) as session:
        agent_id = ax.activity.list(session).items[0].agent_id
    store(bare.url, *([log(agent_id, percentage=n)] for n in range(20)))
    updates = text("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = :table")
    with bare.engine.connect() as connection:
        deadline = time.monotonic() + 20
        while (found := connection.execute(updates, {"table": TABLE}).one())[0] < 20 and time.monotonic() < deadline:
            connection.rollback()
            time.sleep(0.1)
    every, in_place = found
    assert every >= 20
    assert in_place >= every - 1  # the first log starts the activity


# -- making them ---------------------------------------------------------------------------------------------------


def names(database: Database) -> set[str]:
    """The indexes on metadata."""
    queries = {
        "sqlite": f"SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = '{TABLE}'",
        "postgres": f"SELECT indexname FROM pg_indexes WHERE tablename = '{TABLE}'",
        "mariadb": (
            "SELECT DISTINCT index_name FROM information_schema.statistics"
            f" WHERE table_schema = DATABASE() AND table_name = '{TABLE}'"
        ),
    }
    with database.engine.connect() as connection:
        return {name for name in connection.scalars(text(queries[database.kind])) if "_metadata_" in name}


def test_upgrade_follows_the_setting(bare: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upgrade at the head makes what the setting asks for since; `check` reports what is missing or left over."""
    monkeypatch.setattr(ax.CONF, "indexed_metadata", ())
    ax.db.upgrade(bare.engine)
    assert (ax.db.check(bare.engine), names(bare)) == ([], set())
    ax.CONF.indexed_metadata = ("tenant", "user id")
    missing = ax.db.check(bare.engine)
    assert [one.split(":")[0] for one in missing] == [
        "the index on the metadata key 'tenant' is missing",
        "the index on the metadata key 'user id' is missing",
    ]
    for pre_deploy in (True, False):
        ax.db.upgrade(bare.engine, pre_deploy=pre_deploy)
        assert (ax.db.current(bare.engine), ax.db.check(bare.engine)) == (HEAD, [])
    made = names(bare)
    assert (len(made), TENANT in made) == (2, True)
    ax.CONF.indexed_metadata = ("user id",)
    ax.db.upgrade(bare.engine)
    assert names(bare) == made
    (left_over,) = ax.db.check(bare.engine)
    assert left_over.startswith(f"the index {TENANT} is on a key that AGENTEXEC_INDEXED_METADATA does not name")
    ax.db.downgrade(bare.engine)
    assert names(bare) == set()
    assert not [one for one in inspect(bare.engine).get_columns(TABLE) if one["name"].startswith("metadata_")]


def test_create_tables_makes_them(bare: Database) -> None:
    """`create_tables=True` makes what an upgrade makes."""
    ax.configure(bare.url, create_tables=True)
    assert (ax.db.current(bare.engine), ax.db.check(bare.engine)) == (HEAD, [])
    made = names(bare)
    drop_index(bare)  # on MariaDB, as if the upgrade was killed after the column
    assert len(ax.db.check(bare.engine)) == 1
    ax.db.upgrade(bare.engine)
    assert (ax.db.check(bare.engine), names(bare)) == ([], made)


def test_sql_makes_them(bare: Database) -> None:
    """`db sql` prints the indexes as well; from the head on, it prints nothing else."""
    ax.CONF.indexed_metadata = ()
    ax.db.upgrade(bare.engine)
    ax.CONF.indexed_metadata = ("tenant",)
    url = bare.url.replace("mysql+", "mariadb+")
    script = ax.db.sql(url, start=HEAD)
    for statement in filter(str.strip, script.split(";\n\n")):
        execute(bare.engine, statement)
    assert ax.db.check(bare.engine) == []
    assert ax.db.sql(url).endswith(script.removeprefix("BEGIN;\n\nCOMMIT;\n\n"))
    assert len(re.findall("CREATE|ALTER|INSERT|UPDATE", script)) <= 2


@pytest.mark.parametrize("bare", ["postgres"], indirect=True)
def test_broken_index_is_built_again(bare: Database) -> None:
    """On PostgreSQL it is built without blocking writers. What a killed upgrade has left broken is built again."""
    ax.db.upgrade(bare.engine)
    execute(bare.engine, f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{TENANT}'::regclass")
    assert "is broken" in ax.db.check(bare.engine)[0]
    statements: list[str] = []

    def executed(connection: Connection, cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(bare.engine, "before_cursor_execute", executed)
    ax.db.upgrade(bare.engine)
    begun = [one[:45] for one in statements if one.startswith(("CREATE INDEX", "DROP INDEX"))]
    assert begun == [
        "DROP INDEX CONCURRENTLY ix_agentexec_activity"[:45],
        "CREATE INDEX CONCURRENTLY ix_agentexec_activi"[:45],
    ]
    assert ax.db.check(bare.engine) == []


def test_two_upgrades_at_once(bare: Database) -> None:
    """One makes the indexes, the other waits and finds them."""
    ax.CONF.indexed_metadata = ()
    ax.db.upgrade(bare.engine)
    ax.CONF.indexed_metadata = ("tenant", "user id")
    start = threading.Barrier(2)

    def upgrade(_: int) -> None:
        start.wait()
        ax.db.upgrade(bare.url)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(upgrade, range(2)))
    assert ax.db.check(bare.engine) == []


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
def test_applications_with_their_own_alembic(bare: Database) -> None:
    """With `include_declared` or `include_object`, autogenerate finds nothing to do with the indexes, named or not."""
    ax.db.upgrade(bare.engine)
    for keys in (("tenant", "user id"), ()):
        ax.CONF.indexed_metadata = keys
        with bare.engine.connect() as connection:
            options = {"include_object": ax.db.include_declared}
            found = compare_metadata(MigrationContext.configure(connection, opts=options), ax.Base.metadata)
            assert [one for one in found if getattr(one[1], "name", None) != "agentexec_alembic_version"] == []
            without = MigrationContext.configure(connection, opts={"include_object": ax.db.include_object})
            assert compare_metadata(without, MetaData()) == []


@pytest.mark.parametrize("bare", ["mariadb"], indirect=True)
def test_filter_before_the_upgrade(bare: Database) -> None:
    """Without the column that the index needs, MariaDB's filter says in one sentence what to run."""
    ax.CONF.indexed_metadata = ()
    ax.Base.metadata.create_all(bare.engine)
    ax.CONF.indexed_metadata = ("tenant",)
    with Session(bare.engine) as session, pytest.raises(ax.ConfigurationError, match="run agentexec-otel db upgrade"):
        ax.activity.list(session, metadata_filter={"tenant": "acme"})
