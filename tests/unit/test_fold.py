"""The fold of any history; tests/conformance has the table of what each event means."""

from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from agentexec_otel._model.event import ActivityEvent, Opening, Outcome, SpanRef, Status
from agentexec_otel._model.fold import ActivityState, Verdict, answer, fold, moment, nanoseconds
from agentexec_otel._model.ids import uuid7
from agentexec_otel.export import Ack, Refusal, Reject

AGENT = UUID(int=7)
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
NOW_NS = nanoseconds(NOW)
SPAN = SpanRef("a" * 32, "b" * 16, sampled=True)
OTHER_SPAN = SpanRef("c" * 32, "d" * 16, sampled=False)


def event(status: Status = Status.RUNNING, **more: Any) -> ActivityEvent:
    values: dict[str, Any] = {"message": str(status), "percentage": None, "occurred_at_ns": NOW_NS, **more}
    return ActivityEvent(event_id=uuid7(), agent_id=AGENT, status=status, **values)


def opening() -> ActivityEvent:
    return event(Status.QUEUED, opening=Opening("task", {"tenant": "acme"}, {"traceparent": "x"}))


any_events = st.lists(
    st.builds(
        event,
        st.sampled_from(Status),
        percentage=st.none() | st.integers(0, 100),
        attempt=st.none() | st.integers(1, 3),
        reopens=st.booleans(),
        claims=st.booleans(),
        span=st.sampled_from([None, SPAN, OTHER_SPAN]),
        worker_id=st.sampled_from([None, "one", "two"]),
        outcome=st.sampled_from([None, Outcome("E", "r", 1, 2), Outcome(requests=1, model="large")]),
        waiting=st.sampled_from([None, None, {"for": "approval"}]),
        opening=st.sampled_from([None, None, Opening("task")]),
    ),
    max_size=30,
)


@given(any_events)
def test_what_waits_is_running_without_a_lease(events: list[ActivityEvent]) -> None:
    """Whatever has happened before, and in whichever order it was stored."""
    state = ActivityState.unopened(AGENT, NOW_NS)
    for one in events:
        state.apply(one)
        if state.waiting is not None:
            assert (state.status, state.lease) == (Status.RUNNING, "clear")


def test_every_order_of_a_life_ends_the_same_way() -> None:
    """Create, running, progress, complete and cancel in any order: the first terminal status wins."""
    life = [opening(), event(), event(percentage=50), event(Status.COMPLETE, percentage=100), event(Status.CANCELED)]
    for order in permutations(life):
        state = ActivityState.unopened(AGENT, NOW_NS)
        verdicts = [state.apply(one) for one in order]
        first = next(one for one in order if one.status.terminal)
        place = order.index(first)
        assert (state.status, state.agent_type, state.last_seq) == (first.status, "task", 5)
        assert [verdict.late for verdict in verdicts] == [index > place for index in range(5)]
        assert [verdict.ends for verdict in verdicts] == [index == place for index in range(5)]
        assert [verdict.opens for verdict in verdicts] == [one.opening is not None for one in order]
        progress = order.index(life[2]) < place
        assert state.latest_percentage == (100 if first is life[3] else 50 if progress else None)


@given(any_events)
def test_invariants_of_any_history(events: list[ActivityEvent]) -> None:
    """One end per attempt, attempts only grow, the first span stays, and a refused event changes nothing."""
    state: ActivityState | None = None
    ends: list[int] = []
    accepted = 0
    for one in events:
        before = None if state is None else (state.status, state.attempt, state.span_id)
        held = repr(state)
        state, verdict = fold(state, one)
        if verdict.refusal is not None:
            assert (verdict, repr(state)) == (Verdict(verdict.refusal), held)
            continue
        assert state is not None
        accepted += 1
        assert state.last_seq == accepted
        if before is not None:
            assert state.attempt >= before[1]
            assert verdict.reopens == (state.attempt > before[1])
        if before is not None and not verdict.reopens:
            assert verdict.late or not before[0].terminal
            assert state.status is before[0] or not before[0].terminal
            assert before[2] in (None, state.span_id)
        if verdict.ends:
            ends.append(state.attempt)
        result = answer(state, one, verdict)
        assert isinstance(result, Ack)
        assert (result.status, result.attempt, result.late) == (state.status, state.attempt, verdict.late)
    assert len(ends) == len(set(ends))


def test_refusals_name_the_activity() -> None:
    """Each refusal is one sentence with the activity's id and nothing of the event's content."""
    for refusal in Refusal:
        result = answer(None, event(message="secret"), Verdict(refusal))
        assert isinstance(result, Reject)
        assert result.refusal is refusal
        assert str(AGENT) in result.reason
        assert "secret" not in result.reason


@given(st.integers(0, 4_102_444_800_000_000_000))
def test_times_are_cut_to_microseconds(at_ns: int) -> None:
    """Nanoseconds become the microsecond that they are in, and come back as its beginning."""
    value = moment(at_ns)
    assert value.utcoffset() == timedelta(0)
    assert nanoseconds(value) == at_ns - at_ns % 1000
