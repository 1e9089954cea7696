"""Schema 2, before the deployment: columns that programs of schema 1 leave empty."""

from typing import Any

from alembic import op
from sqlalchemy import JSON, BigInteger, Column, Numeric, String, inspect, text
from sqlalchemy.engine.reflection import Inspector
from sqlalchemy.types import TypeEngine

from agentexec_otel.activity.models import UtcDateTime
from agentexec_otel_exporters.sql.migrations.operations import short_transactions
from agentexec_otel_exporters.sql.migrations.schema_1 import ACTIVITY, METADATA

revision = "0002"
down_revision = "0001"

_COLUMNS: dict[str, TypeEngine[Any]] = {
    "ended_at": UtcDateTime(),
    "model": String(255),
    "cached_input_tokens": BigInteger(),
    "reasoning_tokens": BigInteger(),
    "cost": Numeric(20, 10),
    "waiting": JSON(none_as_null=True),
    "span_exported_at": UtcDateTime(),
}


def upgrade() -> None:
    """Add the columns and indexes that are missing. `create_all()` may have made the tables of later models."""
    as_sql = op.get_context().as_sql
    if op.get_context().dialect.name == "postgresql":
        op.execute("SET LOCAL lock_timeout = '10s'")  # All writers wait behind an ALTER TABLE that waits for a reader.
    present = set[str]() if as_sql else _present()
    for name, kind in _COLUMNS.items():
        if name not in present:
            op.add_column(ACTIVITY.name, Column(name, kind))
    if not as_sql:
        _create_missing_indexes(inspect(op.get_bind()))


def downgrade() -> None:
    """Drop the columns."""
    present = set(_COLUMNS) if op.get_context().as_sql else _present()
    for name in reversed(_COLUMNS):
        if name in present:
            op.drop_column(ACTIVITY.name, name)


def _present() -> set[str]:
    return {column["name"] for column in inspect(op.get_bind()).get_columns(ACTIVITY.name)}


def _create_missing_indexes(inspector: Inspector) -> None:
    for table in METADATA.sorted_tables:
        broken = _broken_indexes(table.name)
        present = {index["name"] for index in inspector.get_indexes(table.name)} - broken
        missing = [index for index in table.indexes if index.name not in present]
        if missing:
            with short_transactions():
                for index in missing:
                    if index.name in broken:
                        op.drop_index(index.name, postgresql_concurrently=True)
                    columns = [column.name for column in index.columns]
                    op.create_index(index.name, table.name, columns, unique=index.unique, postgresql_concurrently=True)


def _broken_indexes(table: str) -> set[str]:
    """What a CREATE INDEX CONCURRENTLY has left that was interrupted."""
    if op.get_context().dialect.name != "postgresql":
        return set()
    invalid = text(
        "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
        " WHERE i.indrelid = CAST(:name AS regclass) AND NOT i.indisvalid"
    )
    return set(op.get_bind().scalars(invalid, {"name": table}))
