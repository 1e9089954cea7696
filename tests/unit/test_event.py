"""The values that flow through the core."""

import copy
import json
import pickle
from typing import Any
from uuid import UUID

import pytest

from agentexec_otel._model.event import (
    ACTIVE,
    TERMINAL,
    ActivityEvent,
    Opening,
    Outcome,
    SpanRef,
    Status,
    parse_status,
)
from agentexec_otel._model.ids import uuid7

EVENT = ActivityEvent(
    uuid7(), UUID(int=1), Status.QUEUED, "text", None, 5, opening=Opening("task", {"a": [1]}, {"b": "c"})
)
SPAN = SpanRef("a" * 32, "b" * 16, sampled=True)


def test_status_is_its_upper_case_name() -> None:
    """A status is, prints, formats and serialises as the upper-case string, and is found by it or in lower case."""
    for status in Status:
        assert status == status.name == status.value == str(status) == f"{status}" == format(status, "")
        assert json.loads(json.dumps({"status": status})) == {"status": status.name}
        assert Status(status.name) is parse_status(status.name) is status
        assert Status(status.name.lower()) is parse_status(status.name.lower()) is status
    assert [str(status) for status in Status] == ["QUEUED", "RUNNING", "COMPLETE", "ERROR", "CANCELED"]
    others: list[Any] = ["Queued", "DONE", "done", "", None]
    for other in others:
        with pytest.raises(ValueError, match="is not a valid Status"):
            Status(other)
        with pytest.raises(ValueError, match="is no status: use QUEUED, RUNNING"):
            parse_status(other)


def test_every_status_is_active_or_terminal() -> None:
    """QUEUED and RUNNING are active, the others terminal; none is both."""
    assert {status for status in Status if status.terminal} == TERMINAL == set(Status) - set(ACTIVE)
    assert ACTIVE == (Status.QUEUED, Status.RUNNING)


@pytest.mark.parametrize("value", [EVENT, EVENT.opening, SPAN, Outcome("E", "r", 1, 2)])
def test_values_are_frozen_and_small(value: Any) -> None:
    """No value can be changed or given another attribute; copies and pickles are equal to it."""
    name = value.__match_args__[0]
    with pytest.raises(AttributeError):
        setattr(value, name, None)
    with pytest.raises((AttributeError, TypeError)):
        value.other = 1
    assert not hasattr(value, "__dict__")
    assert copy.deepcopy(value) == value == pickle.loads(pickle.dumps(value))


def test_what_an_event_has_by_default() -> None:
    """An event of no known attempt, that opens, re-opens and claims nothing, and expects no row."""
    event = ActivityEvent(UUID(int=2), UUID(int=1), Status.RUNNING, "text", 5, 7)
    assert (event.attempt, event.opening, event.span, event.outcome, event.worker_id) == (None,) * 5
    assert (event.expects_row, event.reopens, event.claims) == (False, False, False)
    assert event._replace(span=SPAN) != event
    assert event._replace(span=SPAN).span is SPAN
    assert Outcome() == Outcome(None, None, None, None)
    assert Opening("task") == Opening("task", None, None)
