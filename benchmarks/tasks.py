"""What an activity costs a task: from `enqueue` to RUNNING, and tasks per second.

Beside taskiq alone, and beside taskiq with the least by hand that keeps the same three lines per task.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from uuid import uuid4

from redis import Redis
from redis.exceptions import RedisError

import agentexec_otel as ax
from benchmarks._by_hand import create_tables, open_lines
from benchmarks._context import Context, Scale
from benchmarks._databases import ACTIVITY, Database
from benchmarks._measure import Listing, Row, Section, Table, Target, interleaved, percentile
from benchmarks._task_worker import AT_ONCE, Job, of_ours, of_taskiq

_TASKS: Final = {Scale.SMOKE: 10, Scale.QUICK: 200, Scale.FULL: 600}
_ONE_BY_ONE: Final = {Scale.SMOKE: 2, Scale.QUICK: 20, Scale.FULL: 50}
_SECONDS: Final = 0.1
_MOST: Final = 50.0  # milliseconds
_AT_LEAST: Final = 0.8

_Send = Callable[[Job], Awaitable[object]]


def run(context: Context) -> Section:
    """Measure on Redis, with the activities on every database."""
    title = "Tasks on Redis"
    url = os.environ.get("AGENTEXEC_TEST_REDIS", "redis://127.0.0.1:6379/10")
    try:
        with closing(Redis.from_url(url)) as redis:  # pyright: ignore[reportUnknownMemberType]
            redis.exists("bench")
            return Section("tasks", title, [_table(context, one, redis, url) for one in context.databases])
    except RedisError as exc:
        return Section("tasks", title, [Listing("Not measured", f"Redis does not answer at {url}: {exc}")])


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the three, with its worker process."""

    send: _Send
    loop: asyncio.Runner
    redis: Redis

    def many(self, seconds: float, tasks: int) -> float:
        """Tasks per second, from the first one that is sent to the last one that has ended."""
        job = Job(seconds=seconds, done=f"bench:{uuid4().hex}")

        async def send() -> None:
            for start in range(0, tasks, 50):
                await asyncio.gather(*(self.send(job) for _ in range(start, min(tasks, start + 50))))

        began = time.perf_counter()
        self.loop.run(send())
        while _counted(self.redis, job.done) < tasks:
            time.sleep(0.002)
        return tasks / (time.perf_counter() - began)

    def one_by_one(self, tasks: int, started: Callable[[Job, object], bool]) -> list[float]:
        """Milliseconds from sending until `started`, task by task."""
        waits: list[float] = []
        for _ in range(tasks):
            job = Job(seconds=_SECONDS, done=f"bench:{uuid4().hex}")
            began = time.perf_counter()
            sent = self.loop.run(_sent(self.send, job))
            while not started(job, sent):
                time.sleep(0.0005)
            waits.append((time.perf_counter() - began) * 1e3)
            while not _counted(self.redis, job.done):
                time.sleep(0.005)
        return waits


async def _sent(send: _Send, job: Job) -> object:
    return await send(job)


def _counted(redis: Redis, key: str) -> int:
    found: Any = redis.get(key)
    return int(found or 0)


def _table(context: Context, database: Database, redis: Redis, url: str) -> Table:
    database.reset()
    tasks, singles = context.pick(_TASKS), context.pick(_ONE_BY_ONE)
    with _sides(database, redis, url) as (plain, hand, ours), closing(database.connect()) as connection:

        def running(job: Job, sent: object) -> bool:
            assert isinstance(sent, ax.Task)
            statement = database.sql(f"SELECT status FROM {ACTIVITY} WHERE agent_id = ?")
            found = connection.execute(statement, (database.value(sent.agent_id),)).fetchone()
            connection.rollback()
            return found is not None and found[0] != "QUEUED"

        cases: dict[str, Callable[[], float | list[float]]] = {
            "plain start": lambda: plain.one_by_one(singles, lambda job, _: _counted(redis, f"{job.done}:started") > 0),
            "ours start": lambda: ours.one_by_one(singles, running),
            "plain work": partial(plain.many, _SECONDS, tasks),
            "hand work": partial(hand.many, _SECONDS, tasks),
            "ours work": partial(ours.many, _SECONDS, tasks),
            "plain empty": partial(plain.many, 0.0, tasks),
            "hand empty": partial(hand.many, 0.0, tasks),
            "ours empty": partial(ours.many, 0.0, tasks),
        }
        found = interleaved(cases, context.runs, context.track(f"tasks {database.kind}", context.runs * len(cases)))
    waits: dict[str, list[list[float]]] = {name: found[f"{name} start"] for name in ("plain", "ours")}  # type: ignore[misc]
    rates: dict[str, list[float]] = {name: values for name, values in found.items() if "start" not in name}  # type: ignore[misc]
    return Table(
        f"{database.title}, one worker process with {AT_ONCE} tasks at once",
        "taskiq alone, with its own Redis broker, with the same tasks",
        [*_start_rows(waits), *_rate_rows(rates, tasks)],
        [
            "RUNNING is when another process can read it; taskiq's start is when the function is called.",
            f"A task of {_SECONDS * 1e3:g} ms waits that long and asks Redis twice; an empty one asks Redis twice.",
            "By hand: a row per task and a line per status, each committed, by sqlite3 on a thread or by asyncpg.",
            "The producer, the worker, Redis and the database share the machine's cores.",
        ],
    )


def _start_rows(waits: dict[str, list[list[float]]]) -> list[Row]:
    rows: list[Row] = []
    for figure, share in (("p50", 0.5), ("p99", 0.99)):
        plain, ours = ([percentile(run, share) for run in waits[name]] for name in ("plain", "ours"))
        target = Target(_MOST, of="value") if figure == "p50" else None
        rows.append(Row(f"taskiq: from kiq() to the start, {figure}", "ms", plain))
        rows.append(Row(f"from enqueue() to RUNNING, {figure}", "ms", ours, plain, target))
    return rows


def _rate_rows(rates: dict[str, list[float]], tasks: int) -> list[Row]:
    rows: list[Row] = []
    for kind, title in (("work", f"{tasks} tasks of {_SECONDS * 1e3:g} ms"), ("empty", f"{tasks} empty tasks")):
        plain, hand, ours = (rates[f"{side} {kind}"] for side in ("plain", "hand", "ours"))
        rows.append(Row(f"taskiq: {title}", "/s", plain))
        rows.append(Row(f"taskiq, three lines by hand: {title}", "/s", hand, plain))
        rows.append(Row(f"as activities: {title}", "/s", ours, plain, Target(_AT_LEAST, at_least=True)))
    return rows


@contextmanager
def _sides(database: Database, redis: Redis, url: str) -> Generator[tuple[_Side, _Side, _Side]]:
    sides = ("plain", "hand", "ours")
    queues = [f"bench_{uuid4().hex}" for _ in sides]
    where = (database.kind, database.url, database.dsn)
    create_tables(database.kind, database.dsn)
    lines = open_lines(database.kind, database.dsn)
    ax.configure(database.url)
    broker, task = of_taskiq(url, queues[0])
    by_hand, task_by_hand = of_taskiq(url, queues[1])
    pool = of_ours(url, queues[2])
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks._task_worker", side, url, queue, *where],
            stderr=subprocess.DEVNULL,
        )
        for side, queue in zip(sides, queues, strict=True)
    ]

    async def enqueue_by_hand(job: Job) -> None:
        task_id = uuid4().hex
        await lines.put(task_id, "QUEUED")
        await task_by_hand.kiq(task_id, context=job)

    try:
        with asyncio.Runner() as loop:
            for starting in (broker, by_hand, pool):
                loop.run(starting.startup())
            plain = _Side(lambda job: task.kiq("0", context=job), loop, redis)
            hand = _Side(enqueue_by_hand, loop, redis)
            ours = _Side(lambda job: ax.enqueue("job", job), loop, redis)
            for side in (plain, hand, ours):
                side.many(0.0, 20)  # warm, and wait until the worker is there
            yield plain, hand, ours
            for ending in (pool.shutdown, by_hand.shutdown, broker.shutdown, lines.close):
                loop.run(ending())
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait(30)
        ax.shutdown(30.0)
        for queue in queues:
            redis.delete(queue)
