"""Sessions on the server whose connections broke under us.

PostgreSQL ends one that is idle in a transaction, but not one that waits for the rest of a pipeline, which is how
psycopg sends many rows: where only our side of the connection is gone, it keeps its locks, and we wait for ourselves.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

from sqlalchemy import Engine, event

_WHO: Final = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
_END: Final = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %s AND backend_start = %s"
_KEY: Final = "agentexec_session"


class LeftSessions:
    """Remembers the sessions of connections that were invalidated, and ends them with the next connection's help.

    A role may always end its own sessions.
    """

    def __init__(self) -> None:
        self._left: list[tuple[int, Any]] = []
        self._errors: tuple[type[Exception], ...] = ()

    def watch(self, engine: Engine) -> None:
        """Follow the engine's pool, if it is PostgreSQL's."""
        if engine.dialect.name == "postgresql":
            self._errors = (engine.dialect.loaded_dbapi.Error,)
            event.listen(engine, "connect", self._connected)
            event.listen(engine, "invalidate", self._invalidated)

    def forget(self) -> None:
        """In a forked child: they are the parent's to end."""
        self._left.clear()

    def _connected(self, connection: Any, record: Any) -> None:
        with suppress(*self._errors):  # Not every server of this kind can be asked.
            self._end_left(connection)
            record.info[_KEY] = _session(connection)
        connection.rollback()

    def _end_left(self, connection: Any) -> None:
        while self._left:
            connection.execute(_END, self._left.pop()).close()
        connection.commit()

    def _invalidated(self, connection: Any, record: Any, exception: BaseException | None) -> None:
        session = record.info.pop(_KEY, None)
        if session is not None:
            self._left.append(session)


def _session(connection: Any) -> tuple[int, Any] | None:
    """Behind a pooler of connections the session is not ours alone, and not the one that the driver was told."""
    cursor = connection.execute(_WHO)
    found: tuple[int, Any] | None = cursor.fetchone()
    cursor.close()
    return found if found is not None and found[0] == connection.info.backend_pid else None
