"""Fresh databases for the benchmarks: a SQLite file, and a database of our own on the PostgreSQL server.

The server is named by AGENTEXEC_TEST_POSTGRES (a SQLAlchemy URL of a user that may create databases). Where it does not
answer, its figures are left out.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import psycopg
from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.pool import NullPool

import agentexec_otel as ax
from agentexec_otel.activity.models import Activity, ActivityLog, Base
from benchmarks._drivers import connect

SERVER: Final = os.environ.get("AGENTEXEC_TEST_POSTGRES", "postgresql+psycopg://root@127.0.0.1:5432/test")
ACTIVITY: Final = Activity.__tablename__
LOG: Final = ActivityLog.__tablename__


@dataclass(frozen=True, slots=True)
class Database:
    """An empty database; `kind` is ``sqlite`` or ``postgres``."""

    kind: str
    url: str

    @property
    def title(self) -> str:
        """The product's name."""
        return {"sqlite": "SQLite", "postgres": "PostgreSQL"}[self.kind]

    @property
    def dsn(self) -> str:
        """What the raw driver connects to."""
        return make_url(self.url).database or "" if self.kind == "sqlite" else _conninfo(self.url)

    def engine(self) -> Engine:
        """What an application would query through; it pools its connections."""
        return create_engine(self.url)

    def connect(self) -> Any:
        """A raw driver connection: psycopg's or sqlite3's."""
        return connect(self.kind, self.dsn, wal=ax.CONF.sqlite_wal)

    def sql(self, statement: str) -> str:
        """A statement written with ``?``, as the driver wants it."""
        return statement if self.kind == "sqlite" else statement.replace("?", "%s")

    def value(self, value: object) -> object:
        """A value as the raw driver stores it in our column types."""
        if self.kind == "sqlite" and isinstance(value, UUID):
            return value.hex
        if self.kind == "sqlite" and isinstance(value, datetime):
            return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
        return value

    def reset(self) -> None:
        """Our two tables, new and empty."""
        engine = create_engine(self.url, poolclass=NullPool)
        Base.metadata.drop_all(engine)
        Base.metadata.create_all(engine)

    def load(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[object]], batch: int = 0) -> None:
        """Load rows the fastest way the driver has; `batch` rows per transaction, all in one where it is 0."""
        with closing(self.connect()) as connection:
            for part in _parts(rows, batch):
                self.load_in(connection, table, columns, part)
                connection.commit()

    def load_in(self, connection: Any, table: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """As `load`, inside the caller's transaction."""
        names = ", ".join(columns)
        if self.kind == "sqlite":
            places = ", ".join("?" * len(columns))
            connection.execute("PRAGMA cache_size = -2000000")  # 2 GB: pages of large indexes are written once
            connection.executemany(f"INSERT INTO {table} ({names}) VALUES ({places})", rows)
            return
        with connection.cursor() as cursor, cursor.copy(f"COPY {table} ({names}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)

    def optimize(self) -> None:
        """What the server's housekeeping would have done by the time somebody queries."""
        if self.kind == "postgres":
            with psycopg.connect(_conninfo(self.url), autocommit=True) as connection:
                connection.execute("VACUUM ANALYZE")

    def version(self) -> str:
        """The product and its version, with what decides how long a commit takes."""
        if self.kind == "sqlite":
            with closing(self.connect()) as connection:
                (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
                (level,) = connection.execute("PRAGMA synchronous").fetchone()
            return f"{sqlite3.sqlite_version}, journal_mode {mode}, synchronous {('OFF', 'NORMAL', 'FULL')[level]}"
        with closing(self.connect()) as connection:
            version = connection.execute("SHOW server_version").fetchone()[0].split()[0]
            synchronous = connection.execute("SHOW synchronous_commit").fetchone()[0]
            fsync = connection.execute("SHOW fsync").fetchone()[0]
        return f"{version}, synchronous_commit {synchronous}, fsync {fsync}"


@contextmanager
def databases(folder: Path) -> Generator[list[Database], None, None]:
    """A database of each kind that is here, dropped at the end."""
    found = [Database("sqlite", f"sqlite:///{folder / 'bench.db'}")]
    name = f"agentexec_bench_{os.getpid()}"
    admin = make_url(SERVER)
    try:
        _administer(f"CREATE DATABASE {name}")
    except psycopg.OperationalError:
        yield found
        return
    url = admin.set(drivername="postgresql+psycopg", database=name)
    try:
        yield [*found, Database("postgres", url.render_as_string(hide_password=False))]
    finally:
        with suppress(psycopg.OperationalError):
            _administer(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def _administer(statement: str) -> None:
    with psycopg.connect(_conninfo(SERVER), autocommit=True, connect_timeout=3) as connection:
        connection.execute(statement.encode())


def _conninfo(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def _parts(rows: Iterable[Sequence[object]], batch: int) -> Iterable[Iterable[Sequence[object]]]:
    if not batch:
        return [rows]
    every = list(rows)
    return [every[start : start + batch] for start in range(0, len(every), batch)]
