"""Events as bytes."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import fields
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentexec_otel._model.codec import SCHEMA, MalformedEventError, decode, encode
from agentexec_otel._model.event import ActivityEvent, Opening, Outcome, SpanRef, Status

# Hypothesis leaves surrogates out of text() by default, and they are what breaks encoders.
texts = st.text(st.characters(codec=None, exclude_categories=()), max_size=60)
int64 = st.integers(-(2**63) + 1, 2**63 - 1)
counts = st.none() | int64
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
openings = st.builds(
    Opening,
    texts,
    st.none() | st.dictionaries(texts, json_values, max_size=4),
    st.none() | st.dictionaries(texts, texts, max_size=3),
)
events = st.builds(
    ActivityEvent,
    event_id=st.uuids(),
    agent_id=st.uuids(),
    status=st.sampled_from(Status),
    message=texts,
    percentage=st.none() | st.integers(0, 100),
    occurred_at_ns=int64,
    attempt=st.none() | int64,
    opening=st.none() | openings,
    span=st.none() | st.builds(SpanRef, texts, texts, st.booleans(), st.none() | texts),
    outcome=st.none()
    | st.builds(Outcome, st.none() | texts, st.none() | texts, counts, counts, counts, model=st.none() | texts),
    worker_id=st.none() | texts,
    expects_row=st.booleans(),
    reopens=st.booleans(),
    claims=st.booleans(),
    withdraws=st.booleans(),
    waiting=st.none() | st.dictionaries(texts, json_values, max_size=3),
    starts=st.booleans(),
    agent_type=st.none() | texts,
)
plain = ActivityEvent(UUID(int=1), UUID(int=2), Status.RUNNING, "half way", 50, 1_763_798_369_123_456_789)


def _fields(event: ActivityEvent = plain) -> list[Any]:
    loaded: list[Any] = json.loads(encode(event))
    return loaded


def _with(index: int, value: object) -> bytes:
    row = _fields(
        ActivityEvent(
            UUID(int=1),
            UUID(int=2),
            Status.ERROR,
            "m",
            None,
            3,
            opening=Opening("t", {"k": 1}, {"traceparent": "x"}),
            span=SpanRef("a", "b", sampled=True),
            outcome=Outcome("ValueError", "tool", 1, 2, 3, 4, 5, "large"),
            waiting={"for": "approval"},
            agent_type="t",
        )
    )
    row[index] = value
    return json.dumps(row).encode()


@given(events)
@settings(max_examples=300, deadline=None)
@example(ActivityEvent(UUID(int=0), UUID(int=0), Status.QUEUED, '\ud83d\ude00 \x00 \u2028 \\"', 0, 0))
def test_every_event_comes_back_as_it_was(event: ActivityEvent) -> None:
    """decode(encode(event)) is the event: every field, any text, lone and paired surrogates apart."""
    assert decode(encode(event)) == event


def test_the_strategy_covers_every_field() -> None:
    """A field added to ActivityEvent has to be added to the schema, too."""
    assert set(ActivityEvent._fields) == {
        "event_id",
        "agent_id",
        "status",
        "message",
        "percentage",
        "occurred_at_ns",
        "attempt",
        "opening",
        "span",
        "outcome",
        "worker_id",
        "expects_row",
        "reopens",
        "claims",
        "withdraws",
        "waiting",
        "starts",
        "agent_type",
    }
    assert [len(fields(part)) for part in (Opening, SpanRef, Outcome)] == [3, 4, 8]


def test_the_status_is_typed_again() -> None:
    """A decoded event holds the enum member, not a string that equals it."""
    assert decode(encode(plain)).status is Status.RUNNING


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
@example(b"")
@example(b"[]")
@example(b"null")
@example(b"[true]")
@example(b"\xff\xfe[\x001\x00]\x00")
def test_any_bytes_are_an_event_or_malformed(payload: bytes) -> None:
    """decode raises nothing but MalformedEventError."""
    with pytest.raises(MalformedEventError):
        decode(payload)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_any_json_in_any_place_is_an_event_or_malformed(data: st.DataObject) -> None:
    """The same for arrays of the right length with any JSON value in one place: right is right, else malformed."""
    payload = _with(data.draw(st.integers(0, 13)), data.draw(json_values))
    try:
        event = decode(payload)
    except MalformedEventError:
        return
    assert decode(encode(event)) == event


@given(events, st.data())
@settings(max_examples=300, deadline=None)
def test_a_flipped_bit_is_an_event_or_malformed(event: ActivityEvent, data: st.DataObject) -> None:
    """Damage that a checksum missed still raises nothing else."""
    payload = bytearray(encode(event))
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with suppress(MalformedEventError):
        assert isinstance(decode(bytes(payload)), ActivityEvent)


@pytest.mark.parametrize("length", range(10))
def test_an_event_cut_short_is_malformed(length: int) -> None:
    """No field without a default may be missing."""
    with pytest.raises(MalformedEventError):
        decode(json.dumps(_fields()[:length]).encode())


def test_the_parts_may_be_missing() -> None:
    """An earlier minor version, or an event without span, opening and outcome, ends before them."""
    assert len(_fields()) == 10
    assert decode(encode(plain)) == plain


def test_an_outcome_of_the_first_version() -> None:
    """A spool that was written before there were cached and reasoning tokens, or a model, can be read."""
    event = ActivityEvent(UUID(int=1), UUID(int=2), Status.ERROR, "m", None, 3, outcome=Outcome("E", "other", 1, 2, 3))
    for length in (5, 7):
        row = _fields(event)
        row[12] = row[12][:length]
        assert decode(json.dumps(row).encode()) == event


def test_an_event_that_the_version_before_has_written() -> None:
    """Byte for byte, with everything that it knew; it knew no model, and no run that waits."""
    written = (
        b'[1,"00000000000000000000000000000001","00000000000000000000000000000002","COMPLETE","done",100,3,2,"host:1",3,'
        b'["t","s",true],["task",{"k":1},{"traceparent":"x"}],["E","tool",1,2,3,4,5]]'
    )
    event = ActivityEvent(
        UUID(int=1), UUID(int=2), Status.COMPLETE, "done", 100, 3, 2, Opening("task", {"k": 1}, {"traceparent": "x"}),
        SpanRef("t", "s", sampled=True), Outcome("E", "tool", 1, 2, 3, 4, 5), "host:1", expects_row=True, reopens=True,
    )  # fmt: skip
    assert decode(written) == event


def test_a_run_that_waits() -> None:
    """What it waits for comes after everything that the version before reads, and only if it waits."""
    waiting = plain._replace(waiting={"for": "approval", "since": "then", "items": [{"tool": "pay"}]})
    assert len(_fields(waiting)) == 14
    assert decode(encode(waiting)) == waiting


def test_what_a_later_minor_version_added_is_ignored() -> None:
    """Elements and flags that are not known here do not keep an event from being stored."""
    event = ActivityEvent(UUID(int=1), UUID(int=2), Status.ERROR, "m", None, 3, outcome=Outcome("E"), reopens=True)
    row = _fields(event)
    row[9] |= 64
    row[12].append("new in the outcome")
    assert decode(json.dumps([*row, None, None, {"new": [1, 2]}, None]).encode()) == event


@pytest.mark.parametrize("version", [0, 2, -1, "1", 1.0, True, None])
def test_another_major_version_is_refused(version: object) -> None:
    """Its fields may mean anything."""
    assert SCHEMA == 1
    with pytest.raises(MalformedEventError, match="schema version"):
        decode(_with(0, version))


WRONG: list[tuple[int, object]] = [
    (1, "0" * 31),
    (1, "0" * 31 + "G"),
    (1, "0" * 31 + "A"),
    (1, "\uff10" * 32),
    (1, "0" * 32 + "\n"),
    (2, "{" + "0" * 30 + "}"),
    (3, "running"),
    (3, ["RUNNING"]),
    (4, None),
    (5, 50.0),
    (5, True),
    (6, 2**63),
    (6, "1"),
    (7, -(2**63)),
    (8, 7),
    (9, None),
    (10, ["a", "b"]),
    (10, ["a", "b", 1]),
    (11, {}),
    (11, ["t", [], None]),
    (11, ["t", None, {"traceparent": 1}]),
    (12, [None, None, None, 1.5]),
    (12, [None, None, None, None, None, None, None, 5]),
    (13, "approval"),
]


@pytest.mark.parametrize(
    ("index", "value"),
    WRONG,
)
def test_a_value_of_the_wrong_kind_is_malformed(index: int, value: object) -> None:
    """Each field is checked before it can reach an exporter."""
    decode(_with(index, _with_original(index)))
    with pytest.raises(MalformedEventError):
        decode(_with(index, value))


def _with_original(index: int) -> object:
    return json.loads(_with(0, 1))[index]


@pytest.mark.parametrize(
    "payload",
    [
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'[1,"' + b'{"a":' * 50_000,
        b"[" + b"9" * 5_000 + b"]",
        b"[1,NaN]",
        b"[1,-Infinity]",
    ],
    ids=["deep-open", "deep-closed", "deep-objects", "huge-integer", "nan", "infinity"],
)
def test_hostile_json_is_malformed(payload: bytes) -> None:
    """Depth, huge integers and constants that JSON does not have raise nothing else."""
    with pytest.raises(MalformedEventError):
        decode(payload)


def test_metadata_that_is_not_json_is_refused_when_written() -> None:
    """Not when it is too late, at the replay."""
    cyclic: dict[str, Any] = {}
    cyclic["self"] = cyclic
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for metadata in ({"k": float("nan")}, {"k": object()}, {("a", 1): 1}, cyclic, {"k": deep}):
        with pytest.raises(MalformedEventError, match="metadata"):
            encode(ActivityEvent(UUID(int=1), UUID(int=2), Status.QUEUED, "m", None, 3, opening=Opening("t", metadata)))  # type: ignore[arg-type]


def test_the_message_of_a_refusal_names_no_content() -> None:
    """What cannot be read is not quoted: it may hold what the application keeps to itself."""
    for payload in (_with(3, "sk-secret"), b'["sk-secret', _with(5, "sk-secret"), _with(11, ["t", "sk-secret", None])):
        with pytest.raises(MalformedEventError) as caught:
            decode(payload)
        assert "sk-secret" not in str(caught.value)
        assert caught.value.__cause__ is None
