"""Times and order: aware UTC with microseconds everywhere, `updated_at` that moves, and clocks that decide nothing."""

import time
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import create_engine, make_url
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity.models import Status
from agentexec_otel_exporters.sql import SQLExporter
from tests.databases import Database
from tests.sql.rows import event, gap_free, lines, opening, row, store

HOUR_NS = 3_600_000_000_000
MOMENT_NS = 1_700_000_000_123_456_789
MOMENT = datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)


def test_times_are_aware_utc_with_microseconds(database: Database, exporter: SQLExporter) -> None:
    """What happened at a nanosecond comes back as that microsecond, in UTC, from rows and from queries."""
    agent_id = uuid4()
    exporter.export([opening(agent_id, at_ns=MOMENT_NS), event(agent_id, at_ns=MOMENT_NS + 1_000)])
    stored, logs = row(database.engine, agent_id), lines(database.engine, agent_id)
    assert stored.created_at == logs[0].created_at == MOMENT
    assert stored.started_at == logs[1].created_at == MOMENT + timedelta(microseconds=1)
    with Session(database.engine) as session:
        found = ax.activity.detail(session, agent_id)
        (item,) = ax.activity.list(session).items
    assert found is not None
    times = [stored.created_at, stored.started_at, logs[0].created_at, found.created_at, found.logs[1].created_at]
    assert all(one is not None and one.utcoffset() == timedelta(0) for one in [*times, item.latest_log_timestamp])
    assert found.updated_at.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - found.updated_at) < timedelta(minutes=1)


def test_durations(database: Database, exporter: SQLExporter) -> None:
    """Waiting and running take what the clocks say: up to the end, whatever is late, and for each attempt anew."""
    agent_id, second_ns = uuid4(), 1_000_000_000
    exporter.export([opening(agent_id, at_ns=MOMENT_NS), event(agent_id, at_ns=MOMENT_NS + second_ns)])
    exporter.export([event(agent_id, Status.ERROR, at_ns=MOMENT_NS + 4 * second_ns)])
    exporter.export([event(agent_id, message="late", at_ns=MOMENT_NS + 9 * second_ns)])
    assert row(database.engine, agent_id).ended_at == MOMENT + timedelta(seconds=4)
    assert durations(database, agent_id) == (1.0, 3.0, 3)
    exporter.export([event(agent_id, Status.QUEUED, reopens=True, claims=True)])
    assert row(database.engine, agent_id).ended_at is None
    assert durations(database, agent_id) == (None, None, 0)


def test_durations_tick(database: Database, exporter: SQLExporter) -> None:
    """What waits or runs has waited or run until now."""
    queued, running = uuid4(), uuid4()
    hour_ago = time.time_ns() - HOUR_NS
    exporter.export([opening(queued, at_ns=hour_ago), opening(running, at_ns=hour_ago - HOUR_NS)])
    exporter.export([event(running, at_ns=hour_ago)])
    waited, ran, elapsed = durations(database, queued)
    assert waited is not None
    assert (waited >= 3600, ran, elapsed) == (True, None, 0)
    waited, ran, elapsed = durations(database, running)
    assert ran is not None
    assert (waited, ran >= 3600, elapsed >= 3600) == (3600.0, True, True)


def test_activities_ended_together_have_their_end(database: Database) -> None:
    """`cancel_pending` stores the moment of its log, also on rows that a fast clock has written."""
    ax.configure(database.url)
    usual, ahead = ax.activity.create("task"), uuid4()
    store(database.url, [opening(ahead, at_ns=time.time_ns() + HOUR_NS)])
    assert ax.activity.cancel_pending() == 2
    for agent_id in (usual, ahead):
        assert row(database.engine, agent_id).ended_at == lines(database.engine, agent_id)[-1].created_at


def durations(database: Database, agent_id: UUID) -> tuple[float | None, float | None, int]:
    with Session(database.engine) as session:
        detail = ax.activity.detail(session, agent_id)
        (item,) = (one for one in ax.activity.list(session).items if one.agent_id == agent_id)
    assert detail is not None
    assert (detail.queued_seconds is None, detail.elapsed_time_seconds) == (
        item.queued_seconds is None,
        item.elapsed_time_seconds,
    )
    return item.queued_seconds, item.duration_seconds, item.elapsed_time_seconds


@pytest.mark.parametrize("database", ["postgres", "mariadb"], indirect=True)
def test_zone_of_the_session_changes_nothing(database: Database) -> None:
    """A server or a session in another time zone stores and shows the same moments."""
    option = {"postgres": {"options": "-c timezone=Asia/Tokyo"}, "mariadb": {"init_command": "SET time_zone='+09:00'"}}
    url = make_url(database.url).update_query_dict(option[database.kind])
    exporter, elsewhere = SQLExporter(url), create_engine(url)
    agent_id = uuid4()
    exporter.export([opening(agent_id, at_ns=MOMENT_NS)])
    exporter.shutdown(1.0)
    assert row(database.engine, agent_id).created_at == row(elsewhere, agent_id).created_at == MOMENT
    with Session(elsewhere) as session:
        assert ax.activity.list(session, created_before=MOMENT).total == 0
        assert ax.activity.list(session, created_after=MOMENT, created_before=MOMENT + timedelta(seconds=1)).total == 1
        assert ax.activity.list(session, created_after=MOMENT.replace(tzinfo=None)).total == 1
    elsewhere.dispose()


def test_updated_at_moves_with_every_line(database: Database, exporter: SQLExporter) -> None:
    """Each stored line moves `updated_at` strictly, late ones and those of equal clocks included."""
    agent_id = uuid4()
    steps = [
        opening(agent_id, at_ns=MOMENT_NS),
        *(event(agent_id, at_ns=MOMENT_NS) for _ in range(5)),
        event(agent_id, percentage=10),
        event(agent_id, Status.COMPLETE),
        event(agent_id, message="late"),
        event(agent_id, Status.QUEUED, reopens=True),
    ]
    seen: list[datetime] = []
    for step in steps:
        exporter.export([step])
        seen.append(row(database.engine, agent_id).updated_at)
    assert seen == sorted(set(seen))


def test_updated_at_never_goes_back(database: Database, exporter: SQLExporter) -> None:
    """Behind a row that a host with a fast clock has written, `updated_at` still moves forward: also by bulk calls."""
    ax.configure(database.url)
    ahead_ns = time.time_ns() + HOUR_NS
    agent_id, swept = uuid4(), uuid4()
    exporter.export([opening(agent_id, at_ns=ahead_ns), opening(swept, at_ns=ahead_ns)])
    seen = [row(database.engine, agent_id).updated_at]
    for message in ("one", "two"):
        ax.activity.update(agent_id, message)
        assert ax.flush()
        seen.append(row(database.engine, agent_id).updated_at)
    assert ax.activity.cancel_pending() == 2
    seen.append(row(database.engine, agent_id).updated_at)
    assert seen == sorted(set(seen))
    assert row(database.engine, swept).updated_at > seen[0]


def test_equal_clocks_keep_the_order(database: Database, exporter: SQLExporter) -> None:
    """Lines of one tick, in one batch or in several, stay in the order in which they were stored."""
    agent_id = uuid4()
    messages = [f"line {number}" for number in range(60)]
    exporter.export([opening(agent_id, at_ns=MOMENT_NS)])
    for start in (0, 20, 40):
        exporter.export([event(agent_id, message=text, at_ns=MOMENT_NS) for text in messages[start : start + 20]])
    logs = lines(database.engine, agent_id)
    assert gap_free(logs)
    assert [log.message for log in logs[1:]] == messages
    assert {log.created_at for log in logs} == {MOMENT}
    with Session(database.engine) as session:
        (item,) = ax.activity.list(session).items
        assert item.latest_log == messages[-1]
        assert [log.message for log in ax.activity.logs(session, agent_id, after_seq=41)] == messages[40:]


def test_skewed_clocks_decide_nothing(database: Database, exporter: SQLExporter) -> None:
    """Producers an hour apart, either way: order, status and latest line are decided by arrival; times are as told."""
    now_ns = time.time_ns()
    fast_ns, slow_ns = now_ns + HOUR_NS, now_ns - HOUR_NS
    agent_id = uuid4()
    exporter.export([opening(agent_id, at_ns=fast_ns)])
    exporter.export([event(agent_id, message="slow", at_ns=slow_ns, percentage=10)])
    exporter.export([event(agent_id, message="fast", at_ns=fast_ns, percentage=20)])
    exporter.export([event(agent_id, Status.ERROR, "slow end", at_ns=slow_ns)])
    exporter.export([event(agent_id, Status.COMPLETE, "fast end", at_ns=fast_ns, percentage=100)])
    stored, logs = row(database.engine, agent_id), lines(database.engine, agent_id)
    assert (stored.status, stored.latest_percentage) == (Status.ERROR, 20)
    assert [log.message for log in logs] == ["queued", "slow", "fast", "slow end", "fast end"]
    assert logs[3].created_at - logs[2].created_at == timedelta(hours=-2)
    with Session(database.engine) as session:
        (item,) = ax.activity.list(session).items
    assert (item.latest_log, item.status) == ("slow end", Status.ERROR)


def test_list_is_newest_first_by_creation(database: Database, exporter: SQLExporter) -> None:
    """Activities are listed by when they were created; equal moments have a fixed order that pages can rely on."""
    order = [opening(at_ns=MOMENT_NS + 1_000 * (number // 4)) for number in range(12)]
    for one in order:
        exporter.export([one])
    with Session(database.engine) as session:
        pages = [ax.activity.list(session, page, 5).items for page in (1, 2, 3)]
    listed: list[UUID] = [item.agent_id for page in pages for item in page]
    assert listed == [one.agent_id for one in reversed(order)]


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_times_where_dates_are_written_otherwise(database: Database) -> None:
    """A database or role whose DateStyle is not ISO is written to all the same."""
    with database.engine.begin() as connection:
        name = make_url(database.url).database
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET datestyle = 'SQL, DMY'")
    try:
        ax.configure(database.url)
        agent_id = ax.activity.create("task")
        ax.activity.update(agent_id, "Working.")
        assert ax.activity.complete(agent_id)
        ax.shutdown()
    finally:
        with database.engine.begin() as connection:
            connection.exec_driver_sql(f"ALTER DATABASE {name} RESET datestyle")
    assert row(database.engine, agent_id).status is Status.COMPLETE
