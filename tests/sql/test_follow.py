"""`ax.activity.follow` and `aio.follow`: the logs of an activity as they are committed, in this or another process."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from threading import Thread
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, create_engine, delete, text
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

import agentexec_otel as ax
from agentexec_otel.activity import ActivityLogSchema, aio
from agentexec_otel.activity._polling import Pace
from agentexec_otel.activity.models import Activity, ActivityLog, Status
from agentexec_otel.export import Opening
from tests.databases import Database
from tests.sql import remote
from tests.sql.processes import Peer
from tests.sql.rows import event, opening, store

PATIENCE = 60.0  # a follower that misses the end fails instead of hanging


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    """The application's engine, with a single connection."""
    made = create_engine(database.url, pool_size=1, max_overflow=0, pool_timeout=10)
    yield made
    made.dispose()


@pytest.fixture
async def async_engine(database: Database) -> AsyncIterator[AsyncEngine]:
    """The application's asynchronous engine, with a single connection."""
    made = create_async_engine(database.async_url, pool_size=1, max_overflow=0, pool_timeout=10)
    yield made
    await made.dispose()


@pytest.fixture
def peer(database: Database, peers: tuple[Peer, Peer]) -> Iterator[Peer]:
    """Another process that stores in the same database."""
    peers[0].call(remote.configure, database.url)
    yield peers[0]
    peers[0].call(remote.stop)


def told(logs: list[ActivityLogSchema]) -> list[tuple[int, str, bool]]:
    return [(log.seq, log.message, log.late) for log in logs]


def checked_out(engine: Engine) -> int:
    return cast(Any, engine.pool).checkedout()  # type: ignore[no-any-return]


def stored_logs(database: Database, agent_id: UUID) -> list[ActivityLogSchema]:
    with Session(database.engine) as session:
        return ax.activity.logs(session, agent_id)


def test_each_log_of_another_process_arrives_before_the_next(database: Database, engine: Engine, peer: Peer) -> None:
    """Each log arrives while the activity runs elsewhere, without a connection held in between; its end is the end."""
    agent_id = peer.call(remote.create, "task")
    following = ax.activity.follow(engine, agent_id, timeout=PATIENCE)
    seen = [next(following)]
    peer.call(remote.enter, agent_id)
    seen.append(next(following))
    for number in range(3):
        peer.call(remote.report, agent_id, f"Step {number}")
        seen.append(next(following))
        assert checked_out(engine) == 0
    peer.call(remote.leave, agent_id)
    seen += following
    assert seen == stored_logs(database, agent_id)
    assert [log.seq for log in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[-1].status is Status.COMPLETE


async def test_each_log_arrives_on_an_event_loop(database: Database, async_engine: AsyncEngine, peer: Peer) -> None:
    """The asynchronous iterator returns the same logs, each before the next is written."""
    agent_id = peer.call(remote.create, "task")
    following = aio.follow(async_engine, agent_id, timeout=PATIENCE)
    seen = [await anext(following)]
    peer.call(remote.enter, agent_id)
    seen.append(await anext(following))
    peer.call(remote.report, agent_id, "Step")
    seen.append(await anext(following))
    assert checked_out(async_engine.sync_engine) == 0
    peer.call(remote.leave, agent_id)
    seen += [log async for log in following]
    assert seen == stored_logs(database, agent_id)
    assert seen[-1].status is Status.COMPLETE


def test_a_follower_that_waits_holds_no_connection(database: Database, engine: Engine) -> None:
    """The application uses the only connection of its pool, in a transaction, while a follower waits for news."""
    agent_id = uuid4()
    store(database.url, [opening(agent_id)])
    seen: list[ActivityLogSchema] = []
    follower = Thread(target=lambda: seen.extend(ax.activity.follow(sessionmaker(engine), agent_id, timeout=PATIENCE)))
    follower.start()
    for _ in range(20):
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    store(database.url, [event(agent_id, message="On"), event(agent_id, Status.ERROR, "No")])
    follower.join(PATIENCE)
    assert told(seen) == [(1, "queued", False), (2, "On", False), (3, "No", False)]


async def test_closing_and_cancellation_release_the_connection(database: Database, async_engine: AsyncEngine) -> None:
    """After `aclose()`, or the cancellation of the task that waits, the pool has its connection back."""
    agent_id = uuid4()
    store(database.url, [opening(agent_id)])
    following = aio.follow(async_sessionmaker(async_engine), agent_id)
    assert (await anext(following)).seq == 1
    waiting = asyncio.create_task(anext(following))
    for _ in range(3):  # canceled in the middle of a poll, or between two
        await asyncio.sleep(0.01)
        assert not waiting.done()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await following.aclose()
    again = aio.follow(async_engine, agent_id)
    assert (await anext(again)).seq == 1
    await again.aclose()
    async with async_engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
    assert checked_out(async_engine.sync_engine) == 0


def test_an_ended_activity_is_read_to_its_last_log(database: Database, engine: Engine) -> None:
    """What has ended is returned at once, with late logs, flagged; `after_seq` continues behind what was seen."""
    agent_id = uuid4()
    store(
        database.url,
        [opening(agent_id), event(agent_id, Status.CANCELED, "Stopped")],
        [event(agent_id, message="Still at work")],
    )
    seen = list(ax.activity.follow(engine, agent_id))
    assert told(seen) == [(1, "queued", False), (2, "Stopped", False), (3, "Still at work", True)]
    assert list(ax.activity.follow(engine, agent_id, after_seq=1)) == seen[1:]
    assert list(ax.activity.follow(engine, str(agent_id), after_seq=3)) == []
    assert list(ax.activity.follow(engine, agent_id, after_seq=1 << 40)) == []


def test_a_retry_is_followed_if_it_is_there_at_the_end(database: Database, engine: Engine) -> None:
    """The end of an earlier attempt is not the end; after the end, `after_seq` continues with the next attempt."""
    agent_id = uuid4()
    store(database.url, [opening(agent_id), event(agent_id, Status.ERROR, "No")])
    assert [log.seq for log in ax.activity.follow(engine, agent_id)] == [1, 2]
    store(database.url, [event(agent_id, Status.QUEUED, "Again", reopens=True)])
    with closing(ax.activity.follow(engine, agent_id, timeout=PATIENCE)) as following:
        assert [next(following).seq for _ in range(3)] == [1, 2, 3]
        store(database.url, [event(agent_id, Status.COMPLETE, "Yes", attempt=2)])
        assert told(list(following)) == [(4, "Yes", False)]
    assert [log.attempt for log in ax.activity.follow(engine, agent_id, after_seq=2)] == [2, 2]


@pytest.mark.parametrize("count", [1_000, 2_500])
def test_a_long_history_is_complete(database: Database, engine: Engine, count: int) -> None:
    """A history of more logs than one read returns is complete and in order."""
    agent_id = uuid4()
    lines = [event(agent_id, message=f"Line {number}") for number in range(count - 2)]
    store(database.url, [opening(agent_id), *lines, event(agent_id, Status.COMPLETE, "Done")])
    assert [log.seq for log in ax.activity.follow(engine, agent_id)] == list(range(1, count + 1))


def test_an_activity_that_is_not_there(database: Database, engine: Engine) -> None:
    """An unknown id, or another tenant's activity, raises at the first iteration; a removed one at the next poll."""
    agent_id = uuid4()
    queued = event(agent_id, Status.QUEUED, "queued", opening=Opening("task", metadata={"tenant": "acme"}))
    store(database.url, [queued])
    for following in (
        ax.activity.follow(engine, uuid4()),
        ax.activity.follow(engine, agent_id, metadata_filter={"tenant": "other"}),
    ):
        with pytest.raises(ax.ActivityNotFoundError):
            next(following)
    mine = ax.activity.follow(engine, agent_id, metadata_filter={"tenant": "acme"}, timeout=PATIENCE)
    assert next(mine).seq == 1
    with Session(database.engine) as session, session.begin():
        session.execute(delete(ActivityLog))
        session.execute(delete(Activity))
    with pytest.raises(ax.ActivityNotFoundError):
        next(mine)


async def test_the_timeout_is_raised(database: Database, engine: Engine, async_engine: AsyncEngine) -> None:
    """An activity that has not ended in time raises TimeoutError, after the logs that are there."""
    agent_id = uuid4()
    store(database.url, [opening(agent_id)])
    following = ax.activity.follow(engine, agent_id, timeout=0)
    assert next(following).seq == 1
    with pytest.raises(TimeoutError, match="has not ended within 0 s"):
        next(following)
    behind = aio.follow(async_engine, agent_id, after_seq=1, timeout=0.05)
    with pytest.raises(TimeoutError, match=r"within 0\.05 s"):
        await anext(behind)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_bad_arguments_raise_at_the_call(database: Database, engine: Engine, async_engine: AsyncEngine) -> None:
    """A source of the wrong kind is a TypeError, a malformed argument a ValueError; not only at the first iteration."""
    agent_id = uuid4()
    with Session(engine) as session:
        not_synchronous: list[Any] = [session, async_engine, async_sessionmaker(async_engine), database.url]
        not_asynchronous: list[Any] = [session, engine, sessionmaker(engine)]
    for wrong in not_synchronous:
        with pytest.raises(TypeError, match=r"Engine or a sessionmaker.*ax\.activity\.aio"):
            ax.activity.follow(wrong, agent_id)
    for wrong in not_asynchronous:
        with pytest.raises(TypeError, match=r"AsyncEngine or an async_sessionmaker here"):
            aio.follow(wrong, agent_id)
    malformed: list[dict[str, Any]] = [{"after_seq": "1"}, {"timeout": -1}, {"timeout": "1"}, {"metadata_filter": {}}]
    for arguments in malformed:
        with pytest.raises(ValueError, match="|".join(arguments)):
            ax.activity.follow(engine, agent_id, **arguments)
        with pytest.raises(ValueError, match="|".join(arguments)):
            aio.follow(async_engine, agent_id, **arguments)
    with pytest.raises(ValueError, match="agent_id"):
        ax.activity.follow(engine, "nonsense")


def test_polls_become_rare_without_news_and_frequent_with_it() -> None:
    """20 ms after news; then twice as long each time, at most a second; never beyond the timeout."""
    now = 0.0
    pace = Pace(None, "x")
    assert [pace.pause(news=False) for _ in range(8)] == [0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0]
    assert [pace.pause(news=news) for news in (True, False, True)] == [0.02, 0.04, 0.02]
    limited = Pace(0.03, "the end has not come", lambda: now)
    assert limited.pause(news=True) == 0.02
    now = 0.02
    assert limited.pause(news=False) == pytest.approx(0.01)
    now = 0.03
    with pytest.raises(TimeoutError, match=r"the end has not come within 0\.03 s"):
        limited.pause(news=False)
