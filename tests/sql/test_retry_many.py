"""`retry_many`: every filter, in any transaction, by several callers at once."""

from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity.models import Status
from agentexec_otel.export import Opening, Outcome
from agentexec_otel.testing import InMemoryActivityExporter
from agentexec_otel_exporters.sql import SQLExporter
from tests.databases import Database
from tests.sql.processes import Peer
from tests.sql.remote import configure, stop
from tests.sql.retries import retry_many_together
from tests.sql.rows import event, gap_free, lines, opening, row, store

pytestmark = pytest.mark.one_python

ENDS = (Status.ERROR, Status.ERROR, Status.CANCELED, Status.COMPLETE)


def fill(database: Database) -> dict[str, UUID]:
    """Two that have failed, for different reasons, one canceled, one complete, one running, one queued."""
    ids = {name: uuid4() for name in ("tool", "timeout", "canceled", "complete", "running", "queued")}
    made = [
        opening(agent_id, name)._replace(opening=Opening(name, {"tenant": name[0]})) for name, agent_id in ids.items()
    ]
    ends = [
        event(ids[name], status, name, outcome=Outcome(reason=name)) for name, status in zip(ids, ENDS, strict=False)
    ]
    store(database.url, made, ends, [event(ids["running"])])
    return ids


FILTERS: list[tuple[dict[str, Any], set[str]]] = [
    ({}, {"tool", "timeout"}),
    ({"status": None}, {"tool", "timeout"}),
    ({"reason": "tool"}, {"tool"}),
    ({"status": ["ERROR", "CANCELED"], "metadata_filter": {"tenant": "t"}}, {"tool", "timeout"}),
    ({"status": "CANCELED"}, {"canceled"}),
    ({"status": "COMPLETE", "text": "COMPL"}, {"complete"}),
    ({"status": ["RUNNING", "QUEUED"]}, set()),
    ({"agent_type": []}, set()),
]


@pytest.mark.parametrize("in_session", [False, True])
@pytest.mark.parametrize(("filters", "expected"), FILTERS)
def test_filters(database: Database, in_session: bool, filters: dict[str, Any], expected: set[str]) -> None:
    """What has ended as ERROR, or as asked for, and meets the filters is QUEUED again; nothing else changes."""
    ids = fill(database)
    ax.configure(database.url)
    before = {name: row(database.engine, agent_id).status for name, agent_id in ids.items()}
    if in_session:
        with Session(database.engine) as session:
            opened = ax.activity.retry_many(session, message="Again.", **filters)
    else:
        opened = ax.activity.retry_many(message="Again.", **filters)
    assert opened == {ids[name]: 2 for name in expected}
    for name, agent_id in ids.items():
        found, logs = row(database.engine, agent_id), lines(database.engine, agent_id)
        assert gap_free(logs)
        if name in expected:
            assert (found.status, found.attempt, found.reason, logs[-1].message) == (Status.QUEUED, 2, None, "Again.")
        else:
            assert (found.status, found.attempt) == (before[name], 1)


def test_rolled_back_with_the_transaction_of_the_caller(database: Database) -> None:
    """In a transaction that the caller began it is committed, or undone, with it."""
    ids = fill(database)
    ax.configure(database.url)
    with Session(database.engine) as session:
        session.begin()
        assert len(ax.activity.retry_many(session)) == 2
        session.rollback()
        assert row(database.engine, ids["tool"]).status is Status.ERROR
        with session.begin():
            assert len(ax.activity.retry_many(session)) == 2
    assert row(database.engine, ids["tool"]).status is Status.QUEUED


def test_this_process_joins_the_new_attempts(database: Database) -> None:
    """As after `retry`: what this process reports next belongs to the attempt that it has opened."""
    ax.configure(database.url)
    agent_id = ax.activity.create("task")
    ax.activity.error(agent_id, "No.")
    assert ax.activity.retry_many() == {agent_id: 2}
    ax.activity.update(agent_id, "Working.")
    assert ax.activity.complete(agent_id)
    last = lines(database.engine, agent_id)[-1]
    assert (last.status, last.attempt, last.late) == (Status.COMPLETE, 2, False)


@pytest.mark.parametrize("in_session", [False, True])
def test_more_than_one_chunk(database: Database, in_session: bool) -> None:
    """More than fit into one transaction are all re-opened, each once."""
    ids = [uuid4() for _ in range(1100)]
    store(database.url, [opening(agent_id) for agent_id in ids], [event(agent_id, Status.ERROR) for agent_id in ids])
    ax.configure(database.url)
    with Session(database.engine) as session:
        opened = ax.activity.retry_many(session if in_session else None)
        assert opened == dict.fromkeys(ids, 2)
        session.rollback()
        assert ax.activity.list(session, status="QUEUED", page_size=1).total == 1100


def test_two_callers_at_once(database: Database, peers: tuple[Peer, Peer]) -> None:
    """Two processes share the work: each activity is re-opened once, and reported to one of them."""
    ids = [uuid4() for _ in range(100)]
    store(database.url, [opening(agent_id) for agent_id in ids], [event(agent_id, Status.ERROR) for agent_id in ids])
    for peer in peers:
        peer.call(configure, database.url)
    both = [peer.submit(retry_many_together) for peer in peers]
    first, second = (one.result(60) for one in both)
    for peer in peers:
        assert peer.call(stop)
    assert sorted([*first, *second]) == sorted(ids)
    assert {row(database.engine, agent_id).attempt for agent_id in ids} == {2}


@pytest.mark.parametrize("in_session", [False, True])
def test_other_exporters_follow(database: Database, in_session: bool) -> None:
    """An additional exporter gets the event of each new attempt."""
    other = InMemoryActivityExporter()
    ax.configure(exporters=[SQLExporter(database.url), other])
    agent_id = ax.activity.create("task")
    ax.activity.error(agent_id, "No.")
    with Session(database.engine) as session:
        assert ax.activity.retry_many(session if in_session else None, message="Again.") == {agent_id: 2}
    assert ax.flush()
    assert [one.message for one in other.events if one.status is Status.QUEUED] == ["Waiting to start.", "Again."]
    assert other.status(agent_id) is Status.QUEUED
