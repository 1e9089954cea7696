"""The tables of schema 1, as they were: a revision must not change with the models."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    false,
)

from agentexec_otel._config import CONF
from agentexec_otel.activity.models import UtcDateTime, constraint_name

_PREFIX: Final = CONF.table_prefix
_STATUSES: Final = "status IN ('QUEUED', 'RUNNING', 'COMPLETE', 'ERROR', 'CANCELED')"
_MYSQL: Final[dict[str, Any]] = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mariadb_engine": "InnoDB",
    "mariadb_charset": "utf8mb4",
}

METADATA: Final = MetaData()

ACTIVITY: Final = Table(
    f"{_PREFIX}activity",
    METADATA,
    Column("id", Uuid, primary_key=True),
    Column("agent_id", Uuid, nullable=False),
    Column("agent_type", String(255), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("status", String(16), nullable=False, server_default="QUEUED"),
    Column("latest_percentage", Integer),
    Column("last_seq", Integer, nullable=False, server_default="0"),
    Column("attempt", Integer, nullable=False, server_default="1"),
    Column("started_at", UtcDateTime),
    Column("metadata", JSON(none_as_null=True)),
    Column("trace_context", JSON(none_as_null=True)),
    Column("trace_id", String(32)),
    Column("span_id", String(16)),
    Column("sampled", Boolean),
    Column("worker_id", String(255)),
    Column("heartbeat_at", UtcDateTime),
    Column("lease_expires_at", UtcDateTime),
    Column("error_type", String(255)),
    Column("reason", String(64)),
    Column("input_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("requests", BigInteger),
    Index(constraint_name(f"ix_{_PREFIX}activity_agent_id"), "agent_id", unique=True),
    Index(constraint_name(f"ix_{_PREFIX}activity_created_at"), "created_at", "id"),
    Index(constraint_name(f"ix_{_PREFIX}activity_status"), "status"),
    CheckConstraint(_STATUSES, name=constraint_name(f"ck_{_PREFIX}activity_status")),
    CheckConstraint(
        "latest_percentage BETWEEN 0 AND 100", name=constraint_name(f"ck_{_PREFIX}activity_latest_percentage")
    ),
    **_MYSQL,
)

LOG: Final = Table(
    f"{_PREFIX}activity_log",
    METADATA,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column(
        "activity_id",
        Uuid,
        ForeignKey(
            f"{_PREFIX}activity.id", name=constraint_name(f"fk_{_PREFIX}activity_log_activity_id"), ondelete="CASCADE"
        ),
        nullable=False,
    ),
    Column("message", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("percentage", Integer),
    Column("created_at", UtcDateTime, nullable=False),
    Column("seq", Integer, nullable=False),
    Column("event_id", Uuid, nullable=False),
    Column("attempt", Integer, nullable=False, server_default="1"),
    Column("late", Boolean, nullable=False, server_default=false()),
    UniqueConstraint("event_id", name=constraint_name(f"uq_{_PREFIX}activity_log_event_id")),
    Index(constraint_name(f"ix_{_PREFIX}activity_log_activity_id"), "activity_id", "seq", unique=True),
    CheckConstraint(_STATUSES, name=constraint_name(f"ck_{_PREFIX}activity_log_status")),
    CheckConstraint("percentage BETWEEN 0 AND 100", name=constraint_name(f"ck_{_PREFIX}activity_log_percentage")),
    **_MYSQL,
    sqlite_autoincrement=True,
)
