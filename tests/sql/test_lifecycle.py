"""Every call of the life cycle, on every database."""

import asyncio
import re
import signal
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from threading import main_thread
from typing import Any
from uuid import UUID, uuid4

import pytest
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import Connection, delete
from sqlalchemy.event import listen
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity.models import Activity, ActivityLog, Status
from agentexec_otel.export import StoredActivity
from agentexec_otel_exporters.sql import SQLExporter
from tests.databases import Database
from tests.sql.processes import Peer
from tests.sql.remote import call, configure, create, run_to_the_end, stop
from tests.sql.rows import count_rows, event, eventually, gap_free, lines, opening, row, store


@pytest.fixture(autouse=True)
def configured(database: Database) -> None:
    ax.configure(database.url)


def history(database: Database, agent_id: UUID) -> list[tuple[str, str, int | None]]:
    assert ax.flush()
    return [(str(log.status), log.message, log.percentage) for log in lines(database.engine, agent_id)]


def test_life_with_defaults(database: Database) -> None:
    """Without a message each call writes the configured one; COMPLETE is 100 % unless told otherwise."""
    agent_id = ax.activity.create("research")
    assert ax.activity.update(agent_id, "Reading.", percentage=40)
    assert ax.activity.update(agent_id, "Thinking.")
    assert row(database.engine, agent_id).latest_percentage in (None, 40)
    assert ax.activity.complete(agent_id)
    assert history(database, agent_id) == [
        ("QUEUED", "Waiting to start.", None),
        ("RUNNING", "Reading.", 40),
        ("RUNNING", "Thinking.", None),
        ("COMPLETE", "Task completed successfully.", 100),
    ]
    stored = row(database.engine, agent_id)
    assert (stored.agent_type, stored.status, stored.latest_percentage) == ("research", Status.COMPLETE, 100)
    assert (stored.last_seq, stored.attempt, stored.error_type, stored.reason) == (4, 1, None, None)
    assert stored.started_at is not None
    assert stored.created_at <= stored.started_at <= stored.updated_at


def test_create_returns_after_its_commit(database: Database) -> None:
    """Another connection finds the row at once, with the id, the type and the metadata that were given."""
    given = uuid4()
    returned = ax.activity.create(
        "research", "In line.", agent_id=str(given), metadata={"tenant": "acme", "n": [1, None]}
    )
    assert type(returned) is UUID
    assert returned == given
    with Session(database.engine) as session:
        found = ax.activity.detail(session, given)
    assert found is not None
    assert (found.status, found.agent_type, found.logs[0].message) == (Status.QUEUED, "research", "In line.")
    assert found.metadata == {"tenant": "acme", "n": [1, None]}
    assert found.started_at is None
    assert found.latest_percentage is None


def test_process_that_goes_in_good_order(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it leaves running is not taken for lost, also where many lines have waited in the spool."""
    monkeypatch.setattr(ax.CONF, "max_queue_size", 16)
    ax.configure(database.url)
    agent_id = ax.activity.create("task")
    for number in range(1000):
        ax.activity.update(agent_id, f"Line {number}.")
    assert ax.shutdown()
    found = row(database.engine, agent_id)
    assert (found.status, found.last_seq, found.lease_expires_at) == (Status.RUNNING, 1001, None)


class InterruptedForTest(BaseException):
    """As a signal handler raises it."""


def test_creator_that_is_interrupted(database: Database) -> None:
    """If `create()` is interrupted after its commit, no caller has the new activity's id: its row is removed."""
    exporter = SQLExporter(database.url)
    ax.configure(exporters=[exporter])

    def interrupt(*_: object) -> None:
        raise InterruptedForTest

    def committed(*_: object) -> None:
        signal.pthread_kill(main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        listen(exporter.engine, "checkin", committed, once=True)
        with pytest.raises(InterruptedForTest):
            ax.activity.create("task")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert ax.flush()
    assert count_rows(database.engine) == (0, 0)


def test_messages_are_settings(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Assigning to `ax.CONF` changes the lines that are written from then on."""
    monkeypatch.setattr(ax.CONF, "activity_message_create", "Queued for processing")
    monkeypatch.setattr(ax.CONF, "activity_message_complete", "Successfully finished")
    monkeypatch.setattr(ax.CONF, "activity_message_error", "Failed: {error} ({error})")
    monkeypatch.setattr(ax.CONF, "activity_message_cancel", "Stopped.")
    done, failed, canceled, swept = (ax.activity.create("task") for _ in range(4))
    assert ax.activity.complete(done)
    try:
        raise RuntimeError("out of {error} and {0.__class__}")
    except RuntimeError:
        assert ax.activity.error(failed)
    assert ax.activity.cancel(canceled)
    assert ax.activity.cancel_pending() == 1
    assert [history(database, one)[-1][1] for one in (done, failed, canceled, swept)] == [
        "Successfully finished",
        "Failed: out of {error} and {0.__class__} (out of {error} and {0.__class__})",
        "Stopped.",
        "Stopped.",
    ]
    assert {history(database, one)[0][1] for one in (done, failed, canceled, swept)} == {"Queued for processing"}


def test_error_keeps_the_percentage_and_names_the_exception(database: Database) -> None:
    """ERROR leaves the progress where it was; inside `except`, type and reason are the exception's."""
    agent_id = ax.activity.create("task")
    ax.activity.update(agent_id, "Half way.", percentage=50)
    try:
        raise TimeoutError("too slow")
    except TimeoutError:
        assert ax.activity.error(agent_id, "Gave up.")
    stored = row(database.engine, agent_id)
    assert (stored.status, stored.latest_percentage) == (Status.ERROR, 50)
    assert (stored.error_type, stored.reason) == ("TimeoutError", "timeout")
    assert history(database, agent_id)[-1] == ("ERROR", "Gave up.", None)


def test_error_outside_of_an_exception(database: Database) -> None:
    """ERROR needs no exception; a percentage that is given is taken."""
    agent_id = ax.activity.create("task")
    assert ax.activity.error(agent_id, percentage=30)
    stored = row(database.engine, agent_id)
    assert (stored.status, stored.latest_percentage, stored.error_type) == (Status.ERROR, 30, None)
    assert history(database, agent_id)[-1] == ("ERROR", "Task failed: unknown error", 30)


def test_update_with_a_terminal_status_ends(database: Database) -> None:
    """`update(status=…)` ends an activity as the call of that name does, with the message given."""
    given: list[Status | str] = [Status.COMPLETE, "ERROR", Status.CANCELED]
    for status in given:
        agent_id = ax.activity.create("task")
        assert ax.activity.update(agent_id, "That was it.", percentage=80, status=status)
        stored = row(database.engine, agent_id)
        assert (stored.status, stored.latest_percentage) == (Status(status), 80)
        assert not ax.activity.update(agent_id, "Again.", status=status)
        assert history(database, agent_id)[1:] == [(str(status), "That was it.", 80), (str(status), "Again.", None)]


def test_first_ending_stays(database: Database) -> None:
    """What comes after a terminal status is kept as late, carries the winner's status, and changes nothing."""
    agent_id = ax.activity.create("task")
    ax.activity.update(agent_id, "Working.", percentage=10)
    assert ax.activity.cancel(agent_id, "No longer needed.")
    assert ax.activity.update(agent_id, "Still working.", percentage=90)
    assert not ax.activity.complete(agent_id, "Done all the same.")
    assert not ax.activity.error(agent_id, "Or not.")
    assert not ax.activity.cancel(agent_id)
    assert ax.flush()
    stored, logs = row(database.engine, agent_id), lines(database.engine, agent_id)
    assert (stored.status, stored.latest_percentage, stored.reason) == (Status.CANCELED, 10, "canceled")
    assert [log.late for log in logs] == [False, False, False, True, True, True, True]
    assert {log.status for log in logs[2:]} == {Status.CANCELED}
    assert gap_free(logs)


def test_retry_is_the_next_attempt(database: Database) -> None:
    """A retry re-opens with fresh progress; the history goes on, and a line of the old attempt is late."""
    agent_id = ax.activity.create("task")
    with pytest.raises(ax.ActivityStateError, match=f"activity {agent_id} is QUEUED"):
        ax.activity.retry(agent_id)
    ax.activity.update(agent_id, "First try.", percentage=60)
    ax.activity.error(agent_id, "Failed.")
    assert ax.activity.retry(agent_id) == 2
    stored = row(database.engine, agent_id)
    assert (stored.status, stored.attempt, stored.latest_percentage) == (Status.QUEUED, 2, None)
    assert (stored.started_at, stored.error_type, stored.reason) == (None, None, None)
    ax.activity.update(agent_id, "Second try.", percentage=20)
    assert ax.activity.complete(agent_id)
    assert ax.activity.update(agent_id, "Once more.", status="QUEUED")
    assert row(database.engine, agent_id).attempt == 3
    logs = lines(database.engine, agent_id)
    assert [log.attempt for log in logs] == [1, 1, 1, 2, 2, 2, 3]
    assert [str(log.status) for log in logs] == [
        "QUEUED", "RUNNING", "ERROR", "QUEUED", "RUNNING", "COMPLETE", "QUEUED",
    ]  # fmt: skip
    assert logs[3].message == "Waiting to start."
    assert not any(log.late for log in logs)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_retry_that_the_database_refuses(database: Database) -> None:
    """An activity whose next attempt cannot be stored is not said to be missing, and stays as it was."""
    agent_id = ax.activity.create("task")
    ax.activity.complete(agent_id)
    with database.engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER strict BEFORE INSERT ON agentexec_activity_log WHEN NEW.message = 'poison'"
            " BEGIN SELECT RAISE(ABORT, 'not this'); END"
        )
    with pytest.raises(ax.ActivityNotStoredError, match=f"{agent_id} could not be retried: the database refuses"):
        ax.activity.retry(agent_id, "poison")
    assert row(database.engine, agent_id).status is Status.COMPLETE
    assert ax.activity.retry(agent_id) == 2


def test_retried_elsewhere(database: Database, peers: tuple[Peer, Peer]) -> None:
    """The worker that ran attempt 1 runs attempt 2 as well, which another process has opened."""
    web, worker = peers
    for peer in peers:
        peer.call(configure, database.url)
    agent_id = web.call(create, "task")
    worker.call(run_to_the_end, agent_id)
    assert web.call(call, "retry", agent_id) == 2
    assert worker.call(run_to_the_end, agent_id, ["again"])
    for peer in peers:
        assert peer.call(stop)
    stored = row(database.engine, agent_id)
    assert (stored.status, stored.attempt, stored.last_seq) == (Status.COMPLETE, 2, 7)
    assert not any(log.late for log in lines(database.engine, agent_id))


def test_reporting_on_what_was_retried_elsewhere(database: Database, peers: tuple[Peer, Peer]) -> None:
    """A process that has seen attempt 1 fail reports on attempt 1, until `run(agent_id)` joins the next one."""
    peers[0].call(configure, database.url)
    agent_id = peers[0].call(create, "task")
    assert ax.activity.update(agent_id, "First try.")
    assert ax.activity.error(agent_id, "Failed.")
    assert peers[0].call(call, "retry", agent_id) == 2
    assert peers[0].call(stop)
    assert ax.activity.update(agent_id, "Of the first try.")
    assert not ax.activity.complete(agent_id)
    assert ax.flush()
    stored = row(database.engine, agent_id)
    assert (stored.status, stored.attempt) == (Status.QUEUED, 2)
    with ax.activity.run(agent_id) as run:
        run.update("Second try.")
    assert ax.flush()
    stored = row(database.engine, agent_id)
    assert (stored.status, stored.attempt) == (Status.COMPLETE, 2)
    late = [(log.message, log.attempt) for log in lines(database.engine, agent_id) if log.late]
    assert late == [("Of the first try.", 1), ("Task completed successfully.", 1)]


def test_requeued_after_it_ended_elsewhere(database: Database, peers: tuple[Peer, Peer]) -> None:
    """`update(status="QUEUED")` is a retry also where another process has ended the activity."""
    agent_id = ax.activity.create("task")
    peers[0].call(configure, database.url)
    assert peers[0].call(call, "complete", agent_id)
    assert peers[0].call(stop)
    assert ax.activity.update(agent_id, "Once more.", status="QUEUED")
    assert ax.flush()
    stored = row(database.engine, agent_id)
    assert (stored.status, stored.attempt) == (Status.QUEUED, 2)


def test_canceled_by_its_creator_while_it_is_tried_again(database: Database) -> None:
    """Who has created an activity cancels whichever attempt another process is at, and is told that it was first."""
    agent_id = ax.activity.create("task")
    store(
        database.url,
        [event(agent_id, attempt=1, claims=True, worker_id="other")],
        [event(agent_id, Status.QUEUED, attempt=2, claims=True)],
        [event(agent_id, attempt=2, claims=True, worker_id="other")],
    )
    assert ax.activity.cancel(agent_id)
    canceled = row(database.engine, agent_id)
    assert (canceled.status, canceled.attempt) == (Status.CANCELED, 2)
    assert not lines(database.engine, agent_id)[-1].late


def test_unknown_id_raises(database: Database) -> None:
    """Every call that writes says which id it does not know, and writes nothing."""
    unknown = uuid4()
    for write in (
        lambda: ax.activity.update(unknown, "x"),
        lambda: ax.activity.complete(unknown),
        lambda: ax.activity.error(unknown),
        lambda: ax.activity.cancel(unknown),
        lambda: ax.activity.retry(unknown),
        lambda: ax.activity.run(unknown).__enter__(),
    ):
        with pytest.raises(ax.ActivityNotFoundError, match=str(unknown)) as caught:
            write()
        assert caught.value.agent_id == unknown
        assert isinstance(caught.value, LookupError)
    with Session(database.engine) as session:
        assert ax.activity.detail(session, unknown) is None
        assert ax.activity.logs(session, unknown) == []
        assert ax.activity.list(session).total == 0


@pytest.mark.asyncio
async def test_unknown_id_on_an_event_loop(database: Database) -> None:
    """On an event loop nothing waits for the look-up: the line is refused later, and the next call raises."""
    unknown = uuid4()
    assert ax.activity.update(unknown, "x")
    assert ax.flush()
    with pytest.raises(ax.ActivityNotFoundError):
        ax.activity.update(unknown, "y")
    with Session(database.engine) as session:
        assert ax.activity.list(session).total == 0


def test_same_id_twice(database: Database) -> None:
    """Creating an id that exists raises ValueError, and leaves the first one as it is."""
    agent_id = ax.activity.create("first")
    with pytest.raises(ValueError, match=str(agent_id)):
        ax.activity.create("second", agent_id=agent_id)
    assert (row(database.engine, agent_id).agent_type, row(database.engine, agent_id).last_seq) == ("first", 1)
    assert ax.activity.complete(agent_id)


def test_queries(database: Database) -> None:
    """`list`, `count_active` and `logs` say what the rows say."""
    ids = [ax.activity.create(f"type {number % 2}") for number in range(5)]
    ax.activity.update(ids[0], "Working.", percentage=5)
    ax.activity.complete(ids[1])
    ax.activity.cancel(ids[2])
    assert ax.flush()
    with Session(database.engine) as session:
        assert ax.activity.count_active(session) == 3
        first = ax.activity.list(session, page_size=2)
        assert [item.agent_id for item in first.items] == [ids[4], ids[3]]
        assert (first.total, first.pages, first.page, first.page_size) == (5, 3, 1, 2)
        assert [item.agent_id for item in ax.activity.list(session, 3, 2).items] == [ids[0]]
        assert ax.activity.list(session, 4, 2).items == []
        assert ax.activity.list(session, status="RUNNING").items[0].latest_log == "Working."
        assert ax.activity.list(session, status=[Status.QUEUED, Status.CANCELED]).total == 3
        assert ax.activity.list(session, agent_type="type 1").total == 2
        now = datetime.now(UTC)
        assert ax.activity.list(session, created_after=now - timedelta(minutes=5), created_before=now).total == 5
        assert ax.activity.list(session, created_after=now).total == 0
        assert ax.activity.list(session, total=77).total == 77
        logs = ax.activity.logs(session, ids[0])
        assert [(log.seq, str(log.status)) for log in logs] == [(1, "QUEUED"), (2, "RUNNING")]
        assert [log.seq for log in ax.activity.logs(session, ids[0], after_seq=1)] == [2]
        assert [log.seq for log in ax.activity.logs(session, ids[0], limit=1)] == [1]


def test_late_line_is_not_the_latest(database: Database) -> None:
    """What a worker still says after somebody has canceled its activity is in the history, and not in the list."""
    agent_id = ax.activity.create("task")
    ax.activity.update(agent_id, "Working.")
    assert ax.activity.cancel(agent_id, "Nobody needs it.")
    assert not ax.activity.complete(agent_id, "Done all the same.")
    with Session(database.engine) as session:
        assert [line.late for line in ax.activity.logs(session, agent_id)] == [False, False, False, True]
        (item,) = ax.activity.list(session).items
    assert (item.latest_log, item.status) == ("Nobody needs it.", Status.CANCELED)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_bad_query_arguments(database: Database) -> None:
    """A query argument out of range, or of another type, raises ValueError that shows the value."""
    arguments: list[dict[str, Any]] = [
        {"page": 0},
        {"page": "first"},
        {"page_size": -3},
        {"page_size": 1001},
        {"page_size": 2.5},
        {"status": "DONE"},
        {"status": 7},
        {"agent_type": 5},
        {"created_after": "yesterday"},
        {"created_before": 1_700_000_000},
    ]
    with Session(database.engine) as session:
        for bad in arguments:
            with pytest.raises(ValueError, match=re.escape(str(next(iter(bad.values()))))):
                ax.activity.list(session, **bad)
        with pytest.raises(ValueError, match=r"^'DONE' is no status"):
            ax.activity.list(session, status=("RUNNING", "DONE"))
        assert not session.in_transaction()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_several_statuses(database: Database) -> None:
    """Several statuses come in any collection, as `Status` or as text."""
    ax.configure(database.url)
    ax.activity.create("task")
    several: list[Iterable[Status | str]] = [["QUEUED"], ("QUEUED", Status.ERROR), {"QUEUED"}, iter([Status.QUEUED])]
    with Session(database.engine) as session:
        assert [ax.activity.list(session, status=wanted).total for wanted in several] == [1, 1, 1, 1]
        assert ax.activity.list(session, status=()).total == 0


def test_agent_types_are_told_apart_to_the_letter(database: Database) -> None:
    """A type that differs in case, accent, emoji or a space at its end is another one, whatever the collation says."""
    types = ["sync", "Sync", "sync ", "résumé", "resume", "job 🚀", "job 🎉"]
    for name in types:
        ax.activity.create(name)
    with Session(database.engine) as session:
        for name in types:
            assert [item.agent_type for item in ax.activity.list(session, agent_type=name).items] == [name]
    for name in types:
        assert ax.activity.cancel_pending(agent_type=name) == 1


@pytest.mark.parametrize("huge", [2**31, 2**60, 2**64, 10**40])
def test_numbers_beyond_every_row(database: Database, huge: int) -> None:
    """A page or a cursor behind the last row is empty, as large as it may be."""
    agent_id = ax.activity.create("task")
    with Session(database.engine) as session:
        behind = ax.activity.list(session, page=huge)
        assert (behind.items, behind.total) == ([], 1)
        assert ax.activity.logs(session, agent_id, after_seq=huge) == []
        assert [log.seq for log in ax.activity.logs(session, agent_id, after_seq=-huge, limit=huge)] == [1]
        with pytest.raises(ValueError, match="limit is -1"):
            ax.activity.logs(session, agent_id, limit=-1)


async def test_queued_again_on_an_event_loop(database: Database) -> None:
    """`update` with QUEUED after an ending is a retry there too: nobody waits, and the row has the next attempt."""
    agent_id = await ax.activity.aio.create("task")
    assert await ax.activity.aio.complete(agent_id)
    assert ax.activity.update(agent_id, "Once more.", status="QUEUED")
    ax.activity.update(agent_id, "Working.")
    assert await asyncio.to_thread(ax.flush)
    stored = row(database.engine, agent_id)
    assert (stored.status, stored.attempt, stored.last_seq) == (Status.RUNNING, 2, 4)
    assert ax.activity.update(agent_id, "Waiting again.", status="QUEUED")
    assert await asyncio.to_thread(ax.flush)
    stored = row(database.engine, agent_id)
    assert (stored.status, stored.attempt) == (Status.RUNNING, 2)


async def test_failed_and_tried_again_on_an_event_loop(database: Database, tracer_provider: TracerProvider) -> None:
    """An ending, QUEUED and the next line in one breath: nobody waits, and each is in the attempt it is meant for."""
    ax.configure(database.url, tracer_provider=tracer_provider)
    agent_id = await ax.activity.aio.create("task")
    assert await ax.activity.aio.update(agent_id, "First try.")
    ax.activity.error(agent_id, "Failed.")
    ax.activity.update(agent_id, "Once more.", status="QUEUED")
    ax.activity.update(agent_id, "Second try.")
    assert await asyncio.to_thread(ax.flush)
    stored = row(database.engine, agent_id)
    assert (stored.status, stored.attempt) == (Status.RUNNING, 2)
    logs = lines(database.engine, agent_id)
    assert [log.attempt for log in logs] == [1, 1, 1, 2, 2]
    assert not any(log.late for log in logs)


async def test_going_on_elsewhere_on_an_event_loop(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reports on what another process has created runs it, and keeps it alive, though nobody waits for its row."""
    monkeypatch.setattr(ax.CONF, "heartbeat_interval", 0.1)
    ax.configure(database.url)
    agent_id = uuid4()
    store(database.url, [opening(agent_id)])
    ax.activity.update(agent_id, "Working.")
    assert await asyncio.to_thread(ax.flush)
    told = row(database.engine, agent_id).heartbeat_at
    assert row(database.engine, agent_id).worker_id == ax.health()["worker_id"]
    assert await asyncio.to_thread(eventually, lambda: row(database.engine, agent_id).heartbeat_at != told)


def test_reporting_in_a_session_on_what_was_retried_elsewhere(database: Database) -> None:
    """A session's log concerns the attempt that this process has seen, as one without a session does."""
    agent_id = ax.activity.create("task")
    ax.activity.update(agent_id, "First try.")
    assert ax.activity.error(agent_id, "Failed.")
    store(database.url, [event(agent_id, Status.QUEUED, reopens=True)])
    with Session(database.engine) as session:
        ax.activity.update(agent_id, "Second try.", session=session)
    stored = row(database.engine, agent_id)
    assert (stored.status, stored.attempt) == (Status.QUEUED, 2)
    assert [log.attempt for log in lines(database.engine, agent_id) if log.late] == [1]


@pytest.mark.parametrize("joined", [False, True])
def test_deleted_while_it_is_retried(database: Database, joined: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever retries what a clean-up deletes at the same moment is told so; no nameless activity is left behind."""
    agent_id = ax.activity.create("task")
    assert ax.activity.complete(agent_id)
    exporter = SQLExporter(database.url)
    ax.configure(exporters=[exporter])

    def and_deleted(_: Connection, of_agent: UUID) -> StoredActivity | None:
        found = exporter.load([of_agent]).get(of_agent)
        delete_all(database)
        return found

    monkeypatch.setattr(exporter, "load_in", and_deleted)
    if not joined:
        delete_all(database)
    with Session(database.engine) as session:
        in_session = partial(ax.activity.update, agent_id, "Once more.", status="QUEUED", session=session)
        again = in_session if joined else partial(ax.activity.retry, agent_id)
        with pytest.raises(ax.ActivityNotFoundError):
            again()
    assert count_rows(database.engine) == (0, 0)


def delete_all(database: Database) -> None:
    with Session(database.engine) as session:
        session.execute(delete(ActivityLog))
        session.execute(delete(Activity))
        session.commit()
