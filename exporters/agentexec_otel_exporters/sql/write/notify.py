"""Notifications of new logs, which PostgreSQL sends with the commit."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, TwoPhaseTransaction

from agentexec_otel._config import CONF
from agentexec_otel.activity.models import CHANNEL

_NOTIFY: Final = f'NOTIFY "{CHANNEL}"'


def notify_followers(connection: Connection) -> None:
    """Notify the followers when the transaction is committed, if that is wanted and the database can.

    PostgreSQL sends equal notifications of one transaction once, and refuses to prepare a transaction that has any.
    """
    if not CONF.notify or connection.dialect.name != "postgresql":
        return
    if not isinstance(connection.get_transaction(), TwoPhaseTransaction):
        connection.exec_driver_sql(_NOTIFY)
