"""What live_activities.py finds when it starts: the activities of the last day, and those that are at work.

An application writes by `ax.activity` alone, and always now. Rows of the past are made with the models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from random import Random
from typing import Any, Final
from uuid import UUID

import agentexec_otel as ax
from agentexec_otel.activity.models import Activity, ActivityLog, Status
from agentexec_otel.reasons import Reason
from live_workload import AGENT_TYPES, AgentType, Plan, Step, agent_type, metadata, plan

PEOPLE: Final = ("Dana", "Kim", "Robin")
DAY: Final = 24 * 3600.0
OUTAGE: Final = (4.5 * 3600.0, 5.0 * 3600.0)
"""Most attempts failed between so many seconds ago."""
AT_WORK: Final = (
    "index_knowledge_base", "reconcile_ledger", "reconcile_ledger", "summarize_calls", "summarize_calls",
    "research_company", "research_company", "research_company", "review_pull_request", "review_pull_request",
)  # fmt: skip


class Record:
    """An activity that is written as if it had happened at some time."""

    def __init__(self, random: Random, kind: AgentType, created_at: datetime) -> None:
        self.now = created_at
        self.activity = Activity(
            agent_id=UUID(int=random.getrandbits(128), version=4),
            agent_type=kind.name,
            metadata_=metadata(random),
            created_at=created_at,
            attempt=1,
            last_seq=0,
        )
        self.customer: str = (self.activity.metadata_ or {})["customer"]
        self.log(ax.CONF.activity_message_create, Status.QUEUED)

    def log(self, message: str, status: Status = Status.RUNNING, percentage: int | None = None) -> None:
        """Add a log at the current time of this record."""
        row = self.activity
        row.status, row.updated_at, row.last_seq = status, self.now, row.last_seq + 1
        if percentage is not None:
            row.latest_percentage = percentage
        row.logs.append(
            ActivityLog(
                message=message,
                status=status,
                percentage=percentage,
                created_at=self.now,
                seq=row.last_seq,
                attempt=row.attempt,
            )
        )

    def start(self) -> None:
        """The current attempt starts."""
        self.activity.started_at = self.now
        self.log(ax.CONF.activity_message_started)

    def step(self, step: Step) -> None:
        """A log of the run, and the time until the next one."""
        self.log(f"Waiting for approval: {step.tool}." if step.tool else step.message, percentage=step.percentage)
        self.now += timedelta(seconds=step.seconds)

    def end(self, message: str, status: Status, **columns: Any) -> None:
        """The current attempt ends."""
        self.activity.ended_at = self.now
        for name, value in columns.items():
            setattr(self.activity, name, value)
        self.log(message, status, 100 if status is Status.COMPLETE else None)

    def retry(self) -> None:
        """The next attempt waits."""
        row = self.activity
        row.started_at = row.ended_at = row.latest_percentage = row.reason = row.error_type = None
        row.attempt += 1
        self.log("Retried after a failure.", Status.QUEUED)


def past(random: Random, count: int, now: datetime) -> list[Activity]:
    """Activities of the last day that have ended."""
    made = list[Activity]()
    while len(made) < count:
        ago = random.uniform(*OUTAGE) if random.random() < 0.06 else random.uniform(200, DAY)
        record = Record(random, agent_type(random), now - timedelta(seconds=ago))
        in_outage = OUTAGE[0] < ago < OUTAGE[1]
        _attempt(random, record, failing=0.7 if in_outage else 0.08)
        while record.activity.reason in ("rate_limit", "connection", "model_unavailable") and random.random() < 0.5:
            record.now += timedelta(seconds=random.uniform(5, 60))
            record.retry()
            _attempt(random, record, failing=0.2)
        if record.now < now:
            made.append(record.activity)
    return sorted(made, key=lambda each: each.created_at)


def _attempt(random: Random, record: Record, failing: float) -> None:
    """An attempt from its start to its end."""
    kind = AGENT_TYPES[record.activity.agent_type]
    planned = plan(random, kind, record.customer, failing=failing)
    record.now += timedelta(seconds=random.lognormvariate(0.5, 1))
    record.start()
    surprise = random.choices(("canceled", "lost", None), (5, 2, 93))[0]
    for step in planned.steps[: random.randint(1, len(planned.steps)) if surprise else None]:
        record.step(step)
    if surprise == "canceled":
        record.end(f"Canceled by {random.choice(PEOPLE)}.", Status.CANCELED, reason="canceled")
    elif surprise == "lost":
        record.now += timedelta(seconds=30)
        record.end(ax.CONF.activity_message_lost, Status.ERROR, reason="lost")
    elif planned.failure is None:
        record.end(ax.CONF.activity_message_complete, Status.COMPLETE, **planned.usage)
    else:
        _fail(record, *planned.failure, planned.usage)


def _fail(record: Record, failure: Exception, reason: Reason, usage: dict[str, Any]) -> None:
    kind = type(failure)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    message = ax.CONF.activity_message_error.replace("{error}", str(failure))
    record.end(message, Status.ERROR, error_type=name, reason=reason, **usage)


@dataclass(frozen=True)
class Begun:
    """An activity that is RUNNING, and what is still to be done.

    Attributes:
        message: The log with which it continues.
        waits: Seconds until it is approved.
    """

    activity: Activity
    rest: Plan
    message: str = "Resumed after a restart."
    waits: float = 0.0


def at_work(random: Random, now: datetime) -> list[Begun]:
    """Activities that are RUNNING. One is much slower than usual, two wait for an approval."""
    made = [_begun(random, AGENT_TYPES[name], now) for name in AT_WORK]
    made.append(_begun(random, AGENT_TYPES["triage_ticket"], now, times=9))
    made += [_begun(random, AGENT_TYPES[name], now, waits=True) for name in ("answer_email", "extract_invoice")]
    return made


def _begun(random: Random, kind: AgentType, now: datetime, *, times: float = 1, waits: bool = False) -> Begun:
    record = Record(random, kind, now)
    planned = plan(random, kind, record.customer, failing=0, slow=0)
    steps = [replace(step, seconds=step.seconds * times) for step in planned.steps]
    done = len(steps) if waits else random.randint(1, len(steps) - 1)
    if waits:
        steps[-1] = replace(steps[-1], tool=kind.approval, seconds=random.uniform(120, 900))
        steps.append(Step("Writing the result", 95 if kind.has_percentage else None, 4))
    record.now -= timedelta(seconds=sum(step.seconds for step in steps[:done]) + 2)
    record.activity.created_at = record.activity.logs[0].created_at = record.now
    record.now += timedelta(seconds=2)
    record.start()
    for step in steps[:done]:
        since = record.now
        record.step(step)
        if step.tool:
            items = [{"tool": step.tool, "call_id": f"call_{random.getrandbits(32):08x}"}]
            record.activity.waiting = {"for": "approval", "since": since.isoformat(), "items": items}
    rest = replace(planned, steps=tuple(steps[done:]))
    if waits:
        return Begun(record.activity, rest, f"Approved by {random.choice(PEOPLE)}.", random.uniform(30, 600))
    return Begun(record.activity, rest)


def long_one(random: Random, now: datetime, logs: int) -> Begun:
    """An activity with thousands of logs, and thousands to come."""
    record = Record(random, AGENT_TYPES["index_knowledge_base"], now - timedelta(seconds=logs / 2))
    record.start()
    steps = [Step(f"Embedding document {i} of {4 * logs}", 25 * i // logs, 0.5) for i in range(1, 4 * logs)]
    for step in steps[:logs]:
        record.step(step)
    usage = plan(random, AGENT_TYPES["index_knowledge_base"], record.customer).usage
    return Begun(record.activity, Plan(tuple(steps[logs:]), None, usage))
