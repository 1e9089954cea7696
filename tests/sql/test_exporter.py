"""`SQLExporter`: batches into the tables, each event once, whatever is delivered again or in another order."""

import random
from datetime import UTC, datetime
from itertools import permutations
from threading import Barrier, Thread
from uuid import UUID, uuid4

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel._model.event import TERMINAL
from agentexec_otel._model.fold import nanoseconds
from agentexec_otel.activity.models import Activity, Status
from agentexec_otel.export import (
    Ack,
    ActivityEvent,
    ActivityStore,
    Ending,
    ExportResult,
    Opening,
    Outcome,
    Refusal,
    Reject,
    SessionStore,
    SpanRef,
)
from agentexec_otel_exporters.sql import SQLExporter
from tests.databases import Database
from tests.sql.rows import count_rows, event, gap_free, lines, opening, row, store

pytestmark = pytest.mark.one_python

PAST = datetime(2020, 1, 1, tzinfo=UTC)


def life(agent_id: UUID) -> list[ActivityEvent]:
    """Create, running, progress, complete and cancel, as three producers may tell them."""
    return [
        opening(agent_id),
        event(agent_id, message="running"),
        event(agent_id, message="progress", percentage=50),
        event(agent_id, Status.COMPLETE, "complete", percentage=100),
        event(agent_id, Status.CANCELED, "cancel"),
    ]


def test_same_batch_three_times(database: Database, exporter: SQLExporter) -> None:
    """Delivered again, said to be a replay or not, a batch is stored once and acknowledged as what it is."""
    agent_id = uuid4()
    batch = life(agent_id)[:4]
    first = exporter.export(batch)
    second = exporter.export(batch, replay=True)
    third = exporter.export(batch[1:])
    before = row(database.engine, agent_id).updated_at
    assert [isinstance(one, Ack) and one.duplicate for one in (*first, *second, *third)] == [False] * 4 + [True] * 7
    assert {one.status for one in second if isinstance(one, Ack)} == {Status.COMPLETE}
    logs = lines(database.engine, agent_id)
    assert [log.event_id for log in logs] == [one.event_id for one in batch]
    assert gap_free(logs)
    assert row(database.engine, agent_id).last_seq == 4
    exporter.export(batch, replay=True)
    assert row(database.engine, agent_id).updated_at == before


def test_replay_beside_new_ones(database: Database, exporter: SQLExporter) -> None:
    """A batch of stored and new events, some twice in it, stores the new ones once and leaves no gap in `seq`."""
    agent_id = uuid4()
    batch = life(agent_id)[:3]
    exporter.export(batch)
    end = event(agent_id, Status.COMPLETE)
    results = exporter.export([batch[2], end, batch[0], end, batch[1]], replay=True)
    assert [isinstance(one, Ack) and one.duplicate for one in results] == [True, False, True, True, True]
    assert gap_free(lines(database.engine, agent_id))
    assert row(database.engine, agent_id).last_seq == 4


def test_two_exporters_replay_at_once(database: Database) -> None:
    """Two recoverers that deliver the same orphaned events at the same moment store each of them once."""
    ids = [uuid4() for _ in range(10)]
    events = [one for agent_id in ids for one in life(agent_id)[:4]]
    start, failures = Barrier(2), list[BaseException]()

    def deliver() -> None:
        exporter = SQLExporter(database.url)
        try:
            start.wait(10)
            for place in range(0, len(events), 8):
                exporter.export(events[place : place + 8], replay=True)
        except Exception as exc:  # noqa: BLE001
            failures.append(exc)
        finally:
            exporter.shutdown(1.0)

    threads = [Thread(target=deliver) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert count_rows(database.engine) == (10, 40)
    for agent_id in ids:
        assert row(database.engine, agent_id).status is Status.COMPLETE
        assert gap_free(lines(database.engine, agent_id))


def test_every_order_of_a_life(database: Database, exporter: SQLExporter) -> None:
    """All 120 orders of a life, each event in a batch of its own: one terminal status each, the first one told."""
    orders: dict[UUID, tuple[ActivityEvent, ...]] = {}
    for places in permutations(range(5)):
        agent_id = uuid4()
        told = life(agent_id)
        orders[agent_id] = tuple(told[place] for place in places)
    for place in range(5):
        exporter.export([order[place] for order in orders.values()])
    with Session(database.engine) as session:
        for agent_id, order in orders.items():
            found = ax.activity.detail(session, agent_id, include_late=True)
            assert found is not None
            first = next(one for one in order if one.status in TERMINAL)
            assert (found.status, found.agent_type) == (first.status, "task")
            assert [log.message for log in found.logs] == [one.message for one in order]
            place = order.index(first)
            assert [log.late for log in found.logs] == [index > place for index in range(5)]
            assert {log.status for log in found.logs[place:]} == {first.status}


def test_running_before_queued(database: Database, exporter: SQLExporter) -> None:
    """A line that comes before its activity makes a row for it; QUEUED fills in the rest and takes nothing back."""
    agent_id = uuid4()
    exporter.export([event(agent_id, percentage=30, worker_id="host:1")])
    stored = row(database.engine, agent_id)
    assert (stored.status, stored.agent_type, stored.latest_percentage) == (Status.RUNNING, "", 30)
    told = event(agent_id, Status.QUEUED, opening=Opening("research", {"tenant": "acme"}, {"traceparent": "x"}))
    (result,) = exporter.export([told])
    assert result == Ack(Status.RUNNING)
    stored = row(database.engine, agent_id)
    assert (stored.status, stored.agent_type, stored.latest_percentage) == (Status.RUNNING, "research", 30)
    assert (stored.metadata_, stored.trace_context) == ({"tenant": "acme"}, {"traceparent": "x"})
    assert stored.created_at == lines(database.engine, agent_id)[1].created_at
    (again,) = exporter.export([event(agent_id, Status.QUEUED, opening=Opening("other"))])
    assert isinstance(again, Reject)


def test_unknown_activity_is_rejected(database: Database, exporter: SQLExporter) -> None:
    """A line whose producer never saw the row is refused where there is none, and makes none; the rest is stored."""
    known, unknown = uuid4(), uuid4()
    results = exporter.export([
        event(unknown, expects_row=True),
        opening(known),
        event(known, expects_row=True),
        event(unknown, Status.COMPLETE, expects_row=True),
    ])  # fmt: skip
    assert [type(one) for one in results] == [Reject, Ack, Ack, Reject]
    assert isinstance(results[0], Reject)
    assert str(unknown) in results[0].reason
    assert count_rows(database.engine) == (1, 2)


def test_concurrent_retries_open_one_attempt(database: Database) -> None:
    """Of several callers that retry at the same moment one gets the new attempt; the others are refused."""
    agent_id, start, results = uuid4(), Barrier(4), list[ExportResult]()
    store(database.url, [opening(agent_id), event(agent_id, Status.ERROR)])

    def retry() -> None:
        exporter = SQLExporter(database.url)
        start.wait(10)
        results.extend(exporter.export([event(agent_id, Status.QUEUED, reopens=True, claims=True)]))
        exporter.shutdown(1.0)

    threads = [Thread(target=retry) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refusals = [one.refusal for one in results if isinstance(one, Reject)]
    assert [one for one in results if isinstance(one, Ack)] == [Ack(Status.QUEUED, 2)]
    assert refusals == [Refusal.NOT_ENDED] * 3


def test_many_activities_in_one_batch(database: Database, exporter: SQLExporter) -> None:
    """A full batch of mixed activities is stored in one go, each line with its own activity."""
    ids = [uuid4() for _ in range(100)]
    batch = [opening(agent_id, f"task {place}") for place, agent_id in enumerate(ids)]
    batch += [event(ids[place % 100], message=str(place)) for place in range(400)]
    results = exporter.export(batch)
    assert len(results) == 500
    assert count_rows(database.engine) == (100, 500)
    assert [log.message for log in lines(database.engine, ids[7])] == ["queued", "7", "107", "207", "307"]
    assert exporter.export([]) == []


def test_batches_in_any_order_do_not_deadlock(database: Database) -> None:
    """Four writers with batches over the same activities in random order wait for each other, and all get through."""
    ids = [uuid4() for _ in range(12)]
    first = SQLExporter(database.url)
    first.export([opening(agent_id) for agent_id in ids])
    first.shutdown(1.0)
    failures: list[BaseException] = []

    def write(seed: int) -> None:
        order, exporter = random.Random(seed), SQLExporter(database.url)
        try:
            for _ in range(12):
                exporter.export([event(agent_id) for agent_id in order.sample(ids, 8)])
        except Exception as exc:  # noqa: BLE001
            failures.append(exc)
        finally:
            exporter.shutdown(1.0)

    threads = [Thread(target=write, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert count_rows(database.engine) == (12, 12 + 4 * 12 * 8)
    assert all(gap_free(lines(database.engine, agent_id)) for agent_id in ids)


def test_load(database: Database, exporter: SQLExporter) -> None:
    """`load` has the opening, the status, the span, and the logs that no span holds; unknown ids are left out."""
    agent_id = uuid4()
    told = [event(agent_id, Status.QUEUED, "queued", opening=Opening("task", {"n": 1}, {"traceparent": "x"}))]
    told.append(event(agent_id, message="running", percentage=20))
    exporter.export(told)
    found = exporter.load([agent_id]).get(agent_id)
    assert found is not None
    assert found.opening == Opening("task", {"n": 1}, {"traceparent": "x"})
    assert (found.status, found.attempt, found.span) == (Status.RUNNING, 1, None)
    assert found.created_at_ns == told[0].occurred_at_ns // 1000 * 1000
    assert [(line.event_id, line.message, line.percentage) for line in found.history] == [
        (one.event_id, one.message, one.percentage) for one in told
    ]
    span = SpanRef("1" * 32, "2" * 16, sampled=True)
    exporter.export([event(agent_id, span=span)])
    found = exporter.load([agent_id]).get(agent_id)
    assert found is not None
    assert (found.span, found.history, found.outcome) == (span, (), None)
    assert exporter.load([uuid4()]) == {}


def test_history_of_a_late_attempt(database: Database, exporter: SQLExporter) -> None:
    """However long the attempt before was, a look-up has the lines of the present one."""
    agent_id = uuid4()
    exporter.export([opening(agent_id), *(event(agent_id) for _ in range(150)), event(agent_id, Status.ERROR)])
    exporter.export([event(agent_id, Status.QUEUED, "again", reopens=True), event(agent_id, message="second")])
    found = exporter.load([agent_id]).get(agent_id)
    assert found is not None
    assert [line.message for line in found.history] == ["again", "second"]


def test_spans_are_attached_once(database: Database, exporter: SQLExporter) -> None:
    """A span is named on the row of its attempt where none is yet; the answer says whose rows name the one offered."""
    first, second, stale = uuid4(), uuid4(), uuid4()
    exporter.export([opening(agent_id) for agent_id in (first, second, stale)])
    exporter.export([event(stale, Status.ERROR), event(stale, Status.QUEUED, reopens=True)])
    mine, theirs = SpanRef("1" * 32, "2" * 16, sampled=True), SpanRef("3" * 32, "4" * 16, sampled=False)
    exporter.export([event(second, span=theirs)])
    before = row(database.engine, first).updated_at
    assert exporter.attach_spans([(first, 1, mine), (second, 1, mine), (stale, 1, mine)]) == {first}
    assert exporter.attach_spans([(first, 1, mine)]) == {first}
    stored = row(database.engine, first)
    assert (stored.trace_id, stored.span_id, stored.sampled) == (mine.trace_id, mine.span_id, True)
    assert stored.updated_at == before
    assert row(database.engine, second).span_id == theirs.span_id
    assert row(database.engine, stale).span_id is None


def test_outcome_reaches_the_row(database: Database, exporter: SQLExporter) -> None:
    """Error type, reason and token counts are columns, up to the largest number that a column holds."""
    agent_id = uuid4()
    outcome = Outcome("package.module.Error", "guardrail_input", 2**63 - 1, 0)
    exporter.export([opening(agent_id), event(agent_id, Status.ERROR, outcome=outcome)])
    stored = row(database.engine, agent_id)
    assert Outcome(stored.error_type, stored.reason, stored.input_tokens, stored.output_tokens) == outcome
    found = exporter.load([agent_id], history=False)[agent_id]
    assert (found.outcome, found.history, found.counted) == (outcome, (), False)


def test_leases(database: Database, exporter: SQLExporter) -> None:
    """Leases of this worker's activities are extended; the answer has all that were asked for, without their logs."""
    mine, theirs, ended, absent = uuid4(), uuid4(), uuid4(), uuid4()
    exporter.export([opening(agent_id) for agent_id in (mine, theirs, ended)])
    exporter.export([event(mine, worker_id="one"), event(theirs, worker_id="two"), event(ended, Status.CANCELED)])
    before = {agent_id: row(database.engine, agent_id).lease_expires_at for agent_id in (mine, theirs)}
    found = exporter.extend_leases("one", dict.fromkeys([mine, theirs, ended, absent], 1))
    assert {agent_id: (one.status, one.history) for agent_id, one in found.items()} == {
        mine: (Status.RUNNING, ()), theirs: (Status.RUNNING, ()), ended: (Status.CANCELED, ()),
    }  # fmt: skip
    after = {agent_id: row(database.engine, agent_id).lease_expires_at for agent_id in (mine, theirs)}
    assert (after[mine] != before[mine], after[theirs] == before[theirs]) == (True, True)


def test_the_lease_of_the_next_attempt_is_left_alone(database: Database, exporter: SQLExporter) -> None:
    """A worker that has not heard yet that its attempt was canceled and retried neither extends nor takes over."""
    agent_id = uuid4()
    exporter.export([opening(agent_id), event(agent_id, worker_id="one"), event(agent_id, Status.CANCELED)])
    exporter.export([event(agent_id, Status.QUEUED, reopens=True), event(agent_id, attempt=2, worker_id="two")])
    before = row(database.engine, agent_id)
    found = exporter.extend_leases("one", {agent_id: 1}, owned={agent_id})
    after = row(database.engine, agent_id)
    assert (found[agent_id].attempt, after.worker_id) == (2, "two")
    assert after.lease_expires_at == before.lease_expires_at
    exporter.extend_leases("one", {agent_id: 2}, owned={agent_id})
    assert row(database.engine, agent_id).worker_id == "one"


@pytest.mark.parametrize("in_session", [False, True])
def test_endings_name_their_logs(database: Database, exporter: SQLExporter, in_session: bool) -> None:
    """Each bulk ending is returned with the id and time of the log that was written for it."""
    ids = [uuid4() for _ in range(130)]
    exporter.export([opening(agent_id) for agent_id in ids])
    exporter.export([event(agent_id, worker_id="lost") for agent_id in ids[:120]])
    with database.engine.begin() as connection:
        connection.execute(update(Activity).where(Activity.worker_id == "lost").values(lease_expires_at=PAST))
    lost = Ending(Status.ERROR, "lost", Outcome("WorkerLost", "lost"))
    canceled = Ending(Status.CANCELED, "canceled", Outcome(reason="canceled"))
    if in_session:
        with database.engine.begin() as connection:
            ended = [*exporter.end_lost_in(connection, lost), *exporter.end_where(connection, [], canceled)]
    else:
        ended = [*exporter.end_lost(lost), *exporter.end_where(None, [], canceled)]
    assert {one.agent_id for one in ended} == set(ids)
    for one in ended:
        last = lines(database.engine, one.agent_id)[-1]
        assert (one.event_id, one.attempt) == (last.event_id, last.attempt)
        assert one.occurred_at_ns == nanoseconds(last.created_at)
        assert last.message == ("lost" if one.agent_id in ids[:120] else "canceled")


def test_protocols(exporter: SQLExporter) -> None:
    """The SQL exporter is a store, and a store for sessions."""
    assert isinstance(exporter, ActivityStore)
    assert isinstance(exporter, SessionStore)
