"""The revision that a database has: one row in a table of ours. Needs no Alembic."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    Column,
    Connection,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    delete,
    insert,
    inspect,
    select,
)

from agentexec_otel._config import CONF
from agentexec_otel.activity.models import Base

SCHEMA_1: Final = "0001"
PRE_DEPLOY: Final = "0002"
"""The last revision that programs of the version before can write to."""
HEAD: Final = "0003"
REVISIONS: Final = (SCHEMA_1, PRE_DEPLOY, HEAD)

UPGRADE: Final = "run agentexec-otel db upgrade, or ax.db.upgrade(engine)"

VERSION_TABLE: Final = f"{CONF.table_prefix}alembic_version"
_VERSION: Final = Table(
    VERSION_TABLE,
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name=f"{VERSION_TABLE}_pkc"),  # as Alembic names it
)


def read_version(connection: Connection) -> str | None:
    """The revision of the tables. None if they do not exist, or were made without one."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.scalars(select(_VERSION.c.version_num)).one_or_none()


def write_version(connection: Connection, revision: str) -> None:
    """State the revision of the tables."""
    _VERSION.create(connection, checkfirst=True)
    connection.execute(delete(_VERSION))
    connection.execute(insert(_VERSION), {"version_num": revision})


def create_missing(connection: Connection) -> None:
    """Create the tables that are missing, and state their revision if they are as the models have them."""
    tables = set(Base.metadata.tables)
    missing = tables - set(inspect(connection).get_table_names())
    Base.metadata.create_all(connection)
    if missing and read_version(connection) is None and _is_current(connection):
        write_version(connection, HEAD)


def _is_current(connection: Connection) -> bool:
    inspector = inspect(connection)
    return all(
        {column["name"] for column in inspector.get_columns(name)} >= set(table.columns.keys())
        for name, table in Base.metadata.tables.items()
    )
