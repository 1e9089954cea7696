"""The indexes that a database has, and those of `AGENTEXEC_INDEXED_METADATA`, which no revision makes.

The setting may change at any time, so that each upgrade makes what is missing. It drops none: another program may name
the key.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import Connection, inspect, text

from agentexec_otel.activity._metadata_indexes import COLUMN_PREFIX, INDEX_PREFIX, MYSQL, metadata_indexes
from agentexec_otel.activity.models import Activity
from agentexec_otel_exporters.sql.migrations.version import UPGRADE

_TABLE: Final = Activity.__tablename__
_MYSQL: Final = (
    "SELECT DISTINCT index_name, 1 FROM information_schema.statistics"
    " WHERE table_schema = DATABASE() AND table_name = :table"
)
_INDEXES: Final = {
    # Reflection would warn of indexes on expressions.
    "sqlite": "SELECT name, 1 FROM sqlite_master WHERE type = 'index' AND tbl_name = :table",
    "postgresql": (
        "SELECT c.relname, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
        " WHERE i.indrelid = to_regclass(:table)"
    ),
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
}


def index_names(connection: Connection, table: str) -> dict[str, bool]:
    """The indexes of a table, and whether each is whole. A killed CREATE INDEX CONCURRENTLY leaves it broken."""
    rows = connection.execute(text(_INDEXES[connection.dialect.name]), {"table": table})
    return {name: bool(valid) for name, valid in rows}


def create_missing_indexes(connection: Connection) -> None:
    """Make the indexes on metadata that are missing or broken; on PostgreSQL without blocking writers."""
    dialect = connection.dialect.name
    with _short_transactions(connection):
        present, columns = index_names(connection, _TABLE), _columns(connection)
        for index in metadata_indexes():
            if present.get(index.name):
                continue
            statements = [] if index.column in columns else index.add_column(dialect)
            if index.name in present:
                statements.append(f"DROP INDEX CONCURRENTLY {index.name}")
            for statement in (*statements, index.create(dialect, concurrently=True)):
                connection.exec_driver_sql(statement)


def drop_indexes(connection: Connection) -> None:
    """Drop all indexes on metadata."""
    dialect = connection.dialect.name
    with _short_transactions(connection):
        for name in filter(_is_on_metadata, index_names(connection, _TABLE)):
            how = "INDEX CONCURRENTLY" if dialect == "postgresql" else "INDEX"
            connection.exec_driver_sql(f"DROP {how} {name}" + (f" ON {_TABLE}" if dialect in MYSQL else ""))
        for column in _columns(connection):
            if column.startswith(COLUMN_PREFIX):
                connection.exec_driver_sql(f"ALTER TABLE {_TABLE} DROP COLUMN {column}")


def index_problems(connection: Connection) -> Iterator[str]:
    """In what the indexes on metadata differ from the setting, one sentence each."""
    present = index_names(connection, _TABLE)
    for index in metadata_indexes():
        if not present.get(index.name):
            fault = "broken" if index.name in present else "missing"
            yield f"the index on the metadata key {index.key!r} is {fault}: {UPGRADE}"
    named = {index.name for index in metadata_indexes()}
    for name in sorted(filter(_is_on_metadata, present.keys() - named)):
        yield f"the index {name} is on a key that AGENTEXEC_INDEXED_METADATA does not name: name it, or drop the index"


def index_statements(dialect: str) -> list[str]:
    """The DDL of all indexes on metadata."""
    return [
        statement
        for index in metadata_indexes()
        for statement in (*index.add_column(dialect), index.create(dialect, concurrently=True))
    ]


@contextmanager
def _short_transactions(connection: Connection) -> Generator[None]:
    """Commit each statement by itself. SQLite has one lock, which the caller holds."""
    if connection.dialect.name == "sqlite":
        yield
        return
    connection.commit()
    connection.execution_options(isolation_level="AUTOCOMMIT")
    yield
    connection.commit()
    connection.execution_options(isolation_level="READ COMMITTED")


def _columns(connection: Connection) -> set[str]:
    return {column["name"] for column in inspect(connection).get_columns(_TABLE)}


def _is_on_metadata(name: str) -> bool:
    return name.startswith(INDEX_PREFIX)
