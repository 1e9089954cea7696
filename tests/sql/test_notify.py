"""`AGENTEXEC_NOTIFY`: on PostgreSQL, followers wake with the commit; elsewhere, and without a connection, they poll."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, closing, contextmanager
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.sql import SQL, Identifier
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

import agentexec_otel as ax
from agentexec_otel.activity import aio
from agentexec_otel.activity._polling import AsyncSharedPolls, SharedPolls, Waiter, async_shared_polls, shared_polls
from agentexec_otel.activity.models import CHANNEL, Status
from agentexec_otel_exporters.sql import SQLExporter
from tests.databases import Database
from tests.sql.rows import event, eventually, opening, statements, store
from tests.unit.spool_kit import fork

pytestmark = pytest.mark.one_python

PATIENCE = 60.0
AT_ONCE = 20.0
"""A pause of `PATIENCE` that ends in this time was ended by a notification, even on a busy machine."""
DRIVERS = ("asyncpg", "psycopg")

on_postgresql = pytest.mark.parametrize("database", ["postgres"], indirect=True)


@pytest.fixture(autouse=True)
def notify(database: Database) -> None:
    """Writers notify, followers listen."""
    ax.CONF.notify = True


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    """The application's engine, with a single connection."""
    made = create_engine(database.url, pool_size=1, max_overflow=0, pool_timeout=30)
    yield made
    made.dispose()


@pytest.fixture(params=DRIVERS)
async def async_engine(database: Database, request: pytest.FixtureRequest) -> AsyncIterator[AsyncEngine]:
    """The application's asynchronous engine, with a single connection, with each driver."""
    url = make_url(database.url).set(drivername=f"postgresql+{request.param}")
    made = create_async_engine(url, pool_size=1, max_overflow=0, pool_timeout=30)
    yield made
    await made.dispose()


def listeners(database: Database) -> list[int]:
    """The sessions that have listened last."""
    listening = text("SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN %'")
    with database.engine.connect() as connection:
        return list(connection.execute(listening).scalars())


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "agentexec-listener"]


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    """Threads that wait."""
    with ThreadPoolExecutor() as made:
        yield made


def waits(polls: SharedPolls, waiter: Waiter) -> float:
    """Wait until there is news, and return how many seconds it took."""
    began = time.monotonic()
    while not polls.wait(waiter, PATIENCE):  # the first poll is that of the beginning to listen
        assert time.monotonic() < began + PATIENCE
    return time.monotonic() - began


async def waits_async(polls: AsyncSharedPolls, waiter: Waiter) -> float:
    """Wait until there is news, and return how many seconds it took."""
    began = time.monotonic()
    while not await polls.wait(waiter, PATIENCE):
        assert time.monotonic() < began + PATIENCE
    return time.monotonic() - began


def asked_now(agent_id: UUID | None, seen: int) -> Waiter:
    return Waiter(agent_id, seen, time.monotonic())


# -- wake-ups -----------------------------------------------------------------------------------------------------


@on_postgresql
def test_a_log_ends_a_long_pause(database: Database, engine: Engine, executor: ThreadPoolExecutor) -> None:
    """A thread that would poll in a minute has news with the commit, of an activity as of the feed."""
    agent_id = uuid4()
    store(database.url, [opening(agent_id)])
    for source in (engine, sessionmaker(engine)):
        with Session(engine) as session:
            last = ax.activity.feed(session).logs[-1]
        polls = shared_polls(source)
        found = [executor.submit(waits, polls, asked_now(*one)) for one in ((agent_id, last.seq), (None, last.id))]
        assert eventually(lambda: listeners(database), PATIENCE)
        time.sleep(0.1)
        store(database.url, [event(agent_id)])
        for future in found:
            assert future.result(PATIENCE) < AT_ONCE
        assert eventually(lambda: not listeners(database), PATIENCE)


@on_postgresql
async def test_a_log_ends_a_long_pause_of_a_task(database: Database, async_engine: AsyncEngine) -> None:
    """The same on an event loop, with asyncpg and with psycopg."""
    agent_id = uuid4()
    store(database.url, [opening(agent_id)])
    sources: list[AsyncEngine | async_sessionmaker[AsyncSession]] = [async_engine, async_sessionmaker(async_engine)]
    for seen, source in enumerate(sources, 1):
        polls = async_shared_polls(source)
        async with polls.following_async():
            found = asyncio.create_task(waits_async(polls, asked_now(agent_id, seen)))
            assert await asyncio.to_thread(eventually, lambda: listeners(database), PATIENCE)
            await asyncio.sleep(0.1)
            await asyncio.to_thread(store, database.url, [event(agent_id)])
            assert await found < AT_ONCE
        assert await asyncio.to_thread(eventually, lambda: not listeners(database), PATIENCE)


@on_postgresql
def test_followers_see_each_log_once(database: Database, engine: Engine, executor: ThreadPoolExecutor) -> None:
    """Many followers, one connection that listens beside the pool, all logs in order."""
    agent_ids = [uuid4() for _ in range(20)]
    store(database.url, [opening(agent_id) for agent_id in agent_ids])

    def seqs(agent_id: UUID) -> list[int]:
        return [log.seq for log in ax.activity.follow(engine, agent_id, timeout=PATIENCE)]

    found = [executor.submit(seqs, agent_id) for agent_id in agent_ids]
    assert eventually(lambda: listeners(database), PATIENCE)
    for number in range(10):
        store(database.url, [event(agent_id, message=f"Step {number}") for agent_id in agent_ids])
        assert len(listeners(database)) == 1
        assert len(threads()) == 1
    store(database.url, [event(agent_id, Status.COMPLETE, "Done") for agent_id in agent_ids])
    assert [future.result(PATIENCE) for future in found] == [list(range(1, 13))] * 20
    assert eventually(lambda: not threads(), PATIENCE)
    assert eventually(lambda: not listeners(database), PATIENCE)
    pool: Any = engine.pool
    assert pool.checkedout() == 0


@on_postgresql
async def test_the_task_ends_with_its_last_follower(database: Database, async_engine: AsyncEngine) -> None:
    """There is one task however many follow; nothing of it is left behind the last, neither task nor connection."""
    agent_ids = [uuid4() for _ in range(5)]
    store(database.url, [opening(agent_id) for agent_id in agent_ids])

    async def follow(agent_id: UUID) -> list[int]:
        return [log.seq async for log in aio.follow(async_engine, agent_id, timeout=PATIENCE)]

    found = [asyncio.create_task(follow(agent_id)) for agent_id in agent_ids]
    assert await asyncio.to_thread(eventually, lambda: len(listeners(database)) == 1, PATIENCE)
    assert [task.get_name() for task in asyncio.all_tasks()].count("agentexec-listener") == 1
    for agent_id in agent_ids:
        await asyncio.to_thread(store, database.url, [event(agent_id, Status.COMPLETE, "Done")])
    assert await asyncio.gather(*found) == [[1, 2]] * 5
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert await asyncio.to_thread(eventually, lambda: not listeners(database), PATIENCE)

    following = asyncio.create_task(anext(aio.follow(async_engine, agent_ids[0], after_seq=2)))
    with pytest.raises(StopAsyncIteration):
        await following
    async with aclosing(aio.follow_feed(async_engine, "now", timeout=PATIENCE)) as logs:
        canceled = asyncio.ensure_future(anext(logs))
        assert await asyncio.to_thread(eventually, lambda: listeners(database), PATIENCE)
        canceled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await canceled
    assert asyncio.all_tasks() == {asyncio.current_task()}


@on_postgresql
def test_an_iterator_that_is_not_advanced_does_not_listen(database: Database, engine: Engine) -> None:
    """What is only kept, and not waited for, has neither thread nor connection after a second."""
    agent_id = uuid4()
    store(database.url, [opening(agent_id)])
    with closing(ax.activity.follow(engine, agent_id, timeout=PATIENCE)) as following:
        assert next(following).seq == 1
        timer = threading.Timer(0.5, store, (database.url, [event(agent_id)]))
        timer.start()
        assert next(following).seq == 2
        timer.join()
        assert eventually(lambda: not threads(), PATIENCE)
        assert eventually(lambda: not listeners(database), PATIENCE)
        store(database.url, [event(agent_id)])
        assert next(following).seq == 3


@on_postgresql
def test_notifications_of_others_lead_to_few_polls(
    database: Database, engine: Engine, executor: ThreadPoolExecutor
) -> None:
    """While others write all the time, a follower without news polls more and more rarely."""
    mine, other = uuid4(), uuid4()
    store(database.url, [opening(mine), opening(other)])
    following = ax.activity.follow(engine, mine, after_seq=1, timeout=PATIENCE)
    found = executor.submit(next, following)
    assert eventually(lambda: listeners(database), PATIENCE)
    exporter = SQLExporter(database.url)
    with stopped(exporter), statements(engine) as sent:
        for _ in range(500):
            exporter.export([event(other)])
    assert 1 <= len(sent) <= 250
    store(database.url, [event(mine)])
    assert found.result(PATIENCE).seq == 2
    following.close()


@contextmanager
def stopped(exporter: SQLExporter) -> Generator[None]:
    yield
    exporter.shutdown(1.0)


@on_postgresql
def test_a_forked_child_listens_by_itself(database: Database, engine: Engine, executor: ThreadPoolExecutor) -> None:
    """The child of a process that listens has no thread of it; it listens on a connection of its own."""
    agent_ids = [uuid4(), uuid4()]
    store(database.url, [opening(agent_id) for agent_id in agent_ids])
    inherited = ax.activity.follow(engine, agent_ids[1], timeout=PATIENCE)
    assert next(inherited).seq == 1
    found = executor.submit(list[Any], ax.activity.follow(engine, agent_ids[0], timeout=PATIENCE))
    assert eventually(lambda: len(listeners(database)) == 1, PATIENCE)

    def follow_in_child() -> None:
        engine.dispose(close=False)
        assert [log.seq for log in inherited] == [2]

    child = fork(follow_in_child)
    assert eventually(lambda: len(listeners(database)) == 2, PATIENCE)
    store(database.url, [event(agent_id, Status.COMPLETE, "Done") for agent_id in agent_ids])
    child.join()
    assert [log.seq for log in found.result(PATIENCE)] == [1, 2]
    inherited.close()


# -- no notification is lost between two pauses -------------------------------------------------------------------


def test_a_notification_between_read_and_pause(database: Database, engine: Engine) -> None:
    """If a notification comes after the read has begun, there is no pause."""
    agent_id = uuid4()
    store(database.url, [opening(agent_id)])
    polls, waiter = shared_polls(engine), asked_now(agent_id, 1)
    store(database.url, [event(agent_id)])
    polls.notify()
    assert waits(polls, waiter) < AT_ONCE


@pytest.mark.parametrize("database", ["postgres", "mariadb"], indirect=True)  # SQLite reads rows as they are fetched
def test_a_notification_during_a_poll(database: Database, engine: Engine) -> None:
    """A poll does not count whose statement may have run before the commit that was notified."""
    agent_id = uuid4()
    store(database.url, [opening(agent_id)])
    ax.CONF.notify = False
    polls, waiter = shared_polls(engine), asked_now(agent_id, 1)
    stored: list[bool] = []

    def store_behind(*_: object) -> None:
        if not stored:
            stored.append(True)
            store(database.url, [event(agent_id)])
            polls.notify()

    sqlalchemy_event.listen(engine, "after_cursor_execute", store_behind)
    polls.notify()
    assert not polls.wait(waiter, PATIENCE)
    assert stored
    assert waits(polls, waiter) < AT_ONCE


@on_postgresql
async def test_a_canceled_task_passes_the_notification_on(database: Database, async_engine: AsyncEngine) -> None:
    """The task that is to ask for all may be canceled before it does; then another one asks."""
    agent_id = uuid4()
    store(database.url, [opening(agent_id)])
    ax.CONF.notify = False
    polls = async_shared_polls(async_engine)
    found = [asyncio.create_task(waits_async(polls, asked_now(agent_id, 1))) for _ in range(3)]
    await asyncio.sleep(0.1)
    await asyncio.to_thread(store, database.url, [event(agent_id)])
    polls.notify()
    found[0].cancel()
    for task in found[1:]:
        assert await task < AT_ONCE


# -- what is notified ---------------------------------------------------------------------------------------------


class Counted:
    """A session that listens."""

    def __init__(self, database: Database) -> None:
        url = make_url(database.url).set(drivername="postgresql")
        self.connection = psycopg.connect(url.render_as_string(hide_password=False), autocommit=True)
        self.connection.execute(SQL("LISTEN {}").format(Identifier(CHANNEL)))

    def take(self) -> int:
        """How many notifications have come since; those of committed transactions are here by now."""
        return len(list(self.connection.notifies(timeout=0.3)))


@pytest.fixture
def counted(database: Database) -> Iterator[Counted]:
    """Counts notifications."""
    made = Counted(database)
    yield made
    made.connection.close()


@on_postgresql
def test_one_notification_per_batch(database: Database, counted: Counted) -> None:
    """A batch notifies once, however many activities and logs it has, new or not; repeated ones store nothing."""
    batch = [opening() for _ in range(50)]
    store(database.url, batch)
    assert counted.take() == 1
    store(database.url, [event(one.agent_id, message=f"{n}") for one in batch for n in range(10)])
    assert counted.take() == 1
    ax.CONF.notify = False
    store(database.url, [event(one.agent_id) for one in batch])
    assert counted.take() == 0


@on_postgresql
def test_calls_without_a_session_notify(database: Database, counted: Counted) -> None:
    """`create`, `complete`, `cancel_pending` and `retry_many` notify once each; one that changes nothing does not."""
    ax.configure(database.url)
    agent_id = ax.activity.create("task")
    assert counted.take() == 1
    ax.activity.complete(agent_id)
    assert counted.take() == 1
    store(database.url, [opening() for _ in range(30)])
    assert counted.take() == 1
    assert ax.activity.cancel_pending() == 30
    assert counted.take() == 1
    assert ax.activity.cancel_pending() == 0
    assert counted.take() == 0
    assert len(ax.activity.retry_many(status="CANCELED")) == 30
    assert 1 <= counted.take() <= 30


@on_postgresql
def test_the_end_of_lost_activities_notifies(database: Database, counted: Counted) -> None:
    """`reap` notifies for what it has ended."""
    ax.CONF.lease_seconds = 0.5
    agent_id = uuid4()
    store(database.url, [opening(agent_id), event(agent_id, worker_id="gone")])
    counted.take()
    ax.CONF.sweep_interval = 0
    ax.configure(database.url)
    assert eventually(lambda: ax.activity.reap() == 1, PATIENCE)
    assert counted.take() == 1


@on_postgresql
def test_a_session_notifies_with_its_commit(database: Database, engine: Engine, counted: Counted) -> None:
    """A transaction of the caller notifies once when it is committed, not if it, or its savepoint, is rolled back."""
    with Session(engine) as session, session.begin():
        agent_id = ax.activity.create("task", session=session)
        ax.activity.update(agent_id, "Step", session=session)
        ax.activity.complete(agent_id, session=session)
        assert counted.take() == 0
    assert counted.take() == 1
    with Session(engine) as session:
        session.begin()
        ax.activity.create("task", session=session)
        ax.activity.cancel_pending(session=session)
        session.rollback()
    with Session(engine) as session, session.begin(), session.begin_nested() as savepoint:
        ax.activity.create("task", session=session)
        savepoint.rollback()
    assert counted.take() == 0
    with Session(engine) as session:
        ax.activity.create("task", session=session)
    assert counted.take() == 1
    with Session(engine) as session:
        assert ax.activity.cancel_pending(session=session) == 1
    assert counted.take() == 1


@on_postgresql
def test_a_two_phase_transaction_does_not_notify(database: Database, engine: Engine) -> None:
    """PostgreSQL refuses to prepare a transaction that has notified."""
    exporter = SQLExporter(database.url)
    with stopped(exporter), statements(engine) as sent, engine.connect() as connection:
        with connection.begin_twophase():
            exporter.write_in(connection, [opening()])
        assert sent == []
        with connection.begin():
            exporter.write_in(connection, [opening()])
        assert sent == [f'NOTIFY "{CHANNEL}"']


# -- where there is nothing to listen to --------------------------------------------------------------------------


def terminate(database: Database, pid: int) -> None:
    with database.engine.connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})


def comes_back(database: Database, lost: list[int]) -> bool:
    return eventually(lambda: bool(set(listeners(database)) - set(lost)), PATIENCE)


@on_postgresql
def test_a_lost_connection_is_replaced(
    database: Database, engine: Engine, executor: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    """If the session that listens is killed, polls go on, no log is missed, and another one listens soon."""
    caplog.set_level(logging.INFO)
    agent_id = uuid4()
    store(database.url, [opening(agent_id)])
    seen: list[int] = []

    def follow() -> None:
        seen.extend(log.seq for log in ax.activity.follow(engine, agent_id, timeout=PATIENCE))

    found: Future[None] = executor.submit(follow)
    assert eventually(lambda: listeners(database), PATIENCE)
    lost = listeners(database)
    terminate(database, lost[0])
    store(database.url, [event(agent_id)])
    assert comes_back(database, lost)
    store(database.url, [event(agent_id), event(agent_id, Status.COMPLETE, "Done")])
    found.result(PATIENCE)
    assert seen == [1, 2, 3, 4]
    (record,) = [one for one in caplog.records if one.name == "agentexec_otel.activity"]
    assert "listening for notifications failed" in record.message
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


@on_postgresql
async def test_a_lost_connection_of_a_task_is_replaced(
    database: Database, async_engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """The same on an event loop."""
    agent_id = uuid4()
    store(database.url, [opening(agent_id)])

    async def follow() -> list[int]:
        return [log.seq async for log in aio.follow(async_engine, agent_id, timeout=PATIENCE)]

    found = asyncio.create_task(follow())
    assert await asyncio.to_thread(eventually, lambda: listeners(database), PATIENCE)
    lost = listeners(database)
    terminate(database, lost[0])
    await asyncio.to_thread(store, database.url, [event(agent_id)])
    assert await asyncio.to_thread(comes_back, database, lost)
    await asyncio.to_thread(store, database.url, [event(agent_id), event(agent_id, Status.COMPLETE, "Done")])
    assert await found == [1, 2, 3, 4]
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


@on_postgresql
def test_a_server_that_refuses_the_connection(
    database: Database, caplog: pytest.LogCaptureFixture, executor: ThreadPoolExecutor
) -> None:
    """If there is no second connection to be had, followers poll."""
    agent_id = uuid4()
    store(database.url, [opening(agent_id)])
    engine = create_engine(database.url, pool_size=1, max_overflow=0, pool_timeout=30)

    def refuse(connection: Any, *_: object) -> None:
        if threading.current_thread().name == "agentexec-listener":
            raise psycopg.OperationalError("too many clients already")

    sqlalchemy_event.listen(engine, "do_connect", refuse)
    sqlalchemy_event.listen(engine, "checkout", refuse)
    caplog.set_level(logging.INFO)
    following = ax.activity.follow(engine, agent_id, timeout=PATIENCE)
    assert next(following).seq == 1
    found = executor.submit(next, following)
    assert eventually(lambda: "too many clients already" in caplog.text, PATIENCE)
    ax.CONF.notify = False
    store(database.url, [event(agent_id)])
    assert found.result(PATIENCE).seq == 2
    following.close()
    engine.dispose()


@pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
async def test_other_databases_are_polled(
    database: Database, engine: Engine, executor: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite and MariaDB ignore the setting: no thread, no task, no word."""
    agent_id = uuid4()
    store(database.url, [opening(agent_id)])
    async_engine = create_async_engine(database.async_url)
    caplog.set_level(logging.INFO, "agentexec_otel")
    found = executor.submit(list[Any], ax.activity.follow(engine, agent_id, timeout=PATIENCE))
    logs = aio.follow(async_engine, agent_id, timeout=PATIENCE)
    assert (await anext(logs)).seq == 1
    rest = asyncio.ensure_future(anext(logs))
    await asyncio.sleep(0.2)
    assert threads() == []
    store(database.url, [event(agent_id, Status.COMPLETE, "Done")])
    assert (await rest).seq == 2
    assert [log.seq for log in await asyncio.wrap_future(found)] == [1, 2]
    await logs.aclose()
    await async_engine.dispose()
    assert [record for record in caplog.records if record.name.startswith("agentexec_otel")] == []
