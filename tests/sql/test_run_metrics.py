"""Metrics of runs: counted by the process that committed the ending, and observed from the rows."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from sqlalchemy import select, update
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity.models import Activity, Status
from tests.databases import Database

pytestmark = pytest.mark.one_python


class Point(NamedTuple):
    """A data point, without the prefixes of its attributes."""

    attributes: dict[str, Any]
    value: float
    number: int


@pytest.fixture
def reader(database: Database) -> Iterator[InMemoryMetricReader]:
    """Configured on the database, with a meter provider of the test."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    ax.configure(database.url, meter_provider=provider)
    yield reader
    provider.shutdown()


def points(reader: InMemoryMetricReader, name: str) -> list[Point]:
    """The data points of `agentexec.activity.{name}`."""
    ax.flush()
    data: Any = reader.get_metrics_data()
    return [
        Point({key.rsplit(".", 1)[-1]: value for key, value in point.attributes.items()}, *measured(point))
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == f"agentexec.activity.{name}"
        for point in metric.data.data_points
    ]


def measured(point: Any) -> tuple[float, int]:
    """The value of a point and how many it counts."""
    return (point.sum, point.count) if isinstance(point, HistogramDataPoint) else (point.value, 1)


def ended(reader: InMemoryMetricReader) -> Counter[tuple[str, str, str | None]]:
    """How many ended, by type, status and reason."""
    found: Counter[tuple[str, str, str | None]] = Counter()
    for attributes, value, _ in points(reader, "ended"):
        found[attributes["agent_type"], attributes["status"], attributes.get("reason")] += int(value)
    return found


def stored(database: Database) -> Counter[tuple[str, str, str | None]]:
    """The same, of the rows."""
    with Session(database.engine) as session:
        rows = session.execute(select(Activity.agent_type, Activity.status, Activity.reason)).all()
    return Counter((agent_type, status.value, reason) for agent_type, status, reason in rows if status.terminal)


def run(agent_type: str, failure: Exception | None = None) -> UUID:
    """A run of some tokens."""
    with suppress(Exception), ax.activity.run(agent_type) as running:
        running.update("Working.", 50)
        running.record_usage(100, 20, model="gpt-x")
        if failure is not None:
            raise failure
    return running.agent_id


def test_each_ending_is_counted_once(reader: InMemoryMetricReader, database: Database) -> None:
    """Completed, failed, canceled, canceled together, and canceled before the start: as the rows have it."""
    for failure in (None, None, TimeoutError(), ValueError("x")):
        run("research", failure)
    ax.activity.cancel(ax.activity.create("write"))
    started = ax.activity.create("write")
    ax.activity.update(started, "Working.")
    waits = [ax.activity.create("plan") for _ in range(3)]
    ax.activity.cancel_pending(agent_type="plan")
    assert not ax.activity.complete(waits[0])
    ax.flush()
    assert ended(reader) == stored(database)
    assert sum(ended(reader).values()) == 8


def test_durations_are_those_of_the_rows(reader: InMemoryMetricReader, database: Database) -> None:
    """The sums of both histograms agree with the rows; what never started has no duration."""
    ended_first = run("research")
    canceled = ax.activity.create("research")
    ax.activity.cancel(canceled)
    bulk = ax.activity.create("research")
    ax.activity.update(bulk, "Working.")
    ax.flush()
    ax.activity.cancel_pending()
    ax.flush()
    with Session(database.engine) as session:
        items = [ax.activity.get(session, one) for one in (ended_first, canceled, bulk)]
    durations = [item.duration_seconds for item in items if item is not None and item.duration_seconds is not None]
    waits = [item.queued_seconds for item in items if item is not None and item.queued_seconds is not None]
    assert (len(durations), len(waits)) == (2, 3)
    duration, queued = points(reader, "duration"), points(reader, "queue.duration")
    assert sum(point.number for point in duration) == 2
    assert sum(point.value for point in duration) == pytest.approx(sum(durations), abs=1e-5)
    assert [point.number for point in queued] == [3]
    assert sum(point.value for point in queued) == pytest.approx(sum(waits), abs=1e-5)


def test_attempts_are_counted(reader: InMemoryMetricReader) -> None:
    """A retry that ends is another ending; its queue wait is unknown. A late ending is none."""
    agent_id = run("research", ValueError("x"))
    ax.activity.retry(agent_id)
    with ax.activity.run(agent_id):
        pass
    ax.activity.error(agent_id, "Too late.")
    ax.flush()
    assert ended(reader) == {("research", "ERROR", "other"): 1, ("research", "COMPLETE", None): 1}
    assert [point.number for point in points(reader, "queue.duration")] == [1]


def test_tokens(reader: InMemoryMetricReader) -> None:
    """By type, model, and the kind of token."""
    run("research")
    run("research")
    ax.flush()
    found = {one["type"]: (tokens, one["model"]) for one, tokens, _ in points(reader, "token.usage")}
    assert found == {"input": (200, "gpt-x"), "output": (40, "gpt-x")}


def test_lost_workers(reader: InMemoryMetricReader, database: Database) -> None:
    """Counted by the process that finds them."""
    agent_id = ax.activity.create("research")
    ax.activity.update(agent_id, "Working.")
    ax.flush()
    with Session(database.engine) as session:
        session.execute(update(Activity).values(lease_expires_at=datetime(2020, 1, 1, tzinfo=UTC)))
        session.commit()
    assert ax.activity.reap() == 1
    ax.flush()
    assert ended(reader) == {("research", "ERROR", "lost"): 1}
    assert len(points(reader, "duration")) == 1


def test_active_and_waiting(reader: InMemoryMetricReader) -> None:
    """Read from the rows, whichever process has written them."""
    ax.activity.create("research")
    started = ax.activity.create("research")
    ax.activity.update(started, "Working.")
    with suppress(ZeroDivisionError), ax.activity.run("write") as running:
        running.waiting(items=[{"tool": "deploy", "call_id": "1"}])
        ax.flush()
        found = {(one["agent_type"], one["status"]): number for one, number, _ in points(reader, "active")}
        assert found == {("research", "QUEUED"): 1, ("research", "RUNNING"): 1, ("write", "RUNNING"): 1}
        waiting = {one["agent_type"]: number for one, number, _ in points(reader, "waiting")}
        assert waiting == {"write": 1}
        raise ZeroDivisionError
    assert {status for _, status, _ in ended(reader)} == {Status.ERROR}


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_at_most_100_types(reader: InMemoryMetricReader) -> None:
    """A name that is made up for each run does not fill the backend: from the 101st on they count as `other`."""
    for number in range(105):
        run(f"type {number}")
    ax.flush()
    found = ended(reader)
    assert len(found) == 101
    assert found["other", "COMPLETE", None] == 5
