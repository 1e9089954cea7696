"""The three databases for the conformance suite, and two long-lived processes beside the test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, delete, inspect, text
from sqlalchemy.exc import DBAPIError

import agentexec_otel as ax
from agentexec_otel.activity.models import Activity, ActivityLog
from agentexec_otel_exporters.sql import SQLExporter
from tests.conftest import reset_runtime
from tests.databases import END_SESSION, KINDS, LIST_SESSIONS, Database, Servers, create_tables, open_database
from tests.sql.processes import Peer, shared_peers


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Iterator[Database]:
    """Our tables, empty, once each on SQLite, PostgreSQL and MariaDB.

    The tables of the test before are emptied where they are still there: making them anew takes MariaDB 0.3 s.
    """
    emptied = _emptied(request.param, servers)
    if emptied is not None:
        yield emptied
        reset_runtime()
        emptied.engine.dispose()
        return
    with open_database(request.param, servers, tmp_path) as opened:
        create_tables(opened)
        yield opened
        reset_runtime()


def _emptied(kind: str, servers: Servers) -> Database | None:
    if kind == "sqlite":
        return None
    url = servers.get(kind).url
    engine = create_engine(url)
    try:
        present = set(inspect(engine).get_table_names())
    except DBAPIError:  # the database itself comes with the first test
        present = set[str]()
    if not present >= set(ax.Base.metadata.tables):
        engine.dispose()
        return None
    with engine.begin() as connection:
        # A test that failed may have left a transaction open, and its locks.
        for (session_id,) in connection.execute(text(LIST_SESSIONS[kind]), {"name": url.database}).all():
            connection.execute(text(END_SESSION[kind]), {"id": session_id})
        connection.execute(delete(ActivityLog))
        connection.execute(delete(Activity))
    return Database(kind, url.render_as_string(hide_password=False), engine)


@pytest.fixture
def exporter(database: Database) -> Iterator[SQLExporter]:
    """An exporter of the test's own database, shut down behind it."""
    made = SQLExporter(database.url)
    yield made
    made.shutdown(1.0)


@pytest.fixture(scope="session")
def peers(pytestconfig: pytest.Config) -> tuple[Peer, Peer]:
    """Two other processes that have imported the SDK; each test configures them anew."""
    return shared_peers(pytestconfig)


@pytest.fixture(params=KINDS)
def empty(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Iterator[Engine]:
    """An engine on a database without tables; what a test makes under their names is gone behind it."""
    with open_database(request.param, servers, tmp_path) as opened:
        yield opened.engine
        reset_runtime()
        ax.Base.metadata.drop_all(opened.engine)
