"""`ax.activity.aio`: the same calls for asyncio, with real asynchronous drivers."""

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import nullcontext
from datetime import timedelta
from typing import Any, cast
from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

import agentexec_otel as ax
from agentexec_otel.activity import aio
from agentexec_otel.activity.models import Status
from tests.databases import Database
from tests.sql.rows import BusyExporter, lines, row


@pytest.fixture
async def async_engine(database: Database) -> AsyncIterator[AsyncEngine]:
    """The application's engine, with the asynchronous driver."""
    engine = create_async_engine(database.async_url, poolclass=NullPool)
    yield engine
    await engine.dispose()


async def test_life_without_a_session(database: Database, async_engine: AsyncEngine) -> None:
    """Configured with an AsyncEngine, every call works on the event loop and has waited for its commit."""
    ax.configure(async_engine)
    agent_id = await aio.create("task", metadata={"tenant": "acme"})
    assert row(database.engine, agent_id).status is Status.QUEUED
    assert await aio.update(agent_id, "Working.", 50)
    assert await aio.complete(agent_id)
    assert not await aio.cancel(agent_id)
    assert row(database.engine, agent_id).status is Status.COMPLETE
    assert await aio.retry(agent_id) == 2
    assert await aio.error(agent_id, "No.")
    canceled = await aio.create("task")
    assert await aio.cancel_pending() == 1
    assert row(database.engine, canceled).status is Status.CANCELED
    with pytest.raises(ax.ActivityNotFoundError):
        await aio.update(uuid4(), "Nobody.")
    with pytest.raises(ValueError, match="task_name"):
        await aio.create("")


async def test_queries(database: Database, async_engine: AsyncEngine) -> None:
    """The query functions take an AsyncSession; so does `run_sync` with the synchronous ones."""
    ax.configure(database.url)
    agent_id = await aio.create("task", metadata={"tenant": "acme"})
    await aio.update(agent_id, "Working.", 50)
    await asyncio.to_thread(ax.flush)
    async with AsyncSession(async_engine) as session:
        found = await aio.detail(session, agent_id)
        assert found is not None
        assert [log.message for log in found.logs] == ["Waiting to start.", "Working."]
        assert found == await session.run_sync(ax.activity.detail, agent_id)
        assert await aio.detail(session, agent_id, metadata_filter={"tenant": "other"}) is None
        (item,) = (await aio.list(session, page_size=5, text="working", cursor="")).items
        assert item.latest_log == "Working."
        assert await aio.get(session, agent_id) == item
        assert [log.seq for log in await aio.logs(session, agent_id, after_seq=1)] == [2]
        assert await aio.count_active(session) == 1
        measured = await aio.stats(session, bucket=timedelta(hours=1), agent_type="task")
        assert measured == await session.run_sync(ax.activity.stats, bucket=timedelta(hours=1))
        assert (measured.total, measured.series[0].started) == (1, 1)


@pytest.mark.parametrize("explicit", [False, True], ids=["auto-begun", "explicit"])
async def test_lines_before_the_session_come_before_it(
    database: Database, async_engine: AsyncEngine, explicit: bool
) -> None:
    """What was reported without a session, and waits to be written, is not overtaken by an end in a session."""
    exporter = BusyExporter(database.url)
    ax.configure(exporters=[exporter])
    agent_id = await aio.create("task")
    exporter.busy = 0.1
    for number in range(20):
        ax.activity.update(agent_id, f"Line {number}.", number)
    async with AsyncSession(async_engine) as session, session.begin() if explicit else nullcontext():
        assert await aio.complete(agent_id, session=session)
    await asyncio.to_thread(ax.flush)
    logs = lines(database.engine, agent_id)
    assert [log.message for log in logs[1:-1]] == [f"Line {number}." for number in range(20)]
    assert not any(log.late for log in logs)


async def test_session_is_committed_where_auto_begun(database: Database, async_engine: AsyncEngine) -> None:
    """In a plain AsyncSession each call commits, and leaves the session open."""
    ax.configure(database.url)
    async with AsyncSession(async_engine) as session:
        agent_id = await aio.create("task", session=session)
        assert row(database.engine, agent_id).last_seq == 1
        assert await aio.update(agent_id, "Working.", 10, session=session)
        assert row(database.engine, agent_id).latest_percentage == 10
        assert await aio.complete(agent_id, session=session)
        assert not await aio.error(agent_id, session=session)
        assert await aio.update(agent_id, "Again.", status="QUEUED", session=session)
        assert await aio.cancel_pending(session=session) == 1
        assert (await aio.detail(session, agent_id)) is not None
    assert [str(log.status) for log in lines(database.engine, agent_id)] == [
        "QUEUED", "RUNNING", "COMPLETE", "COMPLETE", "QUEUED", "CANCELED",
    ]  # fmt: skip


async def test_session_is_joined_where_begun(database: Database, async_engine: AsyncEngine) -> None:
    """Where the caller began the transaction, nothing is visible before its commit, and nothing left of a rollback."""
    ax.configure(database.url)
    async with AsyncSession(async_engine) as session:
        async with session.begin():
            kept = await aio.create("kept", session=session)
            await aio.update(kept, "Working.", session=session)
        assert row(database.engine, kept).last_seq == 2
        async with session.begin() as transaction:
            undone = await aio.create("undone", session=session)
            await aio.update(kept, "Undone.", session=session)
            await transaction.rollback()
    assert row(database.engine, kept).last_seq == 2
    with pytest.raises(ax.ActivityNotFoundError):
        await aio.update(undone, "Ghost.")


async def test_each_world_takes_its_own_session(database: Database, async_engine: AsyncEngine) -> None:
    """A session of the other world is a TypeError that names the other module, before anything is written."""
    ax.configure(database.url)
    async with AsyncSession(async_engine) as session:
        with pytest.raises(TypeError, match=r"got AsyncSession.*ax\.activity\.aio"):
            ax.activity.create("task", session=session)
        agent_id = await aio.create("task")
        for write in (ax.activity.complete, ax.activity.error, ax.activity.cancel):
            with pytest.raises(TypeError, match="AsyncSession"):
                write(agent_id, session=session)
        with pytest.raises(TypeError, match="AsyncSession"):
            ax.activity.cancel_pending(session)
        with pytest.raises(TypeError, match=r"got AsyncSession.*ax\.activity\.aio"):
            ax.activity.list(cast(Any, session))
    with Session(database.engine) as wrong:
        with pytest.raises(TypeError, match=r"for ax\.activity itself"):
            await aio.create("task", session=wrong)
        with pytest.raises(TypeError, match=r"for ax\.activity itself"):
            await aio.list(cast(Any, wrong))
    assert row(database.engine, agent_id).status is Status.QUEUED


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_waiting_is_done_off_the_loop(database: Database) -> None:
    """While `aio.create` waits for a locked database, the event loop goes on."""
    ax.configure(database.url)
    beats = 0
    with database.engine.connect() as blocker:
        blocker.exec_driver_sql("BEGIN EXCLUSIVE")
        task = asyncio.create_task(aio.create("task"))
        for _ in range(10):
            await asyncio.sleep(0.01)
            beats += 1
        assert not task.done()
        blocker.exec_driver_sql("ROLLBACK")
    assert row(database.engine, await task).status is Status.QUEUED
    assert beats == 10


def test_twins_are_the_same_functions() -> None:
    """Each twin has the arguments and the documentation of its original; none is missing."""
    originals = {"cancel", "cancel_pending", "complete", "count_active", "create", "detail", "error", "list", "logs"}
    assert originals <= set(aio.__all__)
    for name in set(aio.__all__) - {"archive", "follow", "follow_feed", "restore"}:  # of another kind of engine
        original, twin = getattr(ax.activity, name), getattr(aio, name)
        assert inspect.signature(twin) == inspect.signature(original)
        assert twin.__doc__ == original.__doc__
        assert inspect.iscoroutinefunction(twin)
