"""The revisions of the tables, and the commands that apply them. Alembic is imported by the commands that need it."""

from agentexec_otel_exporters.sql.migrations.commands import (
    check,
    current,
    downgrade,
    engine,
    rights,
    server,
    sql,
    stamp,
    upgrade,
)

__all__ = ["check", "current", "downgrade", "engine", "rights", "server", "sql", "stamp", "upgrade"]
