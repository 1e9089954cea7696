"""Activities to archive, and what a database and an archive have of them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

from sqlalchemy import Engine, Table, insert, select

from agentexec_otel._model.ids import uuid7
from agentexec_otel.activity.models import Activity, ActivityLog, Status

ACTIVITY = cast(Table, Activity.__table__)
LOG = cast(Table, ActivityLog.__table__)
OLD = timedelta(days=30)
LONG_AGO = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
ENDED = (Status.COMPLETE, Status.ERROR, Status.CANCELED)
EVERYTHING: dict[str, Any] = {
    "latest_percentage": 70,
    "attempt": 3,
    "started_at": LONG_AGO + timedelta(microseconds=1),
    "metadata": {"tenant": "Ünïcødé 🦀\u2028", "n": 2**53 + 1, "ratio": 0.1, "deep": {"list": [1, None, True, "\\n"]}},
    "trace_context": {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
    "trace_id": "0af7651916cd43dd8448eb211c80319c",
    "span_id": "b7ad6b7169203331",
    "sampled": True,
    "worker_id": "host:1:2:3",
    "heartbeat_at": LONG_AGO,
    "lease_expires_at": LONG_AGO,
    "error_type": "ValueError",
    "reason": "tool",
    "input_tokens": 2**40,
    "output_tokens": 0,
    "requests": 7,
    "model": "gpt",
    "cached_input_tokens": 5,
    "reasoning_tokens": 6,
    "cost": Decimal("12.0000000001"),
    "waiting": {"for": "approval", "since": "2026-01-02", "items": []},
    "span_exported_at": LONG_AGO,
}
"""A value for each column that may be empty."""


class Seen(list[tuple[int, int]]):
    """What a `progress` was called with."""

    def __call__(self, done: int, total: int) -> None:
        self.append((done, total))


@dataclass
class Rows:
    """Rows to insert: activities with their logs."""

    activities: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    logs: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def add(self, status: Status = Status.COMPLETE, at: datetime = LONG_AGO, logs: int = 2, **values: Any) -> UUID:
        """An activity whose current attempt has ended, if it has, at `at`. Return its `agent_id`."""
        row: dict[str, Any] = {column.name: None for column in ACTIVITY.columns}
        row |= {"id": uuid7(), "agent_id": uuid4(), "agent_type": "task", "created_at": at, "updated_at": at}
        row |= {"status": status, "last_seq": logs, "attempt": 1, "ended_at": at if status in ENDED else None, **values}
        self.activities.append(row)
        self.logs += [
            {"activity_id": row["id"], "message": f"„{seq}“ 🦀\u2028\t\\", "status": status, "percentage": seq % 100,
             "created_at": at + timedelta(microseconds=seq), "seq": seq, "event_id": uuid7(), "attempt": 1,
             "late": seq % 2 == 0}
            for seq in range(1, logs + 1)
        ]  # fmt: skip
        return row["agent_id"]  # type: ignore[no-any-return]

    def insert(self, engine: Engine) -> None:
        """Insert them."""
        with engine.begin() as connection:
            connection.execute(insert(ACTIVITY), self.activities)
            if self.logs:
                connection.execute(insert(LOG), self.logs)


def fill(engine: Engine, count: int, logs: int = 2) -> list[UUID]:
    """Insert activities that ended long ago, one second after the other. Return each `agent_id`."""
    rows = Rows()
    ids = [
        rows.add(ENDED[number % 3], LONG_AGO + timedelta(seconds=number), logs, agent_type=f"task{number % 5}")
        for number in range(count)
    ]
    rows.insert(engine)
    return ids


def contents(engine: Engine) -> dict[UUID, tuple[Any, ...]]:
    """Every column of every activity and its logs, by `agent_id`."""
    with engine.connect() as connection:
        rows = connection.execute(select(ACTIVITY)).mappings().all()
        logs: dict[UUID, list[Any]] = {row["id"]: [] for row in rows}
        for log in connection.execute(select(LOG).order_by(LOG.c.activity_id, LOG.c.seq)).mappings():
            logs[log["activity_id"]].append(dict(log))
    return {row["agent_id"]: (dict(row), logs[row["id"]]) for row in rows}


def without_log_ids(found: dict[UUID, tuple[Any, ...]]) -> dict[UUID, tuple[Any, ...]]:
    """The same, but for what another database may number otherwise."""
    return {
        agent_id: (row, [{name: value for name, value in log.items() if name != "id"} for log in logs])
        for agent_id, (row, logs) in found.items()
    }


def archived(path: Path) -> list[UUID]:
    """The `agent_id` of each activity in an archive, in its order."""
    return [UUID(record["agent_id"]) for record in records(path)]


def records(path: Path) -> Sequence[dict[str, Any]]:
    """The activities of an archive as other programs read them."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_bytes().splitlines()]
    parquet: Any = import_module("pyarrow.parquet")
    return [row for part in sorted(path.glob("*.parquet")) for row in parquet.ParquetFile(part).read().to_pylist()]
