"""`stats`: counts, percentiles and the time series, the same on every database as computed from the list."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, insert
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity import (
    ActivityFilters,
    ActivityListItemSchema,
    ActivityStatsBucketSchema,
    ActivityStatsSchema,
    ActivityTypeStatsSchema,
    PercentilesSchema,
)
from agentexec_otel.activity.models import Activity, Status
from tests.databases import Database
from tests.sql.plans import analyze, is_range_of_created_at, plan_of, scans_the_log, statements_of

pytestmark = pytest.mark.one_python

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
POINTS = (50, 90, 95, 99)


def put(engine: Engine, rows: Iterable[dict[str, Any]]) -> None:
    """Have exactly these activities, each with the columns that are given."""
    defaults = dict.fromkeys(("started_at", "ended_at", "reason", "input_tokens", "output_tokens"))
    common = {"agent_type": "task", "status": Status.COMPLETE, "attempt": 1, "created_at": NOON, "updated_at": NOON}
    made = [{**defaults, **common, "agent_id": uuid4(), **row} for row in rows]
    with engine.begin() as connection:
        connection.execute(delete(Activity))
        if made:
            connection.execute(insert(Activity), made)


def run(start: float = 0, seconds: float = 1, **more: Any) -> dict[str, Any]:
    """The columns of an activity that was started so many seconds after noon, and ran for so long."""
    started = NOON + timedelta(seconds=start)
    return {"created_at": started, "started_at": started, "ended_at": started + timedelta(seconds=seconds), **more}


def stats_of(database: Database, bucket: timedelta | None = None, **filters: Any) -> ActivityStatsSchema:
    with Session(database.engine) as session:
        return ax.activity.stats(session, bucket=bucket, **filters)


# -- the same from the list, in Python ----------------------------------------------------------------------------


def percentiles(values: Iterable[int | float | None]) -> PercentilesSchema:
    """Nearest rank: the smallest value that at least so many percent of the values do not exceed."""
    found = sorted(value for value in values if value is not None)
    if not found:
        return PercentilesSchema()
    is_time = isinstance(found[0], float)
    total = sum(round(value * 1_000_000) for value in found) / 1_000_000 if is_time else sum(found)
    points = {f"p{point}": found[-(-len(found) * point // 100) - 1] for point in POINTS}
    return PercentilesSchema(count=len(found), sum=total, max=found[-1], **points)


def durations(items: Sequence[ActivityListItemSchema]) -> PercentilesSchema:
    return percentiles(item.duration_seconds for item in items if item.status.terminal)


def expected_of(items: Sequence[ActivityListItemSchema], bucket: timedelta) -> ActivityStatsSchema:
    types = Counter(item.agent_type for item in items)
    reasons = Counter(item.reason for item in items if item.reason is not None)
    return ActivityStatsSchema(
        total=len(items),
        by_status={status: sum(item.status is status for item in items) for status in Status},
        by_type=[
            type_of(name, [item for item in items if item.agent_type == name])
            for name in sorted(types, key=lambda name: (-types[name], name))
        ],
        by_reason={name: reasons[name] for name in sorted(reasons, key=lambda name: (-reasons[name], name))},
        duration_seconds=durations(items),
        queued_seconds=percentiles(i.queued_seconds for i in items if i.started_at is not None or i.status.terminal),
        input_tokens=percentiles(item.input_tokens for item in items),
        output_tokens=percentiles(item.output_tokens for item in items),
        series=series(items, bucket),
    )


def type_of(name: str, items: Sequence[ActivityListItemSchema]) -> ActivityTypeStatsSchema:
    return ActivityTypeStatsSchema(
        agent_type=name,
        total=len(items),
        active=sum(not item.status.terminal for item in items),
        failed=sum(item.status is Status.ERROR for item in items),
        duration_seconds=durations(items),
    )


def series(items: Sequence[ActivityListItemSchema], bucket: timedelta) -> list[ActivityStatsBucketSchema]:
    started = Counter((item.started_at - EPOCH) // bucket for item in items if item.started_at is not None)
    ends = [(item.ended_at or item.updated_at, item.status) for item in items if item.status.terminal]
    ended = Counter((end - EPOCH) // bucket for end, _ in ends)
    failed = Counter((end - EPOCH) // bucket for end, status in ends if status is Status.ERROR)
    numbers = [*started, *ended]
    return [
        ActivityStatsBucketSchema(
            start=EPOCH + number * bucket, started=started[number], ended=ended[number], failed=failed[number]
        )
        for number in (range(min(numbers), max(numbers) + 1) if numbers else ())
    ]


SECONDS = st.integers(-3_000_000, 90_000_000).map(lambda microseconds: timedelta(microseconds=microseconds))
NAMES = ("task", "Task", "task ", "täsk", "TÄSK", "🙂")


@st.composite
def activities(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Activities of any kind: times in any order, with and without an end, before 1970 and now."""
    day = draw(st.sampled_from([NOON, EPOCH]))
    found: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(0, 30))):
        created = day + draw(SECONDS)
        started = draw(st.none() | SECONDS.map(created.__add__))
        found.append(
            {
                "agent_type": draw(st.sampled_from(NAMES)),
                "status": draw(st.sampled_from(Status)),
                "attempt": draw(st.sampled_from([1, 1, 2])),
                "created_at": created,
                "updated_at": created + draw(SECONDS),
                "started_at": started,
                "ended_at": draw(st.none() | SECONDS.map((started or created).__add__)),
                "reason": draw(st.sampled_from([None, None, "tool", "timeout", "Tool"])),
                "input_tokens": draw(st.none() | st.integers(0, 10**12)),
                "output_tokens": draw(st.none() | st.integers(0, 5)),
            }
        )
    return found


FILTERS: list[ActivityFilters] = [
    {},
    {"status": ["ERROR", "RUNNING"]},
    {"agent_type": "task", "reason": ["tool", "timeout"]},
    {"created_after": NOON, "created_before": NOON + timedelta(seconds=60)},
    {"agent_type": []},
]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=activities(), filters=st.sampled_from(FILTERS), bucket=st.sampled_from([1, 0.7, 3600, 86400 * 100]))
def test_as_computed_from_the_list(
    database: Database, rows: list[dict[str, Any]], filters: ActivityFilters, bucket: float
) -> None:
    """Every count, percentile and bucket is the one that follows from the items of `list`, to the microsecond."""
    put(database.engine, rows)
    width = timedelta(seconds=bucket)
    with Session(database.engine) as session:
        items = ax.activity.list(session, page_size=1000, **filters).items
        found = ax.activity.stats(session, bucket=width, **filters)
    expected = expected_of(items, width)
    assert found == expected
    assert list(found.by_reason) == list(expected.by_reason)


# -- examples -----------------------------------------------------------------------------------------------------


def test_nothing(database: Database) -> None:
    """Without activities, every status is there with 0, no percentile has a value, and there is no bucket."""
    empty = {"count": 0, "sum": 0, "p50": None, "p90": None, "p95": None, "p99": None, "max": None}
    assert stats_of(database, HOUR).model_dump() == {
        "total": 0,
        "by_status": dict.fromkeys(Status, 0),
        "by_type": [],
        "by_reason": {},
        "duration_seconds": empty,
        "queued_seconds": empty,
        "input_tokens": empty,
        "output_tokens": empty,
        "series": [],
    }


def test_nearest_rank(database: Database) -> None:
    """A percentile is one of the values: of 1 to 10 seconds the 50th is 5, the 90th 9, and the 95th 10."""
    put(database.engine, [run(seconds=seconds, input_tokens=seconds) for seconds in range(1, 11)])
    found = stats_of(database)
    assert found.duration_seconds.model_dump() == {
        "count": 10, "sum": 55.0, "p50": 5.0, "p90": 9.0, "p95": 10.0, "p99": 10.0, "max": 10.0,
    }  # fmt: skip
    assert [type(value) for _, value in found.input_tokens] == [int] * 7
    assert [type(value) for _, value in found.duration_seconds] == [int] + [float] * 6


def test_what_still_runs_or_waits_is_not_measured(database: Database) -> None:
    """Only durations of what has ended, and only waits that are over; the wait of a retry is unknown."""
    put(
        database.engine,
        [
            {"status": Status.QUEUED},
            {"status": Status.RUNNING, "started_at": NOON + timedelta(seconds=2)},
            {"status": Status.CANCELED, "ended_at": NOON + timedelta(seconds=5)},
            run(seconds=7, attempt=2, status=Status.ERROR),
        ],
    )
    found = stats_of(database)
    assert (found.duration_seconds.count, found.duration_seconds.max) == (1, 7.0)
    assert (found.queued_seconds.count, found.queued_seconds.p50, found.queued_seconds.max) == (2, 2.0, 5.0)


def test_series(database: Database) -> None:
    """Buckets begin at multiples of their width in UTC, from the first start or end to the last, with empty ones."""
    put(
        database.engine,
        [
            run(60, 1),
            run(3599.999999, 0.000001, status=Status.ERROR),
            {"status": Status.QUEUED},
            {"status": Status.RUNNING, "started_at": NOON + 3 * HOUR},
        ],
    )
    found = stats_of(database, HOUR).series
    assert [(bucket.start, bucket.started, bucket.ended, bucket.failed) for bucket in found] == [
        (NOON, 2, 1, 0),
        (NOON + HOUR, 0, 1, 1),
        (NOON + 2 * HOUR, 0, 0, 0),
        (NOON + 3 * HOUR, 1, 0, 0),
    ]
    assert all(bucket.start.tzinfo is UTC for bucket in found)
    assert stats_of(database).series == []


def test_most_frequent_types(database: Database) -> None:
    """At most 100 types are listed, the most frequent ones first; `total` counts the others as well."""
    put(database.engine, [{"agent_type": f"task {number:03}"} for number in range(150)] + [{"agent_type": "task 149"}])
    found = stats_of(database)
    assert found.total == 151
    assert [entry.agent_type for entry in found.by_type] == ["task 149", *(f"task {number:03}" for number in range(99))]
    assert found.by_type[0].total == 2


def test_huge_token_counts(database: Database) -> None:
    """A sum that is larger than any integer of the database is no error."""
    put(database.engine, [run(input_tokens=2**63 - 1) for _ in range(5)])
    found = stats_of(database).input_tokens
    assert found.max == 2**63 - 1
    assert found.sum == pytest.approx(5 * 2.0**63)


def test_text_that_a_database_takes_for_the_same(database: Database) -> None:
    """Types and reasons that differ in case, accents or trailing spaces are counted apart."""
    put(database.engine, [{"agent_type": name, "reason": name} for name in NAMES])
    found = stats_of(database)
    assert {entry.agent_type: entry.total for entry in found.by_type} == dict.fromkeys(NAMES, 1)
    assert found.by_reason == dict.fromkeys(NAMES, 1)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "bucket", [5, "1h", timedelta(0), timedelta(seconds=-1), timedelta(days=367), timedelta.max, True]
)
def test_a_bucket_that_makes_no_sense(database: Database, bucket: Any) -> None:
    """A malformed bucket is a ValueError that names it, before the database is asked."""
    with Session(database.engine) as session:
        with pytest.raises(ValueError, match=r"^bucket is .*: pass a "):
            ax.activity.stats(session, bucket=bucket)
        assert not session.in_transaction()


def test_too_many_buckets(database: Database) -> None:
    """More than 1,000 buckets are a ValueError, which names a width that works."""
    put(database.engine, [run(0), run(86400)])
    with pytest.raises(ValueError, match=r"^bucket is 0:00:10: .* is 8,641 buckets, more than 1,000") as caught:
        stats_of(database, timedelta(seconds=10))
    width = re.search(r"at least (\d+):(\d\d):(\d\d)", str(caught.value))
    assert width is not None
    hours, minutes, seconds = map(int, width.groups())
    found = stats_of(database, timedelta(hours=hours, minutes=minutes, seconds=seconds)).series
    assert 900 < len(found) <= 1000
    assert sum(bucket.ended for bucket in found) == 2


RECENT: list[Callable[[Session], object]] = [
    partial(ax.activity.stats, created_after=NOON - HOUR),
    partial(ax.activity.stats, bucket=timedelta(minutes=1), created_after=NOON - HOUR),
]


def test_plans(database: Database) -> None:
    """At most four statements, which never read the log table; those about a recent hour read a range of an index."""
    put(database.engine, [run(-3600 * number, 60) for number in range(3000)])
    with Session(database.engine) as session:
        analyze(session)
        for query in RECENT:
            assert len(statements_of(session, query)) <= 4
            plan = plan_of(session, query)
            assert is_range_of_created_at(session, plan), plan
            assert not reads_all_activities(plan), plan
        whole = plan_of(session, partial(ax.activity.stats, bucket=100 * HOUR, metadata_filter={"tenant": "acme"}))
        assert reads_all_activities(whole), whole
        assert not scans_the_log(whole), whole


def reads_all_activities(plan: str) -> bool:
    """Whether a plan reads the activity table from end to end."""
    name = Activity.__tablename__
    return re.search(rf"Seq Scan on {name}\b|\bSCAN {name}\b|^(?:ALL|index) {name}\b", plan, re.MULTILINE) is not None
