"""The two tables as SQLAlchemy models.

``Activity.status`` is materialised: one guarded write decides it. The documented columns keep their name, type and
meaning. The other columns are internal, and nullable or defaulted.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID
from zlib import crc32

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    Numeric,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    Uuid,
    false,
)
from sqlalchemy.dialects.mysql import DATETIME
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from agentexec_otel._config import CONF
from agentexec_otel._model.event import Status
from agentexec_otel._model.ids import uuid7
from agentexec_otel._model.text import NAME_LIMIT
from agentexec_otel.activity._agentexec import AgentexecMethods

__all__ = ["Activity", "ActivityLog", "Base", "Status", "StatusText", "UtcDateTime"]

_PREFIX = CONF.table_prefix
_LONGEST_NAME = 63
_MYSQL = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mariadb_engine": "InnoDB",
    "mariadb_charset": "utf8mb4",
}


def _utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime with microseconds, on every database. A naive value that is bound means UTC."""

    # The plain DATETIME of MySQL and MariaDB has only seconds.
    impl = DateTime(timezone=True).with_variant(DATETIME(fsp=6), "mysql", "mariadb")
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert to UTC. Remove the zone if the database has none."""
        if value is None:
            return None
        aware = _utc(value)
        return aware if dialect.name == "postgresql" else aware.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Restore the zone."""
        return None if value is None else _utc(value)


class StatusText(TypeDecorator[Status]):
    """A `Status` stored as its upper-case string."""

    impl = String(16)
    cache_ok = True

    def process_bind_param(self, value: Status | str | None, dialect: Dialect) -> str | None:
        return None if value is None else Status(value).value

    def process_result_value(self, value: str | None, dialect: Dialect) -> Status | None:
        return None if value is None else Status(value)


def constraint_name(wanted: str) -> str:
    """Name of a constraint or index. If it is too long for PostgreSQL (63), it ends in a stable hash."""
    if len(wanted) <= _LONGEST_NAME:
        return wanted
    return f"{wanted[: _LONGEST_NAME - 9]}_{crc32(wanted.encode()):08x}"


def _now() -> datetime:
    return datetime.now(UTC)


def _one_of_statuses(table: str) -> CheckConstraint:
    return CheckConstraint(
        "status IN ('QUEUED', 'RUNNING', 'COMPLETE', 'ERROR', 'CANCELED')", name=constraint_name(f"ck_{table}_status")
    )


def _percentage_range(table: str, column: str) -> CheckConstraint:
    return CheckConstraint(f"{column} BETWEEN 0 AND 100", name=constraint_name(f"ck_{table}_{column}"))


class Base(DeclarativeBase):
    """Declarative base of both tables. `create_all()` and Alembic use its `metadata`."""


class Activity(AgentexecMethods, Base):
    """One tracked run, from QUEUED to a terminal status."""

    __tablename__ = f"{_PREFIX}activity"
    __table_args__ = (
        Index(constraint_name(f"ix_{_PREFIX}activity_agent_id"), "agent_id", unique=True),
        Index(constraint_name(f"ix_{_PREFIX}activity_created_at"), "created_at", "id"),
        # Pages of a type and of a status. No index has a column that each log changes, such as `updated_at` or the
        # lease: PostgreSQL then updates rows in place (HOT), with a third less WAL.
        Index(constraint_name(f"ix_{_PREFIX}activity_agent_type"), "agent_type", "created_at", "id"),
        Index(constraint_name(f"ix_{_PREFIX}activity_status_created_at"), "status", "created_at", "id"),
        _one_of_statuses(f"{_PREFIX}activity"),
        _percentage_range(f"{_PREFIX}activity", "latest_percentage"),
        _MYSQL,
    )

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True, default=uuid7)
    agent_id: Mapped[UUID] = mapped_column(Uuid)
    agent_type: Mapped[str] = mapped_column(String(NAME_LIMIT))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=_now)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=_now, onupdate=_now)

    status: Mapped[Status] = mapped_column(StatusText, default=Status.QUEUED, server_default="QUEUED")
    latest_percentage: Mapped[int | None] = mapped_column(Integer)
    last_seq: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    attempt: Mapped[int] = mapped_column(Integer, default=1, server_default="1")
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata", JSON(none_as_null=True))
    trace_context: Mapped[dict[str, str] | None] = mapped_column(JSON(none_as_null=True))
    trace_id: Mapped[str | None] = mapped_column(String(32))
    span_id: Mapped[str | None] = mapped_column(String(16))
    sampled: Mapped[bool | None] = mapped_column(Boolean)
    worker_id: Mapped[str | None] = mapped_column(String(NAME_LIMIT))
    heartbeat_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    lease_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    error_type: Mapped[str | None] = mapped_column(String(NAME_LIMIT))
    reason: Mapped[str | None] = mapped_column(String(64))
    input_tokens: Mapped[int | None] = mapped_column(BigInteger)
    output_tokens: Mapped[int | None] = mapped_column(BigInteger)
    requests: Mapped[int | None] = mapped_column(BigInteger)
    model: Mapped[str | None] = mapped_column(String(NAME_LIMIT))
    cached_input_tokens: Mapped[int | None] = mapped_column(BigInteger)
    reasoning_tokens: Mapped[int | None] = mapped_column(BigInteger)
    cost: Mapped[Decimal | None] = mapped_column(Numeric(20, 10))
    waiting: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    span_exported_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    logs: Mapped[list[ActivityLog]] = relationship(
        back_populates="activity", cascade="all, delete-orphan", order_by="ActivityLog.seq"
    )


class ActivityLog(Base):
    """One log of an activity. `seq` (1, 2, … per activity) is its place, and `created_at` when it happened."""

    __tablename__ = f"{_PREFIX}activity_log"
    __table_args__ = (
        UniqueConstraint("event_id", name=constraint_name(f"uq_{_PREFIX}activity_log_event_id")),
        Index(constraint_name(f"ix_{_PREFIX}activity_log_activity_id"), "activity_id", "seq", unique=True),
        _one_of_statuses(f"{_PREFIX}activity_log"),
        _percentage_range(f"{_PREFIX}activity_log", "percentage"),
        # SQLite would give the ids of deleted rows to new ones: a reader of the feed would miss these.
        _MYSQL | {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    activity_id: Mapped[UUID] = mapped_column(
        ForeignKey(
            f"{_PREFIX}activity.id", name=constraint_name(f"fk_{_PREFIX}activity_log_activity_id"), ondelete="CASCADE"
        )
    )
    message: Mapped[str] = mapped_column(Text)
    status: Mapped[Status] = mapped_column(StatusText)
    percentage: Mapped[int | None] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=_now)

    seq: Mapped[int] = mapped_column(Integer)
    event_id: Mapped[UUID] = mapped_column(Uuid, default=uuid7)
    attempt: Mapped[int] = mapped_column(Integer, default=1, server_default="1")
    late: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())

    activity: Mapped[Activity] = relationship(back_populates="logs")


CHANNEL: Final = ActivityLog.__tablename__
"""The channel of PostgreSQL's notifications of new logs."""
