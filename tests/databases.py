"""Fresh databases for the tests: a file for SQLite, one database per test process on PostgreSQL and MariaDB.

The servers are named by AGENTEXEC_TEST_POSTGRES and AGENTEXEC_TEST_MYSQL (SQLAlchemy URLs of a user that may create
databases). A server that does not answer skips its tests, or fails them where AGENTEXEC_TEST_REQUIRE_SERVERS=1.
"""

import os
import platform
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

KINDS = ("sqlite", "postgres", "mariadb")
ASYNC_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgres": "postgresql+asyncpg", "mariadb": "mysql+aiomysql"}
SERVER_URLS = {
    "postgres": ("AGENTEXEC_TEST_POSTGRES", "postgresql+psycopg://root@127.0.0.1:5432/test"),
    "mariadb": ("AGENTEXEC_TEST_MYSQL", "mysql+pymysql://root@127.0.0.1:3306/test"),
}
LIST_DATABASES = {
    "postgres": "SELECT datname FROM pg_database",
    "mariadb": "SELECT schema_name FROM information_schema.schemata",
}
LIST_SESSIONS = {
    "postgres": "SELECT pid FROM pg_stat_activity WHERE datname = :name AND pid <> pg_backend_pid()",
    "mariadb": "SELECT id FROM information_schema.processlist WHERE db = :name AND id <> connection_id()",
}
END_SESSION = {"postgres": "SELECT pg_terminate_backend(:id)", "mariadb": "KILL :id"}

_HOST = re.sub(r"[^a-z0-9]", "", platform.node().lower())[:20]
_PREFIX = f"agentexec_test_{_HOST}_"


@dataclass(frozen=True, slots=True)
class Database:
    """An empty database (or one with the tables in it), for one test."""

    kind: str
    url: str
    engine: Engine

    @property
    def async_url(self) -> str:
        """The same database for an `AsyncEngine`."""
        return make_url(self.url).set(drivername=ASYNC_DRIVERS[self.kind]).render_as_string(hide_password=False)


class Server:
    """One database of our own on a server, emptied before each test."""

    def __init__(self, kind: str, admin_url: URL) -> None:
        self.kind = kind
        self.name = f"{_PREFIX}{os.getpid()}"
        self.url = admin_url.set(database=self.name)
        self._admin = create_engine(
            admin_url, isolation_level="AUTOCOMMIT", poolclass=NullPool, connect_args={"connect_timeout": 3}
        )
        with self._admin.connect() as connection:
            for abandoned in self._abandoned(connection):
                with suppress(DBAPIError):  # another test process drops it at the same time
                    self._drop(connection, abandoned)

    def reset(self) -> None:
        """Start anew: nothing of an earlier test is left, neither tables nor settings nor sessions that hold locks."""
        with self._admin.connect() as connection:
            if self.kind == "postgres" and self.name in self._databases(connection):
                self._end_sessions(connection, self.name)
                connection.execute(text(f"ALTER DATABASE {self.name} RESET ALL"))
                self._empty()
            else:
                self._drop(connection, self.name)
                connection.execute(text(f"CREATE DATABASE {self.name}"))

    def _empty(self) -> None:
        # A new schema takes 5 ms, a new PostgreSQL database 85 ms.
        own = create_engine(self.url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with own.connect() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
            connection.execute(text("GRANT USAGE ON SCHEMA public TO PUBLIC"))  # As in a new database.

    def drop(self) -> None:
        with self._admin.connect() as connection:
            self._drop(connection, self.name)

    def _drop(self, connection: Connection, name: str) -> None:
        self._end_sessions(connection, name)
        force = " WITH (FORCE)" if self.kind == "postgres" else ""
        connection.execute(text(f"DROP DATABASE IF EXISTS {name}{force}"))

    def _end_sessions(self, connection: Connection, name: str) -> None:
        for (session_id,) in connection.execute(text(LIST_SESSIONS[self.kind]), {"name": name}).all():
            try:
                connection.execute(text(END_SESSION[self.kind]), {"id": session_id})
            except DBAPIError as gone:  # it may end by itself in between
                if "Unknown thread id" not in str(gone):
                    raise

    def _databases(self, connection: Connection) -> list[str]:
        return [str(name) for (name,) in connection.execute(text(LIST_DATABASES[self.kind])).all()]

    def _abandoned(self, connection: Connection) -> Iterator[str]:
        """Databases of this machine's test processes that were killed before they could drop them."""
        for name in self._databases(connection):
            pid = name.removeprefix(_PREFIX)
            if name.startswith(_PREFIX) and pid.isdigit() and not _alive(int(pid)):
                yield name


class Servers:
    """The servers that the tests found, each asked once."""

    def __init__(self) -> None:
        self._found: dict[str, Server | str] = {}

    def get(self, kind: str) -> Server:
        """The server; skips the running test, or fails it where servers are required, when there is none."""
        if kind not in self._found:
            self._found[kind] = self._connect(kind)
        found = self._found[kind]
        if isinstance(found, Server):
            return found
        if os.environ.get("AGENTEXEC_TEST_REQUIRE_SERVERS") == "1":
            pytest.fail(found, pytrace=False)
        pytest.skip(found)

    def close(self) -> None:
        for server in self._found.values():
            if isinstance(server, Server):
                server.drop()

    def _connect(self, kind: str) -> Server | str:
        variable, default = SERVER_URLS[kind]
        url = make_url(os.environ.get(variable, default))
        try:
            return Server(kind, url)
        except DBAPIError as error:
            reason = str(error.orig).strip().splitlines()[0]
            return f"{kind} does not answer at {url} ({variable}): {reason}"


@contextmanager
def open_database(kind: str, servers: Servers, folder: Path) -> Generator[Database, None, None]:
    """An empty database of that kind; its engine is disposed of at the end."""
    if kind == "sqlite":
        url = f"sqlite:///{folder / 'test.db'}"
    else:
        server = servers.get(kind)
        server.reset()
        url = server.url.render_as_string(hide_password=False)
    engine = create_engine(url)
    try:
        yield Database(kind, url, engine)
    finally:
        engine.dispose()


def create_tables(database: Database) -> None:
    """Our tables, in an empty database."""
    import agentexec_otel as ax

    if database.kind == "sqlite":
        # One write: each statement by itself waits for the disk, which makes 0.1 s of a new file.
        Path(str(database.engine.url.database)).write_bytes(_sqlite_file(tuple(ax.CONF.indexed_metadata)))
    else:
        ax.Base.metadata.create_all(database.engine)


@cache
def _sqlite_file(_indexed: tuple[str, ...]) -> bytes:
    import agentexec_otel as ax

    engine = create_engine("sqlite://")  # in memory: one connection
    ax.Base.metadata.create_all(engine)
    with engine.connect() as connection:
        driver: Any = connection.connection.dbapi_connection
        content: bytes = driver.serialize()
    engine.dispose()
    return content


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
