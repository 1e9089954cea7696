"""Limits that a server keeps on the writer's sessions, so that a session that breaks does not keep row locks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, suppress
from typing import Any, Final

from sqlalchemy import Engine, event
from sqlalchemy.pool import ConnectionPoolEntry

_POSTGRESQL: Final = (
    "SET datestyle = 'ISO'",  # psycopg parses no other
    "SET client_encoding = 'UTF8'",  # others cannot encode every text
    "SET lock_timeout = '3s'",
    "SET statement_timeout = '5s'",
    "SET idle_in_transaction_session_timeout = '5s'",
    # A session that waits for the rest of a pipeline is not idle; keepalives end it if the writer's host is gone.
    "SET tcp_keepalives_idle = 5",
    "SET tcp_keepalives_interval = 2",
    "SET tcp_keepalives_count = 3",
)
_POSTGRESQL_17: Final = (*_POSTGRESQL, "SET transaction_timeout = '10s'")
_MYSQL: Final = ("SET SESSION innodb_lock_wait_timeout = 3",)
_MARIADB: Final = (
    *_MYSQL,
    "SET SESSION max_statement_time = 5",
    # Not idle_write_transaction_timeout: SELECT … FOR UPDATE locks as well. A half-sent statement is not idle.
    "SET SESSION idle_transaction_timeout = 5",
    "SET SESSION net_read_timeout = 5",
)


def guard_sessions(engine: Engine) -> None:
    """Set the limits on each new connection of this engine."""

    def connected(connection: Any, record: ConnectionPoolEntry) -> None:
        with closing(connection.cursor()) as cursor:
            for statement in _limits(engine.dialect):
                cursor.execute(statement)
        connection.commit()

    event.listen(engine, "connect", connected)


def _limits(dialect: Any) -> Sequence[str]:
    if dialect.name == "postgresql":
        return _POSTGRESQL_17 if dialect.server_version_info >= (17,) else _POSTGRESQL
    return _MARIADB if dialect.is_mariadb else _MYSQL


_SESSION: Final = (
    "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid() AND pid = %s"
    # With a connection pooler the session is shared, and has another pid than the driver knows.
)
_TERMINATE: Final = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %s AND backend_start = %s"
_KEY: Final = "agentexec_session"


class StaleSessions:
    """Ends sessions whose connection broke, with the help of the next connection.

    PostgreSQL up to 16 has no limit for a session that waits for the rest of a pipeline, such as a lost Sync message:
    if only our side of the connection is gone, that session keeps its row locks, and the writer waits for itself.
    The simple query protocol has no such gap, but makes batches of 1 to 50 events 1.1x to 1.4x slower.
    """

    def __init__(self) -> None:
        self._stale: list[tuple[int, Any]] = []

    def watch(self, engine: Engine) -> None:
        """Follow the engine's pool, if the database is PostgreSQL."""
        if engine.dialect.name != "postgresql":
            return
        error = engine.dialect.loaded_dbapi.Error

        def connected(connection: Any, record: ConnectionPoolEntry) -> None:
            # A server that is only compatible may have no such view.
            with suppress(error), closing(connection.cursor()) as cursor:
                while self._stale:
                    cursor.execute(_TERMINATE, self._stale.pop())
                cursor.execute(_SESSION, (connection.info.backend_pid,))
                record.info[_KEY] = cursor.fetchone()
            connection.rollback()

        def invalidated(connection: Any, record: ConnectionPoolEntry, exception: BaseException | None) -> None:
            if (session := record.info.pop(_KEY, None)) is not None:
                self._stale.append(session)

        event.listen(engine, "connect", connected)
        event.listen(engine, "invalidate", invalidated)

    def forget(self) -> None:
        """In a forked child: the sessions are the parent's."""
        self._stale.clear()
