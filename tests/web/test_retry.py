"""Retries through a pool that has kept the contexts of its tasks."""

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel

import agentexec_otel as ax
from agentexec_otel.activity.models import Status
from tests.brokers import URLS, results_for
from tests.databases import Database
from tests.e2e.task_system import Start, starting
from tests.sql.rows import eventually, lines, row
from tests.web.conftest import ACT, Serve

pytestmark = pytest.mark.one_python

on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
synchronously = pytest.mark.parametrize("serve", ["sync"], indirect=True)
UNKNOWN = UUID(int=7)


@pytest.fixture
def start(database: Database, tmp_path: Path) -> Iterator[Start]:
    """Make a system on a broker; everything of it is stopped at the end."""
    with starting(database, tmp_path) as make:
        yield make


class Job(BaseModel):
    """The context of `tests.e2e.task_app.job`."""

    number: int
    seconds: float = 0.0
    fails: int = 0


class Tasks:
    """A pool in the process that keeps contexts. Its task fails the first time."""

    def __init__(self, *, keep_contexts: bool = True) -> None:
        self.pool = ax.Pool(keep_contexts=keep_contexts)
        self.seen: list[int] = []
        self.pool.add_task("job", self.job)

    async def job(self, agent_id: UUID, context: Job) -> int:
        """Raise at the first call."""
        self.seen.append(context.number)
        if len(self.seen) == 1:
            raise ConnectionError("no answer")
        return context.number

    async def failed(self, **metadata: str) -> UUID:
        """A task that has failed."""
        task = await self.pool.enqueue("job", Job(number=7), metadata=metadata)
        with pytest.raises(ax.TaskFailedError):
            await task.result(10)
        return task.agent_id


@pytest.mark.chaos
@pytest.mark.parametrize("broker", URLS)
@pytest.mark.parametrize("database", ["postgres"], indirect=True)
@synchronously
async def test_worker_of_another_process(start: Start, serve: Serve, database: Database, broker: str) -> None:
    """On each broker, the API retries a task that one process has enqueued, and a second one has run."""
    system = start(broker, TASKS_KEEP_CONTEXTS="1")
    system.workers(1)
    enqueue = 'print((await ax.enqueue("raise", "the text")).agent_id)'
    (said,) = system.client(enqueue)
    agent_id = UUID(said)
    assert eventually(lambda: row(database.engine, agent_id).status is Status.ERROR)
    assert row(database.engine, agent_id).attempt == 2  # of taskiq's own retry

    queue = system.environment["TASKS_QUEUE"]
    async with ax.Pool(broker=URLS[broker], results=results_for(broker), queue=queue) as pool:
        pool.add_task("raise", in_worker)
        client = serve(pool=pool)
        assert (await client.get("/session")).json()["may_retry"] is True
        answer = await client.post(f"/activities/{agent_id}/retry", headers=ACT, json={"message": "Once more."})
    assert answer.json() == {"attempt": 3}
    assert eventually(lambda: row(database.engine, agent_id).status is Status.ERROR)
    messages = [log.message for log in lines(database.engine, agent_id) if log.attempt == 3]
    assert messages[:2] == ["Once more.", "Task started."]
    assert "refused for the text" in messages[2]


async def in_worker(agent_id: UUID, context: str) -> None:
    """Registered where it is sent; the worker has a function of its own."""
    raise NotImplementedError


@on_sqlite
async def test_result_of_the_new_attempt(database: Database) -> None:
    """`Pool.retry` returns the task, and its result is that of the new attempt."""
    ax.configure(database.url)
    tasks = Tasks()
    agent_id = await tasks.failed()
    task = await tasks.pool.retry(agent_id, "Once more.")
    assert (task.attempt, task.context, task.name) == (2, Job(number=7), "job")
    assert await task.result(10) == 7
    again = await tasks.pool.retry(str(agent_id))
    assert (again.attempt, await again.result(10)) == (3, 7)
    assert tasks.seen == [7, 7, 7]
    with pytest.raises(ax.ActivityStateError, match="is not kept"):
        await tasks.pool.retry(UNKNOWN)


@on_sqlite
async def test_executed_here(database: Database) -> None:
    """`Task.execute` of a retry runs the new attempt, unless a worker was first."""
    ax.configure(database.url)
    tasks = Tasks()
    task = await tasks.pool.retry(await tasks.failed())
    assert await task.execute() == 7
    assert tasks.seen == [7, 7]


@on_sqlite
@synchronously
async def test_context_that_is_not_kept(serve: Serve, database: Database) -> None:
    """Without a context the answer is 409, and the activity stays as it was."""
    tasks = Tasks(keep_contexts=False)
    agent_id = await tasks.failed()
    client = serve(pool=tasks.pool)
    answer = await client.post(f"/activities/{agent_id}/retry", headers=ACT)
    assert (answer.status_code, "keep_contexts=True" in answer.json()["detail"]) == (409, True)
    many = (await client.post("/retry?all=true", headers=ACT)).json()
    assert (many["attempts"], list(many["refused"])) == ({}, [str(agent_id)])
    stored = row(database.engine, agent_id)
    assert (stored.status, stored.attempt) == (Status.ERROR, 1)


@on_sqlite
@synchronously
async def test_context_that_does_not_fit(serve: Serve, database: Database) -> None:
    """A pool whose task has changed, or is gone, refuses with 409, and shows nothing of the context."""
    tasks = Tasks()
    agent_id = await tasks.failed()
    for register, words in ((add_changed, "does not fit the task 'job'"), (add_nothing, "no task is named 'job'")):
        pool = ax.Pool(broker=tasks.pool.broker)
        register(pool)
        answer = await serve(pool=pool).post(f"/activities/{agent_id}/retry", headers=ACT)
        assert (answer.status_code, words in answer.json()["detail"]) == (409, True), answer.text
        assert "7" not in answer.json()["detail"].replace(str(agent_id), "")
    assert row(database.engine, agent_id).attempt == 1


class Changed(BaseModel):
    """A later version of the context."""

    number: list[int]


async def changed(agent_id: UUID, context: Changed) -> None:
    """A later version of the task."""


def add_changed(pool: ax.Pool) -> None:
    """It has the later version."""
    pool.add_task("job", changed)


def add_nothing(pool: ax.Pool) -> None:
    """It has no task."""


@on_sqlite
@synchronously
async def test_one_and_many(serve: Serve, database: Database) -> None:
    """One that has not ended is 409, another tenant's 404; by filter, what has failed is retried."""
    tasks = Tasks()
    agent_id = await tasks.failed(tenant="acme")

    def other(request: object) -> ax.web.Scope:
        return ax.web.Scope({"tenant": "other"}, may_act=True)

    path = f"/activities/{agent_id}/retry"
    assert (await serve(pool=tasks.pool, authorize=other).post(path, headers=ACT)).status_code == 404
    client = serve(pool=tasks.pool)
    assert (await client.post("/retry?status=COMPLETE", headers=ACT)).json() == {"attempts": {}, "refused": {}}
    many = (await client.post("/retry?all=true", headers=ACT)).json()
    assert many == {"attempts": {str(agent_id): 2}, "refused": {}}
    await tasks.pool.shutdown()
    assert tasks.seen == [7, 7]
    waiting = await ax.activity.aio.create("job")
    assert (await client.post(f"/activities/{waiting}/retry", headers=ACT)).status_code == 409


@on_sqlite
@synchronously
async def test_broker_that_is_away(serve: Serve, database: Database) -> None:
    """A place for contexts that does not answer is 503, and the activity stays as it was."""
    agent_id = await Tasks().failed()
    pool = ax.Pool(broker="redis://127.0.0.1:1")
    pool.add_task("job", changed)
    answer = await serve(pool=pool).post(f"/activities/{agent_id}/retry", headers=ACT)
    assert (answer.status_code, "could not be read" in answer.json()["detail"]) == (503, True)
    assert row(database.engine, agent_id).attempt == 1


def test_contexts_need_a_place() -> None:
    """A broker that keeps no results keeps no contexts."""
    with pytest.raises(ax.ConfigurationError, match="keep_contexts=True needs a place"):
        ax.Pool(broker=URLS["rabbitmq"], keep_contexts=True)


@on_sqlite
def test_one_way_to_retry(database: Database) -> None:
    """Two ways at once are refused."""
    with pytest.raises(ValueError, match="only one of them"):
        ax.web.router(authorize=ax.web.public, on_retry=print, pool=ax.Pool(database.url))


@on_sqlite
async def test_database_of_the_router(database: Database, tmp_path: Path) -> None:
    """With `on_retry`, the retry happens in the database of the router, not in the one that is configured."""
    ax.configure(database.url)
    agent_id = await ax.activity.aio.create("research")
    await ax.activity.aio.error(agent_id)
    ax.flush()
    ax.shutdown()
    ax.configure(f"sqlite:///{tmp_path}/other.db", create_tables=True)
    app = FastAPI()
    handed: list[UUID] = []
    router = ax.web.router(
        authorize=ax.web.public, database=database.engine, on_retry=lambda item: handed.append(item.agent_id)
    )
    app.include_router(router)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        answer = await client.post(f"/activities/{agent_id}/retry", headers=ACT)
        again = await client.post(f"/activities/{agent_id}/retry", headers=ACT)
        unknown = await client.post(f"/activities/{UNKNOWN}/retry", headers=ACT)
    assert (answer.json(), handed) == ({"attempt": 2}, [agent_id])
    assert (again.status_code, unknown.status_code) == (409, 404)
