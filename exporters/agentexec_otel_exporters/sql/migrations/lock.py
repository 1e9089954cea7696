"""One upgrade at a time: the others wait for their turn."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from hashlib import sha256
from typing import Any, Final

from sqlalchemy import Connection, text

from agentexec_otel.activity.models import Activity

_logger = logging.getLogger("agentexec_otel.db")

_INTERVAL: Final = 0.2
_DIGEST: Final = sha256(f"agentexec-otel migrations of {Activity.__tablename__}".encode())
# The names of locks of MySQL are those of a server, not of a database, and have at most 64 characters.
_NAME: Final = "CONCAT(:key, MD5(DATABASE()))"
_MYSQL: Final = (f"SELECT GET_LOCK({_NAME}, 0)", f"SELECT RELEASE_LOCK({_NAME})", _DIGEST.hexdigest()[:20])
_LOCKS: Final[dict[str, tuple[str, str, int | str]]] = {
    "postgresql": (
        "SELECT pg_try_advisory_lock(:key)",
        "SELECT pg_advisory_unlock(:key)",
        int.from_bytes(_DIGEST.digest()[:8], "big", signed=True),
    ),
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
}
"""How to take and release the lock, and its key."""
_BUSY_TIMEOUT: Final = 600_000
"""Milliseconds for which an upgrade of a SQLite file waits for another one."""


def exclusively(connection: Connection) -> AbstractContextManager[None]:
    """Hold the lock of the migrations of these tables. On SQLite it is a transaction, which is committed at the end."""
    name = connection.dialect.name
    return _sqlite(connection) if name == "sqlite" else _polled(connection, *_LOCKS[name])


# Polled: a session that waits for a lock of PostgreSQL would hold up CREATE INDEX CONCURRENTLY, and be waited for.
@contextmanager
def _polled(connection: Connection, lock: str, unlock: str, key: int | str) -> Generator[None]:
    connection.execution_options(isolation_level="AUTOCOMMIT")
    waiting = False
    while not connection.scalar(text(lock), {"key": key}):
        if not waiting:
            waiting = True
            _logger.warning("another process migrates the tables: waiting for it")
        time.sleep(_INTERVAL)
    connection.commit()
    connection.execution_options(isolation_level="READ COMMITTED")
    try:
        yield
    finally:
        if not connection.invalidated:
            connection.rollback()
            connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.execute(text(unlock), {"key": key})


@contextmanager
def _sqlite(connection: Connection) -> Generator[None]:
    driver: Any = connection.connection.dbapi_connection
    settings = {name: driver.execute(f"PRAGMA {name}").fetchone()[0] for name in _SQLITE}
    try:
        with connection.begin():
            driver.rollback()  # The application's engine may begin transactions itself. Pragmas need to be out of one.
            _set(driver, _SQLITE)
            driver.execute("BEGIN IMMEDIATE")
            yield
    finally:
        _set(driver, settings)


# A table is renamed and replaced, so that what refers to it has to keep its name, and must not be deleted with it.
_SQLITE: Final = {"busy_timeout": _BUSY_TIMEOUT, "foreign_keys": 0, "legacy_alter_table": 1}


def _set(driver: Any, settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        driver.execute(f"PRAGMA {name} = {value}").close()
