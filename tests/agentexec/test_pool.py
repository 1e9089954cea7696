"""A pool and its tasks as agentexec's users write them."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from taskiq import InMemoryBroker, SimpleRetryMiddleware

import agentexec_otel as ax
from agentexec_otel.activity.models import Status
from tests.brokers import REDIS, need
from tests.chaos.processes import environment_with
from tests.databases import Database
from tests.sql.rows import row

on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
APP = """
from uuid import UUID

import agentexec_otel as ax
from pydantic import BaseModel
from sqlalchemy import create_engine

pool = ax.Pool(engine=create_engine({url!r}), queue={queue!r})


class Order(BaseModel):
    company: str


class Report(BaseModel):
    text: str


async def research(agent_id: UUID, context: Order) -> Report:
    ax.activity.update(agent_id, f"Reading about {{context.company}}", percentage=50)
    return Report(text=context.company.upper())


pool.add_task("research", research)
"""
CLIENT = """
import asyncio
import app
from app import Order, ax


async def main():
    async with app.pool:
        tasks = [await ax.enqueue("research", Order(company=name)) for name in ("Acme", "Globex")]
        print(*(report.text for report in await ax.gather(*tasks, timeout=60)))


asyncio.run(main())
"""


class Order(BaseModel):
    """What the tasks are given."""

    company: str
    seconds: float = 0.0


class Report(BaseModel):
    """What they return."""

    text: str


async def research(agent_id: UUID, context: Order) -> Report:
    await asyncio.sleep(context.seconds)
    return Report(text=context.company.upper())


async def fail(agent_id: UUID, context: Order) -> None:
    raise ValueError(f"nothing about {context.company}")


@pytest.fixture(autouse=True)
def no_server_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AGENTEXEC_REDIS_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)


@on_sqlite
async def test_engine_and_database_url(database: Database) -> None:
    """Both configure the process, with a synchronous or an asynchronous engine; without Redis, tasks run here."""
    engine, async_engine = create_engine(database.url), create_async_engine(database.async_url)
    for pool in (
        ax.Pool(engine=engine),
        ax.Pool(engine=async_engine),
        ax.Pool(database_url=database.url),
        ax.Pool(database_url=make_url(database.async_url)),
    ):
        assert isinstance(pool.broker, InMemoryBroker)
        pool.add_task("research", research)
        async with pool:
            task = await pool.enqueue("research", Order(company="Acme"))
            assert await ax.get_result(task, timeout=10) == Report(text="ACME")
            assert (task.task_name, task.context) == ("research", Order(company="Acme"))
        assert row(database.engine, task.agent_id).status is Status.COMPLETE
    engine.dispose()
    await async_engine.dispose()


@on_sqlite
def test_one_database(database: Database) -> None:
    """Several would contradict each other."""
    with pytest.raises(ValueError, match="one of engine_or_url, engine and database_url"):
        ax.Pool(engine=create_engine("sqlite://"), database_url=database.url)


@on_sqlite
@pytest.mark.parametrize("name", ["AGENTEXEC_REDIS_URL", "REDIS_URL"])
def test_the_server_of_the_environment(database: Database, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """It is used by a pool that is written as for agentexec and names no broker, and by no other pool."""
    monkeypatch.setenv(name, REDIS)
    for pool in (ax.Pool(engine=create_engine(database.url)), ax.Pool(database_url=database.url)):
        assert type(pool.broker).__module__ == "agentexec_otel.tasks.taskiq.redis"
    own = InMemoryBroker()
    assert ax.Pool(database_url=database.url, broker=own).broker is own
    for pool in (ax.Pool(database.url), ax.Pool()):
        assert isinstance(pool.broker, InMemoryBroker)


@on_sqlite
async def test_add_task(database: Database) -> None:
    """As the decorator; types may be given instead of annotations; a name is taken once."""
    pool = ax.Pool(database_url=database.url)

    async def untyped(agent_id: Any, context: Any) -> Any:
        return {"text": context.company}

    untyped.__annotations__.clear()
    pool.add_task("untyped", untyped, context_type=Order, result_type=Report)
    with pytest.raises(TypeError, match="the context of the task 'other' has no type"):
        pool.add_task("other", untyped)
    with pytest.raises(ValueError, match="'untyped' already"):
        pool.add_task("untyped", research)
    with pytest.raises(ValueError, match="is no name for a task"):
        pool.add_task(" ", research)
    async with pool:
        task = await pool.enqueue("untyped", Order(company="Acme"))
        assert await ax.get_result(task, timeout=10) == Report(text="Acme")


@on_sqlite
def test_a_lock_is_refused(database: Database) -> None:
    """As a label of taskiq it would have no effect, and two tasks would run at once."""
    pool = ax.Pool(database_url=database.url)
    with pytest.raises(TypeError, match=r"lock_key='company:\{company\}' .* take a lock of your Redis server"):
        pool.task("research", lock_key="company:{company}")(research)
    with pytest.raises(TypeError, match="pools have no locks"):
        pool.add_task("research", research, lock_key="x")
    assert not pool.tasks


@on_sqlite
async def test_gather(database: Database) -> None:
    """Results in the order of the tasks; the first failure is raised at once, and the other tasks keep running."""
    async with ax.Pool(database_url=database.url) as pool:
        pool.add_task("research", research)
        pool.add_task("fail", fail)
        assert await ax.gather() == ()
        slow, fast = [await ax.enqueue("research", Order(company=str(n), seconds=n)) for n in (0.2, 0)]
        assert await ax.gather(slow, fast, timeout=10) == (Report(text="0.2"), Report(text="0"))
        slow, failed = (
            await ax.enqueue("research", Order(company="slow", seconds=3)),
            await pool.enqueue("fail", Order(company="Acme")),
        )
        with pytest.raises(ax.TaskFailedError):
            await ax.gather(slow, failed, timeout=20)
        with pytest.raises(TimeoutError):
            await ax.gather(slow, timeout=0.05)
        assert len(asyncio.all_tasks()) < 10
        assert await ax.get_result(slow) == Report(text="SLOW")


async def test_what_a_failure_says(database: Database) -> None:
    """The task's name, the text that its activity ended with, and how often it was tried; also if there was a span."""
    async with ax.Pool(database_url=database.url) as pool:
        pool.broker.add_middlewares(SimpleRetryMiddleware())
        pool.add_task("fail", fail, retry_on_error=True, max_retries=3)
        task = await ax.enqueue("fail", Order(company="Acme"))
        with pytest.raises(ax.TaskFailedError) as failure:
            await ax.get_result(task, timeout=20)
        ax.activity.update(task.agent_id, "Still at it")
        assert ax.flush()
        with pytest.raises(ax.TaskFailedError) as again:
            await ax.get_result(task, timeout=20)
    error = failure.value
    assert (error.task_name, error.agent_id, error.attempts) == ("fail", task.agent_id, 3)
    assert error.error == again.value.error == "Task failed: nothing about Acme"
    assert (error.error_type, error.reason) == ("ValueError", "other")


@pytest.mark.one_python
@pytest.mark.timeout(120)
@on_sqlite
def test_workers_on_the_server_of_the_environment(database: Database, tmp_path: Path) -> None:
    """A module written for agentexec, but for the import name: two processes meet at REDIS_URL."""
    need("redis")
    (tmp_path / "app.py").write_text(APP.format(url=database.url, queue=f"test_{uuid4().hex}"))
    environment = environment_with({"REDIS_URL": REDIS, "XDG_STATE_HOME": str(tmp_path / "state")})
    command = [sys.executable, "-c", "from agentexec_otel.cli import main; main()", "worker", "app:pool", "-w", "1"]
    with (tmp_path / "worker.log").open("wb") as log:
        worker = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        client = subprocess.run(
            [sys.executable, "-c", CLIENT],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
        assert (client.stdout, client.returncode) == ("ACME GLOBEX\n", 0), client.stderr
    finally:
        os.killpg(worker.pid, signal.SIGTERM)
        worker.wait(30)
