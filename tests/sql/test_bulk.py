"""Batches of any size: what is written comes back, on every database."""

from typing import Any
from uuid import UUID, uuid4

import pytest

from agentexec_otel.activity.models import Activity, Status
from agentexec_otel.export import Ack, ActivityEvent, Opening, Outcome, SpanRef
from agentexec_otel_exporters.sql import SQLExporter
from agentexec_otel_exporters.sql.write.statements import ACTIVITY, UPDATE_ROWS, sqlite_text
from tests.databases import Database
from tests.sql.rows import count_rows, event, gap_free, lines, opening, row, store

pytestmark = pytest.mark.one_python

SIZES = pytest.mark.parametrize("size", [1, 7, 180])
HOSTILE = (
    'a "quoted" word', "back\\slash and \\N and \\.", "tab\there", "two\nlines\r\n", "{braces,commas}", "NULL", "null",
    "", " ", "'; DROP TABLE agentexec_activity; --", "%s %(x)s ? :name", "snow ☃ and 😀", "\\", '"', "{", "\u2028",
)  # fmt: skip


def texts(size: int) -> list[str]:
    return [f"{HOSTILE[number % len(HOSTILE)]}{number // len(HOSTILE) or ''}" for number in range(size)]


@SIZES
def test_any_text_in_batches_of_any_size(database: Database, size: int) -> None:
    """Messages that mean something to a driver or in an array are just text, in one row or in hundreds."""
    agent_id = uuid4()
    written = [event(agent_id, message=message, percentage=size % 101 or None) for message in texts(size)]
    store(database.url, [opening(agent_id)], written)
    logs = lines(database.engine, agent_id)
    assert gap_free(logs)
    assert [log.id for log in logs] == sorted(log.id for log in logs)
    assert [
        (log.event_id, log.message, log.status, log.percentage, log.attempt, log.late, log.created_at.timestamp())
        for log in logs[1:]
    ] == [
        (one.event_id, one.message, Status.RUNNING, one.percentage, 1, False, one.occurred_at_ns // 1000 / 1e6)
        for one in written
    ]


def full(agent_id: UUID, message: str) -> list[ActivityEvent]:
    """A run of which every column has a value."""
    return [
        event(
            agent_id,
            Status.QUEUED,
            message,
            opening=Opening(
                message or "task", {"text": message, "deep": [1, None, {"x": 0.5}]}, {"traceparent": message}
            ),
        ),
        event(agent_id, message=message, span=SpanRef("a" * 32, "b" * 16, True), worker_id=message, percentage=3),
        event(agent_id, Status.ERROR, message, outcome=Outcome(message, message[:64], 1 << 40, 0, 3, 2, 1 << 41)),
    ]


@SIZES
def test_every_column_comes_back(database: Database, size: int) -> None:
    """Whatever the rows of a batch hold is stored, read under the lock, and written back unchanged."""
    runs = {uuid4(): message for message in texts(size)}
    store(database.url, [one for agent_id, message in runs.items() for one in full(agent_id, message)])
    before = {agent_id: columns(database, agent_id) for agent_id in runs}
    for agent_id, message in runs.items():
        found = before[agent_id]
        assert found["agent_type"] == (message or "task")
        assert found["metadata_"] == {"text": message, "deep": [1, None, {"x": 0.5}]}
        assert found["trace_context"] == {"traceparent": message}
        assert (found["trace_id"], found["span_id"], found["sampled"]) == ("a" * 32, "b" * 16, True)
        assert (found["worker_id"], found["error_type"], found["reason"]) == (message, message, message[:64])
        assert (found["input_tokens"], found["output_tokens"], found["requests"]) == (1 << 40, 0, 3)
        assert (found["status"], found["latest_percentage"], found["lease_expires_at"]) == (Status.ERROR, 3, None)
    store(database.url, [event(agent_id, message="late") for agent_id in runs])
    for agent_id, found in before.items():
        after = columns(database, agent_id)
        assert after.pop("last_seq") == found.pop("last_seq") + 1 == 4
        assert after.pop("updated_at") > found.pop("updated_at")
        assert after == found


def columns(database: Database, agent_id: UUID) -> dict[str, Any]:
    found = row(database.engine, agent_id)
    return {attribute.key: getattr(found, attribute.key) for attribute in Activity.__mapper__.column_attrs}


def test_a_batch_in_which_one_is_not_new(database: Database) -> None:
    """Openings are taken for new; where one row is there already, the batch is stored all the same, each line once."""
    early, fresh = uuid4(), uuid4()
    store(database.url, [event(early, message="arrived first")])
    exporter = SQLExporter(database.url)
    answers = exporter.export([opening(fresh), opening(early, task="known now"), event(fresh), opening(early)])
    exporter.shutdown(1.0)
    assert [isinstance(one, Ack) for one in answers] == [True, True, True, False]
    assert [log.message for log in lines(database.engine, early)] == ["arrived first", "queued"]
    assert row(database.engine, early).agent_type == "known now"
    assert count_rows(database.engine) == (2, 4)


def test_progress_changes_nothing_that_has_an_index() -> None:
    """PostgreSQL can then update the row in place (HOT): no index entry, less WAL, no bloat."""
    text, _ = sqlite_text(UPDATE_ROWS["progress", "extend"])
    changed = {column.name for column in ACTIVITY.columns if f" {column.name}=" in text}
    assert changed == {"updated_at", "latest_percentage", "last_seq", "heartbeat_at", "lease_expires_at"}
    assert not changed & {column.name for index in ACTIVITY.indexes for column in index.columns}
