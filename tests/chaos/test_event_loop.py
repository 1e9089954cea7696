"""On an event loop nothing of ours waits, whatever the database does."""

import asyncio
import time
from uuid import uuid4

import pytest

import agentexec_otel as ax
from tests.chaos.conftest import POSTGRES_FIRST
from tests.chaos.law import settled
from tests.chaos.proxy import Proxy
from tests.databases import Database

pytestmark = pytest.mark.one_python

PROMISED = 0.020
BOUND = 10 * PROMISED


@POSTGRES_FIRST
async def test_a_black_hole_stalls_no_event_loop(database: Database, proxy: Proxy) -> None:
    """Every call that is allowed on an event loop leaves it free for all but 20 ms (bound here: 200 ms)."""
    ax.configure(proxy.url)
    ax.CONF.create_timeout = 0.5
    ax.CONF.lookup_timeout = 0.5
    ax.CONF.terminal_timeout = 0.5
    ids = [await ax.activity.aio.create("task") for _ in range(6)]
    proxy.blackhole()
    stalls: dict[str, float] = {}
    for name, call in {
        "update": lambda: ax.activity.update(ids[0], "line", 10),
        "a hundred updates": lambda: [ax.activity.update(ids[0], "line") for _ in range(100)],
        "complete": lambda: ax.activity.complete(ids[0]),
        "error": lambda: ax.activity.error(ids[1]),
        "cancel": lambda: ax.activity.cancel(ids[2]),
        "an unseen id": lambda: ax.activity.update(uuid4(), "line"),
        "with run()": lambda: blocks(ids[3]),
        "health()": ax.health,
    }.items():
        began = time.perf_counter()
        call()
        stalls[name] = time.perf_counter() - began
    async with Probe() as probe, ax.activity.run(ids[4]) as run:
        run.update("inside")
        await asyncio.sleep(0.05)
    stalls["async with run()"] = probe.worst
    async with Probe() as probe:
        with pytest.raises(ax.ActivityNotStoredError):
            await ax.activity.aio.create("cannot be stored")
        await ax.activity.aio.update(uuid4(), "unseen, off the loop")
        await ax.activity.aio.complete(ids[5])
    stalls["aio"] = probe.worst
    assert max(stalls.values()) < BOUND, stalls
    print({name: f"{seconds * 1e3:.1f} ms" for name, seconds in stalls.items()})
    proxy.let_pass()
    assert await asyncio.to_thread(ax.flush, 30)
    settled()


def blocks(agent_id: object) -> None:
    with ax.activity.run(str(agent_id)) as run:
        run.update("inside")


class Probe:
    """Measures by how much the loop is late."""

    def __init__(self) -> None:
        self.worst = 0.0

    async def __aenter__(self) -> "Probe":
        self._task = asyncio.create_task(self._run())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.sleep(0.01)
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.005)
            self.worst = max(self.worst, time.perf_counter() - began - 0.005)
