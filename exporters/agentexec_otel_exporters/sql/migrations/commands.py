"""The commands of `ax.db`."""

from __future__ import annotations

import io
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import uuid4
from warnings import catch_warnings, simplefilter

from sqlalchemy import URL, Connection, Engine, Executable, delete, insert, inspect, select, update
from sqlalchemy.exc import SAWarning, SQLAlchemyError
from sqlalchemy.pool import NullPool

from agentexec_otel._config import CONF
from agentexec_otel._errors import ConfigurationError, ExportError, MissingExtraError
from agentexec_otel._model.ids import uuid7
from agentexec_otel.activity._schema_faults import schema_fault
from agentexec_otel.activity.models import Activity, ActivityLog, Base
from agentexec_otel.db import include_declared
from agentexec_otel_exporters.sql._errors import classify
from agentexec_otel_exporters.sql.connect.engine import connect_arguments, new_engine, parse_url
from agentexec_otel_exporters.sql.migrations.indexes import (
    create_missing_indexes,
    drop_indexes,
    index_problems,
    index_statements,
)
from agentexec_otel_exporters.sql.migrations.lock import exclusively
from agentexec_otel_exporters.sql.migrations.version import (
    HEAD,
    PRE_DEPLOY,
    REVISIONS,
    SCHEMA_1,
    UPGRADE,
    VERSION_TABLE,
    read_version,
    write_version,
)

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy.ext.asyncio import AsyncEngine

    from agentexec_otel.db import Database

_NAMES: Final = {"postgresql": "PostgreSQL", "mysql": "MySQL", "mariadb": "MariaDB", "sqlite": "SQLite"}
_SCRIPTS: Final = "agentexec_otel_exporters.sql:migrations"


def upgrade(database: Database | None = None, *, pre_deploy: bool = False) -> None:
    """See `ax.db.upgrade`."""
    command = _alembic_command()
    with connecting_to(database) as connection, exclusively(connection):
        found = _known_version(connection)
        if not (pre_deploy and found == HEAD):
            command.upgrade(_config(connection=connection), PRE_DEPLOY if pre_deploy else HEAD)
        create_missing_indexes(connection)


def downgrade(database: Database | None = None) -> None:
    """See `ax.db.downgrade`."""
    command = _alembic_command()
    with connecting_to(database) as connection, exclusively(connection):
        if _known_version(connection) is None:
            raise ConfigurationError(f"the tables have no revision to go back from: {UPGRADE}")
        drop_indexes(connection)
        command.downgrade(_config(connection=connection), SCHEMA_1)


def stamp(database: Database | None = None, revision: str = HEAD) -> None:
    """See `ax.db.stamp`."""
    if revision not in REVISIONS:
        raise ConfigurationError(f"{revision!r:.40} is no revision: use one of {', '.join(REVISIONS)}")
    with connecting_to(database) as connection, exclusively(connection):
        write_version(connection, revision)
        connection.commit()


def current(database: Database | None = None) -> str | None:
    """See `ax.db.current`."""
    with connecting_to(database) as connection:
        return read_version(connection)


def check(database: Database | None = None) -> list[str]:
    """See `ax.db.check`."""
    _alembic_command()
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with connecting_to(database) as connection:
        missing = set(Base.metadata.tables) - set(inspect(connection).get_table_names())
        if missing:
            return [f"the table {name} is missing: {UPGRADE}" for name in sorted(missing)]
        found = read_version(connection)
        problems = [] if found == HEAD else [_wrong_version(found)]
        context = MigrationContext.configure(connection, opts=_COMPARED)
        with catch_warnings():
            simplefilter("ignore", SAWarning)  # SQLAlchemy does not reflect indexes on expressions of SQLite.
            differences = compare_metadata(context, Base.metadata)
        return [*problems, *map(_sentence, differences), *index_problems(connection)]


def engine(database: Database | None = None) -> Engine:
    """See `ax.db.engine`."""
    return database if isinstance(database, Engine) else new_engine(_url(database), {})


def sql(database: Database | None = None, *, start: str | None = None) -> str:
    """See `ax.db.sql`."""
    if start is not None and start not in REVISIONS:
        raise ConfigurationError(f"{start!r:.40} is no revision: use one of {', '.join(REVISIONS)}")
    command, written = _alembic_command(), io.StringIO()
    dialect = _engine(database).dialect.name
    config = _config(dialect=dialect)
    config.output_buffer = written
    command.upgrade(config, f"{start or 'base'}:{HEAD}", sql=True)
    return written.getvalue() + "".join(f"{one};\n\n" for one in index_statements(dialect))


def server(database: Database | None = None) -> str:
    """See `ax.db.server`."""
    with connecting_to(database, is_limited=True) as connection:
        dialect = connection.dialect
        name = "mariadb" if getattr(dialect, "is_mariadb", False) else dialect.name
        version = ".".join(str(part) for part in dialect.server_version_info or () if isinstance(part, int))
        return f"{_NAMES[name]} {version}, {dialect.driver}".replace("pysqlite", "sqlite3")


def rights(database: Database | None = None) -> dict[str, ExportError | None]:
    """See `ax.db.rights`."""
    with connecting_to(database, is_limited=True) as connection:
        return {name: _refusal(connection, statements) for name, statements in _trials().items()}


# -- the database --------------------------------------------------------------------------------------------------


@contextmanager
def connecting_to(database: Database | None, *, is_limited: bool = False) -> Generator[Connection]:
    """A connection, and the errors of SQLAlchemy as one sentence.

    Args:
        is_limited: With the time-outs of the writer, unless an engine is given. Migrations may take longer.
    """
    engine = _engine(database, is_limited=is_limited)
    try:
        with engine.connect() as connection:
            yield connection
    except SQLAlchemyError as exc:
        raise classify(exc, engine.url) from exc


def _engine(database: Database | None, *, is_limited: bool = False) -> Engine:
    """The engine that is given, or one that keeps no connection open."""
    if isinstance(database, Engine):
        return database
    url = _url(database)
    limits = connect_arguments(url) if is_limited else {}
    return new_engine(url, {"poolclass": NullPool, "connect_args": limits})


def _url(database: str | URL | AsyncEngine | None) -> URL:
    target = CONF.database_url if database is None else database
    if target is None:
        raise ConfigurationError("no database is named: pass an engine or a URL, or set AGENTEXEC_DATABASE_URL")
    return parse_url(target if isinstance(target, str | URL) else target.url)


# -- the rights of its user --------------------------------------------------------------------------------------------


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


# -- revisions -----------------------------------------------------------------------------------------------------


def _known_version(connection: Connection) -> str | None:
    found = read_version(connection)
    if connection.dialect.name != "sqlite":
        connection.rollback()  # Alembic leaves a transaction that is open to its caller, and commits nothing.
    if found is not None and found not in REVISIONS:
        raise ConfigurationError(_wrong_version(found))
    return found


def _wrong_version(found: str | None) -> str:
    if found is None:
        return f"the tables have no revision: {UPGRADE}"
    if found in REVISIONS:
        return f"the tables have the revision {found}, and this version wants {HEAD}: {UPGRADE}"
    return f"the tables have the revision {found}, of a later version: install that version of agentexec-otel"


def _is_ours(name: str | None, kind: str, parents: Any) -> bool:
    return kind != "table" or name in Base.metadata.tables


_COMPARED: Final[dict[str, Any]] = {
    "compare_type": True,
    "include_name": _is_ours,
    "include_object": include_declared,
    "version_table": VERSION_TABLE,
}


def _sentence(difference: Any) -> str:
    # Changes of a column come in a list.
    parts = cast("tuple[Any, ...]", difference[0] if isinstance(difference, list) else difference)
    kind, *named = [str(getattr(part, "name", None) or part) for part in parts if part is not None]
    return f"{kind.replace('_', ' ')}: {', '.join(named)}"


# -- Alembic -------------------------------------------------------------------------------------------------------


def _alembic_command() -> Any:
    try:
        from alembic import command
    except ModuleNotFoundError as exc:
        if exc.name != "alembic":
            raise
        raise MissingExtraError("migrating the tables", "alembic", "migrations") from None
    return command


def _config(**attributes: Any) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", _SCRIPTS)
    config.attributes.update(attributes)
    return config
