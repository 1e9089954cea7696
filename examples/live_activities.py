"""Agents at work, for a dashboard to show: a day of history, and activities that start, report, wait, fail and end.

    python examples/live_activities.py [--database URL] [--dashboard]

Needs no key and no network. Cancel one from a dashboard or a terminal, and its run stops; retry one, and it runs again.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from random import Random
from uuid import UUID

from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity import ActivityListItemSchema
from agentexec_otel.activity.models import Activity, Status
from live_history import PEOPLE, at_work, long_one, past
from live_workload import AGENT_TYPES, FAILURES, Plan, Step, agent_type, metadata, plan

EXPECTED: tuple[type[Exception], ...] = (ax.ActivityCanceledError, *(each[1] for each in FAILURES))
WORTH_A_RETRY = ("rate_limit", "model_unavailable", "connection")
TICK_SECONDS = 0.4


class Producer:
    """Queues activities, and runs what is queued: its own, and what others have retried. The table is its queue."""

    def __init__(self, engine: Engine, random: Random) -> None:
        self.engine = engine
        self.random = random
        self.runs: dict[UUID, asyncio.Task[None]] = {}

    async def produce(self, begun: list[tuple[Activity, Plan]]) -> None:
        """Continue what has begun, then queue and run new activities until this is canceled."""
        async with asyncio.TaskGroup() as group:
            for activity, rest in begun:
                self._start(group, activity.agent_id, rest)
            while True:
                queued = await asyncio.to_thread(self._queued)
                busy = len(self.runs)
                for item in queued[: max(0, min(2, self._slots() - busy))]:
                    self._start(group, item.agent_id, self._plan(item))
                if busy + len(queued) < self._slots():
                    await self._create()
                elif self.random.random() < 0.01:
                    await asyncio.gather(*(self._create() for _ in range(6)))
                if self.runs and self.random.random() < 0.01:
                    who = self.random.choice(PEOPLE)
                    await ax.activity.aio.cancel(self.random.choice([*self.runs]), f"Canceled by {who}.")
                await asyncio.sleep(TICK_SECONDS)

    def _slots(self) -> int:
        """How many may run at once: 12 to 24, in turn."""
        return round(18 + 6 * math.sin(time.monotonic() / 40))

    def _queued(self) -> list[ActivityListItemSchema]:
        with Session(self.engine) as session:
            page = ax.activity.list(
                session, page_size=50, cursor="", order="oldest", status=Status.QUEUED, agent_type=[*AGENT_TYPES]
            )
        return [item for item in page.items if item.agent_id not in self.runs]

    def _plan(self, item: ActivityListItemSchema) -> Plan:
        customer = (item.metadata or {}).get("customer", "the customer")
        return plan(self.random, AGENT_TYPES[item.agent_type], customer)

    async def _create(self) -> None:
        await ax.activity.aio.create(agent_type(self.random).name, metadata=metadata(self.random))

    def _start(self, group: asyncio.TaskGroup, agent_id: UUID, planned: Plan) -> None:
        self.runs[agent_id] = group.create_task(self._run(agent_id, planned))
        self.runs[agent_id].add_done_callback(lambda _: self.runs.pop(agent_id))

    async def _run(self, agent_id: UUID, planned: Plan) -> None:
        run = ax.activity.run(agent_id)
        with suppress(*EXPECTED):  # the activity has them
            async with run:
                for step in planned.steps:
                    await self._take(run, step)
                run.record_usage(**planned.usage)
                if planned.failure is not None:
                    raise planned.failure[0]
        if planned.failure is not None and not run.canceled:
            await self._retry(agent_id, planned.failure[1])

    async def _retry(self, agent_id: UUID, reason: str) -> None:
        """Sometimes try again what has failed."""
        if reason in WORTH_A_RETRY and self.random.random() < 0.5:
            await asyncio.sleep(self.random.uniform(3, 12))
            with suppress(ax.ActivityStateError):  # a person was faster
                await ax.activity.aio.retry(agent_id, "Retried after a failure.")

    async def _take(self, run: ax.activity.ActivityRun, step: Step) -> None:
        if step.tool is None:
            run.update(step.message, step.percentage)
        else:
            run.waiting(items=[{"tool": step.tool, "call_id": f"call_{self.random.getrandbits(32):08x}"}])
        ends_at = time.monotonic() + step.seconds
        while (left := ends_at - time.monotonic()) > 0:
            await asyncio.sleep(min(left, TICK_SECONDS))
            if run.canceled:
                raise ax.ActivityCanceledError(run.agent_id)
        if step.tool is not None:
            run.update(f"Approved by {self.random.choice(PEOPLE)}", step.percentage)


def fill(engine: Engine, random: Random, count: int, long: int) -> list[tuple[Activity, Plan]]:
    """Write a day of history into an empty database. Returns what is at work, with the rest of its plan."""
    with Session(engine, expire_on_commit=False) as session:
        if ax.activity.list(session, page_size=1).total:
            return []
        now = datetime.now(UTC)
        begun = at_work(random, now) + ([long_one(random, now, long)] if long else [])
        session.add_all([*past(random, count, now), *(activity for activity, _ in begun)])
        session.commit()
    return begun


async def work(engine: Engine, random: Random, begun: list[tuple[Activity, Plan]], seconds: float | None) -> None:
    """Produce for so many seconds."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await Producer(engine, random).produce(begun)


def main() -> int:
    """Run until Ctrl-C. The exit code of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", default="sqlite:///live-activities.db", help="default: %(default)s")
    parser.add_argument("--activities", type=int, default=300, help="history in an empty database; default: 300")
    parser.add_argument("--long", type=int, nargs="?", const=5_000, default=0, help="an activity with 5,000 logs")
    parser.add_argument("--seconds", type=float, help="stop after so many seconds; default: at Ctrl-C")
    parser.add_argument("--seed", type=int, help="the same history each time, relative to now")
    options = parser.parse_args()

    engine = create_engine(options.database)
    ax.configure(engine, create_tables=True)
    random = Random(options.seed)
    begun = fill(engine, random, options.activities, options.long)
    print(f"Agents work in {options.database}. Stop with Ctrl-C.", flush=True)
    with suppress(KeyboardInterrupt):
        asyncio.run(work(engine, random, begun, options.seconds))
    ax.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
