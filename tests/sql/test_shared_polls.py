"""However many iterators a process has over one source, they share their polls."""

import asyncio
import gc
import threading
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from threading import Thread
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import sessionmaker

import agentexec_otel as ax
from agentexec_otel.activity import aio
from agentexec_otel.activity._polling import shared_polls
from agentexec_otel.activity.models import Status
from tests.databases import Database
from tests.sql.rows import event, eventually, opening, statements, store
from tests.unit.spool_kit import fork

pytestmark = pytest.mark.one_python

PATIENCE = 60.0
MANY = 100


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    """The application's engine, with a single connection."""
    made = create_engine(database.url, pool_size=1, max_overflow=0, pool_timeout=30)
    yield made
    made.dispose()


@pytest.fixture
async def async_engine(database: Database) -> AsyncIterator[AsyncEngine]:
    """The application's asynchronous engine, with a single connection."""
    made = create_async_engine(database.async_url, pool_size=1, max_overflow=0, pool_timeout=30)
    yield made
    await made.dispose()


def queued(database: Database, count: int) -> list[UUID]:
    """So many activities that wait."""
    agent_ids = [uuid4() for _ in range(count)]
    store(database.url, [opening(agent_id) for agent_id in agent_ids])
    return agent_ids


def end(database: Database, agent_ids: list[UUID]) -> None:
    store(database.url, [event(agent_id, Status.COMPLETE, "Done") for agent_id in agent_ids])


@pytest.mark.one_python
@pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
def test_threads_share_their_polls(database: Database, engine: Engine) -> None:
    """A hundred threads follow as many activities with one statement an interval; each sees the end of its own."""
    agent_ids = queued(database, MANY)
    seen: Counter[UUID] = Counter()

    def follow(agent_id: UUID) -> None:
        for _ in ax.activity.follow(engine, agent_id, timeout=PATIENCE):
            seen[agent_id] += 1

    threads = [Thread(target=follow, args=(agent_id,)) for agent_id in agent_ids]
    for thread in threads:
        thread.start()
    assert eventually(lambda: len(seen) == MANY, PATIENCE)
    time.sleep(1.5)  # now they all wait for a second between polls
    with statements(engine) as idle:
        time.sleep(2.5)
    assert 1 <= len(idle) <= MANY / 10
    end(database, agent_ids)
    for thread in threads:
        thread.join(PATIENCE)
    assert seen == dict.fromkeys(agent_ids, 2)


@pytest.mark.one_python
@pytest.mark.parametrize("database", ["postgres"], indirect=True)
async def test_tasks_share_their_polls(database: Database, async_engine: AsyncEngine) -> None:
    """The same on an event loop, beside a follower of the feed."""
    agent_ids = queued(database, MANY)
    seen: Counter[UUID] = Counter()

    async def follow(agent_id: UUID) -> None:
        async for _ in aio.follow(async_engine, agent_id, timeout=PATIENCE):
            seen[agent_id] += 1

    async def follow_feed() -> set[int]:
        ids: set[int] = set()
        async with aclosing(aio.follow_feed(async_engine, timeout=PATIENCE)) as logs:
            async for log in logs:
                ids.add(log.id)
                if len(ids) == 2 * MANY:
                    break
        return ids

    tasks = [asyncio.create_task(follow(agent_id)) for agent_id in agent_ids]
    feed = asyncio.create_task(follow_feed())
    assert await asyncio.to_thread(eventually, lambda: len(seen) == MANY, PATIENCE)
    await asyncio.sleep(1.5)
    with statements(async_engine.sync_engine) as idle:
        await asyncio.sleep(2.5)
    assert 1 <= len(idle) <= MANY / 10
    await asyncio.to_thread(end, database, agent_ids)
    await asyncio.gather(*tasks)
    assert seen == dict.fromkeys(agent_ids, 2)
    assert len(await feed) == 2 * MANY


def test_an_error_reaches_all_that_wait(database: Database, engine: Engine) -> None:
    """If the shared poll fails, each follower raises the database's error, and can be started again."""
    agent_ids = queued(database, 3)
    failed: list[BaseException] = []
    seen: list[int] = []

    def follow(agent_id: UUID) -> None:
        try:
            seen.extend(log.seq for log in ax.activity.follow(engine, agent_id, timeout=PATIENCE))
        except DBAPIError as exc:
            failed.append(exc)

    def fail(*_: object) -> None:
        raise DBAPIError("SELECT", {}, OSError("the cable is out"))

    threads = [Thread(target=follow, args=(agent_id,)) for agent_id in agent_ids]
    for thread in threads:
        thread.start()
    assert eventually(lambda: len(seen) == 3)
    sqlalchemy_event.listen(engine, "before_cursor_execute", fail)
    for thread in threads:
        thread.join(PATIENCE)
    sqlalchemy_event.remove(engine, "before_cursor_execute", fail)
    assert len(failed) == 3
    end(database, agent_ids)
    assert [log.seq for agent_id in agent_ids for log in ax.activity.follow(engine, agent_id, after_seq=1)] == [2, 2, 2]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_an_abandoned_iterator_costs_nothing(database: Database, engine: Engine) -> None:
    """An iterator that is not advanced is not asked for, and leaves no thread; the last one takes the polls with it."""
    (agent_id,) = queued(database, 1)
    before = set(threading.enumerate())
    abandoned = [ax.activity.follow(engine, agent_id) for _ in range(3)]
    assert [next(following).seq for following in abandoned] == [1, 1, 1]
    with statements(engine) as sent:
        time.sleep(0.2)
    assert sent == []
    assert set(threading.enumerate()) <= before
    polls = weakref.ref(shared_polls(engine))
    assert polls() is not None
    abandoned.clear()
    gc.collect()
    assert polls() is None


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_other_sources_are_asked_by_themselves(database: Database, engine: Engine) -> None:
    """A sessionmaker may set up its sessions in its own way, so it shares polls with nothing but itself."""
    makers = [sessionmaker(engine), sessionmaker(engine)]
    found = [shared_polls(engine), *map(shared_polls, makers)]
    assert len({id(polls) for polls in found}) == 3
    assert shared_polls(makers[0]) is found[1]


async def test_canceled_tasks_leave_no_poll(database: Database, async_engine: AsyncEngine) -> None:
    """Other tasks get the answer of a poll whose first task is canceled; after the last one there is no poll."""
    agent_ids = queued(database, 2)
    iterators = [aio.follow(async_engine, agent_id, timeout=PATIENCE) for agent_id in agent_ids]
    for iterator in iterators:
        await anext(iterator)
    waiting = [asyncio.ensure_future(anext(iterator)) for iterator in iterators]
    async with async_engine.connect():  # the poll waits for the only connection
        await asyncio.sleep(0.1)
        waiting[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
    store(database.url, [event(agent_ids[1])])
    assert (await waiting[1]).seq == 2
    last = asyncio.ensure_future(anext(iterators[1]))
    async with async_engine.connect():
        await asyncio.sleep(0.1)
        last.cancel()
        with pytest.raises(asyncio.CancelledError):
            await last
        assert asyncio.all_tasks() == {asyncio.current_task()}
    pool: Any = async_engine.sync_engine.pool
    assert pool.checkedout() == 0


@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
def test_a_forked_child_polls_by_itself(database: Database, engine: Engine) -> None:
    """A child of a process whose threads wait can follow, too: it waits for no lock of its parent."""
    agent_ids = queued(database, 2)
    seen: list[int] = []

    def follow() -> None:
        seen.extend(log.seq for log in ax.activity.follow(engine, agent_ids[0], timeout=PATIENCE))

    follower = Thread(target=follow)
    follower.start()
    inherited = ax.activity.follow(engine, agent_ids[1], timeout=PATIENCE)
    assert next(inherited).seq == 1

    def follow_in_child() -> None:
        engine.dispose(close=False)
        assert [log.seq for log in inherited] == [2]

    child = fork(follow_in_child)
    end(database, agent_ids)
    child.join()
    follower.join(PATIENCE)
    assert seen == [1, 2]
