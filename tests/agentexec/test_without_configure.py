"""Calls with `session=` in a process that has configured nothing: rows are written, and nothing else happens."""

import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity.models import Activity, Status
from tests.databases import Database
from tests.sql.rows import count_rows, gap_free, lines, row

on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def test_a_life(database: Database) -> None:
    """Created, reported on and completed, as with `configure()`: each call is committed, and the first ending stays."""
    with Session(database.engine) as session:
        agent_id = ax.activity.create("research", "Go", session=session, metadata={"tenant": "acme"})
        assert row(database.engine, agent_id).metadata_ == {"tenant": "acme"}
        assert ax.activity.update(agent_id, "Half way", 50, session=session)
        assert ax.activity.complete(agent_id, session=session)
        assert not ax.activity.error(agent_id, session=session)
        detail = ax.activity.detail(session, agent_id)
    assert detail is not None
    assert (detail.status, detail.latest_percentage) == (Status.COMPLETE, 100)
    assert [log.message for log in detail.logs] == ["Go", "Half way", "Task completed successfully."]
    assert gap_free(lines(database.engine, agent_id))
    assert not ax.health()["configured"]


def test_many_at_once(database: Database) -> None:
    """`cancel_pending`, `retry_many`, `reap`, `cancel` and a retry by `update` need no `configure()` either."""
    with Session(database.engine) as session:
        ids = [ax.activity.create("research", session=session) for _ in range(3)]
        assert ax.activity.cancel_pending(session) == 3
        assert ax.activity.retry_many(session, status=Status.CANCELED) == dict.fromkeys(ids, 2)
        assert ax.activity.cancel(ids[0], session=session)
        assert ax.activity.update(ids[0], "Again", status=Status.QUEUED, session=session)
        assert ax.activity.reap(session) == 0
        assert ax.activity.count_active(session) == 3
    assert [row(database.engine, one).attempt for one in ids] == [3, 2, 2]


def test_a_running_activity_is_never_lost(database: Database) -> None:
    """No lease runs, since this process has no writer thread that would extend it; a configured worker has one."""
    with Session(database.engine) as session:
        agent_id = ax.activity.create("research", session=session)
        ax.activity.update(agent_id, "Working", session=session)
    activity = row(database.engine, agent_id)
    assert (activity.status, activity.worker_id, activity.lease_expires_at) == (Status.RUNNING, None, None)
    ax.configure(database.url)
    ax.activity.update(agent_id, "Still working")
    assert ax.flush()
    assert row(database.engine, agent_id).lease_expires_at is not None


@on_sqlite
def test_no_thread_is_started(database: Database) -> None:
    """The process gets no writer, and no connection but that of the session."""
    before = set(threading.enumerate())
    with Session(database.engine) as session:
        agent_id = ax.activity.create("research", session=session)
        ax.activity.error(agent_id, "No", session=session)
    assert set(threading.enumerate()) <= before


@on_sqlite
def test_a_transaction_of_the_caller_is_joined(database: Database) -> None:
    """Nothing is there before the caller's commit, nor after a rollback."""
    with Session(database.engine) as session:
        with session.begin():
            ax.activity.create("kept", session=session)
        transaction = session.begin()
        ax.activity.create("lost", session=session)
        transaction.rollback()
    assert count_rows(database.engine) == (1, 1)


@on_sqlite
def test_secrets_are_redacted(database: Database) -> None:
    """The built-in rules hold without `configure()`."""
    with Session(database.engine) as session:
        agent_id = ax.activity.create("research", "password=hunter2", session=session)
    assert "hunter2" not in lines(database.engine, agent_id)[0].message


@pytest.mark.parametrize("report", [ax.activity.update, ax.activity.complete, ax.activity.error])
@on_sqlite
def test_an_unknown_activity_is_a_value_error(database: Database, report: Callable[..., bool]) -> None:
    """As in agentexec, and as `ActivityNotFoundError`."""
    with Session(database.engine) as session:
        for error in (ValueError, ax.ActivityNotFoundError):
            with pytest.raises(error, match="no activity has the agent_id"):
                report(uuid4(), "Ghost", session=session)


async def test_async_sessions(database: Database) -> None:
    """`aio` with an `AsyncSession`, as agentexec 0.3 has it."""
    engine = create_async_engine(database.async_url)
    async with AsyncSession(engine) as session:
        agent_id = await ax.activity.aio.create("research", session=session)
        assert await ax.activity.aio.update(agent_id, "Half way", 50, session=session)
        assert await ax.activity.aio.complete(agent_id, session=session)
        assert await ax.activity.aio.cancel_pending(session=session) == 0
    await engine.dispose()
    assert row(database.engine, agent_id).status is Status.COMPLETE


CALLS: list[Callable[[UUID], Any]] = [
    lambda agent_id: ax.activity.create("research"),
    lambda agent_id: ax.activity.update(agent_id, "Working"),
    ax.activity.complete,
    lambda agent_id: ax.activity.cancel_pending(),
    lambda agent_id: ax.activity.retry_many(),
    lambda agent_id: ax.activity.reap(),
]


@pytest.mark.parametrize("call", CALLS)
@on_sqlite
def test_calls_without_a_session_still_need_it(database: Database, call: Callable[[UUID], Any]) -> None:
    """Also after calls with a session: nothing was set up behind the caller's back."""
    with Session(database.engine) as session:
        agent_id = ax.activity.create("research", session=session)
    with pytest.raises(ax.ConfigurationError, match=r"call ax\.configure\(engine_or_url\)"):
        call(agent_id)


@on_sqlite
def test_configured_afterwards(database: Database) -> None:
    """A process that configures later continues with what its sessions wrote."""
    with Session(database.engine) as session:
        agent_id = ax.activity.create("research", session=session)
    ax.configure(database.url)
    with ax.activity.run(agent_id) as run:
        run.update("Working", 10)
    assert ax.flush()
    assert gap_free(lines(database.engine, agent_id))
    with Session(database.engine) as session:
        found = Activity.get_by_agent_id(session, agent_id)
        assert found is not None
        assert found.status is Status.COMPLETE
