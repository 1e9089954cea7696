"""Rows and events to measure with."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from agentexec_otel._model.event import ActivityEvent, Opening, Status
from agentexec_otel._model.ids import uuid7
from benchmarks._databases import ACTIVITY, LOG, Database

ACTIVITY_COLUMNS: Final = (
    "id", "agent_id", "agent_type", "created_at", "updated_at", "status", "latest_percentage", "last_seq", "attempt",
    "started_at", "metadata",
)  # fmt: skip
_HISTORY_COLUMNS: Final = (*ACTIVITY_COLUMNS, "ended_at", "reason", "error_type", "worker_id", "trace_id")
LOG_COLUMNS: Final = (
    "activity_id", "message", "status", "percentage", "created_at", "seq", "event_id", "attempt", "late",
)  # fmt: skip

_START: Final = datetime(2026, 1, 1, tzinfo=UTC)
_MIX: Final = ("COMPLETE",) * 90 + ("ERROR",) * 3 + ("CANCELED",) * 2 + ("RUNNING",) * 4 + ("QUEUED",)
_ENDED: Final = ("COMPLETE", "ERROR", "CANCELED")


@dataclass(frozen=True, slots=True)
class History:
    """Many activities that ran one after the other, most of them done: what a list is asked about.

    The same arguments give the same rows, in whatever pieces they are asked for.
    """

    activities: int
    logs: int
    pending: int | None = None

    def agent_id(self, number: int) -> UUID:
        """The agent id of the activity with that number, counted from 0."""
        return UUID(int=random.Random(number).getrandbits(128), version=4)

    def status(self, number: int) -> str:
        """Its status: the last `pending` ones are QUEUED or RUNNING where that is given, else one in twenty."""
        if self.pending is None:
            return _MIX[random.Random(number).randrange(len(_MIX))]
        return "COMPLETE" if number < self.activities - self.pending else ("QUEUED", "RUNNING")[number % 2]

    def created_at(self, number: int) -> datetime:
        """When it was created: a second after the one before."""
        return _START + timedelta(seconds=number)

    def load(self, database: Database) -> None:
        """Put everything into the two tables."""
        database.load(ACTIVITY, _HISTORY_COLUMNS, self._activity_rows(database))
        database.load(LOG, LOG_COLUMNS, self._log_rows(database))
        database.optimize()

    def _activity_rows(self, database: Database) -> Iterator[tuple[object, ...]]:
        for number in range(self.activities):
            created = self.created_at(number)
            ended = created + timedelta(seconds=self.logs)
            status = self.status(number)
            metadata = json.dumps({"tenant": f"tenant-{number % 100}", "user": number % 1000})
            yield (
                database.value(_row_id(number)), database.value(self.agent_id(number)), f"task-{number % 10}",
                database.value(created), database.value(ended), status,
                100 if status == "COMPLETE" else 40, self.logs, 1, database.value(created + timedelta(seconds=1)),
                metadata, database.value(ended) if status in _ENDED else None,
                *(("timeout", "TimeoutError") if status == "ERROR" else (None, None)), f"host:{number % 50}:1",
                f"{number:032x}",
            )  # fmt: skip

    def _log_rows(self, database: Database) -> Iterator[tuple[object, ...]]:
        late = database.kind == "sqlite" and 0
        for number in range(self.activities):
            row_id, status = database.value(_row_id(number)), self.status(number)
            for seq in range(1, self.logs + 1):
                moment = _START + timedelta(seconds=number + seq)
                shown = status if seq == self.logs else "QUEUED" if seq == 1 else "RUNNING"
                event_id = database.value(UUID(int=(1 << 100) + number * 1_000_000 + seq))
                yield (
                    row_id, f"Step {seq} of {self.logs}: analyzing what competitors do", shown, 10 * seq % 101,
                    database.value(moment), seq, event_id, 1, late,
                )  # fmt: skip


def _row_id(number: int) -> UUID:
    return UUID(int=(1 << 96) + number)


def live_events(activities: int, logs: int, *, at_once: bool) -> list[ActivityEvent]:
    """The events of new activities, the first of each with its opening.

    Args:
        at_once: All activities run at the same time, a line of each in turn; else one after the other.
    """
    agent_ids = [UUID(int=random.getrandbits(128), version=4) for _ in range(activities)]
    order = (
        [(agent_id, seq) for seq in range(logs) for agent_id in agent_ids]
        if at_once
        else [(agent_id, seq) for agent_id in agent_ids for seq in range(logs)]
    )
    now_ns = 1_767_225_600_000_000_000
    return [
        ActivityEvent(
            uuid7(),
            agent_id,
            Status.QUEUED if seq == 0 else Status.RUNNING,
            f"Step {seq + 1} of {logs}: analyzing what competitors do",
            None if seq == 0 else seq * 100 // logs,
            now_ns + number * 1_000,
            1,
            Opening("bench") if seq == 0 else None,
        )
        for number, (agent_id, seq) in enumerate(order)
    ]


def rows_of(
    events: list[ActivityEvent], database: Database
) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    """The activity and log rows that these events become, as the raw driver stores them."""
    activities: dict[UUID, list[ActivityEvent]] = {}
    for event in events:
        activities.setdefault(event.agent_id, []).append(event)
    row_ids = {agent_id: uuid7() for agent_id in activities}
    activity_rows = [
        tuple(
            database.value(value)
            for value in (
                row_ids[agent_id], agent_id, "bench", _moment(history[0]), _moment(history[-1]),
                history[-1].status.value, history[-1].percentage, len(history), 1, _moment(history[-1]), None,
            )
        )
        for agent_id, history in activities.items()
    ]  # fmt: skip
    seqs = dict.fromkeys(activities, 0)
    log_rows: list[tuple[object, ...]] = []
    for event in events:
        seqs[event.agent_id] += 1
        log_rows.append(
            tuple(
                database.value(value)
                for value in (
                    row_ids[event.agent_id], event.message, event.status.value, event.percentage, _moment(event),
                    seqs[event.agent_id], event.event_id, 1, False,
                )
            )
        )  # fmt: skip
    return activity_rows, log_rows


def _moment(event: ActivityEvent) -> datetime:
    return _START + timedelta(microseconds=event.occurred_at_ns // 1000 % 1_000_000_000)
