"""A call inside the caller's session: joined where the caller began the transaction, committed where nobody did."""

import time
from contextlib import nullcontext
from threading import Barrier, Thread
from typing import Any
from uuid import UUID, uuid4

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import text
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import agentexec_otel as ax
from agentexec_otel.activity.models import Activity, Status
from tests.databases import Database
from tests.sql.rows import BusyExporter, count_rows, eventually, gap_free, lines, row


def assert_unknown(agent_id: UUID) -> None:
    with pytest.raises(ax.ActivityNotFoundError):
        ax.activity.update(agent_id, "Ghost.")


def test_auto_begun_is_committed(database: Database, spans: InMemorySpanExporter) -> None:
    """In a plain session each call commits: others see it at once. The session stays open and usable."""
    with Session(database.engine) as session:
        agent_id = ax.activity.create("task", session=session, metadata={"tenant": "acme"})
        assert row(database.engine, agent_id).status is Status.QUEUED
        assert ax.activity.update(agent_id, "Working.", 40, session=session)
        assert row(database.engine, agent_id).latest_percentage == 40
        assert ax.activity.error(agent_id, "No.", session=session)
        assert not ax.activity.complete(agent_id, session=session)
        assert row(database.engine, agent_id).status is Status.ERROR
        assert session.get(Activity, row(database.engine, agent_id).id) is not None
        assert ax.activity.detail(session, agent_id) is not None
    assert ax.flush()
    (span,) = spans.get_finished_spans()
    assert len(span.events) == 4 - 1
    assert lines(database.engine, agent_id)[-1].late


def test_explicit_transaction_is_joined(database: Database, spans: InMemorySpanExporter) -> None:
    """Where the caller began the transaction nothing is visible, and no span exists, before the caller commits."""
    with Session(database.engine) as session, session.begin():
        agent_id = ax.activity.create("task", session=session)
        assert ax.activity.update(agent_id, "Working.", session=session)
        assert ax.activity.complete(agent_id, session=session)
        found = ax.activity.detail(session, agent_id)
        assert found is not None
        assert found.status is Status.COMPLETE
        if database.kind != "sqlite":
            assert count_rows(database.engine) == (0, 0)
        assert not spans.get_finished_spans()
    assert row(database.engine, agent_id).status is Status.COMPLETE
    assert ax.flush()
    assert len(spans.get_finished_spans()) == 1


def test_rollback_leaves_nothing(database: Database, spans: InMemorySpanExporter) -> None:
    """Rolled back, there is no row, no line, no span and no knowledge of it: a later update raises."""
    kept = ax.activity.create("kept")
    with Session(database.engine) as session:
        session.begin()
        gone = ax.activity.create("gone", session=session)
        ax.activity.update(gone, "Working.", session=session)
        ax.activity.complete(kept, session=session)
        session.rollback()
    assert count_rows(database.engine) == (1, 1)
    assert_unknown(gone)
    assert row(database.engine, kept).status is Status.QUEUED
    assert not spans.get_finished_spans()
    assert ax.activity.complete(kept)
    assert ax.flush()
    (span,) = spans.get_finished_spans()
    assert span.name == "kept"


def test_abandoned_transaction_leaves_nothing(database: Database) -> None:
    """Closed, reset or left by an exception without a commit: nothing, also when the session is used again."""
    ax.configure(database.url)
    for how in ("close", "exception", "reset"):
        session = Session(database.engine)
        session.begin()
        gone = ax.activity.create("gone", session=session)
        if how == "exception":
            with pytest.raises(ZeroDivisionError), session:
                _ = 1 / 0
        else:
            getattr(session, how)()
        with session.begin():
            session.execute(text("SELECT 1"))
        with session.begin():
            kept = ax.activity.create("kept", session=session)
        session.close()
        assert_unknown(gone)
        assert ax.activity.complete(kept)
    assert count_rows(database.engine) == (3, 6)


def test_savepoints(database: Database) -> None:
    """What is done in a savepoint lives and dies with it, and with every savepoint around it."""
    ax.configure(database.url)
    with Session(database.engine) as session:
        with session.begin():
            released = session.begin_nested()
            in_released = ax.activity.create("in released", session=session)
            released.commit()
            undone = session.begin_nested()
            in_undone = ax.activity.create("in undone", session=session)
            undone.rollback()
            outer = session.begin_nested()
            inner = session.begin_nested()
            in_inner = ax.activity.create("in inner", session=session)
            inner.commit()
            outer.rollback()
            after = ax.activity.create("after", session=session)
        for gone in (in_undone, in_inner):
            assert_unknown(gone)
        for kept in (in_released, after):
            assert ax.activity.update(kept, "Here.")
    assert ax.flush()
    assert count_rows(database.engine) == (2, 4)


def test_savepoint_in_an_auto_begun_session(database: Database) -> None:
    """A savepoint is begun explicitly, too: a call inside of it commits nothing."""
    ax.configure(database.url)
    with Session(database.engine) as session:
        session.execute(text("SELECT 1"))
        savepoint = session.begin_nested()
        gone = ax.activity.create("gone", session=session)
        savepoint.rollback()
        with session.begin_nested():
            kept = ax.activity.create("kept", session=session)
        session.commit()
    assert_unknown(gone)
    assert ax.activity.complete(kept)
    assert count_rows(database.engine) == (1, 2)


def test_commit_as_you_go(database: Database) -> None:
    """Several explicit transactions of one session, each commits or not by itself."""
    ax.configure(database.url)
    ids: list[UUID] = []
    with Session(database.engine) as session:
        for commit in (True, False, True):
            session.begin()
            ids.append(ax.activity.create("task", session=session))
            (session.commit if commit else session.rollback)()
    assert_unknown(ids[1])
    assert ax.activity.complete(ids[0])
    assert ax.activity.complete(ids[2])
    assert ax.flush()
    assert count_rows(database.engine) == (2, 4)


def test_unknown_and_double_ids_in_a_session(database: Database) -> None:
    """A refused call raises and leaves the caller's transaction usable."""
    ax.configure(database.url)
    with Session(database.engine) as session:
        with session.begin():
            agent_id = ax.activity.create("task", session=session)
            with pytest.raises(ValueError, match="exists already"):
                ax.activity.create("again", agent_id=agent_id, session=session)
            with pytest.raises(ax.ActivityNotFoundError):
                ax.activity.update(uuid4(), "x", session=session)
            with pytest.raises(ValueError, match="is no status"):
                ax.activity.update(agent_id, "x", status="DONE", session=session)
            assert ax.activity.update(agent_id, "Still in it.", session=session)
        assert row(database.engine, agent_id).last_seq == 2
        with pytest.raises(ax.ActivityNotFoundError):
            ax.activity.complete(uuid4(), session=session)
        assert ax.activity.complete(agent_id, session=session)


def test_session_sees_what_it_wrote(database: Database) -> None:
    """Objects of the session that were loaded before show the new state after the call has committed."""
    ax.configure(database.url)
    agent_id = ax.activity.create("task")
    with Session(database.engine) as session:
        loaded = session.query(Activity).filter_by(agent_id=agent_id).one()
        assert loaded.status is Status.QUEUED
        ax.activity.update(agent_id, "Working.", 30, session=session)
        assert (loaded.status, loaded.latest_percentage, len(loaded.logs)) == (Status.RUNNING, 30, 2)


def test_other_kinds_of_session(database: Database) -> None:
    """A session of a sessionmaker, one bound by class, one on a connection, and a scoped one all work."""
    ax.configure(database.url)
    made = sessionmaker(database.engine)()
    by_class = Session(binds={ax.Base: database.engine})
    scoped = scoped_session(sessionmaker(database.engine))
    with database.engine.connect() as connection:
        on_connection = Session(connection)
        sessions: list[Any] = [made, by_class, on_connection, scoped(), scoped]
        for session in sessions:
            agent_id = ax.activity.create("task", session=session)
            assert ax.activity.complete(agent_id, session=session)
            found = ax.activity.detail(session, agent_id)
            assert found is not None
            assert found.status is Status.COMPLETE
            session.close()
    scoped.remove()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_session_of_the_wrong_type(database: Database) -> None:
    """Anything but a Session is a TypeError that says what it was, before anything is written."""
    ax.configure(database.url)
    agent_id = ax.activity.create("task")
    sessions: list[Any] = [database.engine, "session", 5, sessionmaker(database.engine)]
    for wrong in sessions:
        for write in (
            lambda wrong=wrong: ax.activity.create("task", session=wrong),
            lambda wrong=wrong: ax.activity.update(agent_id, "x", session=wrong),
            lambda wrong=wrong: ax.activity.complete(agent_id, session=wrong),
            lambda wrong=wrong: ax.activity.cancel_pending(wrong),
        ):
            with pytest.raises(TypeError, match=type(wrong).__name__):
                write()
        for read in (ax.activity.list, ax.activity.count_active):
            with pytest.raises(TypeError, match=f"must be a sqlalchemy.orm.Session, got {type(wrong).__name__}"):
                read(wrong)
    assert count_rows(database.engine) == (1, 1)


def test_two_sessions_on_one_activity(database: Database) -> None:
    """Sessions of several threads that write to one activity wait for each other: no line is lost, and none fails."""
    ax.configure(database.url)
    agent_id = ax.activity.create("shared")
    start, failures = Barrier(4), list[BaseException]()

    def work(name: int) -> None:
        start.wait(10)
        try:
            for number in range(8):
                with Session(database.engine) as session:
                    ax.activity.update(agent_id, f"{name} {number}", number, session=session)
        except Exception as exc:  # noqa: BLE001
            failures.append(exc)

    threads = [Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    logs = lines(database.engine, agent_id)
    assert len(logs) == 33
    assert gap_free(logs)


def test_race_in_sessions(database: Database) -> None:
    """COMPLETE against CANCELED, each in a session of its own thread: one winner, and the loser is told."""
    ax.configure(database.url)
    start = Barrier(2)
    results: dict[tuple[UUID, str], bool] = {}
    failures: list[BaseException] = []
    ids = [ax.activity.create("raced") for _ in range(15)]

    def work(verb: str) -> None:
        try:
            for agent_id in ids:
                with Session(database.engine) as session:
                    start.wait(10)
                    results[agent_id, verb] = getattr(ax.activity, verb)(agent_id, session=session)
        except Exception as exc:  # noqa: BLE001
            failures.append(exc)
            start.abort()

    threads = [Thread(target=work, args=(verb,)) for verb in ("complete", "cancel")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for agent_id in ids:
        winner = Status.COMPLETE if results[agent_id, "complete"] else Status.CANCELED
        assert results[agent_id, "complete"] is not results[agent_id, "cancel"]
        assert row(database.engine, agent_id).status is winner
        assert [log.late for log in lines(database.engine, agent_id)] == [False, False, True]


def test_life_in_a_session_is_one_span(database: Database, spans: InMemorySpanExporter) -> None:
    """Calls in sessions make the activity's one span, named on its row, as the others do."""
    with Session(database.engine) as session:
        agent_id = ax.activity.create("task", session=session)
        ax.activity.update(agent_id, "Working.", 10, session=session)
        assert ax.flush()
        assert row(database.engine, agent_id).span_id is not None
        ax.activity.update(agent_id, "Beside it.")
        ax.activity.complete(agent_id, session=session)
    assert eventually(spans.get_finished_spans)
    (span,) = spans.get_finished_spans()
    assert f"{span.get_span_context().span_id:016x}" == row(database.engine, agent_id).span_id  # type: ignore[union-attr]
    assert [event.attributes["agentexec.log.status"] for event in span.events if event.attributes] == [
        "QUEUED", "RUNNING", "RUNNING", "COMPLETE",
    ]  # fmt: skip


@pytest.mark.parametrize("explicit", [False, True], ids=["auto-begun", "explicit"])
def test_lines_before_the_session_come_before_it(database: Database, explicit: bool) -> None:
    """What was reported without a session, and waits to be written, is not overtaken by an end in a session."""
    exporter = BusyExporter(database.url)
    ax.configure(exporters=[exporter])
    for _ in range(5):
        agent_id = ax.activity.create("task")
        exporter.busy = 0.05
        for number in range(20):
            ax.activity.update(agent_id, f"Line {number}.", number)
        with Session(database.engine) as session, session.begin() if explicit else nullcontext():
            assert ax.activity.complete(agent_id, session=session)
        logs = lines(database.engine, agent_id)
        assert [log.message for log in logs[1:-1]] == [f"Line {number}." for number in range(20)]
        assert not any(log.late for log in logs)


@pytest.mark.parametrize("database", ["postgres", "mariadb"], indirect=True)
def test_lines_of_others_are_not_waited_for(database: Database) -> None:
    """A call in a session waits for lines of its own activity alone."""
    ax.configure(database.url)
    agent_id, other = ax.activity.create("task"), ax.activity.create("task")
    with database.engine.connect() as holder:
        holder.execute(Activity.__table__.select().where(Activity.agent_id == other).with_for_update())
        ax.activity.update(other, "Has to wait.")
        began = time.monotonic()
        with Session(database.engine) as session:
            assert ax.activity.complete(agent_id, session=session)
        assert time.monotonic() - began < ax.CONF.lookup_timeout / 2
    assert ax.flush(10.0)


def test_session_that_holds_locks_waits_for_nobody(database: Database) -> None:
    """In a transaction that has begun, the writer may be waiting for it: a call in it goes ahead."""
    ax.configure(database.url)
    agent_id = ax.activity.create("task")
    with Session(database.engine) as session, session.begin():
        ax.activity.update(agent_id, "Joined.", session=session)
        ax.activity.update(agent_id, "Has to wait.")
        began = time.monotonic()
        ax.activity.update(agent_id, "Joined as well.", session=session)
        assert time.monotonic() - began < 1.0
    assert ax.flush(10.0)
    messages = [log.message for log in lines(database.engine, agent_id)[1:]]
    assert messages == ["Joined.", "Joined as well.", "Has to wait."]
