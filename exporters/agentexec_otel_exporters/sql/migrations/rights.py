"""The server, and what its user may do with the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from sqlalchemy import URL, Connection, Engine, Executable, delete, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from agentexec_otel._errors import ExportError
from agentexec_otel._model.ids import uuid7
from agentexec_otel.activity._schema_faults import schema_fault
from agentexec_otel.activity.models import Activity, ActivityLog
from agentexec_otel_exporters.sql._errors import classify
from agentexec_otel_exporters.sql.migrations.commands import connecting_to

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

_NAMES: Final = {"postgresql": "PostgreSQL", "mysql": "MySQL", "mariadb": "MariaDB", "sqlite": "SQLite"}


def server(database: str | URL | Engine | AsyncEngine | None = None) -> str:
    """See `ax.db.server`."""
    with connecting_to(database, is_limited=True) as connection:
        dialect = connection.dialect
        name = "mariadb" if getattr(dialect, "is_mariadb", False) else dialect.name
        version = ".".join(str(part) for part in dialect.server_version_info or () if isinstance(part, int))
        return f"{_NAMES[name]} {version}, {dialect.driver}".replace("pysqlite", "sqlite3")


def rights(database: str | URL | Engine | AsyncEngine | None = None) -> dict[str, ExportError | None]:
    """See `ax.db.rights`."""
    with connecting_to(database, is_limited=True) as connection:
        return {name: _refusal(connection, statements) for name, statements in _trials().items()}


def _trials() -> Mapping[str, Sequence[Executable]]:
    """Statements that need the right. Those that change a row find none, and the inserted rows are rolled back."""
    nothing, row = uuid4(), uuid7()
    return {
        "SELECT": [select(table).limit(1) for table in (Activity.__table__, ActivityLog.__table__)],
        "INSERT": [
            insert(Activity).values(id=row, agent_id=uuid4(), agent_type="agentexec-otel doctor"),
            insert(ActivityLog).values(activity_id=row, message="", status="QUEUED", seq=1),
        ],
        "UPDATE": [update(Activity).where(Activity.id == nothing).values(last_seq=1)],
        "DELETE": [
            delete(ActivityLog).where(ActivityLog.activity_id == nothing),
            delete(Activity).where(Activity.id == nothing),
        ],
    }


def _refusal(connection: Connection, statements: Sequence[Executable]) -> ExportError | None:
    try:
        for statement in statements:
            connection.execute(statement)
    except SQLAlchemyError as exc:
        if schema_fault(getattr(exc, "orig", None)) is not None:
            raise
        return classify(exc, connection.engine.url)
    finally:
        connection.rollback()
    return None
