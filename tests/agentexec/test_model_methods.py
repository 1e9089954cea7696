"""The methods of agentexec's `Activity`: in a `Session` as in its 0.1, in an `AsyncSession` as in its 0.3."""

from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity.models import Activity, Status
from tests.databases import Database

on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
KEYS = {
    "agent_id", "agent_type", "latest_log_message", "status", "latest_log_timestamp", "percentage", "started_at",
    "metadata",
}  # fmt: skip


def some(session: Session) -> dict[str, UUID]:
    """An activity of each kind, the oldest first."""
    names = ("done", "working", "waiting", "weary")
    ids = {name: Activity.create(session, uuid4(), name, "Go", {"tenant": name[0]}).agent_id for name in names}
    Activity.append_log(session, ids["done"], "Ready", Status.COMPLETE, 100)
    Activity.append_log(session, ids["working"], "Half way", Status.RUNNING, 50)
    Activity.append_log(session, ids["weary"], "No", Status.ERROR)
    return ids


def test_create_and_append(database: Database) -> None:
    """`create` returns the row; `append_log` adds to it, which `get_by_agent_id` sees in the same session."""
    agent_id = uuid4()
    with Session(database.engine, expire_on_commit=False) as session:
        created = Activity.create(session=session, agent_id=agent_id, task_name="research", message="Go")
        assert (created.agent_id, created.agent_type, created.metadata_) == (agent_id, "research", None)
        assert [log.status for log in created.logs] == [Status.QUEUED]
        assert Activity.append_log(
            session=session, agent_id=agent_id, message="Half way", status=Status.RUNNING, percentage=50
        )
        found = Activity.get_by_agent_id(session, str(agent_id))
        assert found is not None
        assert found is created
        assert (found.status, [log.message for log in found.logs]) == (Status.RUNNING, ["Go", "Half way"])
        with pytest.raises(ValueError, match="exists"):
            Activity.create(session, agent_id, "research", "Again")
        with pytest.raises(ValueError, match="no activity has the agent_id"):
            Activity.append_log(session, uuid4(), "Ghost", Status.RUNNING)


def test_get_by_agent_id(database: Database) -> None:
    """By UUID or text, and only if its metadata matches."""
    with Session(database.engine) as session:
        ids = some(session)
        assert Activity.get_by_agent_id(session, uuid4()) is None
        assert Activity.get_by_agent_id(session, ids["done"], {"tenant": "w"}) is None
        found = Activity.get_by_agent_id(session, ids["done"], metadata_filter={"tenant": "d"})
        assert found is not None
        assert ax.activity.ActivityDetailSchema.model_validate(found) == ax.activity.detail(session, ids["done"])


def test_get_list(database: Database) -> None:
    """RUNNING, QUEUED, then what has ended, each the newest first; pages and filters; the keys of agentexec."""
    with Session(database.engine) as session:
        ids = some(session)
        rows = Activity.get_list(session)
        assert [mapping["agent_type"] for mapping in rows] == ["working", "waiting", "weary", "done"]
        assert set(rows[0]) == KEYS
        first = rows[0]
        assert (first["agent_id"], first["status"], first["percentage"]) == (ids["working"], Status.RUNNING, 50)
        assert (first["latest_log_message"], first["metadata"]) == ("Half way", {"tenant": "w"})
        item = ax.activity.ActivityListItemSchema.model_validate(first)
        assert (item.latest_log, item.latest_percentage, item.metadata) == ("Half way", 50, {"tenant": "w"})
        assert [mapping["agent_type"] for mapping in Activity.get_list(session, 2, 3)] == ["done"]
        assert Activity.get_list(session, page=10**12) == []
        mine = Activity.get_list(session, metadata_filter={"tenant": "d"})
        assert [mapping["agent_type"] for mapping in mine] == ["done"]
        with pytest.raises(ValueError, match="pages are numbered from 1"):
            Activity.get_list(session, page=0)


def test_pending(database: Database) -> None:
    """`get_pending_ids` and `get_active_count` have what is QUEUED or RUNNING."""
    with Session(database.engine) as session:
        ids = some(session)
        assert Activity.get_pending_ids(session) == [ids["working"], ids["waiting"]]
        assert Activity.get_active_count(session) == 2


async def test_in_an_async_session(database: Database) -> None:
    """Each returns a coroutine then, with the same result."""
    engine = create_async_engine(database.async_url)
    agent_id = uuid4()
    async with AsyncSession(engine, expire_on_commit=False) as session:
        created = await Activity.create(
            session=session, agent_id=agent_id, task_name="research", message="Go", metadata={"tenant": "a"}
        )
        assert [log.message for log in created.logs] == ["Go"]
        assert await Activity.append_log(session, agent_id, "Half way", Status.RUNNING, 50)
        found = await Activity.get_by_agent_id(session, agent_id, metadata_filter={"tenant": "a"})
        assert found is not None
        assert [log.message for log in found.logs] == ["Go", "Half way"]
        assert [mapping["percentage"] for mapping in await Activity.get_list(session)] == [50]
        assert await Activity.get_pending_ids(session) == [agent_id]
        assert await Activity.get_active_count(session) == 1
    await engine.dispose()


@on_sqlite
async def test_append_behind_what_waits(database: Database) -> None:
    """A log that the writer has not stored yet comes before one that is appended in a session."""
    ax.configure(database.url)
    agent_id = await ax.activity.aio.create("research")
    ax.activity.update(agent_id, "First")
    engine = create_async_engine(database.async_url)
    async with AsyncSession(engine) as session:
        await Activity.append_log(session, agent_id, "Second", Status.RUNNING)
        found = await Activity.get_by_agent_id(session, agent_id)
        assert found is not None
        assert [log.message for log in found.logs][1:] == ["First", "Second"]
    await engine.dispose()


@on_sqlite
def test_missing_tables_are_one_sentence(database: Database) -> None:
    """As in the queries of `ax.activity`."""
    with Session(database.engine) as session:
        session.execute(text(f"DROP TABLE {Activity.__tablename__}"))
        for read in (Activity.get_list, Activity.get_pending_ids, Activity.get_active_count):
            with pytest.raises(ax.ConfigurationError, match="agentexec-otel db upgrade"):
                read(session)
        with pytest.raises(ax.ConfigurationError, match="agentexec-otel db upgrade"):
            Activity.get_by_agent_id(session, uuid4())
