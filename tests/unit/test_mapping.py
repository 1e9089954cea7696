"""Events to and from what OpenTelemetry carries: pure functions."""

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agentexec_otel._model import attributes as semconv
from agentexec_otel._model.event import ActivityEvent, Opening, Outcome, SpanRef, Status
from agentexec_otel._model.mapping import (
    events_of_span,
    log_attributes,
    opening_attributes,
    outcome_attributes,
    span_ref_of,
)
from tests.sql.rows import event

AGENT = UUID(int=7)
SPAN = SpanRef("a" * 32, "b" * 16, sampled=True)


@dataclass
class SpanEvent:
    """An event of an ended span."""

    name: str
    attributes: dict[str, Any] | None
    timestamp: int = 5


@dataclass
class EndedSpan:
    """What an activity's span has when it ends."""

    attributes: dict[str, Any] = field(default_factory=dict[str, Any])
    events: list[SpanEvent] = field(default_factory=list[SpanEvent])


def span_of(events: list[ActivityEvent], opening: Opening, attempt: int, outcome: Outcome | None) -> EndedSpan:
    """An activity's span as the SDK holds it after these lines."""
    span = EndedSpan(dict(opening_attributes(AGENT, opening, attempt)))
    span.events = [SpanEvent(semconv.LOG_EVENT, dict(log_attributes(one)), one.occurred_at_ns) for one in events]
    span.attributes |= outcome_attributes(events[-1].status, outcome, 5)
    return span


def test_line_as_attributes() -> None:
    """A line's id, status and message, and its percentage where it has one; every value of a type that OTel takes."""
    line = event(AGENT, Status.ERROR, "text")
    assert log_attributes(line) == {
        "agentexec.log.id": str(line.event_id),
        "agentexec.log.status": "ERROR",
        "agentexec.log.message": "text",
    }
    assert log_attributes(event(AGENT, percentage=0))["agentexec.log.percentage"] == 0
    assert type(log_attributes(line)["agentexec.log.status"]) is str


def test_opening_as_attributes() -> None:
    """The id, the type and the attempt, and each metadata value: as it is where OTel takes it, else as JSON."""
    opening = Opening("task", {"s": "x", "i": 1, "f": 0.5, "b": True, "l": [1, "a"], "d": {"k": None}, "n": None})
    assert opening_attributes(AGENT, opening, None) == {
        "agentexec.agent_id": str(AGENT),
        "agentexec.agent_type": "task",
        "agentexec.attempt": 1,
        "agentexec.metadata.s": "x",
        "agentexec.metadata.i": 1,
        "agentexec.metadata.f": 0.5,
        "agentexec.metadata.b": True,
        "agentexec.metadata.l": '[1, "a"]',
        "agentexec.metadata.d": '{"k": null}',
        "agentexec.metadata.n": "null",
    }
    assert opening_attributes(AGENT, Opening("task"), 3)["agentexec.attempt"] == 3


def test_outcome_as_attributes() -> None:
    """What is known of the end, under the names of the semantic conventions; what is not known is left out."""
    assert outcome_attributes(Status.COMPLETE, None, None) == {"agentexec.status": "COMPLETE"}
    assert outcome_attributes(Status.ERROR, Outcome("ValueError", "other", 0, 7, None, 0, 5), 0) == {
        "agentexec.status": "ERROR",
        "agentexec.percentage": 0,
        "error.type": "ValueError",
        "agentexec.reason": "other",
        "gen_ai.usage.input_tokens": 0,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.reasoning.output_tokens": 5,
    }


@pytest.mark.parametrize(
    ("traceparent", "expected"),
    [
        (f"00-{'a' * 32}-{'b' * 16}-01", SpanRef("a" * 32, "b" * 16, True)),
        (f"00-{'a' * 32}-{'b' * 16}-00", SpanRef("a" * 32, "b" * 16, False)),
        (f"00-{'a' * 32}-{'b' * 16}-03", SpanRef("a" * 32, "b" * 16, True)),
        ("", None),
        ("x", None),
        (f"00-{'A' * 32}-{'b' * 16}-01", None),
        (f"00-{'a' * 32}-{'b' * 16}-01\n", None),
        (f"01-{'a' * 32}-{'b' * 16}-01", None),
        (f"00-{'a' * 31}-{'b' * 16}-01", None),
        (f"00-{'a' * 32}-{'b' * 16}-01-more", None),
    ],
)
def test_traceparent(traceparent: str, expected: SpanRef | None) -> None:
    """A W3C traceparent names a span; anything else names none."""
    assert span_ref_of(traceparent) == expected


# What an event holds was cleaned before: controls and surrogates are in none.
text = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"]), max_size=20)
metadata = st.dictionaries(text, st.booleans() | st.integers(-(2**63), 2**63 - 1) | text, max_size=4)


@given(
    statuses=st.lists(
        st.tuples(st.sampled_from(Status), text, st.none() | st.integers(0, 100)), min_size=1, max_size=9
    ),
    opening=st.builds(Opening, text, st.none() | metadata.filter(bool)),
    attempt=st.integers(1, 9),
    outcome=st.builds(Outcome, st.none() | text, st.none() | text, *[st.none() | st.integers(0, 2**63 - 1)] * 2),
)
def test_round_trip(
    statuses: list[tuple[Status, str, int | None]], opening: Opening, attempt: int, outcome: Outcome
) -> None:
    """What a span holds of an activity comes back as the same events: ids, times, texts, opening and outcome."""
    events = [
        event(AGENT, status, message, at_ns=number, percentage=percentage)
        for number, (status, message, percentage) in enumerate(statuses)
    ]
    ended = events[-1].status.terminal
    span = span_of(events, opening, attempt, outcome if ended else None)
    back = events_of_span(span.attributes, SPAN, span.events)
    assert [(one.event_id, one.status, one.message, one.percentage, one.occurred_at_ns) for one in back] == [
        (one.event_id, one.status, one.message, one.percentage, one.occurred_at_ns) for one in events
    ]
    assert all((one.agent_id, one.attempt, one.span) == (AGENT, attempt, SPAN) for one in back)
    assert [one.opening for one in back] == [opening, *[None] * (len(back) - 1)]
    assert [one.outcome for one in back] == [*[None] * (len(back) - 1), outcome if ended else None]


def test_round_trip_through_the_sdk() -> None:
    """The attributes survive a real span."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    line = event(AGENT, Status.COMPLETE, "done", at_ns=123_456_789, percentage=100)
    with provider.get_tracer("test").start_as_current_span("task") as span:
        span.set_attributes(opening_attributes(AGENT, Opening("task", {"tenant": "acme"}), 2))
        span.add_event("another library's", {"x": 1})
        span.add_event(semconv.LOG_EVENT, log_attributes(line), line.occurred_at_ns)
        span.set_attributes(outcome_attributes(Status.COMPLETE, Outcome(input_tokens=5), 100))
    (ended,) = exporter.get_finished_spans()
    (back,) = events_of_span(ended.attributes or {}, SPAN, ended.events)
    assert back == ActivityEvent(
        line.event_id, AGENT, Status.COMPLETE, "done", 100, 123_456_789, 2, Opening("task", {"tenant": "acme"}), SPAN,
        Outcome(input_tokens=5),
    )  # fmt: skip


def line_attributes(**changed: Any) -> dict[str, Any]:
    attributes: dict[str, Any] = dict(log_attributes(event(AGENT, percentage=5)))
    return attributes | {f"agentexec.log.{name}": value for name, value in changed.items()}


FOREIGN: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({semconv.AGENT_ID: None}, line_attributes()),
    ({semconv.AGENT_ID: "no uuid"}, line_attributes()),
    ({semconv.AGENT_ID: 5}, line_attributes()),
    ({semconv.ATTEMPT: "two"}, line_attributes()),
    ({semconv.ATTEMPT: float("inf")}, line_attributes()),
    ({semconv.ATTEMPT: float("nan")}, line_attributes()),
    ({}, line_attributes(id="no uuid")),
    ({}, line_attributes(status="DONE")),
]


def test_odd_percentage_is_none() -> None:
    """A percentage that is no number of 0 to 100 costs the percentage, not the line."""
    span = opening_attributes(AGENT, Opening("task"), 1)
    odd: list[tuple[Any, int | None]] = [
        ("many", None),
        (float("inf"), None),
        (float("nan"), None),
        (-1, 0),
        (250, 100),
    ]
    for given_value, expected in odd:
        (one,) = events_of_span(span, SPAN, [SpanEvent(semconv.LOG_EVENT, line_attributes(percentage=given_value))])
        assert one.percentage == expected


@pytest.mark.parametrize(("changed", "line"), FOREIGN)
def test_what_is_none_of_ours_is_passed_over(changed: dict[str, Any], line: dict[str, Any]) -> None:
    """A span or a line with our names but other content gives no events, and no exception."""
    span = {**opening_attributes(AGENT, Opening("task"), 1), **changed}
    assert events_of_span(span, SPAN, [SpanEvent(semconv.LOG_EVENT, line)]) == []


def test_spans_of_others() -> None:
    """A span without our attributes, or without our events, is none of ours."""
    line = SpanEvent(semconv.LOG_EVENT, line_attributes())
    assert events_of_span({}, SPAN, [line]) == []
    assert events_of_span({"http.method": "GET"}, SPAN, [line]) == []
    ours = dict(opening_attributes(AGENT, Opening("task"), 1))
    assert events_of_span(ours, SPAN, []) == []
    assert events_of_span(ours, SPAN, [SpanEvent("other", {"a": 1}), SpanEvent("exception", None)]) == []
    assert events_of_span(ours, SPAN, [SpanEvent(semconv.LOG_EVENT, None)]) == []


anything = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.lists(st.integers(), max_size=2)
)
names = st.sampled_from([semconv.LOG_ID, semconv.LOG_STATUS, semconv.LOG_MESSAGE, semconv.LOG_PERCENTAGE])
ours = st.sampled_from(
    [semconv.AGENT_ID, semconv.AGENT_TYPE, semconv.ATTEMPT, semconv.ERROR_TYPE, semconv.INPUT_TOKENS]
)


@given(st.dictionaries(ours, anything, max_size=3), st.dictionaries(names, anything, max_size=2))
def test_nothing_makes_it_raise(changed: dict[str, Any], line: dict[str, Any]) -> None:
    """Whatever the attributes of somebody's span are: events with values that a table can hold, or none."""
    span = {**opening_attributes(uuid4(), Opening("task"), 1), **changed}
    found = events_of_span(span, SPAN, [SpanEvent(semconv.LOG_EVENT, {**line_attributes(), **line})])
    for one in found:
        assert isinstance(one.event_id, UUID)
        assert isinstance(one.status, Status)
        assert one.percentage is None or 0 <= one.percentage <= 100
        assert one.attempt is not None
        assert 1 <= one.attempt < 2**31
        assert one.opening is not None
        for told in (one.message, one.opening.agent_type):
            told.encode()
            assert "\x00" not in told
        for count in (one.outcome.input_tokens, one.outcome.output_tokens) if one.outcome is not None else ():
            assert count is None or (type(count) is int and 0 <= count < 2**63)
