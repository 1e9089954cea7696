"""The writer's own synchronous engine, derived from the application's URL or engine."""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import URL, Dialect, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.pool import ConnectionPoolEntry, Pool, SingletonThreadPool, StaticPool

from agentexec_otel._errors import ConfigurationError, MissingExtraError
from agentexec_otel._model.text import describe, describe_url
from agentexec_otel_exporters.sql.connect.session import guard_sessions
from agentexec_otel_exporters.sql.connect.sqlite import prepare_sqlite
from agentexec_otel_exporters.sql.connect.watchdog import DEADLINE

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

_DRIVERS: Final = {"postgresql": "psycopg", "sqlite": "pysqlite", "mysql": "pymysql", "mariadb": "pymysql"}
"""The synchronous driver to use, by database."""
_REPLACED: Final = frozenset(("", "asyncpg", "psycopg_async", "aiosqlite", "aiomysql", "asyncmy"))
_NEEDS: Final = {"psycopg": ("psycopg", "postgres"), "pymysql": ("PyMySQL", "mysql")}
"""Package and extra of each driver that is not part of Python."""

_ASYNCPG_ONLY: Final = frozenset(
    ("async_fallback", "command_timeout", "max_cacheable_statement_size", "max_cached_statement_lifetime",
     "prepared_statement_cache_size", "prepared_statement_name_func", "server_settings", "statement_cache_size",
     "timeout")
)  # fmt: skip
_SSL_MODES: Final = {"true": "require", "1": "require", "false": "disable", "0": "disable"}
_SECONDS: Final = int(DEADLINE)
_TIMEOUTS: Final[dict[str, dict[str, Any]]] = {
    "psycopg": {"connect_timeout": _SECONDS},
    # PyMySQL's connect_timeout covers the TCP handshake only; its read_timeout covers a server that does not greet.
    "pymysql": {"connect_timeout": _SECONDS, "read_timeout": _SECONDS, "write_timeout": _SECONDS},
}
"""Arguments of a driver's `connect`, in seconds, added if the application does not set them."""


def parse_url(database: str | URL) -> URL:
    """Return the URL with a synchronous driver.

    Raises:
        ConfigurationError: Not a database URL, a database that is not supported, or an in-memory SQLite database, which
            only one thread could see.
        MissingExtraError: The driver is not installed.
    """
    try:
        url = make_url(database)
    except (ArgumentError, ValueError):
        raise ConfigurationError(
            f"{describe_url(str(database))} is no database URL: write it like postgresql+psycopg://user@host/name or sqlite:///file.db"
        ) from None
    if url.drivername == "postgresql+asyncpg":
        url = url.set(query=_for_psycopg(url.query))
    backend, _, driver = url.drivername.partition("+")
    if backend not in _DRIVERS:
        hint = "write postgresql://" if backend == "postgres" else "use PostgreSQL, MySQL, MariaDB or SQLite"
        raise ConfigurationError(f"{backend!r} is not supported: {hint}")
    if driver in _REPLACED:
        driver = _DRIVERS[backend]
        url = url.set(drivername=f"{backend}+{driver}")
    if backend == "sqlite" and _in_memory(url):
        raise ConfigurationError(
            "an in-memory SQLite database cannot be shared between threads by its URL: use a file, or hand in an engine"
            " made with poolclass=StaticPool"
        )
    if driver in _NEEDS and importlib.util.find_spec(driver) is None:
        raise MissingExtraError(f"storing activities on {backend}", *_NEEDS[driver])
    return url


def _for_psycopg(query: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the arguments of asyncpg for psycopg. Encryption is kept."""
    kept = {name: value for name, value in query.items() if name not in _ASYNCPG_ONLY}
    if (ssl := kept.pop("ssl", None)) is not None:
        kept["sslmode"] = _SSL_MODES.get(str(ssl).lower(), ssl)
    return kept


def writer_engine(database: str | URL | Engine | AsyncEngine) -> tuple[Engine, bool]:
    """Return an engine for the writer, and whether the writer owns and disposes of it.

    A given engine lends its connection settings, never its connections: its pool may be exhausted, and its transactions
    belong to the application. An in-memory SQLite engine is the exception: it is used as it is.
    """
    if isinstance(database, str | URL):
        return _own(parse_url(database)), True
    url: object = getattr(database, "url", None)
    if not isinstance(url, URL):
        raise ConfigurationError(f"{describe(database)} is no database: hand in its URL or a SQLAlchemy engine")
    if None in (database.get_execution_options().get("schema_translate_map") or {}):
        raise ConfigurationError(
            "this engine has a schema_translate_map, which the writer does not follow: name the schema in the database"
            " URL instead, on PostgreSQL with ?options=-csearch_path%3Dname"
        )
    if not isinstance(database, Engine):
        return _own(parse_url(url)), True
    if isinstance(database.pool, StaticPool):
        return database, False
    if isinstance(database.pool, SingletonThreadPool):
        raise ConfigurationError(
            "this in-memory SQLite engine gives every thread a database of its own: make it with poolclass=StaticPool"
            " and connect_args={'check_same_thread': False}"
        )
    return _own(database.url, _lent(database)), True


def _own(url: URL, pool: Pool | None = None) -> Engine:
    arguments: dict[str, Any] = {"pool_size": 1, "max_overflow": 1, "connect_args": connect_arguments(url)}
    if pool is not None:
        arguments = {"pool": pool}
    if url.get_backend_name() != "sqlite":
        # Whatever the application uses: AUTOCOMMIT keeps no lock, SERIALIZABLE refuses what our locks allow, and gap
        # locks of MySQL's REPEATABLE READ make concurrent inserts of new activities deadlock.
        arguments["isolation_level"] = "READ COMMITTED"
    engine = new_engine(url, arguments)
    _quieten(engine)
    if engine.dialect.name == "sqlite":
        prepare_sqlite(engine)
    else:
        guard_sessions(engine)
    return engine


def new_engine(url: URL, arguments: dict[str, Any]) -> Engine:
    """As SQLAlchemy's `create_engine`. Raises ConfigurationError if the driver is not known or not installed."""
    try:
        return create_engine(url, hide_parameters=True, **arguments)
    except NoSuchModuleError:
        raise ConfigurationError(f"SQLAlchemy knows no driver {url.drivername!r}: {_drivers(url)}") from None
    except ModuleNotFoundError as exc:
        raise ConfigurationError(f"the driver {exc.name} is not installed: install it, or {_drivers(url)}") from None


def _drivers(url: URL) -> str:
    backend = url.get_backend_name()
    return f"write {backend}+{_DRIVERS[backend]}://, and leave the rest of the URL as it is"


def connect_arguments(url: URL) -> dict[str, Any]:
    """The writer's time-outs as arguments of the driver's `connect`, unless the URL has its own."""
    timeouts = _TIMEOUTS.get(url.get_driver_name(), {})
    return {name: value for name, value in timeouts.items() if name not in url.query}


def _lent(engine: Engine) -> Pool:
    """Return a pool that connects as the application's engine does, with timeouts."""
    # The arguments of an engine's `connect` are public in this event only.
    event.listen(engine.dialect, "do_connect", _connect_in_time)
    return engine.pool.recreate()


_this_thread: Final = threading.local()


@contextmanager
def connecting() -> Generator[None]:
    """Mark that this thread connects for the writer: a lent engine's connections get timeouts meanwhile."""
    _this_thread.connecting = True
    try:
        yield
    finally:
        _this_thread.connecting = False


def _connect_in_time(dialect: Dialect, record: ConnectionPoolEntry, cargs: Any, cparams: dict[str, Any]) -> Any:
    """Connect with timeouts, if the writer does; None lets the application's engine connect as always."""
    if not getattr(_this_thread, "connecting", False):
        return None
    return dialect.connect(*cargs, **(_TIMEOUTS.get(dialect.driver, {}) | cparams))


def _quieten(engine: Engine) -> None:
    """Suppress what pool and driver log, with tracebacks, of each broken connection: the writer reports it once."""
    for noisy in (f"sqlalchemy.pool.impl.{type(engine.pool).__name__}", "psycopg"):
        logging.getLogger(noisy).addFilter(_not_from_writer)


def _not_from_writer(record: logging.LogRecord) -> bool:
    return record.threadName != "agentexec-writer"


def _in_memory(url: URL) -> bool:
    return not url.database or ":memory:" in url.database or "mode=memory" in url.render_as_string()
