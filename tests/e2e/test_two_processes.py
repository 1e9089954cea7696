"""Two real processes and one activity: one trace, one span, one truth."""

from collections.abc import Iterator

import pytest

import agentexec_otel as ax
from agentexec_otel.activity.models import Status
from tests.databases import Database
from tests.sql import remote
from tests.sql.processes import Peer, shared_peers
from tests.sql.remote import SpanView
from tests.sql.rows import eventually, lines, row

Pair = tuple[Peer, Peer]


@pytest.fixture
def pair(pytestconfig: pytest.Config, database: Database) -> Iterator[Pair]:
    """A web process and a worker on this test's database, each with tracing of its own; let go of it afterwards."""
    processes = shared_peers(pytestconfig)
    for one in processes:
        one.call(remote.configure, database.url, traced=True)
    yield processes
    for one in processes:
        one.call(remote.stop)


def spans_of(pair: Pair, name: str = "research") -> list[SpanView]:
    """The spans of that name that either process has exported."""
    return [span for peer in pair for span in peer.call(remote.finished_spans) if span.name == name]


def told(span: SpanView) -> list[tuple[str, str]]:
    return [(line["agentexec.log.status"], line["agentexec.log.message"]) for _, line in span.events]


def test_created_in_one_and_run_in_the_other(database: Database, pair: Pair) -> None:
    """One trace and one span, QUEUED in it at its original time, and the row names the span that was exported."""
    web, worker = pair
    agent_id, request = web.call(remote.create_under_span, "research")
    assert row(database.engine, agent_id).span_id is None
    assert worker.call(remote.run_to_the_end, agent_id, ["Half way."], under="job")
    (span,) = spans_of(pair)
    assert (span.trace_id, span.parent_id) == (request.trace_id, request.span_id)
    (job,), (child,) = spans_of(pair, "job"), spans_of(pair, "child")
    assert span.links == [job.span_id]
    assert (child.trace_id, child.parent_id) == (span.trace_id, span.span_id)
    assert told(span) == [
        ("QUEUED", "Waiting to start."),
        ("RUNNING", "Task started."),
        ("RUNNING", "Half way."),
        ("COMPLETE", "Task completed successfully."),
    ]
    stored, logs = row(database.engine, agent_id), lines(database.engine, agent_id)
    assert (stored.trace_id, stored.span_id, stored.sampled) == (span.trace_id, span.span_id, True)
    queued = logs[0].created_at
    assert span.events[0][0] == span.start_ns
    assert span.start_ns // 1000 == round(queued.timestamp() * 1_000_000)
    assert [line["agentexec.log.id"] for _, line in span.events] == [str(log.event_id) for log in logs]
    assert stored.status is Status.COMPLETE


def test_creator_that_reports_opens_no_span(database: Database, pair: Pair) -> None:
    """The web process may add lines to what the worker runs: they are in SQL, and there is still one span."""
    web, worker = pair
    agent_id, _ = web.call(remote.create_under_span, "research")
    worker.call(remote.enter, agent_id)
    worker.call(remote.report, agent_id, "From the worker.")
    assert web.call(remote.call, "update", agent_id, "From the web.")
    worker.call(remote.leave, agent_id)
    assert web.call(remote.stop)
    (span,) = spans_of(pair)
    assert ("RUNNING", "From the worker.") in told(span)
    assert "From the web." in [log.message for log in lines(database.engine, agent_id)]
    assert row(database.engine, agent_id).span_id == span.span_id


def test_canceled_from_the_other_process(database: Database, pair: Pair) -> None:
    """The worker's span ends as CANCELED as soon as its writer sees it, before the block is left; the block knows."""
    web, worker = pair
    agent_id, _ = web.call(remote.create_under_span, "research")
    worker.call(remote.enter, agent_id)
    assert not worker.call(remote.report, agent_id, "Working.")
    assert web.call(remote.call, "cancel", agent_id, "No longer needed.")
    assert spans_of(pair) == []
    assert worker.call(remote.report, agent_id, "Still working.")
    (span,) = spans_of(pair)
    assert span.attributes["agentexec.status"] == "CANCELED"
    assert (span.status, span.attributes["agentexec.reason"]) == ("UNSET", "canceled")
    worker.call(remote.leave, agent_id)
    assert worker.call(remote.stop)
    assert row(database.engine, agent_id).status is Status.CANCELED
    assert [log.late for log in lines(database.engine, agent_id)] == [False, False, False, False, True, True]


@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
def test_canceled_while_it_says_nothing(database: Database, pair: Pair) -> None:
    """A worker that reports nothing learns it, too, by its heartbeat."""
    web, worker = pair
    worker.call(remote.configure, database.url, traced=True, settings={"lease_seconds": 0.6, "heartbeat_interval": 0.2})
    agent_id, _ = web.call(remote.create_under_span, "research")
    worker.call(remote.enter, agent_id)
    assert not worker.call(remote.report, agent_id, "Working.")
    assert web.call(remote.call, "cancel", agent_id)
    assert eventually(lambda: worker.call(remote.knows_of_cancel, agent_id))
    assert eventually(lambda: len(spans_of(pair)) == 1)
    worker.call(remote.leave, agent_id)


def test_both_start_it(database: Database, pair: Pair) -> None:
    """Two processes that start one activity at the same moment: one span is exported, the one that the row names."""
    for _ in range(4):
        agent_id = pair[0].call(remote.create, "research")
        both = [peer.submit(remote.start_together, agent_id) for peer in pair]
        for one in both:
            one.result(60)
        (span,) = [span for span in spans_of(pair) if span.attributes["agentexec.agent_id"] == str(agent_id)]
        assert row(database.engine, agent_id).span_id == span.span_id
        assert span.attributes["agentexec.status"] == "COMPLETE"
        assert len(lines(database.engine, agent_id)) == 5


def test_ended_where_it_never_ran(database: Database, pair: Pair) -> None:
    """Created in one process, ended in the other without running: one span, under the creator's, named on the row."""
    web, worker = pair
    agent_id, request = web.call(remote.create_under_span, "research")
    assert worker.call(remote.call, "cancel", agent_id)
    swept, _ = web.call(remote.create_under_span, "swept")
    assert worker.call(remote.call, "cancel_pending") == 1
    assert worker.call(remote.stop)
    for name, one in (("research", agent_id), ("swept", swept)):
        (span,) = spans_of(pair, name)
        assert [status for status, _ in told(span)] == ["QUEUED", "CANCELED"]
        stored = row(database.engine, one)
        assert (stored.trace_id, stored.span_id) == (span.trace_id, span.span_id)
    assert spans_of(pair)[0].parent_id == request.span_id


def test_attempts_in_two_processes(database: Database, pair: Pair) -> None:
    """Attempt 1 here and attempt 2 there are two spans of one trace, the second linked to the first."""
    web, worker = pair
    agent_id, request = web.call(remote.create_under_span, "research")
    assert web.call(remote.run_to_the_end, agent_id)
    assert web.call(remote.call, "retry", agent_id) == 2
    assert worker.call(remote.run_to_the_end, agent_id)
    first, second = spans_of(pair)
    assert second.links == [first.span_id]
    assert {first.trace_id, second.trace_id} == {request.trace_id}
    assert [span.attributes["agentexec.attempt"] for span in (first, second)] == [1, 2]
    assert row(database.engine, agent_id).span_id == second.span_id


def test_process_without_tracing(database: Database, pair: Pair) -> None:
    """Run by a worker that has no tracing, the row names no span, and the process that sees its end makes none up."""
    web, worker = pair
    worker.call(remote.configure, database.url)
    agent_id, _ = web.call(remote.create_under_span, "research")
    assert worker.call(remote.run_to_the_end, agent_id, ["Half way."])
    assert worker.call(remote.stop)
    stored = row(database.engine, agent_id)
    assert (stored.status, stored.trace_id, stored.span_id) == (Status.COMPLETE, None, None)
    assert spans_of(pair) == []


def test_what_the_reader_sees(database: Database, pair: Pair) -> None:
    """A third process reads a line as soon as it is committed, while the run goes on."""
    ax.configure(database.url)
    worker = pair[1]
    agent_id = ax.activity.create("research")
    worker.call(remote.enter, agent_id)
    for number in range(3):
        worker.call(remote.report, agent_id, f"Line {number}.")
        assert lines(database.engine, agent_id)[-1].message == f"Line {number}."
        assert row(database.engine, agent_id).status is Status.RUNNING
    worker.call(remote.leave, agent_id)
    assert row(database.engine, agent_id).status is Status.COMPLETE
