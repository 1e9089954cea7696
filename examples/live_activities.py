"""Agents at work, for a dashboard to show: a day of history, and activities that start, report, wait, fail and end.

    python examples/live_activities.py --dashboard

Needs no key and no network. Cancel one in the dashboard or a terminal, and its run stops; retry one, and it runs again.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import signal
import tempfile
import time
from contextlib import suppress
from datetime import UTC, datetime
from random import Random
from uuid import UUID

from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity import ActivityListItemSchema
from agentexec_otel.activity.models import Status
from live_history import PEOPLE, Begun, at_work, long_one, past
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

    async def produce(self, begun: list[Begun]) -> None:
        """Continue what has begun, then queue and run new activities until this is canceled."""
        async with asyncio.TaskGroup() as group:
            for each in begun:
                if each.waits:
                    group.create_task(self._approve(group, each))
                else:
                    self._start(group, each.activity.agent_id, each.rest, each.message)
            while True:
                queued = await asyncio.to_thread(self._queued)
                busy = len(self.runs)
                room = max(0, min(2, self._slots() - busy))
                first = [item for item in queued if item.attempt == 1][:room]
                for item in [*(item for item in queued if item.attempt > 1), *first]:
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

    async def _approve(self, group: asyncio.TaskGroup, begun: Begun) -> None:
        """Continue an activity that waits, unless it was canceled meanwhile."""
        await asyncio.sleep(begun.waits)
        agent_id = begun.activity.agent_id
        if await asyncio.to_thread(self._is_waiting, agent_id):
            self._start(group, agent_id, begun.rest, begun.message)

    def _is_waiting(self, agent_id: UUID) -> bool:
        with Session(self.engine) as session:
            item = ax.activity.get(session, agent_id)
        return item is not None and item.waiting is not None

    def _start(self, group: asyncio.TaskGroup, agent_id: UUID, planned: Plan, message: str | None = None) -> None:
        self.runs[agent_id] = group.create_task(self._run(ax.activity.run(agent_id, message), planned))
        self.runs[agent_id].add_done_callback(lambda _: self.runs.pop(agent_id))

    async def _run(self, run: ax.activity.ActivityRun, planned: Plan) -> None:
        with suppress(*EXPECTED):  # the activity has them
            async with run:
                for step in planned.steps:
                    await self._take(run, step)
                run.record_usage(**planned.usage)
                if planned.failure is not None:
                    raise planned.failure[0]
        if planned.failure is not None and not run.canceled:
            await self._retry(run.agent_id, planned.failure[1])

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
            run.update(f"Approved by {self.random.choice(PEOPLE)}.", step.percentage)


def fill(engine: Engine, random: Random, count: int, long: int) -> list[Begun]:
    """Write a day of history into an empty database. Returns what is at work, with the rest of its plan."""
    with Session(engine, expire_on_commit=False) as session:
        if ax.activity.list(session, page_size=1).total:
            return []
        now = datetime.now(UTC)
        begun = at_work(random, now) + ([long_one(random, now, long)] if long else [])
        session.add_all([*past(random, count, now), *(each.activity for each in begun)])
        session.commit()
    return begun


def run_again(activity: ActivityListItemSchema) -> None:
    """Nothing to do: the activity is QUEUED, and the producer finds it in the table."""


async def work(engine: Engine, begun: list[Begun], options: argparse.Namespace) -> None:
    """Produce, and serve the dashboard if it is wanted, for so many seconds, or until SIGTERM."""
    working = asyncio.current_task()
    assert working is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, working.cancel)
    with suppress(TimeoutError):
        async with asyncio.timeout(options.seconds), asyncio.TaskGroup() as group:
            producing = group.create_task(Producer(engine, Random(options.seed)).produce(begun))
            if options.dashboard:
                from dashboard_server import DashboardServer  # needs the extra `web`

                server = DashboardServer(engine, options.port, run_again)
                print(f"The dashboard: {server.url}", flush=True)
                serving = group.create_task(server.serve())
                serving.add_done_callback(lambda _: producing.cancel())


def run(options: argparse.Namespace, database: str) -> None:
    """Fill the database, and work in it."""
    engine = create_engine(database)
    ax.configure(engine, create_tables=True)
    begun = fill(engine, Random(options.seed), options.activities, options.long)
    print(f"Agents work in {database}. Stop with Ctrl-C.", flush=True)
    with suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(work(engine, begun, options))
    ax.shutdown()
    engine.dispose()


def main() -> None:
    """Run until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", metavar="URL", help="default: a SQLite file that is removed at the end")
    parser.add_argument("--activities", type=int, default=300, help="history in an empty database; default: 300")
    parser.add_argument("--long", type=int, nargs="?", const=5_000, default=0, help="an activity with 5,000 logs")
    parser.add_argument("--seconds", type=float, help="stop after so many seconds; default: at Ctrl-C")
    parser.add_argument("--seed", type=int, help="the same history each time, relative to now")
    parser.add_argument("--dashboard", action="store_true", help="serve the dashboard, too")
    parser.add_argument("--port", type=int, default=8001, help="of the dashboard; 0 for any; default: 8001")
    options = parser.parse_args()

    if options.database:
        run(options, options.database)
        return
    with tempfile.TemporaryDirectory(prefix="agentexec-otel-live-") as folder:
        ax.CONF.spool_dir = f"{folder}/spool"
        run(options, f"sqlite:///{folder}/activities.db")


if __name__ == "__main__":
    main()
