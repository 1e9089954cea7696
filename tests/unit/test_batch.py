"""A batch of events on locked rows, as a function of values alone."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from agentexec_otel._model.event import ActivityEvent, Status
from agentexec_otel._model.fold import moment
from agentexec_otel._model.ids import uuid7
from agentexec_otel.export import Ack, ExportResult, Reject
from agentexec_otel_exporters.sql.write.batch import LogRow, Row, apply_events
from tests.unit.test_fold import AGENT, NOW, NOW_NS, any_events, event, opening


def empty() -> Row:
    return Row.unopened(AGENT, NOW_NS, UUID(int=1), moment(NOW_NS))


def apply(row: Row, events: Sequence[ActivityEvent], now: datetime = NOW) -> tuple[list[LogRow], list[ExportResult]]:
    logs, changed, results = apply_events({AGENT: row}, events, {}, now)
    assert changed == ([row] if logs else [])
    return logs, results


def test_each_event_is_a_log() -> None:
    """Each event becomes one log with the status that it led to, numbered without a gap."""
    row = empty()
    events = [opening(), event(percentage=40), event(Status.COMPLETE), event(attempt=1)]
    logs, results = apply(row, events)
    assert [(line.seq, line.event_id, line.percentage) for line in logs] == [
        (place, one.event_id, one.percentage) for place, one in enumerate(events, 1)
    ]
    assert [line.status for line in logs] == [Status.QUEUED, Status.RUNNING, Status.COMPLETE, Status.COMPLETE]
    assert [line.late for line in logs] == [False, False, False, True]
    assert all(isinstance(result, Ack) for result in results)


@given(any_events, st.data())
def test_batches_do_not_matter(events: list[ActivityEvent], data: st.DataObject) -> None:
    """The same events cut into other batches leave the same row and the same logs."""
    whole, cut = empty(), empty()
    expected, _ = apply(whole, events)
    logs: list[LogRow] = []
    rest = list(events)
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        more, _ = apply(cut, rest[:size])
        logs += more
        rest = rest[size:]
    cut.updated_at = whole.updated_at
    assert (logs, cut) == (expected, whole)
    assert [line.seq for line in logs] == list(range(1, len(logs) + 1))


@given(any_events, st.lists(st.integers(0, 29), max_size=10))
def test_duplicates_change_nothing(events: list[ActivityEvent], again: list[int]) -> None:
    """An event that comes twice, in one batch or in a later one, is acknowledged as a duplicate and adds nothing."""
    once, twice = empty(), empty()
    expected, _ = apply(once, events)
    late = {line.event_id: line.late for line in expected}
    # A refused event has left nothing to recognise it by: it may be accepted later.
    repeated = [events[index] for index in again if index < len(events) and events[index].event_id in late]
    logs, _, results = apply_events({AGENT: twice}, [*events, *repeated], {}, NOW)
    assert (logs, twice) == (expected, once)
    for one, result in zip(repeated, results[len(events) :], strict=True):
        assert isinstance(result, Ack)
        assert (result.duplicate, result.late, result.status) == (True, late[one.event_id], twice.status)
    more, changed, answers = apply_events({AGENT: twice}, repeated, late, NOW)
    assert (more, changed, len(answers)) == ([], [], len(repeated))


def test_unknown_activity_does_not_stop_the_batch() -> None:
    """An event without a row is refused; the others of the batch are stored."""
    row = empty()
    stranger = ActivityEvent(uuid7(), UUID(int=99), Status.RUNNING, "x", None, NOW_NS, expects_row=True)
    logs, changed, results = apply_events({AGENT: row}, [stranger, opening()], {}, NOW)
    assert (len(logs), changed) == (1, [row])
    assert [type(result) for result in results] == [Reject, Ack]


def test_updated_at_moves_strictly() -> None:
    """It is now, or one microsecond after its last value if the row is ahead of this clock."""
    row = empty()
    for now, expected in (
        (NOW, NOW + timedelta(microseconds=1)),
        (NOW - timedelta(hours=1), NOW + timedelta(microseconds=2)),
        (NOW + timedelta(seconds=1), NOW + timedelta(seconds=1)),
        (NOW + timedelta(seconds=1), NOW + timedelta(seconds=1, microseconds=1)),
    ):
        apply(row, [event()], now)
        assert row.updated_at == expected
