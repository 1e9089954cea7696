"""The fold: events onto a row, as a function of values alone."""

from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentexec_otel._model.attributes import PREVIOUS_SPAN
from agentexec_otel._model.event import ActivityEvent, Opening, Outcome, SpanRef, Status
from agentexec_otel._model.fold import STUB_TYPE, Line, Row, fold, moment, nanoseconds
from agentexec_otel._model.ids import uuid7
from agentexec_otel.export import Ack, ExportResult, Reject

AGENT = UUID(int=7)
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
NOW_NS = nanoseconds(NOW)
SPAN = SpanRef("a" * 32, "b" * 16, sampled=True)
OTHER_SPAN = SpanRef("c" * 32, "d" * 16, sampled=False)


def stub() -> Row:
    """A row that exists, and that no event has reached yet."""
    values: dict[str, Any] = {field.name: None for field in fields(Row) if field.default is MISSING}
    values |= {"id": UUID(int=1), "agent_id": AGENT, "agent_type": STUB_TYPE, "created_at": NOW, "updated_at": NOW}
    values |= {"status": Status.QUEUED, "last_seq": 0, "attempt": 1}
    return Row(**values)


def event(status: Status = Status.RUNNING, **more: Any) -> ActivityEvent:
    given_values: dict[str, Any] = {"message": str(status), "percentage": None, "occurred_at_ns": NOW_NS, **more}
    return ActivityEvent(event_id=uuid7(), agent_id=AGENT, status=status, **given_values)


def opening() -> ActivityEvent:
    return event(Status.QUEUED, opening=Opening("task", {"tenant": "acme"}, {"traceparent": "x"}))


def apply(row: Row, events: Sequence[ActivityEvent], now: datetime = NOW) -> tuple[list[Line], list[ExportResult]]:
    logs, changed, results = fold({AGENT: row}, events, {}, now)
    assert changed == ([row] if logs else [])
    return logs, results


def acks(results: Iterable[ExportResult]) -> list[Ack]:
    assert all(isinstance(one, Ack) for one in results)
    return [one for one in results if isinstance(one, Ack)]


def test_whole_life() -> None:
    """Each event becomes one line and one answer; the row is what they add up to."""
    row = stub()
    life = [
        opening(),
        event(worker_id="host:1", span=SPAN, occurred_at_ns=NOW_NS + 1_000),
        event(percentage=40),
        event(Status.COMPLETE, percentage=100, outcome=Outcome(input_tokens=7, output_tokens=9)),
    ]
    logs, results = apply(row, life)
    assert [log.seq for log in logs] == [1, 2, 3, 4]
    assert [log.event_id for log in logs] == [one.event_id for one in life]
    assert [log.status for log in logs] == [one.status for one in life]
    assert (row.agent_type, row.metadata, row.trace_context) == ("task", {"tenant": "acme"}, {"traceparent": "x"})
    assert (row.status, row.latest_percentage, row.last_seq, row.worker_id) == (Status.COMPLETE, 100, 4, "host:1")
    assert (row.trace_id, row.span_id, row.sampled) == ("a" * 32, "b" * 16, True)
    assert (row.input_tokens, row.output_tokens) == (7, 9)
    assert row.started_at == NOW + timedelta(microseconds=1)
    assert [(ack.status, ack.span_id) for ack in acks(results)] == [
        (Status.QUEUED, None),
        (Status.RUNNING, "b" * 16),
        (Status.RUNNING, "b" * 16),
        (Status.COMPLETE, "b" * 16),
    ]
    assert not any(ack.late or ack.duplicate for ack in acks(results))


LIFE = [opening(), event(), event(percentage=50), event(Status.COMPLETE, percentage=100), event(Status.CANCELED)]


@pytest.mark.parametrize("batches", [1, 5])
def test_every_order_of_a_life_ends_the_same_way(batches: int) -> None:
    """Create, running, progress, complete and cancel in any order and any batches: one terminal status, for ever."""
    for order in permutations(LIFE):
        row = stub()
        logs: list[Line] = []
        results: list[ExportResult] = []
        for batch in [order] if batches == 1 else [[one] for one in order]:
            more, answers = apply(row, batch)
            logs += more
            results += answers
        first = next(one for one in order if one.status.terminal)
        assert row.status is first.status
        assert row.agent_type == "task"
        assert [log.seq for log in logs] == [1, 2, 3, 4, 5]
        place = order.index(first)
        assert [log.late for log in logs] == [index > place for index in range(5)]
        assert {log.status for log in logs[place:]} == {first.status}
        assert sum(ack.status.terminal and not ack.late for ack in acks(results)) == 1
        progress = order.index(LIFE[2]) < place
        assert row.latest_percentage == (100 if first is LIFE[3] else 50 if progress else None)


events_strategy = st.lists(
    st.builds(
        event,
        st.sampled_from(Status),
        percentage=st.none() | st.integers(0, 100),
        attempt=st.none() | st.integers(1, 3),
        reopens=st.booleans(),
        claims=st.booleans(),
        span=st.sampled_from([None, SPAN, OTHER_SPAN]),
        worker_id=st.sampled_from([None, "one", "two"]),
        outcome=st.sampled_from([None, Outcome("E", "r", 1, 2)]),
        opening=st.sampled_from([None, None, Opening("task")]),
    ),
    max_size=30,
)


@given(events_strategy)
def test_invariants_of_any_history(events: list[ActivityEvent]) -> None:
    """Whatever comes: no hole in `seq`, one ending per attempt, attempts only grow, the row agrees with its lines."""
    row = stub()
    logs: list[Line] = []
    for one in events:
        before = (row.status, row.attempt, row.span_id)
        more, (result,) = apply(row, [one])
        logs += more
        if isinstance(result, Reject):
            assert not more
            continue
        assert isinstance(result, Ack)
        assert row.attempt >= before[1]
        if row.attempt == before[1] and before[0].terminal:
            assert row.status is before[0]
            assert result.late
        if row.attempt == before[1] and before[2] is not None:
            assert row.span_id == before[2]
        assert (result.status, result.attempt, result.span_id) == (row.status, row.attempt, row.span_id)
    assert [log.seq for log in logs] == list(range(1, len(logs) + 1))
    assert row.last_seq == len(logs)
    in_time = [log for log in logs if not log.late]
    endings = [log.attempt for log in in_time if log.status.terminal]
    assert len(endings) == len(set(endings))
    told = [log.percentage for log in in_time if log.attempt == row.attempt and log.percentage is not None]
    assert row.latest_percentage == (told[-1] if told else None)


@given(events_strategy, st.data())
def test_batches_do_not_matter(events: list[ActivityEvent], data: st.DataObject) -> None:
    """The same events cut into other batches leave the same row and the same lines."""
    whole, cut = stub(), stub()
    expected, _ = apply(whole, events)
    logs: list[Line] = []
    rest = list(events)
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        more, _ = apply(cut, rest[:size])
        logs += more
        rest = rest[size:]
    cut.updated_at = whole.updated_at
    assert (logs, cut) == (expected, whole)


@given(events_strategy, st.lists(st.integers(0, 29), max_size=10))
def test_duplicates_change_nothing(events: list[ActivityEvent], again: list[int]) -> None:
    """An event that comes twice, in the same batch or a later one, is acknowledged as a duplicate and adds nothing."""
    once, twice = stub(), stub()
    expected, _ = apply(once, events)
    stored = {log.event_id for log in expected}
    # A claim that was refused has left nothing to know it by: it may be made again.
    repeatable = [one for one in events if one.event_id in stored or not one.claims]
    repeated = [repeatable[index] for index in again if index < len(repeatable)]
    logs, _, results = fold({AGENT: twice}, [*events, *repeated], {}, NOW)
    kept = {log.event_id: log.late for log in logs}
    assert (logs, twice) == (expected, once)
    for one, result in zip(repeated, results[len(events) :], strict=True):
        if one.event_id in kept:
            assert isinstance(result, Ack)
            assert (result.duplicate, result.late, result.status) == (True, kept[one.event_id], twice.status)
    more, changed, again_results = fold({AGENT: twice}, repeated, kept, NOW)
    assert (more, changed) == ([], [])
    assert len(again_results) == len(repeated)


def test_second_opening_is_refused() -> None:
    """An id that was opened is not opened again: the second creator is told, and nothing changes."""
    row = stub()
    apply(row, [opening()])
    logs, (result,) = apply(row, [event(Status.QUEUED, opening=Opening("other"))])
    assert logs == []
    assert isinstance(result, Reject)
    assert str(AGENT) in result.reason
    assert row.agent_type == "task"


def test_unknown_activity_is_refused() -> None:
    """Without a row there is no line, and the others of the batch are stored all the same."""
    row = stub()
    stranger = ActivityEvent(uuid7(), UUID(int=99), Status.RUNNING, "x", None, NOW_NS)
    logs, changed, results = fold({AGENT: row}, [stranger, opening()], {}, NOW)
    assert (len(logs), changed) == (1, [row])
    assert isinstance(results[0], Reject)
    assert str(UUID(int=99)) in results[0].reason
    assert isinstance(results[1], Ack)


def test_retry_opens_the_next_attempt() -> None:
    """A retry starts afresh and remembers the last span; only what has ended is re-opened; older lines are late."""
    row = stub()
    failed = Outcome("ValueError", "other", 5, 6)
    apply(row, [opening(), event(span=SPAN, percentage=70), event(Status.ERROR, outcome=failed)])
    assert (row.error_type, row.reason) == ("ValueError", "other")
    _, (reopened, again) = apply(row, [event(Status.QUEUED, reopens=True), event(Status.QUEUED, reopens=True)])
    assert isinstance(reopened, Ack)
    assert (reopened.status, reopened.attempt, reopened.late) == (Status.QUEUED, 2, False)
    assert isinstance(again, Ack)
    assert again.attempt == 2
    assert (row.latest_percentage, row.error_type, row.reason, row.started_at) == (None, None, None, None)
    assert (row.trace_id, row.span_id, row.sampled, row.input_tokens) == (None, None, None, None)
    assert row.trace_context == {"traceparent": "x", PREVIOUS_SPAN: f"00-{SPAN.trace_id}-{SPAN.span_id}-01"}
    logs, (late,) = apply(row, [event(Status.COMPLETE, attempt=1, percentage=100)])
    assert isinstance(late, Ack)
    assert (late.late, late.status, row.status) == (True, Status.QUEUED, Status.QUEUED)
    assert (logs[0].attempt, logs[0].late) == (1, True)
    apply(row, [event(attempt=2, span=OTHER_SPAN), event(Status.COMPLETE, attempt=2)])
    assert (row.status, row.span_id) == (Status.COMPLETE, OTHER_SPAN.span_id)


def test_only_one_starts_an_attempt() -> None:
    """A claim starts what is QUEUED; the second one, and one of what has ended or of an older attempt, adds nothing."""
    row = stub()
    apply(row, [opening()])
    first = event(attempt=1, claims=True, worker_id="one")
    logs, (won, lost) = apply(row, [first, event(attempt=1, claims=True, worker_id="two")])
    assert isinstance(won, Ack)
    assert (won.status, won.late, len(logs)) == (Status.RUNNING, False, 1)
    assert isinstance(lost, Reject)
    assert row.worker_id == "one"
    apply(row, [event(Status.ERROR), event(Status.QUEUED, reopens=True)])
    assert isinstance(apply(row, [event(attempt=1, claims=True)])[1][0], Reject)
    assert isinstance(apply(row, [event(attempt=2, claims=True)])[1][0], Ack)
    apply(row, [event(Status.CANCELED)])
    assert isinstance(apply(row, [event(claims=True)])[1][0], Reject)
    assert isinstance(apply(row, [event(attempt=3, claims=True)])[1][0], Reject), "what is over stays over"


def test_next_attempt_follows_a_failed_one_only() -> None:
    """An attempt is announced, or started, behind one that goes on; one that was canceled has no successor."""
    row = stub()
    apply(row, [opening(), event(attempt=1)])
    _, (announced,) = apply(row, [event(Status.QUEUED, attempt=2, claims=True)])
    assert isinstance(announced, Ack)
    assert (row.status, row.attempt, row.error_type) == (Status.QUEUED, 2, None)
    apply(row, [event(attempt=3, claims=True)])
    assert (row.status, row.attempt) == (Status.RUNNING, 3), "its announcement was lost"
    apply(row, [event(Status.CANCELED)])
    for status in (Status.QUEUED, Status.RUNNING):
        assert isinstance(apply(row, [event(status, attempt=4, claims=True)])[1][0], Reject)
    assert (row.status, row.attempt) == (Status.CANCELED, 3)


def test_attempt_that_was_not_seen_here() -> None:
    """A line of a later attempt than the row's opens that attempt: its retry was told elsewhere."""
    row = stub()
    apply(row, [opening(), event(Status.ERROR)])
    _, (ack,) = apply(row, [event(attempt=3)])
    assert isinstance(ack, Ack)
    assert (ack.status, ack.attempt, ack.late) == (Status.RUNNING, 3, False)


def test_first_span_stays() -> None:
    """The row keeps the first span that was offered; who offers another learns which one it is."""
    row = stub()
    _, results = apply(row, [opening(), event(span=SPAN), event(span=OTHER_SPAN)])
    assert [ack.span_id for ack in acks(results)] == [None, SPAN.span_id, SPAN.span_id]
    assert row.trace_id == SPAN.trace_id


def test_outcome_is_the_winners() -> None:
    """Type and reason are those of the ending that won; token counts of a late ending still count."""
    row = stub()
    ends = [
        opening(),
        event(Status.CANCELED, outcome=Outcome(reason="cancelled")),
        event(Status.ERROR, outcome=Outcome("ValueError", "other", 11, 12)),
    ]
    _, results = apply(row, ends)
    assert (row.error_type, row.reason, row.input_tokens, row.output_tokens) == (None, "cancelled", 11, 12)
    assert acks(results)[2].outcome == Outcome(None, "cancelled")


def test_long_names_are_cut() -> None:
    """What no column can hold is cut, not refused."""
    row = stub()
    apply(row, [event(Status.QUEUED, opening=Opening("x" * 400)), event(worker_id="w" * 400)])
    apply(row, [event(Status.ERROR, outcome=Outcome("E" * 400, "r" * 400))])
    assert [len(text or "") for text in (row.agent_type, row.worker_id, row.error_type)] == [255] * 3
    assert len(row.reason or "") == 64


def test_updated_at_moves_strictly() -> None:
    """It is now, or one microsecond behind what it was where the row is ahead of this clock."""
    row = stub()
    for now, expected in (
        (NOW, NOW + timedelta(microseconds=1)),
        (NOW - timedelta(hours=1), NOW + timedelta(microseconds=2)),
        (NOW + timedelta(seconds=1), NOW + timedelta(seconds=1)),
        (NOW + timedelta(seconds=1), NOW + timedelta(seconds=1, microseconds=1)),
    ):
        apply(row, [event()], now)
        assert row.updated_at == expected


@given(st.integers(0, 4_102_444_800_000_000_000))
def test_times_are_cut_to_microseconds(at_ns: int) -> None:
    """Nanoseconds become the microsecond they are in, and come back as its beginning."""
    value = moment(at_ns)
    assert value.utcoffset() == timedelta(0)
    assert nanoseconds(value) == at_ns - at_ns % 1000
