"""The activity page's queries and its archive recipe run as written, on every database and in every time zone."""

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, create_engine, func, select, update
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity.models import Activity, ActivityLog, Status
from tests.databases import Database
from tests.docs.blocks import Block
from tests.docs.page import run_as_written, runs

# The page is as old as `datetime.utcnow()`; the naive time that it returns must go on meaning UTC.
utcnow_is_deprecated = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")


@pytest.fixture(params=["Pacific/Auckland", "America/Los_Angeles"])
def zoned_engine(
    request: pytest.FixtureRequest, database: Database, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Engine]:
    """An engine of an application, and of database sessions, that live in another time zone."""
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", request.param)
        elsewhere.setenv("PGTZ", request.param)
        time.tzset()
        engine = create_engine(database.url)
        yield engine
        engine.dispose()
    time.tzset()


def activity(agent_type: str, *lines: tuple[str, int | None]) -> UUID:
    agent_id = ax.activity.create(agent_type)
    for message, percentage in lines:
        ax.activity.update(agent_id, message, percentage=percentage)
    assert ax.flush()
    return agent_id


def move_back(engine: Engine, agent_id: UUID, age: timedelta) -> None:
    with Session(engine) as session:
        changed = update(Activity).where(Activity.agent_id == agent_id).values(updated_at=datetime.now(UTC) - age)
        session.execute(changed)
        session.commit()


@runs("Get Activity Detail")
def test_detail(block: Block, names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """The block prints the activity and its whole history, oldest line first, with aware UTC times."""
    agent_id = activity("research_company", ("Researching", 25), ("Analyzing", 50))
    run_as_written(block, names, agent_id=agent_id)
    moment = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}\+00:00"
    expected = [
        "Task: research_company",
        "Status: RUNNING",
        f"Created: {moment}",
        f"Updated: {moment}",
        "Progress: 50%",
        "",
        "Log history:",
        rf"  \[{moment}\] \[QUEUED\] Waiting to start\.",
        rf"  \[{moment}\] \[RUNNING\] Researching",
        rf"  \[{moment}\] \[RUNNING\] Analyzing",
    ]
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(expected)
    for line, pattern in zip(printed, expected, strict=True):
        assert re.fullmatch(pattern, line), (line, pattern)


@runs("Get Activity Detail")
def test_detail_of_nothing(block: Block, names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown id is None, so the block prints nothing."""
    assert run_as_written(block, names, agent_id=uuid4())["activity"] is None
    assert capsys.readouterr().out == ""


@runs("List Activities")
def test_list(block: Block, names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """The first page holds the newest 20 of 25, each with its status and its latest line."""
    ids = [activity("job", (f"Step {n}", n)) for n in range(25)]
    run_as_written(block, names)
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == ["Total activities: 25", "Page 1 of 2"]
    newest = reversed(list(enumerate(ids))[5:])
    expected = [(f"{agent_id}: job - RUNNING", f"  Latest: Step {n}") for n, agent_id in newest]
    assert list(zip(printed[2::2], printed[3::2], strict=True)) == expected


@runs("Query by Status")
@utcnow_is_deprecated
def test_query_by_status(block: Block, names: dict[str, Any], zoned_engine: Engine) -> None:
    """The recipes find what has run, what was updated in the last hour (newest first), and what failed."""
    queued, old, recent, failed = (activity(name) for name in ("queued", "old", "recent", "failed"))
    for agent_id in (old, recent):
        ax.activity.update(agent_id, "Working")
    ax.activity.error(failed, "No")
    assert ax.flush()
    ages = {queued: 61, old: 90, recent: 59, failed: 1}
    for agent_id, minutes in ages.items():
        move_back(zoned_engine, agent_id, timedelta(minutes=minutes))
    left = run_as_written(block, names, engine=zoned_engine)
    assert {found.agent_id for found in left["running"]} == {old, recent}
    assert [found.agent_id for found in left["recent"]] == [failed, recent]
    assert [found.agent_id for found in left["errors"]] == [failed]


def test_what_is_running_now(names: dict[str, Any]) -> None:
    """`Activity.logs.any(status=RUNNING)` finds what ever ran; `Activity.status` says what runs now."""
    running, ended = activity("job", ("Working", None)), activity("job", ("Working", None))
    ax.activity.complete(ended)
    assert ax.flush()
    with Session(names["engine"]) as session:
        ever = session.query(Activity).filter(Activity.logs.any(status=Status.RUNNING)).all()
        now = session.query(Activity).filter(Activity.status == Status.RUNNING).all()
    assert {found.agent_id for found in ever} == {running, ended}
    assert [found.agent_id for found in now] == [running]


@runs("5. Archive Old Activities")
@utcnow_is_deprecated
def test_archive(block: Block, names: dict[str, Any], zoned_engine: Engine) -> None:
    """Activities older than the given days go, with their logs; younger ones keep theirs."""
    ages = {activity("job", ("Working", 1)): timedelta(days=30, hours=hours) for hours in (1, -1)}
    _, kept = ages
    for agent_id, age in ages.items():
        move_back(zoned_engine, agent_id, age)
    archive = run_as_written(block, names, Activity=Activity)["archive_old_activities"]
    with Session(zoned_engine) as session:
        archive(session)
        assert session.scalars(select(Activity.agent_id)).all() == [kept]
        assert session.scalar(select(func.count()).select_from(ActivityLog)) == 2
        archive(session, days=29)
        assert session.scalar(select(func.count()).select_from(ActivityLog)) == 0
