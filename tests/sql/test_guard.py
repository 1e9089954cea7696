"""One winner: racing processes and threads never store two endings, and lose no update."""

from uuid import UUID

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

import agentexec_otel as ax
from agentexec_otel.activity.models import Activity, ActivityLog, Status
from tests.databases import Database
from tests.sql.processes import Peer
from tests.sql.remote import configure, end_each, stop, update_many
from tests.sql.rows import gap_free, lines, row

pytestmark = pytest.mark.one_python

ROUNDS = 100


def race(database: Database, peers: tuple[Peer, Peer], rounds: int, verbs: tuple[str, str]) -> list[UUID]:
    """COMPLETE against CANCELED, `rounds` times, by two processes in step; checks all but the rows."""
    ax.configure(database.url)
    ids = [ax.activity.create("raced") for _ in range(rounds)]
    for peer in peers:
        peer.call(configure, database.url)
    racing = [peer.submit(end_each, ids, verb) for peer, verb in zip(peers, verbs, strict=True)]
    first, second = (one.result(300) for one in racing)
    assert [a + b for a, b in zip(first, second, strict=True)] == [1] * rounds
    for peer in peers:
        assert peer.call(stop)
    return ids


def check_one_winner(logs: list[ActivityLog], status: Status) -> None:
    assert [log.late for log in logs] == [False, False, True]
    assert [log.status for log in logs] == [Status.QUEUED, status, status]
    assert gap_free(logs)


@pytest.mark.parametrize("rounds", [ROUNDS, pytest.param(1000, marks=pytest.mark.slow)])
def test_complete_against_canceled(database: Database, peers: tuple[Peer, Peer], rounds: int) -> None:
    """Each race has one winner, which is told so; the loser's line is kept as late, with the winner's status."""
    ids = race(database, peers, rounds, ("complete", "cancel"))
    with Session(database.engine) as session:
        raced = session.scalars(select(Activity).options(selectinload(Activity.logs))).all()
    assert {stored.agent_id for stored in raced} == set(ids)
    for stored in raced:
        assert stored.status in (Status.COMPLETE, Status.CANCELED)
        assert stored.latest_percentage == (100 if stored.status is Status.COMPLETE else None)
        assert stored.reason == (None if stored.status is Status.COMPLETE else "canceled")
        check_one_winner(stored.logs, stored.status)


def test_two_of_a_kind(database: Database, peers: tuple[Peer, Peer]) -> None:
    """Two processes that both complete are a winner and a loser as well."""
    for agent_id in race(database, peers, 10, ("complete", "complete")):
        check_one_winner(lines(database.engine, agent_id), Status.COMPLETE)


def test_no_update_is_lost(database: Database, peers: tuple[Peer, Peer]) -> None:
    """Four threads in two processes write to one activity: every line is there once, in each thread's own order."""
    ax.configure(database.url)
    agent_id = ax.activity.create("shared")
    for peer in peers:
        peer.call(configure, database.url)
    writing = [peer.submit(update_many, agent_id, label, 40, 2) for peer, label in zip(peers, "ab", strict=True)]
    for one in writing:
        one.result(60)
    for peer in peers:
        assert peer.call(stop)
    logs = lines(database.engine, agent_id)[1:]
    by_thread: dict[str, list[int]] = {}
    for log in logs:
        thread, _, number = log.message.rpartition(" ")
        by_thread.setdefault(thread, []).append(int(number))
    assert by_thread == {name: list(range(40)) for name in ("a 0", "a 1", "b 0", "b 1")}
    assert gap_free(lines(database.engine, agent_id))
    stored = row(database.engine, agent_id)
    assert (stored.last_seq, stored.latest_percentage) == (161, logs[-1].percentage)
    assert len({log.event_id for log in logs}) == 160
