"""Schema 2, before the deployment: columns that programs of schema 1 leave empty."""

from typing import Any

from alembic import op
from sqlalchemy import JSON, BigInteger, Column, Numeric, String, inspect
from sqlalchemy.types import TypeEngine

from agentexec_otel.activity.models import UtcDateTime, constraint_name
from agentexec_otel_exporters.sql.migrations.indexes import index_names
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
_INDEXES = {
    constraint_name(f"ix_{ACTIVITY.name}_agent_type"): ["agent_type", "created_at", "id"],
    constraint_name(f"ix_{ACTIVITY.name}_status_created_at"): ["status", "created_at", "id"],
}
_REPLACED = constraint_name(f"ix_{ACTIVITY.name}_status")
"""An index of schema 1, of which `status_created_at` is the longer form."""


def upgrade() -> None:
    """Add the columns and indexes that are missing. `create_all()` may have made the tables of later models."""
    as_sql = op.get_context().as_sql
    if op.get_context().dialect.name == "postgresql":
        op.execute("SET LOCAL lock_timeout = '10s'")  # All writers wait behind an ALTER TABLE that waits for a reader.
    present = set[str]() if as_sql else _present()
    for name, kind in _COLUMNS.items():
        if name not in present:
            op.add_column(ACTIVITY.name, Column(name, kind))
    with short_transactions():
        if not as_sql:
            _create_missing_indexes()
        _create_indexes(_INDEXES, [_REPLACED])


def downgrade() -> None:
    """Drop the columns, and the indexes of schema 2."""
    present = set(_COLUMNS) if op.get_context().as_sql else _present()
    for name in reversed(_COLUMNS):
        if name in present:
            op.drop_column(ACTIVITY.name, name)
    with short_transactions():
        _create_indexes({_REPLACED: ["status"]}, list(_INDEXES))


def _present() -> set[str]:
    return {column["name"] for column in inspect(op.get_bind()).get_columns(ACTIVITY.name)}


def _create_indexes(names: dict[str, list[str]], instead_of: list[str]) -> None:
    found = dict.fromkeys(instead_of, True) if op.get_context().as_sql else index_names(op.get_bind(), ACTIVITY.name)
    for name, columns in names.items():
        _create_index(name, ACTIVITY.name, columns, found)
    for name in filter(found.__contains__, instead_of):
        op.drop_index(name, ACTIVITY.name, postgresql_concurrently=True)


def _create_missing_indexes() -> None:
    """Make the indexes of schema 1 that are missing, or that a killed CREATE INDEX CONCURRENTLY has left broken."""
    for table in METADATA.sorted_tables:
        found = index_names(op.get_bind(), table.name)
        for index in table.indexes:
            if index.name != _REPLACED:
                _create_index(
                    str(index.name), table.name, [column.name for column in index.columns], found, bool(index.unique)
                )


def _create_index(name: str, table: str, columns: list[str], found: dict[str, bool], unique: bool = False) -> None:
    if found.get(name):
        return
    if name in found:
        op.drop_index(name, table, postgresql_concurrently=True)
    op.create_index(name, table, columns, unique=unique, postgresql_concurrently=True)
