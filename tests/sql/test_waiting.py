"""`run.waiting`: the row, the lease, what ends a wait, and what spares it."""

import time
from collections.abc import Callable
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import update
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity.models import Activity, Status
from agentexec_otel.testing import InMemoryActivityExporter
from tests.databases import Database
from tests.sql.processes import Peer
from tests.sql.remote import call, configure
from tests.sql.rows import eventually, lines, row

pytestmark = pytest.mark.one_python

CALLS = [{"tool": "refund", "call_id": "call_1"}, {"tool": "send_mail", "call_id": "call_2"}]
LONG_AGO = datetime.now(UTC) - timedelta(days=30)

one_database = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def waiting_activity() -> UUID:
    """An activity whose block was left while it waits."""
    with ax.activity.run("refund") as run:
        run.waiting(items=CALLS)
    assert ax.flush()
    return run.agent_id


def test_what_a_run_waits_for_is_on_the_row(database: Database) -> None:
    """RUNNING, without a lease, with a log; the list item and the detail say it, and the filter finds it."""
    ax.configure(database.url)
    before = datetime.now(UTC)
    agent_id = waiting_activity()
    with ax.activity.run("other") as other:
        assert ax.flush()
        with Session(database.engine) as session:
            detail = ax.activity.detail(session, agent_id)
            (item,) = ax.activity.list(session, waiting=True).items
            assert [one.agent_id for one in ax.activity.list(session, waiting=False).items] == [other.agent_id]
            assert ax.activity.list(session).total == 2
    assert detail is not None
    assert detail.waiting is not None
    assert (item.agent_id, item.status, item.waiting) == (agent_id, "RUNNING", detail.waiting)
    assert (detail.waiting["for"], detail.waiting["items"]) == ("approval", CALLS)
    assert before <= datetime.fromisoformat(detail.waiting["since"]) <= datetime.now(UTC)
    assert item.latest_log == "Waiting for approval: refund, send_mail."
    stored = row(database.engine, agent_id)
    assert (stored.heartbeat_at, stored.lease_expires_at) == (None, None)
    assert item.model_dump(mode="json")["waiting"] == stored.waiting


def test_the_next_report_ends_the_wait(database: Database) -> None:
    """The same attempt continues with a lease, and its block ends it."""
    ax.configure(database.url)
    agent_id = ax.activity.create("refund")
    with ax.activity.run(agent_id) as run:
        run.waiting("answer", message="Which account?")
        assert ax.flush()
        assert row(database.engine, agent_id).waiting is not None
        run.update("Account 7.")
        assert ax.flush()
        stored = row(database.engine, agent_id)
        assert stored.waiting is None
        assert stored.lease_expires_at is not None
    stored = row(database.engine, agent_id)
    assert (stored.status, stored.attempt) == (Status.COMPLETE, 1)
    assert [log.message for log in lines(database.engine, agent_id)][2:4] == ["Which account?", "Account 7."]


def _in_session(database: Database, agent_id: UUID) -> None:
    with Session(database.engine) as session:
        ax.activity.update(agent_id, "Approved.", session=session)


CONTINUE: dict[str, Callable[[Database, UUID], object]] = {
    "update": lambda _, agent_id: ax.activity.update(agent_id, "Approved."),
    "update in a session": _in_session,
    "run": lambda _, agent_id: ax.activity.run(agent_id).__enter__(),
}


@one_database
@pytest.mark.parametrize("how", CONTINUE)
def test_what_continues_a_run(database: Database, how: str) -> None:
    """A report, also in a session, and the start of a run."""
    ax.configure(database.url)
    agent_id = waiting_activity()
    copy_context().run(CONTINUE[how], database, agent_id)  # the block of `run` is never left
    assert ax.flush()
    stored = row(database.engine, agent_id)
    assert (stored.status, stored.attempt, stored.waiting) == (Status.RUNNING, 1, None)
    assert stored.lease_expires_at is not None


@one_database
def test_a_log_of_the_queue_ends_no_wait(database: Database) -> None:
    """It says what happens to the activity, not that it runs."""
    ax.configure(database.url)
    agent_id = waiting_activity()
    ax.activity.update(agent_id, "Approved by Ann.", status="QUEUED")
    stored = row(database.engine, agent_id)
    assert (stored.status, stored.lease_expires_at) == (Status.RUNNING, None)
    assert stored.waiting is not None


@one_database
@pytest.mark.parametrize("end", ["complete", "error", "cancel", "cancel_pending"])
def test_an_end_ends_the_wait(database: Database, end: str) -> None:
    """No ended activity waits, whichever way it has ended."""
    ax.configure(database.url)
    agent_id = waiting_activity()
    if end == "cancel_pending":
        assert ax.activity.cancel_pending() == 1
    else:
        assert getattr(ax.activity, end)(agent_id)
    stored = row(database.engine, agent_id)
    assert stored.status.terminal
    assert stored.waiting is None


def test_a_block_that_is_left_by_an_exception_ends(database: Database) -> None:
    """A wait keeps an activity open, not a failure."""
    ax.configure(database.url)
    with pytest.raises(TimeoutError), ax.activity.run("refund") as run:  # noqa: PT012  # the block is what is tested
        run.waiting(items=CALLS)
        raise TimeoutError
    stored = row(database.engine, run.agent_id)
    assert (stored.status, stored.reason, stored.waiting) == (Status.ERROR, "timeout", None)


@one_database
def test_a_nested_block_that_waits_keeps_the_activity_open(database: Database) -> None:
    """Whichever block has said it: the activity waits, and the outer one does not end it."""
    ax.configure(database.url)
    with ax.activity.run("refund") as outer:
        with ax.activity.run(outer.agent_id) as inner:
            inner.waiting(items=CALLS)
        assert not inner.owner
    assert ax.flush()
    assert row(database.engine, outer.agent_id).status is Status.RUNNING


def test_another_process_ends_the_wait_of_a_block(database: Database, peers: tuple[Peer, Peer]) -> None:
    """A block that waits hears that another process has reported, so it ends when it is left."""
    peers[0].call(configure, database.url)
    ax.configure(database.url)
    with ax.activity.run("refund") as run:
        run.waiting(items=CALLS)
        assert ax.flush()
        peers[0].call(call, "update", run.agent_id, "Approved by Ann.")
        assert eventually(lambda: run.view is not None and not run.view.is_waiting)
    assert row(database.engine, run.agent_id).status is Status.COMPLETE


@one_database
def test_a_span_of_a_run_that_is_canceled_while_it_waits(database: Database, spans: InMemorySpanExporter) -> None:
    """It ends with the cancellation: no block is there that would report token usage."""
    with ax.activity.run("refund") as run:
        run.record_usage(10, 3, model="large")
        run.waiting(items=CALLS)
    assert spans.get_finished_spans() == ()
    ax.activity.cancel(run.agent_id)
    assert ax.flush()
    (span,) = spans.get_finished_spans()
    assert (span.attributes or {})["agentexec.status"] == "CANCELED"


def test_nothing_reaps_a_run_that_waits(database: Database) -> None:
    """Not even if a worker of an earlier version, which knows no waiting runs, has extended its lease."""
    ax.configure(database.url)
    agent_id = waiting_activity()
    with database.engine.begin() as connection:
        connection.execute(update(Activity).values(lease_expires_at=LONG_AGO, updated_at=Activity.updated_at))
    assert ax.activity.reap() == 0
    with Session(database.engine) as session:
        assert ax.activity.reap(session) == 0
    assert row(database.engine, agent_id).status is Status.RUNNING


def test_old_runs_that_wait_are_spared(database: Database) -> None:
    """`cancel_pending(older_than=…)` cancels those that are stuck; those that wait only if it is asked to."""
    ax.configure(database.url)
    waits = waiting_activity()
    stuck = ax.activity.create("stuck")
    running = ax.activity.create("running")
    ax.activity.update(running, "Working.")
    assert ax.flush()
    with database.engine.begin() as connection:
        connection.execute(update(Activity).values(updated_at=LONG_AGO))

    def status(agent_id: UUID) -> str:
        return str(row(database.engine, agent_id).status)

    assert ax.activity.cancel_pending(older_than=timedelta(days=1)) == 2
    assert [status(one) for one in (waits, stuck, running)] == ["RUNNING", "CANCELED", "CANCELED"]
    assert ax.activity.cancel_pending(older_than=timedelta(days=1), waiting=False) == 0
    assert ax.activity.cancel_pending(older_than=timedelta(days=1), waiting=True) == 1
    assert status(waits) == "CANCELED"


@one_database
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"for_": None}, "for_ is None: name what the run waits for"),
        ({"for_": " "}, "for_ is ' ': name what the run waits for"),
        ({"items": "refund"}, "items is 'refund': pass a list of dicts"),
        ({"items": {"tool": "refund"}}, "pass a list of dicts"),
        ({"items": ["refund"]}, "items has 'refund': pass dicts"),
        ({"items": [{"tool": "refund"}] * 101}, "more than 100 items"),
        ({"items": [{"tool": "x" * 20_000}]}, "the items that a run waits for cannot be stored: .* 16384"),
    ],
)
def test_malformed_waits_are_refused(database: Database, arguments: dict[str, Any], sentence: str) -> None:
    """At the call, in one sentence; the run continues."""
    ax.configure(database.url)
    with ax.activity.run("refund") as run, pytest.raises(ValueError, match=sentence):
        run.waiting(**arguments)
    assert row(database.engine, run.agent_id).status is Status.COMPLETE


@one_database
def test_a_malformed_filter_is_refused(database: Database) -> None:
    """The sentence names what to pass."""
    one: Any = 1
    with Session(database.engine) as session, pytest.raises(ValueError, match="waiting is 1: pass True or False"):
        ax.activity.list(session, waiting=one)


def test_items_are_cleaned_and_redacted(database: Database) -> None:
    """As metadata: every database can store them, and no secret of a call is kept."""
    ax.configure(database.url)
    with ax.activity.run("refund") as run:
        run.waiting(
            "a\x00b", [{"tool": "pay \U0001f4b6", "call_id": "\ud800", "api_key": "sk-proj-0123456789abcdefghij"}]
        )
    assert ax.flush()
    waiting = row(database.engine, run.agent_id).waiting
    assert waiting is not None
    assert waiting["for"] == "a\u2400b"
    (item,) = waiting["items"]
    assert (item["tool"], item["call_id"]) == ("pay \U0001f4b6", "\ufffd")
    assert "0123456789" not in str(waiting)


def test_the_testing_kit_keeps_waits() -> None:
    """An application sees in its tests what it has asked for."""
    memory = InMemoryActivityExporter()
    ax.configure(exporters=[memory])
    with ax.activity.run("refund") as run:
        run.waiting(items=CALLS)
    assert ax.flush()
    assert memory.status(run.agent_id) is Status.RUNNING
    assert memory.events[-1].waiting is not None
    assert memory.events[-1].waiting["items"] == CALLS


@one_database
def test_a_worker_that_stops_leaves_the_wait(database: Database) -> None:
    """Its span ends with it; the activity waits for the next one."""
    ax.configure(database.url)
    agent_id = waiting_activity()
    assert ax.shutdown()
    stored = row(database.engine, agent_id)
    assert (stored.status, stored.lease_expires_at) == (Status.RUNNING, None)
    assert stored.waiting is not None


@one_database
def test_a_heartbeat_gives_no_lease_to_a_run_that_waits(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither inside of the block nor after it."""
    monkeypatch.setattr(ax.CONF, "lease_seconds", 0.6)
    ax.configure(database.url)
    with ax.activity.run("refund") as run, ax.activity.run("other") as other:
        run.waiting(items=CALLS)
        assert ax.flush()
        began = row(database.engine, other.agent_id).heartbeat_at
        assert eventually(lambda: row(database.engine, other.agent_id).heartbeat_at != began)
        time.sleep(0.3)
        assert row(database.engine, run.agent_id).lease_expires_at is None
