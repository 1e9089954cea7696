"""The commands of `ax.db`."""

from __future__ import annotations

import io
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, cast
from warnings import catch_warnings, simplefilter

from sqlalchemy import URL, Connection, Engine, inspect
from sqlalchemy.exc import SAWarning, SQLAlchemyError
from sqlalchemy.pool import NullPool

from agentexec_otel._config import CONF
from agentexec_otel._errors import ConfigurationError, MissingExtraError
from agentexec_otel.activity.models import Base
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

_SCRIPTS: Final = "agentexec_otel_exporters.sql:migrations"


def upgrade(database: str | URL | Engine | AsyncEngine | None = None, *, pre_deploy: bool = False) -> None:
    """See `ax.db.upgrade`."""
    command = _alembic_command()
    with connecting_to(database) as connection, exclusively(connection):
        found = _known_version(connection)
        if not (pre_deploy and found == HEAD):
            command.upgrade(_config(connection=connection), PRE_DEPLOY if pre_deploy else HEAD)
        create_missing_indexes(connection)


def downgrade(database: str | URL | Engine | AsyncEngine | None = None) -> None:
    """See `ax.db.downgrade`."""
    command = _alembic_command()
    with connecting_to(database) as connection, exclusively(connection):
        if _known_version(connection) is None:
            raise ConfigurationError(f"the tables have no revision to go back from: {UPGRADE}")
        drop_indexes(connection)
        command.downgrade(_config(connection=connection), SCHEMA_1)


def stamp(database: str | URL | Engine | AsyncEngine | None = None, revision: str = HEAD) -> None:
    """See `ax.db.stamp`."""
    if revision not in REVISIONS:
        raise ConfigurationError(f"{revision!r:.40} is no revision: use one of {', '.join(REVISIONS)}")
    with connecting_to(database) as connection, exclusively(connection):
        write_version(connection, revision)
        connection.commit()


def current(database: str | URL | Engine | AsyncEngine | None = None) -> str | None:
    """See `ax.db.current`."""
    with connecting_to(database) as connection:
        return read_version(connection)


def check(database: str | URL | Engine | AsyncEngine | None = None) -> list[str]:
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


def engine(database: str | URL | Engine | AsyncEngine | None = None) -> Engine:
    """See `ax.db.engine`."""
    return database if isinstance(database, Engine) else new_engine(_url(database), {})


def sql(database: str | URL | Engine | AsyncEngine | None = None, *, start: str | None = None) -> str:
    """See `ax.db.sql`."""
    if start is not None and start not in REVISIONS:
        raise ConfigurationError(f"{start!r:.40} is no revision: use one of {', '.join(REVISIONS)}")
    command, written = _alembic_command(), io.StringIO()
    engine, owned = _engine(database)
    try:
        config = _config(dialect=engine.dialect.name)
        config.output_buffer = written
        command.upgrade(config, f"{start or 'base'}:{HEAD}", sql=True)
    finally:
        if owned:
            engine.dispose()
    return written.getvalue() + "".join(f"{one};\n\n" for one in index_statements(engine.dialect.name))


# -- the database --------------------------------------------------------------------------------------------------


@contextmanager
def connecting_to(
    database: str | URL | Engine | AsyncEngine | None, *, is_limited: bool = False
) -> Generator[Connection]:
    """A connection, and the errors of SQLAlchemy as one sentence.

    Args:
        is_limited: With the time-outs of the writer, unless an engine is given. Migrations may take longer.
    """
    engine, owned = _engine(database, is_limited=is_limited)
    try:
        with engine.connect() as connection:
            yield connection
    except SQLAlchemyError as exc:
        raise classify(exc, engine.url) from exc
    finally:
        if owned:
            engine.dispose()


def _engine(database: str | URL | Engine | AsyncEngine | None, *, is_limited: bool = False) -> tuple[Engine, bool]:
    """An engine, and whether it is ours to dispose of."""
    if isinstance(database, Engine):
        return database, False
    url = _url(database)
    limits = connect_arguments(url) if is_limited else {}
    return new_engine(url, {"poolclass": NullPool, "connect_args": limits}), True


def _url(database: str | URL | AsyncEngine | None) -> URL:
    target = CONF.database_url if database is None else database
    if target is None:
        raise ConfigurationError("no database is named: pass an engine or a URL, or set AGENTEXEC_DATABASE_URL")
    return parse_url(target if isinstance(target, str | URL) else target.url)


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
