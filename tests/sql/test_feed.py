"""`ax.activity.feed`: the logs of all activities behind a cursor, none missed."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, closing
from datetime import UTC, datetime, timedelta
from functools import partial
from threading import Thread
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, Engine, create_engine, delete, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

import agentexec_otel as ax
from agentexec_otel.activity import ActivityFeedLogSchema, ActivityFeedSchema, aio
from agentexec_otel.activity._feed_cursor import MOST_GAPS, FeedCursor, Fence
from agentexec_otel.activity.models import Activity, ActivityLog, Status
from agentexec_otel.export import Opening
from agentexec_otel_exporters.sql import SQLExporter
from tests.databases import Database
from tests.sql.plans import analyze, plan_of, scans_the_log
from tests.sql.rows import event, opening, store

pytestmark = pytest.mark.one_python

PATIENCE = 60.0
SERVERS = pytest.mark.parametrize("database", ["postgres", "mariadb"], indirect=True)


def page(database: Database, after: str | None = None, **arguments: Any) -> ActivityFeedSchema:
    with Session(database.engine) as session:
        return ax.activity.feed(session, after, **arguments)


def read(database: Database, after: str = "", **arguments: Any) -> tuple[list[ActivityFeedLogSchema], str]:
    """All logs behind the cursor, and the cursor behind them."""
    logs: list[ActivityFeedLogSchema] = []
    while True:
        found = page(database, after, **arguments)
        logs += found.logs
        after = found.next_cursor
        if not found.has_more:
            return logs, after


def told(logs: Sequence[ActivityFeedLogSchema]) -> list[tuple[UUID, int]]:
    return [(log.agent_id, log.seq) for log in logs]


def created(database: Database, count: int, **more: Any) -> list[UUID]:
    agent_ids = [uuid4() for _ in range(count)]
    store(database.url, [opening(agent_id, **more) for agent_id in agent_ids])
    return agent_ids


def remove(database: Database, agent_ids: Sequence[UUID]) -> None:
    """As an archive does."""
    with Session(database.engine) as session, session.begin():
        ids = session.scalars(select(Activity.id).where(Activity.agent_id.in_(agent_ids))).all()
        session.execute(delete(ActivityLog).where(ActivityLog.activity_id.in_(ids)))
        session.execute(delete(Activity).where(Activity.id.in_(ids)))


def here(database: Database) -> str:
    """A cursor without gaps, behind all that is committed. Tests before may have left some."""
    return str(FeedCursor(read(database)[0][-1].id))


def gaps(cursor: str) -> tuple[tuple[int, int], ...]:
    return FeedCursor.parse(cursor).gaps


def test_all_logs_of_all_activities(database: Database) -> None:
    """Each log as the activity has it, with its activity's id and type; late ones flagged; then only what is new."""
    first, second = uuid4(), uuid4()
    store(
        database.url,
        [opening(first, "research"), opening(second, "write"), event(first, message="On", percentage=5)],
        [event(first, Status.COMPLETE, "Done")],
        [event(first, message="Too late")],
    )
    logs, cursor = read(database)
    assert [(log.agent_id, log.agent_type, log.message, log.percentage, log.status, log.late) for log in logs] == [
        (first, "research", "queued", None, Status.QUEUED, False),
        (second, "write", "queued", None, Status.QUEUED, False),
        (first, "research", "On", 5, Status.RUNNING, False),
        (first, "research", "Done", None, Status.COMPLETE, False),
        (first, "research", "Too late", None, Status.COMPLETE, True),
    ]
    with Session(database.engine) as session:
        as_logs = ax.activity.logs(session, first)
    assert [log.model_dump(exclude={"agent_id", "agent_type", "cursor"}) for log in logs if log.agent_id == first] == [
        log.model_dump() for log in as_logs
    ]
    assert page(database, cursor).logs == []
    store(database.url, [event(second)])
    assert told(page(database, cursor).logs) == [(second, 2)]


def test_pages_continue_behind_any_log(database: Database) -> None:
    """Pages of any size give the same logs; so does a restart behind each single log."""
    agent_ids = created(database, 5)
    store(database.url, [event(agent_id) for agent_id in agent_ids for _ in range(3)])
    everything = told(read(database)[0])
    assert len(everything) == 20
    for limit in (1, 7, 20, 10_000):
        assert told(read(database, limit=limit)[0]) == everything
    for at, log in enumerate(page(database).logs):
        assert told(read(database, log.cursor)[0]) == everything[at + 1 :]
    assert page(database, limit=19).has_more
    assert not page(database, limit=20).has_more


def test_an_empty_feed(database: Database) -> None:
    """Without logs there is a page without logs, and its cursor is good for those that come."""
    for after in (None, "", "now"):
        found = page(database, after)
        assert (found.logs, found.has_more) == ([], False)
        agent_ids = created(database, 1)
        assert told(page(database, found.next_cursor).logs) == [(agent_ids[0], 1)]
        remove(database, agent_ids)


@pytest.fixture
def connections(database: Database) -> Iterator[Callable[[], Connection]]:
    """Connections of applications, closed behind the test."""
    engine = create_engine(database.url, isolation_level="READ COMMITTED")
    opened: list[Connection] = []

    def connect() -> Connection:
        opened.append(engine.connect())
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()
    engine.dispose()


@SERVERS
def test_a_log_that_is_committed_late_follows(database: Database, connections: Callable[[], Connection]) -> None:
    """A transaction takes its ids, others commit higher ones: these are returned at once, the lower ones at its end."""
    exporter = SQLExporter(database.url)
    slow, quick = uuid4(), uuid4()
    created(database, 1)
    cursor = here(database)
    transaction = connections()
    exporter.write_in(transaction, [opening(slow), event(slow)])
    store(database.url, [opening(quick)])
    logs, cursor = read(database, cursor)
    assert told(logs) == [(quick, 1)]
    for _ in range(4):
        store(database.url, [event(quick)])
        logs, cursor = read(database, cursor)
        assert len(logs) == 1
    assert gaps(cursor)
    transaction.commit()
    store(database.url, [event(slow)])
    logs, cursor = read(database, cursor)
    assert told(logs) == [(slow, 1), (slow, 2), (slow, 3)]
    assert gaps(cursor) == ()
    assert page(database, cursor).logs == []
    exporter.shutdown(1.0)


@SERVERS
def test_what_is_rolled_back_is_not_waited_for(database: Database, connections: Callable[[], Connection]) -> None:
    """A transaction that is rolled back holds up nothing; on PostgreSQL its ids are forgotten after its end."""
    exporter = SQLExporter(database.url)
    (quick,) = created(database, 1)
    cursor = here(database)
    transaction = connections()
    exporter.write_in(transaction, [opening()])
    store(database.url, [event(quick)])
    logs, cursor = read(database, cursor)
    assert told(logs) == [(quick, 2)]
    transaction.rollback()
    for _ in range(2):
        assert len(gaps(cursor)) == 1
        cursor = page(database, cursor).next_cursor
    assert len(gaps(cursor)) == (1 if database.kind == "mariadb" else 0)
    store(database.url, [event(quick)])
    assert told(page(database, cursor).logs) == [(quick, 3)]
    exporter.shutdown(1.0)


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_transactions_that_have_written_no_log_are_not_waited_for(
    database: Database, connections: Callable[[], Connection]
) -> None:
    """Long transactions of the application, which write something else or read our tables, keep no gap open."""
    (kept, removed) = created(database, 2)
    other, reader = connections(), connections()
    other.execute(text("CREATE TABLE other (id int)"))
    other.commit()
    other.execute(text("INSERT INTO other VALUES (1)"))
    reader.execute(select(ActivityLog.id)).all()
    store(database.url, [event(kept)])
    remove(database, [removed])
    cursor = page(database).next_cursor
    assert gaps(cursor)
    cursor = page(database, cursor).next_cursor
    assert gaps(cursor) == ()


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_a_fence_outlives_other_transactions(database: Database, connections: Callable[[], Connection]) -> None:
    """A gap stays while its own transaction is open, however many others come and go, and over restarts."""
    exporter = SQLExporter(database.url)
    slow = uuid4()
    transaction = connections()
    exporter.write_in(transaction, [opening(slow)])
    cursor = ""
    for _ in range(5):
        other = connections()
        exporter.write_in(other, [opening()])
        created(database, 1)
        cursor = page(database, cursor).next_cursor
        other.rollback()
        cursor = page(database, cursor).next_cursor
    transaction.commit()
    assert told(page(database, cursor).logs) == [(slow, 1)]
    for _ in range(3):
        cursor = page(database, cursor).next_cursor
    assert gaps(cursor) == ()
    exporter.shutdown(1.0)


@SERVERS
def test_an_old_snapshot_closes_no_gap(database: Database, connections: Callable[[], Connection]) -> None:
    """A session that keeps its snapshot does not see a commit: what it has not seen is not taken for rolled back."""
    exporter = SQLExporter(database.url)
    slow = uuid4()
    transaction = connections()
    exporter.write_in(transaction, [opening(slow)])
    created(database, 1)
    with Session(database.engine.execution_options(isolation_level="REPEATABLE READ")) as session:
        cursor = ax.activity.feed(session).next_cursor
        transaction.commit()
        if database.kind == "mariadb":
            cursor = expired(cursor)
        for _ in range(4):
            found = ax.activity.feed(session, cursor)
            assert found.logs == []
            assert not found.has_more
            cursor = found.next_cursor
    assert told(page(database, cursor).logs) == [(slow, 1)]
    exporter.shutdown(1.0)


def expired(cursor: str) -> str:
    """The cursor as it is after its gaps have been kept for five minutes."""
    found = FeedCursor.parse(cursor)
    assert found.fence is not None
    assert [writer[0] for writer in found.fence.writers] == ["t"]
    return str(FeedCursor(found.last, found.gaps, Fence(found.fence.last, ("t1",))))


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_mariadb_keeps_a_gap_for_five_minutes(database: Database, connections: Callable[[], Connection]) -> None:
    """The server shows no transactions, so time decides: that of the server, not of this machine."""
    exporter = SQLExporter(database.url)
    transaction = connections()
    exporter.write_in(transaction, [opening()])
    created(database, 1)
    cursor = page(database).next_cursor
    fence = FeedCursor.parse(cursor).fence
    assert fence is not None
    (until,) = fence.writers
    assert 290 < int(until[1:]) - time.time() < 310
    for _ in range(3):
        cursor = page(database, cursor).next_cursor
    assert FeedCursor.parse(cursor).fence == fence
    transaction.rollback()
    cursor = expired(cursor)
    for _ in range(2):
        assert gaps(cursor)
        cursor = page(database, cursor).next_cursor
    assert gaps(cursor) == ()
    exporter.shutdown(1.0)


def sparse(database: Database, *, old: bool) -> list[UUID]:
    """Three thousand activities, of which an archive has removed every second one."""
    agent_ids = [uuid4() for _ in range(3_000)]
    events = [opening(agent_id) for agent_id in agent_ids]
    # In parts: for all at once, a busy MariaDB may take longer than the 5 s after which a connection is cut.
    store(database.url, *(events[first : first + 500] for first in range(0, 3_000, 500)))
    remove(database, agent_ids[::2])
    if old:
        with Session(database.engine) as session, session.begin():
            session.execute(update(Activity).values(updated_at=datetime.now(UTC) - timedelta(hours=1)))
    return agent_ids[1::2]


def test_holes_of_an_archive_do_not_stall_the_feed(database: Database) -> None:
    """A history with holes everywhere is read in full pages, and leaves a short cursor."""
    left = sparse(database, old=True)
    found = page(database)
    sizes = [len(found.logs)]
    logs = found.logs
    while found.has_more:
        found = page(database, found.next_cursor)
        sizes.append(len(found.logs))
        logs += found.logs
    assert [log.agent_id for log in logs] == left
    assert sizes == [1000, 500]
    for _ in range(2):
        found = page(database, found.next_cursor)
    assert len(found.next_cursor) < 20


@SERVERS
def test_a_cursor_without_room_waits(database: Database, connections: Callable[[], Connection]) -> None:
    """If an open transaction may still fill more gaps than a cursor has room for, the feed waits for its end."""
    exporter = SQLExporter(database.url)
    slow = uuid4()
    transaction = connections()
    left = sparse(database, old=False)
    exporter.write_in(transaction, [opening(slow)])
    found = page(database, limit=10_000)
    assert len(found.logs) == MOST_GAPS
    assert not found.has_more
    held = page(database, found.next_cursor, limit=10_000)
    assert (held.logs, held.has_more) == ([], False)
    transaction.commit()
    cursor = expired(held.next_cursor) if database.kind == "mariadb" else held.next_cursor
    logs: list[ActivityFeedLogSchema] = []
    for _ in range(5):
        found = page(database, cursor, limit=10_000)
        logs += found.logs
        cursor = found.next_cursor
    assert told(logs) == [*((agent_id, 1) for agent_id in left[MOST_GAPS:]), (slow, 1)]
    exporter.shutdown(1.0)


def test_an_id_is_given_once(database: Database) -> None:
    """A log that comes after the newest ones were removed is not missed."""
    agent_ids = created(database, 3)
    _, cursor = read(database)
    remove(database, agent_ids)
    new = created(database, 2)
    assert told(page(database, cursor).logs) == [(agent_id, 1) for agent_id in new]


@SERVERS
def test_from_now_on(database: Database, connections: Callable[[], Connection]) -> None:
    """ "now" is behind all that is committed; a transaction that has taken its ids shortly before is not missed."""
    exporter = SQLExporter(database.url)
    created(database, 150)
    slow = uuid4()
    transaction = connections()
    exporter.write_in(transaction, [opening(slow)])
    created(database, 50)
    found = page(database, "now")
    assert (found.logs, found.has_more) == ([], False)
    cursor = page(database, found.next_cursor).next_cursor
    transaction.commit()
    (later,) = created(database, 1)
    assert told(page(database, cursor).logs) == [(slow, 1), (later, 1)]
    exporter.shutdown(1.0)


def test_filters(database: Database) -> None:
    """Only the logs of a tenant, of a task, of a time; the cursor passes the others."""
    mine, other = uuid4(), uuid4()
    store(
        database.url,
        [
            event(mine, Status.QUEUED, "queued", opening=Opening("research", metadata={"tenant": "acme"})),
            event(other, Status.QUEUED, "queued", opening=Opening("write", metadata={"tenant": "other"})),
            event(mine),
            event(other),
        ],
    )
    logs, cursor = read(database, metadata_filter={"tenant": "acme"})
    assert told(logs) == [(mine, 1), (mine, 2)]
    assert page(database, cursor).logs == []
    assert told(read(database, agent_type=["write", "x"])[0]) == [(other, 1), (other, 2)]
    assert read(database, agent_type="x")[0] == []
    now = datetime.now(UTC)
    assert len(read(database, created_after=now - timedelta(minutes=1), created_before=now)[0]) == 4
    assert read(database, created_before=now - timedelta(minutes=1))[0] == []
    found = page(database, metadata_filter={"tenant": "acme"}, limit=1)
    assert (told(found.logs), found.has_more) == ([(mine, 1)], True)
    assert told(page(database, found.next_cursor, metadata_filter={"tenant": "acme"}).logs) == [(mine, 2)]


def test_a_rare_tenant(database: Database) -> None:
    """Logs behind thousands of others are found within one page."""
    common, rare = uuid4(), uuid4()
    lines = [event(common, message="x") for _ in range(4_000)]
    queued = event(rare, Status.QUEUED, "queued", opening=Opening("task", metadata={"tenant": "rare"}))
    store(database.url, [opening(common), *lines], lines_of(common, 4_000), [queued, event(rare)], [event(common)])
    found = page(database, metadata_filter={"tenant": "rare"})
    assert (told(found.logs), found.has_more) == ([(rare, 1), (rare, 2)], False)
    assert page(database, found.next_cursor).logs == []


def lines_of(agent_id: UUID, count: int) -> list[Any]:
    return [event(agent_id, message="x") for _ in range(count)]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_bad_arguments(database: Database) -> None:
    """A malformed argument raises ValueError; a filter by what changes, which would lose logs, TypeError."""
    malformed: list[tuple[dict[str, Any], str]] = [
        ({"after": "x"}, "after is 'x'"),
        ({"after": 5}, "after is 5"),
        ({"limit": 0}, "limit is 0"),
        ({"limit": 10_001}, "limit is 10001"),
        ({"limit": "5"}, "limit is '5'"),
        ({"metadata_filter": {}}, "metadata_filter"),
        ({"created_after": "yesterday"}, "created_after is"),
    ]
    for arguments, message in malformed:
        with pytest.raises(ValueError, match=message):
            page(database, **arguments)
    for unknown in ("status", "updated_after", "text", "x"):
        with pytest.raises(TypeError, match=f"no filter '{unknown}': use agent_type, metadata_filter, created_after"):
            page(database, **{unknown: "x"})
    with pytest.raises(TypeError, match="must be a sqlalchemy"):
        ax.activity.feed(database.engine)  # type: ignore[arg-type]


async def test_on_an_event_loop(database: Database) -> None:
    """The twin for asyncio returns the same."""
    created(database, 3)
    expected = page(database)
    engine = create_async_engine(database.async_url)
    async with AsyncSession(engine) as session:
        assert (await aio.feed(session)).logs == expected.logs
        assert (await aio.feed(session, expected.logs[0].cursor, limit=1)).logs == expected.logs[1:2]
    with pytest.raises(TypeError, match="must be an AsyncSession"):
        await aio.feed(Session(database.engine))  # type: ignore[arg-type]
    await engine.dispose()


@pytest.mark.one_python
def test_plans_at_depth(database: Database) -> None:
    """However deep the cursor, only ranges of the log's ids are read, and activities by their ids."""
    openings = [Opening("task", metadata={"tenant": tenant}) for tenant in "xy" * 1_500]
    store(database.url, [event(uuid4(), Status.QUEUED, "queued", opening=one) for one in openings])
    last = page(database, limit=10_000).logs[-1].id
    cursor = str(FeedCursor(last - 10, ((last - 200, last - 190), (last - 180, last - 180))))
    filters: list[dict[str, Any]] = [{}, {"metadata_filter": {"tenant": "x"}}, {"agent_type": "task"}]
    with Session(database.engine) as session:
        analyze(session)
        for one in filters:
            plan = plan_of(session, partial(ax.activity.feed, after=cursor, limit=100, **one))
            assert not scans_the_log(plan), plan
            assert not re.search(r"Seq Scan|\bSCAN agentexec|^(?:index|ALL) agentexec", plan, re.MULTILINE), plan


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    """The application's engine, with a single connection."""
    made = create_engine(database.url, pool_size=1, max_overflow=0, pool_timeout=10)
    yield made
    made.dispose()


def test_the_feed_is_followed(database: Database, engine: Engine) -> None:
    """Each log arrives, whatever its activity; a restart continues behind the last one; no connection is held."""
    first, second = created(database, 2)
    pool: Any = engine.pool
    with closing(ax.activity.follow_feed(engine, timeout=PATIENCE)) as following:
        assert told([next(following), next(following)]) == [(first, 1), (second, 1)]
        store(database.url, [event(second)])
        assert told([next(following)]) == [(second, 2)]
        assert pool.checkedout() == 0
        store(database.url, [event(first)])
        log = next(following)
        assert told([log]) == [(first, 2)]
        assert pool.checkedout() == 0
    store(database.url, [event(first)])
    with closing(ax.activity.follow_feed(sessionmaker(engine), log.cursor, timeout=PATIENCE)) as following:
        assert told([next(following)]) == [(first, 3)]


def test_the_feed_is_followed_from_now_on(database: Database, engine: Engine) -> None:
    """ "now" starts behind what is there at the first iteration; filters apply."""
    (old,) = created(database, 1)
    arrived: list[ActivityFeedLogSchema] = []
    following = ax.activity.follow_feed(engine, "now", agent_type="mine", timeout=PATIENCE)
    follower = Thread(target=lambda: arrived.append(next(following)))
    follower.start()
    mine: list[UUID] = []
    while follower.is_alive():
        store(database.url, [event(old)])
        mine += created(database, 1, task="mine")
        follower.join(0.05)
    assert arrived[0].agent_id in mine
    assert arrived[0].agent_type == "mine"
    following.close()


@SERVERS
def test_a_log_that_is_committed_late_is_followed(
    database: Database, engine: Engine, connections: Callable[[], Connection]
) -> None:
    """The follower returns a lower id that is committed later, although no higher one follows."""
    exporter = SQLExporter(database.url)
    created(database, 1)
    slow = uuid4()
    transaction = connections()
    exporter.write_in(transaction, [opening(slow)])
    created(database, 1)
    following = ax.activity.follow_feed(engine, timeout=PATIENCE)
    next(following)
    assert next(following).agent_id != slow
    transaction.commit()
    assert next(following).agent_id == slow
    following.close()
    exporter.shutdown(1.0)


async def test_the_feed_is_followed_on_an_event_loop(database: Database) -> None:
    """The asynchronous iterator does the same; its timeout and its arguments are checked, too."""
    agent_ids = created(database, 2)
    engine = create_async_engine(database.async_url)
    async with aclosing(aio.follow_feed(engine, timeout=PATIENCE)) as following:
        assert [(await anext(following)).agent_id for _ in agent_ids] == agent_ids
        store(database.url, [event(agent_ids[0])])
        assert told([await anext(following)]) == [(agent_ids[0], 2)]
    with pytest.raises(TimeoutError, match=r"the feed has not ended within 0\.05 s"):
        await anext(aio.follow_feed(engine, "now", timeout=0.05))
    wrong: Any = database.engine
    with pytest.raises(TypeError, match="AsyncEngine or an async_sessionmaker here"):
        aio.follow_feed(wrong)
    await engine.dispose()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_bad_arguments_of_a_follower(database: Database, engine: Engine) -> None:
    """They raise at the call, not only at the first iteration."""
    malformed: list[dict[str, Any]] = [{"after": "x"}, {"timeout": -1}, {"metadata_filter": {}}]
    for arguments in malformed:
        with pytest.raises(ValueError, match="|".join(arguments)):
            ax.activity.follow_feed(engine, **arguments)
    unknown: dict[str, Any] = {"status": "RUNNING"}
    with pytest.raises(TypeError, match="no filter 'status'"):
        ax.activity.follow_feed(engine, **unknown)
    with pytest.raises(TypeError, match="Engine or a sessionmaker"):
        ax.activity.follow_feed(Session(engine))  # type: ignore[arg-type]
    with pytest.raises(TimeoutError):
        next(ax.activity.follow_feed(engine, timeout=0))
