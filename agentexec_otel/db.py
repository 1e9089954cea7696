"""The database and migrations of its tables, as `ax.db`. Migrations never run implicitly.

Each function takes an engine or a URL; without one it uses ``AGENTEXEC_DATABASE_URL``.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from agentexec_otel._config import CONF
from agentexec_otel._errors import ExportError, MissingExtraError
from agentexec_otel.activity._metadata_indexes import is_on_metadata
from agentexec_otel.activity.models import Base

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    Database = str | URL | Engine | AsyncEngine

__all__ = [
    "check",
    "current",
    "downgrade",
    "engine",
    "include_declared",
    "include_object",
    "rights",
    "server",
    "sql",
    "stamp",
    "upgrade",
]

_GROUP = "agentexec_otel_migrations"


def upgrade(database: Database | None = None, *, pre_deploy: bool = False) -> None:
    """Create the tables, or bring those that are there to this version's schema, with all rows.

    Tables of agentexec and of the documented DDL are adopted. Of several callers one works, the others wait.

    Args:
        pre_deploy: Only what programs of the version before can work with. Upgrade again after the deployment.

    Raises:
        ConfigurationError: The tables are those of a later version, or have something that would be lost.
        MissingExtraError: Alembic is not installed.
        ExportError: The database refuses or does not answer.
    """
    _migrations().upgrade(database, pre_deploy=pre_deploy)


def downgrade(database: Database | None = None) -> None:
    """Go back to schema 1. What schema 2 has added is dropped; activities and logs are kept."""
    _migrations().downgrade(database)


def current(database: Database | None = None) -> str | None:
    """Return the revision of the tables. None if they do not exist or have none, such as those of `create_all()`."""
    return _migrations().current(database)  # type: ignore[no-any-return]


def check(database: Database | None = None) -> list[str]:
    """Return in what the tables differ from this version's models, one sentence each. Empty if they agree."""
    return _migrations().check(database)  # type: ignore[no-any-return]


def engine(database: Database | None = None) -> Engine:
    """Return an engine with a synchronous driver, to query with. It is the caller's to dispose of.

    Takes a database as `ax.configure` does, such as ``postgresql+asyncpg://…``. An `Engine` is returned as it is.

    Raises:
        ConfigurationError: No database is named, or the URL is malformed or names one that is not supported.
        MissingExtraError: The driver is not installed.
    """
    return _migrations().engine(database)  # type: ignore[no-any-return]


def server(database: Database | None = None) -> str:
    """Return the database's name and version, and the driver, such as ``PostgreSQL 17.2, psycopg``.

    Raises:
        ExportError: The database refuses or does not answer within seconds.
    """
    return _migrations().server(database)  # type: ignore[no-any-return]


def rights(database: Database | None = None) -> dict[str, ExportError | None]:
    """Try what storing needs, and return why ``SELECT``, ``INSERT``, ``UPDATE`` and ``DELETE`` are refused, or None.

    Leaves nothing behind: the rows of the trial are rolled back. Without the right to ``DELETE`` activities are stored
    as well: those whose `create()` has raised end as canceled, instead of being removed.

    Raises:
        ExportError: The tables or columns of this version are missing, or the database does not answer.
    """
    return _migrations().rights(database)  # type: ignore[no-any-return]


def stamp(database: Database | None = None, revision: str = "0003") -> None:
    """State that the tables have a revision, and change nothing else."""
    _migrations().stamp(database, revision)


def sql(database: Database | None = None, *, start: str | None = None) -> str:
    """Return the SQL that `upgrade` would run. Does not connect, so that it cannot adopt foreign tables.

    Args:
        start: The revision of the tables. None if there are none.
    """
    return _migrations().sql(database, start=start)  # type: ignore[no-any-return]


def include_object(item: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:
    """Leave our tables out of the migrations of an application: an `include_object` for its Alembic `env.py`."""
    return _table_of(item, name, type_) not in {*Base.metadata.tables, f"{CONF.table_prefix}alembic_version"}


def include_declared(item: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:
    """Leave out the indexes of `AGENTEXEC_INDEXED_METADATA`, which our models do not declare.

    An `include_object` for an application whose own Alembic has our tables in its ``target_metadata``.
    """
    return not is_on_metadata(type_, name, _table_of(item, name, type_))


def _table_of(item: Any, name: str | None, type_: str) -> str | None:
    return name if type_ == "table" else getattr(getattr(item, "table", None), "name", None)


def _migrations() -> Any:
    """Found by their entry point: the core imports no exporter."""
    found = entry_points(group=_GROUP, name="sql")
    if not found:
        raise MissingExtraError("migrating the tables", "agentexec-otel (its exporters)", "all")
    return next(iter(found)).load()
