"""`list` and `get`: filters find their own, cursors pass through everything once, no plan reads the log table."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Unpack
from uuid import UUID, uuid4

import pytest
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity import ActivityFilters
from agentexec_otel.activity.models import Status
from agentexec_otel.export import Opening, Outcome, SpanRef
from tests.databases import Database
from tests.sql.plans import analyze, is_range_of_created_at, plan_of, scans_the_log, statements_of
from tests.sql.rows import event, opening, store

pytestmark = pytest.mark.one_python

SECOND = 10**9
RUNNING_ID = uuid4()


def names(database: Database, **filters: Unpack[ActivityFilters]) -> list[str]:
    """The types of what the filters find, sorted."""
    with Session(database.engine) as session:
        found = ax.activity.list(session, **filters)
    assert found.total == len(found.items)
    return sorted(item.agent_type for item in found.items)


def fill(database: Database, count: int, *, same_moment: bool = False) -> list[UUID]:
    """So many activities, oldest first."""
    now = time.time_ns() - 3600 * SECOND
    ids = [uuid4() for _ in range(count)]
    moments = [now if same_moment else now + number * SECOND for number in range(count)]
    made = [opening(agent_id, f"task {n}", at_ns=at) for n, (agent_id, at) in enumerate(zip(ids, moments, strict=True))]
    store(database.url, made)
    return ids


@pytest.fixture
def three(database: Database) -> datetime:
    """One that waits, one that runs and one that has failed, each an hour after the one before; the last one's time."""
    now = time.time_ns() // 1000 * 1000
    waiting, running, failed = uuid4(), RUNNING_ID, uuid4()
    span = SpanRef("a" * 32, "b" * 16, True)
    error = event(failed, Status.ERROR, "No 100% found_in C:\\tmp", at_ns=now, outcome=Outcome("KeyError", "tool"))
    store(
        database.url,
        [
            opening(waiting, "waiting", at_ns=now - 7200 * SECOND),
            opening(running, "running", at_ns=now - 3600 * SECOND),
            opening(failed, "failed", at_ns=now),
        ],
        [event(running, message="Reading", at_ns=now - 3600 * SECOND, worker_id="host:1:2", span=span)],
        [event(running, message="Writing it DOWN", at_ns=now - 3600 * SECOND, worker_id="host:1:2"), error],
        [event(failed, message="Reading too late", at_ns=now)],
    )
    return datetime.fromtimestamp(now / SECOND, UTC)


FILTERS: list[tuple[ActivityFilters, list[str]]] = [
    ({"agent_id": RUNNING_ID}, ["running"]),
    ({"agent_id": [str(RUNNING_ID), uuid4()]}, ["running"]),
    ({"agent_id": []}, []),
    ({"status": "RUNNING"}, ["running"]),
    ({"status": ["RUNNING", Status.ERROR]}, ["failed", "running"]),
    ({"agent_type": "waiting"}, ["waiting"]),
    ({"agent_type": ["waiting", "running", "no such"]}, ["running", "waiting"]),
    ({"agent_type": "Waiting"}, []),
    ({"agent_type": "waiting "}, []),
    ({"agent_type": []}, []),
    ({"reason": "tool"}, ["failed"]),
    ({"reason": ("timeout", "tool")}, ["failed"]),
    ({"error_type": "KeyError"}, ["failed"]),
    ({"error_type": "keyerror"}, []),
    ({"trace_id": "a" * 32}, ["running"]),
    ({"worker_id": "host:1:2"}, ["running"]),
    ({"text": "writing"}, ["running"]),
    ({"text": "down"}, ["running"]),
    ({"text": "reading"}, []),
    ({"text": "100% f"}, ["failed"]),
    ({"text": "0%f"}, []),
    ({"text": "d_in"}, ["failed"]),
    ({"text": "d_n"}, []),
    ({"text": "c:\\tmp"}, ["failed"]),
    ({"text": "i", "status": "QUEUED"}, []),
    ({"text": None, "reason": None, "agent_type": "failed"}, ["failed"]),
]


@pytest.mark.usefixtures("three")
def test_filters(database: Database) -> None:
    """Each filter finds what meets it exactly; `text` looks at the latest log, late ones aside, and at no pattern."""
    for filters, expected in FILTERS:
        assert names(database, **filters) == expected, filters


def test_times(database: Database, three: datetime) -> None:
    """`…_after` includes its moment and `…_before` does not, for creation, the last change and the end."""
    assert names(database, created_after=three) == ["failed"]
    assert names(database, created_before=three) == ["running", "waiting"]
    hour = timedelta(hours=1)
    assert names(database, created_after=three - hour, created_before=three) == ["running"]
    with Session(database.engine) as session:
        updated = {item.agent_type: item.updated_at for item in ax.activity.list(session).items}
    assert names(database, updated_before=updated["running"]) == ["waiting"]
    assert names(database, updated_after=updated["running"]) == ["failed", "running"]
    assert names(database, updated_after=updated["running"].replace(tzinfo=None)) == ["failed", "running"]
    with Session(database.engine) as session:
        (ended_at,) = (item.ended_at for item in ax.activity.list(session).items if item.ended_at is not None)
    assert names(database, ended_after=ended_at) == ["failed"]
    assert names(database, ended_before=ended_at) == []
    assert names(database, ended_before=ended_at + timedelta(microseconds=1)) == ["failed"]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("agent_id", "x"),
        ("order", "random"), ("text", ""), ("text", 5), ("trace_id", 5), ("reason", [5]), ("updated_after", "now"),
        ("cursor", "x"), ("cursor", 5), ("cursor", "A" * 33 + "="), ("cursor", "_" * 34), ("cursor", "A" * 35),
    ],
)  # fmt: skip
def test_bad_arguments(database: Database, argument: str, value: Any) -> None:
    """A malformed argument is a ValueError that names it, before the database is asked."""
    with Session(database.engine) as session:
        with pytest.raises(ValueError, match=f"^{argument} "):
            ax.activity.list(session, **{argument: value})
        assert not session.in_transaction()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_an_unknown_filter(database: Database) -> None:
    """A misspelt filter is a TypeError, also of `cancel_pending`, which would otherwise cancel everything."""
    ax.configure(database.url)
    wrong: dict[str, Any] = {"agent_typ": "task"}
    with Session(database.engine) as session, pytest.raises(TypeError, match="agent_typ"):
        ax.activity.list(session, **wrong)
    with pytest.raises(TypeError, match="agent_typ"):
        ax.activity.cancel_pending(**wrong)


def walk(session: Session, cursor: str | None = "", **arguments: Any) -> list[UUID]:
    """Everything, page by page."""
    ids: list[UUID] = []
    while cursor is not None:
        page = ax.activity.list(session, cursor=cursor, **arguments)
        ids += [item.agent_id for item in page.items]
        cursor = page.next_cursor
    return ids


@pytest.mark.parametrize("same_moment", [False, True])
@pytest.mark.parametrize("page_size", [1, 3, 10, 11])
def test_cursors_pass_through_everything_once(database: Database, page_size: int, same_moment: bool) -> None:
    """In both orders, with any page size, also if all were created in one moment; the last page has no next one."""
    ids = fill(database, 10, same_moment=same_moment)
    with Session(database.engine) as session:
        newest = walk(session, page_size=page_size)
        oldest = walk(session, page_size=page_size, order="oldest")
        assert newest == [item.agent_id for item in ax.activity.list(session).items]
        assert walk(session, page_size=page_size, agent_type=["task 1", "task 5"]) == [
            agent_id for agent_id in newest if agent_id in (ids[1], ids[5])
        ]
    assert oldest == newest[::-1]
    assert set(newest) == set(ids)
    assert same_moment or oldest == ids


def test_a_cursor_continues_behind_a_page(database: Database) -> None:
    """A numbered page has a cursor, too. What is created meanwhile moves nothing, and a cursor counts nothing."""
    ids = fill(database, 10)
    with Session(database.engine) as session:
        first = ax.activity.list(session, page_size=4)
        assert (first.total, first.pages) == (10, 3)
        store(database.url, [opening(task="newer")])
        session.rollback()
        assert first.next_cursor is not None
        second = ax.activity.list(session, page_size=4, cursor=first.next_cursor)
        assert [item.agent_id for item in second.items] == ids[5:1:-1]
        assert second.total is None
        assert ax.activity.list(session, page_size=4, cursor=first.next_cursor, total=10).total == 10
        assert ax.activity.list(session, 3, 4).next_cursor is None
        assert len(statements_of(session, lambda s: ax.activity.list(s, cursor=first.next_cursor))) == 1


def test_a_cursor_of_another_order_or_beside_a_page(database: Database) -> None:
    """Both are a ValueError: they would skip rows silently."""
    fill(database, 2)
    with Session(database.engine) as session:
        cursor = ax.activity.list(session, page_size=1).next_cursor
        assert cursor is not None
        with pytest.raises(ValueError, match="order='newest'"):
            ax.activity.list(session, cursor=cursor, order="oldest")
        with pytest.raises(ValueError, match="page is 2"):
            ax.activity.list(session, 2, cursor=cursor)


def test_get(database: Database, three: datetime) -> None:
    """One activity as `list` has it, late logs aside; None if it does not exist or belongs to another tenant."""
    mine = uuid4()
    created = opening(mine)._replace(opening=Opening("mine", {"tenant": "acme"}))
    store(database.url, [created], [event(mine, message="Working", percentage=5)])
    with Session(database.engine) as session:
        for item in ax.activity.list(session).items:
            assert ax.activity.get(session, item.agent_id) == item
            assert ax.activity.get(session, item.agent_id.hex) == item
        found = ax.activity.get(session, mine, metadata_filter={"tenant": "acme"})
        assert found is not None
        assert (found.latest_log, found.percentage, found.metadata) == ("Working", 5, {"tenant": "acme"})
        assert ax.activity.get(session, mine, {"tenant": "globex"}) is None
        assert ax.activity.get(session, uuid4()) is None
        with pytest.raises(ValueError, match="metadata_filter"):
            ax.activity.get(session, mine, {})


QUERIES: list[Callable[[Session], object]] = [
    lambda session: ax.activity.list(session, 3, 5),
    lambda session: ax.activity.list(session, page_size=5, text="line"),
    lambda session: ax.activity.list(session, page_size=5, text="no such", order="oldest", cursor=""),
    lambda session: ax.activity.list(session, page_size=5, status="RUNNING", agent_type=["task 3", "task 4"]),
    lambda session: ax.activity.list(session, reason="tool", error_type="KeyError", worker_id="w", trace_id="t"),
    lambda session: ax.activity.get(session, uuid4()),
]


def test_no_plan_reads_the_log_table(database: Database) -> None:
    """Pages, filters, cursors and `get` read their own logs by the index, also where `text` looks at each activity."""
    ids = fill(database, 600)
    store(database.url, [event(agent_id) for agent_id in ids for _ in range(9)])
    with Session(database.engine) as session:
        analyze(session)
        for query in QUERIES:
            plan = plan_of(session, query)
            assert not scans_the_log(plan), plan
        whole = plan_of(session, lambda s: s.query(ax.activity.ActivityLog).all())
        assert scans_the_log(whole), whole


@pytest.mark.parametrize("order", ["newest", "oldest"])
def test_a_cursor_reads_a_range_of_the_index(database: Database, order: Any) -> None:
    """A page behind a cursor starts in the index where the page before ended, however deep that is."""
    ids = fill(database, 600)
    store(database.url, [event(agent_id) for agent_id in ids for _ in range(9)])
    with Session(database.engine) as session:
        analyze(session)
        cursor = ax.activity.list(session, 60, 5, order=order).next_cursor
        assert cursor is not None
        plan = plan_of(session, partial(ax.activity.list, page_size=5, order=order, cursor=cursor))
        assert is_range_of_created_at(session, plan), plan
        assert not scans_the_log(plan), plan


def test_lease(database: Database) -> None:
    """Shown while the activity is RUNNING, by the list, by `get` and by the detail."""
    ax.configure(database.url)
    agent_id = ax.activity.create("task")
    ax.activity.update(agent_id, "Working.")
    ax.flush()
    for is_running in (True, False):
        with Session(database.engine) as session:
            detail, item = ax.activity.detail(session, agent_id), ax.activity.get(session, agent_id)
            (listed,) = ax.activity.list(session).items
        assert detail is not None
        assert item is not None
        leases = {detail.lease_expires_at, item.lease_expires_at, listed.lease_expires_at}
        assert len(leases) == 1
        assert (leases.pop() is not None) is is_running
        ax.activity.complete(agent_id)
        ax.flush()
