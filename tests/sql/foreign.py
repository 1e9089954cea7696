"""Tables that `ax.db.upgrade` adopts, as other programs have made and filled them."""

import enum
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    DateTime,
    Engine,
    Enum,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    Uuid,
    text,
)

from agentexec_otel._model.ids import uuid7
from agentexec_otel_exporters.sql.migrations import schema_1

BEGAN = datetime(2024, 1, 15, 10, 0, tzinfo=UTC)
LIFE: list[tuple[str, int | None]] = [("QUEUED", 0), ("RUNNING", None), ("RUNNING", 25), ("RUNNING", 50)]
ENDS = ("QUEUED", "RUNNING", "COMPLETE", "ERROR", "CANCELED")


@dataclass(frozen=True)
class Told:
    """An activity as another program has stored it: `logs` are message, status and percentage, a second apart."""

    agent_id: uuid.UUID
    agent_type: str | None
    metadata: dict[str, Any] | None
    created_at: datetime
    logs: list[tuple[str, str, int | None]]

    @property
    def status(self) -> str:
        return self.logs[-1][1]

    @property
    def percentage(self) -> int | None:
        return [percentage for _, _, percentage in self.logs if percentage is not None][-1]

    def at(self, place: int) -> datetime:
        return self.created_at + timedelta(seconds=place)


def activities(count: int) -> list[Told]:
    """Activities in every status, each with up to five logs."""
    told: list[Told] = []
    for number in range(count):
        end = ENDS[number % len(ENDS)]
        life = LIFE[: {"QUEUED": 1, "RUNNING": 4}.get(end, 2 + number % 3)]
        if end not in ("QUEUED", "RUNNING"):
            life = [*life, (end, 100 if end == "COMPLETE" else None)]
        logs = [(f"{number}.{place} ä", status, percentage) for place, (status, percentage) in enumerate(life)]
        tenant = {"tenant": f"t{number % 3}"} if number % 2 else None
        told.append(Told(uuid.uuid4(), f"task_{number % 4}", tenant, BEGAN + timedelta(minutes=number), logs))
    return told


# -- agentexec 0.1.7 and 0.3.0, whose models are the same ---------------------------------------------------------


class Status(str, enum.Enum):  # noqa: UP042  # as they have it
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETE = "complete"
    ERROR = "error"
    CANCELED = "canceled"


AGENTEXEC = MetaData()
_ACTIVITY = Table(
    "agentexec_activity",
    AGENTEXEC,
    Column("id", Uuid, primary_key=True),
    Column("agent_id", Uuid, nullable=False, unique=True, index=True),
    Column("agent_type", String(255)),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
    Column("metadata", JSON),
)
_LOG = Table(
    "agentexec_activity_log",
    AGENTEXEC,
    Column("id", Uuid, primary_key=True),
    Column("activity_id", Uuid, ForeignKey("agentexec_activity.id"), nullable=False, index=True),
    Column("message", Text, nullable=False),
    Column("status", Enum(Status), nullable=False, index=True),
    Column("percentage", Integer),
    Column("created_at", DateTime(timezone=True), nullable=False),
)


def agentexec(engine: Engine, told: list[Told]) -> None:
    """Tables and rows as agentexec 0.1.7 and 0.3.0 make them."""
    AGENTEXEC.create_all(engine)
    ids = {one.agent_id: uuid.uuid4() for one in told}
    rows = [
        {"id": ids[one.agent_id], "agent_id": one.agent_id, "agent_type": one.agent_type, "created_at": one.created_at,
         "updated_at": one.at(len(one.logs) - 1), "metadata": one.metadata}
        for one in told
    ]  # fmt: skip
    logs = [
        {"id": uuid.uuid4(), "activity_id": ids[one.agent_id], "message": message, "status": Status[status],
         "percentage": percentage, "created_at": one.at(place)}
        for one in told
        for place, (message, status, percentage) in enumerate(one.logs)
    ]  # fmt: skip
    random.Random(1).shuffle(logs)
    with engine.begin() as connection:
        connection.execute(_ACTIVITY.insert(), rows)
        connection.execute(_LOG.insert(), logs)


# -- the DDL of the page "Activity tracking", in the words of each database ----------------------------------------

PAGE = """
CREATE TABLE agentexec_activity (
    id {uuid} PRIMARY KEY{made},
    agent_id {uuid} UNIQUE NOT NULL,
    agent_type {varchar} NOT NULL,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
);
CREATE INDEX ix_agentexec_activity_agent_id ON agentexec_activity(agent_id);
CREATE TABLE agentexec_activity_log (
    id {serial},
    activity_id {uuid} REFERENCES agentexec_activity(id),
    message TEXT NOT NULL,
    status {varchar} NOT NULL,
    percentage INTEGER,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
);
CREATE INDEX ix_agentexec_activity_log_activity_id ON agentexec_activity_log(activity_id)
"""
WORDS = {
    "postgresql": {
        "uuid": "UUID",
        "made": " DEFAULT gen_random_uuid()",
        "varchar": "VARCHAR",
        "serial": "SERIAL PRIMARY KEY",
    },
    "mysql": {"uuid": "UUID", "made": " DEFAULT UUID()", "varchar": "VARCHAR(255)", "serial": "SERIAL PRIMARY KEY"},
    "sqlite": {"uuid": "TEXT", "made": "", "varchar": "VARCHAR", "serial": "INTEGER PRIMARY KEY"},
}


def page(engine: Engine, told: list[Told]) -> None:
    """Tables as the page prints them, filled by hand; times in UTC, without a zone."""
    rows = [
        {"id": str(uuid.uuid4()), "agent_id": str(one.agent_id), "type": one.agent_type, "at": _naive(one.created_at),
         "last": _naive(one.at(len(one.logs) - 1))}
        for one in told
    ]  # fmt: skip
    logs = [
        {"activity": row["id"], "message": message, "status": status, "percentage": percentage,
         "at": _naive(one.at(place))}
        for one, row in zip(told, rows, strict=True)
        for place, (message, status, percentage) in enumerate(one.logs)
    ]  # fmt: skip
    with engine.begin() as connection:
        for statement in PAGE.format(**WORDS[engine.dialect.name]).split(";"):
            connection.execute(text(statement))
        if engine.dialect.name == "mysql":
            connection.execute(text("SET time_zone = '+00:00'"))
        connection.execute(text("INSERT INTO agentexec_activity VALUES (:id, :agent_id, :type, :at, :last)"), rows)
        connection.execute(
            text(
                "INSERT INTO agentexec_activity_log (activity_id, message, status, percentage, created_at)"
                " VALUES (:activity, :message, :status, :percentage, :at)"
            ),
            logs,
        )


def _naive(value: datetime) -> str:
    return value.replace(tzinfo=None).isoformat(" ")


# -- schema 1 of this project --------------------------------------------------------------------------------------


def first_version(engine: Engine, told: list[Told]) -> None:
    """Our tables of schema 1, made by `create_all()`: without a revision."""
    schema_1.METADATA.create_all(engine)
    write_as_schema_1(engine, told)


def write_as_schema_1(engine: Engine, told: list[Told]) -> None:
    """Rows as a program of schema 1 writes them, also into later tables."""
    ids = {one.agent_id: uuid7() for one in told}
    rows = [
        {"id": ids[one.agent_id], "agent_id": one.agent_id, "agent_type": one.agent_type, "created_at": one.created_at,
         "updated_at": one.at(len(one.logs) - 1), "status": one.status, "last_seq": len(one.logs), "attempt": 1,
         "latest_percentage": one.percentage, "metadata": one.metadata,
         "started_at": None if one.status == "QUEUED" else one.at(1),
         "reason": {"CANCELED": "cancelled", "ERROR": "user_error"}.get(one.status)}
        for one in told
    ]  # fmt: skip
    logs = [
        {"activity_id": ids[one.agent_id], "message": message, "status": status, "percentage": percentage,
         "created_at": one.at(place), "seq": place + 1, "event_id": uuid7(), "attempt": 1, "late": False}
        for one in told
        for place, (message, status, percentage) in enumerate(one.logs)
    ]  # fmt: skip
    with engine.begin() as connection:
        connection.execute(schema_1.ACTIVITY.insert(), rows)
        connection.execute(schema_1.LOG.insert(), logs)


MAKERS: dict[str, Callable[[Engine, list[Told]], None]] = {
    "first version": first_version,
    "page": page,
    "agentexec": agentexec,
}
