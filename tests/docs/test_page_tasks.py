"""The activity page's blocks with tasks run as written, on the in-process broker and on real brokers."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel
from taskiq.api import run_receiver_task

import agentexec_otel as ax
from agentexec_otel.activity.models import Status
from tests.brokers import URLS, need, results_for
from tests.docs.blocks import Block
from tests.docs.page import Line, on_sqlite, run_as_written, runs, stored

pytestmark = on_sqlite

TOLD = "Task completed successfully."


class MyContext(BaseModel):
    """The input of the page's tasks."""


class ResearchContext(BaseModel):
    """The input of the page's research."""

    company: str


class Site:
    """A pool of the page's application, and the event loop that it lives on."""

    def __init__(self, pool: ax.Pool, runner: asyncio.Runner, *, works: bool) -> None:
        self.pool = pool
        self.runner = runner
        self._works = works
        self._worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Have a worker for the tasks that are registered by now: here on the same loop, by way of the real broker."""
        if self._works:
            self.pool.broker.is_worker_process = True
        self.runner.run(self.pool.startup())
        if self._works:
            self.runner.run(self._work())

    async def _work(self) -> None:
        self._worker = asyncio.create_task(run_receiver_task(self.pool.broker))

    def stop(self) -> None:
        self.runner.run(self._stop())

    async def _stop(self) -> None:
        if self._worker is not None:
            self._worker.cancel()
            with suppress(asyncio.CancelledError):
                await self._worker
            self.pool.broker.is_worker_process = False
        await self.pool.shutdown()


@pytest.fixture(params=["in-process", *URLS])
def site(request: pytest.FixtureRequest, names: dict[str, Any]) -> Iterator[Site]:
    """The page's `pool`, on each broker."""
    broker = results = None
    if request.param != "in-process":
        need(request.param, "redis")
        broker, results = URLS[request.param], results_for(request.param)
    pool = ax.Pool(names["engine"], broker, results=results, queue=f"page_{uuid4().hex}")
    with asyncio.Runner() as runner:
        made = Site(pool, runner, works=broker is not None)
        names["pool"] = pool
        yield made
        made.stop()


@runs("Creating Activities")
def test_enqueue_creates_the_activity(block: Block, names: dict[str, Any], site: Site) -> None:
    """The one line of the page, as it is: an activity that was QUEUED, and a task that is run."""

    @site.pool.task("research")
    async def research(agent_id: Any, context: ResearchContext) -> str:
        return context.company

    site.start()
    names["ResearchContext"] = ResearchContext
    block.run(names, site.runner.run)
    task = names["task"]
    assert site.runner.run(task.result(timeout=30)) == "Acme"
    status, _, lines = stored(names["engine"], task.agent_id)
    assert (status, lines[0]) == (Status.COMPLETE, Line(Status.QUEUED, "Waiting to start."))


@runs("Updating Progress")
def test_progress_of_a_task(block: Block, names: dict[str, Any], site: Site) -> None:
    """Each line can be read from the database while the next phase runs; the end is set automatically."""
    seen: list[Line] = []

    async def phase() -> None:
        run = ax.activity.current()
        assert run is not None
        status, percentage, lines = await asyncio.to_thread(stored, names["engine"], run.agent_id)
        assert (status, percentage) == (Status.RUNNING, lines[-1].percentage)
        seen.append(lines[-1])

    run_as_written(block, names, MyContext=MyContext, phase_1=phase, phase_2=phase, phase_3=phase)
    site.start()
    task = site.runner.run(ax.enqueue("long_task", MyContext()))
    assert site.runner.run(task.result(timeout=30)) is None
    assert seen == [
        Line(Status.RUNNING, "Starting phase 1"),
        Line(Status.RUNNING, "Phase 1 complete, starting phase 2", 33),
        Line(Status.RUNNING, "Phase 2 complete, starting phase 3", 66),
    ]
    status, percentage, lines = stored(names["engine"], task.agent_id)
    assert (status, percentage, lines[-2:]) == (Status.COMPLETE, 100, [seen[-1], Line(Status.COMPLETE, TOLD, 100)])


@runs("1. Report Progress Frequently")
def test_progress_per_item(block: Block, names: dict[str, Any], site: Site) -> None:
    """One line per item, and the percentage reaches 100 while the task still runs."""

    async def get_items() -> list[str]:
        return ["a", "b", "c"]

    async def process_item(item: str) -> None:
        assert item in "abc"

    run_as_written(block, names, MyContext=MyContext, get_items=get_items, process_item=process_item)
    site.start()
    task = site.runner.run(ax.enqueue("long_task", MyContext()))
    site.runner.run(task.result(timeout=30))
    assert stored(names["engine"], task.agent_id)[2][-4:] == [
        *(Line(Status.RUNNING, f"Processed {n}/3 items", reached) for n, reached in ((1, 33), (2, 66), (3, 100))),
        Line(Status.COMPLETE, TOLD, 100),
    ]


@runs("Completing Tasks")
def test_execute_completes_automatically(block: Block, names: dict[str, Any], site: Site) -> None:
    """`task.execute()`, which the page names, runs the task and marks its activity COMPLETE, whoever is first."""
    ran: list[str] = []

    @site.pool.task("research")
    async def research(agent_id: Any, context: ResearchContext) -> str:
        ran.append(context.company)
        return context.company

    assert "task.execute()" in block.code
    site.start()
    task = site.runner.run(ax.enqueue("research", ResearchContext(company="Acme")))
    assert site.runner.run(task.execute()) == "Acme"
    assert site.runner.run(task.result(timeout=30)) == "Acme"
    assert ran == ["Acme"]
    assert stored(names["engine"], task.agent_id)[2][-1] == Line(Status.COMPLETE, TOLD, 100)
