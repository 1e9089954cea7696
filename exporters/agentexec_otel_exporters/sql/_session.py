"""What is set on each connection of the writer's own engine."""

from __future__ import annotations

import logging
import random
import sqlite3
import time
from collections.abc import Callable
from typing import Any, Final, cast

from sqlalchemy import Connection, Engine, event
from sqlalchemy.pool import ConnectionPoolEntry

from agentexec_otel._config import CONF

_logger = logging.getLogger("agentexec_otel.export")

READ_ONLY: Final = {"agentexec_read_only": True}
"""Execution option of a connection that will not write, so that SQLite takes no write lock for it."""

# A session that dies silently must not keep row locks: others wait for them.
_POSTGRESQL: Final = (
    "SET datestyle = 'ISO'",  # psycopg reads no other
    "SET client_encoding = 'UTF8'",  # nor writes every text in another
    "SET lock_timeout = '3s'",
    "SET statement_timeout = '5s'",
    "SET idle_in_transaction_session_timeout = '5s'",
    # A session that waits for the rest of a pipeline is not idle: only its network tells that nobody is there.
    "SET tcp_keepalives_idle = 5",
    "SET tcp_keepalives_interval = 2",
    "SET tcp_keepalives_count = 3",
)
_POSTGRESQL_17: Final = (*_POSTGRESQL, "SET transaction_timeout = '10s'")
_MYSQL: Final = ("SET SESSION innodb_lock_wait_timeout = 3",)
_MARIADB: Final = (
    *_MYSQL,
    "SET SESSION max_statement_time = 5",
    # Not only for those that have written: SELECT … FOR UPDATE locks as well. A half-sent statement is not idle.
    "SET SESSION idle_transaction_timeout = 5",
    "SET SESSION net_read_timeout = 5",
)

_PATIENT: Final = 5_000  # milliseconds
_BUSY_TIMEOUT: Final = "agentexec_busy_timeout"  # what is known of a pooled connection
_WAL: Final = "agentexec_wal"
_BEGIN: Final = "BEGIN IMMEDIATE"
_TO_WAL: Final = "PRAGMA journal_mode = WAL"
_QUICK_TRIES: Final = 400


def prepare_connections(engine: Engine) -> None:
    """Have every new connection of this engine guarded, and SQLite ready for several writers."""
    event.listen(engine, "connect", _ON_CONNECT[engine.dialect.name])
    for noisy in (f"sqlalchemy.pool.impl.{type(engine.pool).__name__}", "psycopg"):
        logging.getLogger(noisy).addFilter(_not_from_writer)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "begin", _sqlite_begin)


def _not_from_writer(record: logging.LogRecord) -> bool:
    """Drop what drivers and pools say, with tracebacks, of each connection that breaks: the writer says it once."""
    return record.threadName != "agentexec-writer"


def _postgresql_connect(connection: Any, record: ConnectionPoolEntry) -> None:
    _run(connection, _POSTGRESQL_17 if connection.info.server_version >= 170_000 else _POSTGRESQL)


def _mysql_connect(connection: Any, record: ConnectionPoolEntry) -> None:
    version = str(getattr(connection, "server_version", ""))
    _run(connection, _MARIADB if "MariaDB" in version else _MYSQL)


def _run(connection: Any, statements: tuple[str, ...]) -> None:
    cursor = connection.cursor()
    for statement in statements:
        cursor.execute(statement)
    cursor.close()
    connection.commit()


def _sqlite_connect(connection: Any, record: ConnectionPoolEntry) -> None:
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {_PATIENT}").close()
    record.info[_BUSY_TIMEOUT] = _PATIENT
    if CONF.sqlite_wal:
        mode = _switch_to_wal(connection)
        record.info[_WAL] = mode == "wal"
        if mode == "wal":
            connection.execute("PRAGMA synchronous = NORMAL").close()
        else:
            _logger.warning("SQLite stays in journal mode %s: it has no WAL there, and several writers are slow", mode)


def _switch_to_wal(connection: Any) -> str:
    """The journal mode that SQLite is in then. Where several processes set up a new file it does not always wait."""
    connection.execute("PRAGMA busy_timeout = 0").close()
    cursor = _when_free(connection, _TO_WAL)
    found = cursor and cursor.fetchone()
    connection.execute(f"PRAGMA busy_timeout = {_PATIENT}").close()
    (mode,) = found or connection.execute(_TO_WAL).fetchone()
    return str(mode)


def _sqlite_begin(connection: Connection) -> None:
    if connection.get_execution_options().keys() >= READ_ONLY.keys():
        _set_busy_timeout(connection, _PATIENT)
        connection.exec_driver_sql("BEGIN")
        return
    # A deferred transaction that reads first and then writes fails at once beside another writer. And SQLite's own
    # waiting sleeps for up to 100 ms at a time, whose lot is bad luck among several writers: we look more often first.
    _set_busy_timeout(connection, 0)
    begun = _when_free(connection.connection.dbapi_connection, _BEGIN) is not None
    # In WAL mode nothing has to wait any more; otherwise COMMIT does, for those who read.
    if not begun or not connection.info.get(_WAL):
        _set_busy_timeout(connection, _PATIENT)
    if not begun:
        connection.exec_driver_sql(_BEGIN)


def _set_busy_timeout(connection: Connection, milliseconds: int) -> None:
    if connection.info[_BUSY_TIMEOUT] != milliseconds:
        driver: Any = connection.connection.dbapi_connection
        driver.execute(f"PRAGMA busy_timeout = {milliseconds}").close()
        connection.info[_BUSY_TIMEOUT] = milliseconds


def _when_free(driver: Any, statement: str) -> sqlite3.Cursor | None:
    """Execute it, again and again while others are in the way; None where it fails, for who tries once more to name."""
    for _ in range(_QUICK_TRIES):
        try:
            return cast("sqlite3.Cursor", driver.execute(statement))
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                return None
            time.sleep(random.uniform(0.0005, 0.004))  # noqa: S311
    return None


_ON_CONNECT: Final[dict[str, Callable[[Any, ConnectionPoolEntry], None]]] = {
    "postgresql": _postgresql_connect,
    "mysql": _mysql_connect,
    "mariadb": _mysql_connect,
    "sqlite": _sqlite_connect,
}
