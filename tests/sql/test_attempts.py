"""Attempts: what a process reports about attempt n concerns attempt n, and one caller opens the next one."""

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import product
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, text, update
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity.models import Activity
from tests.databases import Database
from tests.sql import remote
from tests.sql.processes import Peer
from tests.sql.retries import retry_at_once, retry_each
from tests.sql.rows import count_rows, eventually, lines, row

pytestmark = pytest.mark.one_python

Call = Callable[[UUID], object]
on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

ENDS: dict[str, Call] = {
    "complete": lambda agent_id: ax.activity.complete(agent_id, "Of attempt 1."),
    "error": lambda agent_id: ax.activity.error(agent_id, "Of attempt 1."),
    "update(COMPLETE)": lambda agent_id: ax.activity.update(agent_id, "Of attempt 1.", status="COMPLETE"),
    "update(ERROR)": lambda agent_id: ax.activity.update(agent_id, "Of attempt 1.", status="ERROR"),
    "aio.complete": lambda agent_id: asyncio.run(ax.activity.aio.complete(agent_id, "Of attempt 1.")),
    "aio.error": lambda agent_id: asyncio.run(ax.activity.aio.error(agent_id, "Of attempt 1.")),
}
"""Calls that end the attempt that this process knows."""


@pytest.fixture
def other(database: Database, peers: tuple[Peer, Peer]) -> Peer:
    """Another process on the same database. This one is configured, too."""
    ax.configure(database.url)
    peers[0].call(remote.configure, database.url)
    return peers[0]


# -- a report of attempt 1 ------------------------------------------------------------------------------------------


@on_sqlite
def test_end_of_an_earlier_attempt(database: Database, other: Peer) -> None:
    """Another process cancels and retries: then every end reported here answers False, is late, and changes nothing.

    This holds whether or not this process has heard that its attempt ended.
    """
    wrong: list[str] = []
    for heard, (name, end) in product((False, True), ENDS.items()):
        agent_id = started()
        retried_elsewhere(other, agent_id, heard=heard)
        answer = end(agent_id)
        found = standing(database.engine, agent_id)
        if (answer, *found) != (False, "QUEUED", 2, 1, True):
            wrong.append(f"{name}, {heard=}: answers {answer}, then {found}")
    assert not wrong, "\n".join(wrong)


@on_sqlite
def test_progress_of_an_earlier_attempt(database: Database, other: Peer) -> None:
    """A progress log of attempt 1 is late, and does not set attempt 2 to RUNNING. Nor does this process lease it."""
    for heard in (False, True):
        agent_id = started()
        retried_elsewhere(other, agent_id, heard=heard)
        for number in range(3):
            ax.activity.update(agent_id, f"Of attempt 1, number {number}.", 99)
        assert standing(database.engine, agent_id) == ("QUEUED", 2, 1, True), f"{heard=}"
        stored = row(database.engine, agent_id)
        assert (stored.latest_percentage, stored.worker_id, stored.lease_expires_at) == (None, None, None)


@on_sqlite
def test_block_of_an_earlier_attempt(database: Database, other: Peer) -> None:
    """A block of attempt 1 never moves or ends attempt 2: its logs and its end are late, and so is what follows it."""
    for heard in (False, True):
        agent_id = ax.activity.create("task")
        with ax.activity.run(agent_id) as run:
            assert ax.flush()
            other.call(remote.call, "cancel", agent_id)
            assert not heard or eventually(functools.partial(getattr, run, "canceled"))
            assert other.call(remote.call, "retry", agent_id) == 2
            run.update("Of attempt 1.", 99)
        assert standing(database.engine, agent_id) == ("QUEUED", 2, 1, True), f"{heard=}"
        ax.activity.update(agent_id, "After the block.")
        assert not ax.activity.complete(agent_id), f"{heard=}"
        assert standing(database.engine, agent_id) == ("QUEUED", 2, 1, True), f"{heard=}"


@on_sqlite
def test_block_hears_of_a_retry(database: Database, other: Peer) -> None:
    """If another process cancels and retries between two polls, the run of attempt 1 is told to stop, once it polls."""
    agent_id = ax.activity.create("task")
    with ax.activity.run(agent_id) as run:
        assert ax.flush()
        stopped = watched(run)
        assert other.call(remote.cancel_and_retry, agent_id) == 2
        assert stopped.wait(10)
        assert run.canceled
    assert standing(database.engine, agent_id) == ("QUEUED", 2, 1, True)


@on_sqlite
def test_block_hears_of_a_retry_from_here(database: Database, other: Peer) -> None:
    """This holds, too, if another thread of this process has retried, and the process has joined attempt 2."""
    agent_id = ax.activity.create("task")
    with ax.activity.run(agent_id) as run:
        assert ax.flush()
        stopped = watched(run)
        other.call(remote.call, "cancel", agent_id)
        assert ax.activity.retry(agent_id) == 2
        assert stopped.wait(10)
        assert run.canceled
    assert standing(database.engine, agent_id) == ("QUEUED", 2, 1, True)


@on_sqlite
def test_attempt_that_runs_elsewhere(database: Database, other: Peer) -> None:
    """While another process runs attempt 2, an end of attempt 1 is late, and the other process ends attempt 2."""
    agent_id = started()
    retried_elsewhere(other, agent_id, heard=True)
    other.call(remote.enter, agent_id)
    other.call(remote.report, agent_id, "Of attempt 2.")
    assert ax.activity.complete(agent_id, "Of attempt 1.") is False
    assert standing(database.engine, agent_id) == ("RUNNING", 2, 1, True)
    other.call(remote.leave, agent_id)
    assert standing(database.engine, agent_id) == ("COMPLETE", 2, 2, False)


@on_sqlite
async def test_ends_on_an_event_loop(database: Database, other: Peer) -> None:
    """Without waiting, an end returns what this process has seen; `aio` returns what the database has decided.

    What the database decides is the same for both: the first ending stays.
    """
    for verb, known in (("complete", False), ("error", False), ("cancel", True)):
        end, end_async = getattr(ax.activity, verb), getattr(ax.activity.aio, verb)
        ended_elsewhere = await ax.activity.aio.create("task")
        other.call(remote.call, "complete", ended_elsewhere, "Elsewhere.")
        assert end(ended_elsewhere) is True, verb
        assert await end_async(ended_elsewhere) is False, verb
        assert standing(database.engine, ended_elsewhere) == ("COMPLETE", 1, 1, True)
        assert [line.late for line in lines(database.engine, ended_elsewhere)] == [False, False, True, True]
        ended_here = await ax.activity.aio.create("task")
        assert end(ended_here) is True, verb
        assert end(ended_here) is known, verb
        assert await end_async(ended_here) is False, verb


# -- what concerns the current attempt ------------------------------------------------------------------------------


@on_sqlite
def test_calls_of_the_current_attempt(database: Database, other: Peer) -> None:
    """`cancel`, `update(CANCELED)`, `cancel_pending`, `reap` and `retry` concern attempt 2, called where 1 is known."""
    engine = database.engine
    calls: dict[str, tuple[Call, tuple[object, ...]]] = {
        "cancel": (ax.activity.cancel, (True, "CANCELED", 2, 2, False)),
        "update(CANCELED)": (
            lambda agent_id: ax.activity.update(agent_id, "Canceled.", status="CANCELED"),
            (True, "CANCELED", 2, 2, False),
        ),
        "cancel_pending": (lambda _: ax.activity.cancel_pending(), (1, "CANCELED", 2, 2, False)),
        "reap": (lambda agent_id: reap_lost(engine, agent_id), (1, "ERROR", 2, 2, False)),
        "retry": (lambda agent_id: retry_canceled(other, agent_id), (3, "QUEUED", 3, 3, False)),
    }
    wrong: list[str] = []
    for heard, (name, (call, expected)) in product((False, True), calls.items()):
        agent_id = started()
        retried_elsewhere(other, agent_id, heard=heard)
        found = (call(agent_id), *standing(engine, agent_id))
        if found != expected:
            wrong.append(f"{name}, {heard=}: {found} instead of {expected}")
        other.call(remote.call, "cancel", agent_id)
    assert not wrong, "\n".join(wrong)


@on_sqlite
def test_joining_a_later_attempt(database: Database, other: Peer) -> None:
    """A process that knows attempt 1 joins attempt 2 by `run(agent_id)`, and attempt 3 by its own `retry()`.

    Reports before that are late. Reports after that concern the attempt that it has joined.
    """
    agent_id = started()
    retried_elsewhere(other, agent_id, heard=True)
    ax.activity.update(agent_id, "Of attempt 1.")
    assert standing(database.engine, agent_id) == ("QUEUED", 2, 1, True)
    with ax.activity.run(agent_id) as run:
        run.update("Of attempt 2.")
        assert standing(database.engine, agent_id) == ("RUNNING", 2, 2, False)
    assert standing(database.engine, agent_id) == ("COMPLETE", 2, 2, False)
    assert ax.activity.retry(agent_id) == 3
    assert ax.activity.update(agent_id, "Of attempt 3.")
    assert standing(database.engine, agent_id) == ("RUNNING", 3, 3, False)
    assert ax.activity.complete(agent_id)
    assert standing(database.engine, agent_id) == ("COMPLETE", 3, 3, False)


# -- one caller opens the next attempt ------------------------------------------------------------------------------


def test_retry_in_threads(database: Database) -> None:
    """Of 8 threads that call `retry()` at once, one gets 2, the others `ActivityStateError`, and one log is stored."""
    ax.configure(database.url)
    for _ in range(5):
        agent_id = ax.activity.create("task")
        assert ax.activity.complete(agent_id)
        answers = retry_at_once(agent_id, 8)
        assert sorted(answers, key=str) == [2] + [None] * 7
        assert len(lines(database.engine, agent_id)) == 3
        assert row(database.engine, agent_id).attempt == 2


def test_retry_in_processes(database: Database, peers: tuple[Peer, Peer]) -> None:
    """Of 2 processes with 4 threads each that call `retry()` at once, one caller gets 2."""
    ax.configure(database.url)
    agent_ids = [ax.activity.create("task") for _ in range(5)]
    for agent_id in agent_ids:
        assert ax.activity.complete(agent_id)
    for peer in peers:
        peer.call(remote.configure, database.url)
    asked = [peer.submit(retry_each, agent_ids, 4) for peer in peers]
    for agent_id, first, second in zip(agent_ids, *(one.result(60) for one in asked), strict=True):
        assert sorted(first + second, key=str) == [2] + [None] * 7
        assert len(lines(database.engine, agent_id)) == 3


# -- `create()` that says "not stored" ------------------------------------------------------------------------------


def test_create_that_is_let_through_too_late(database: Database) -> None:
    """An INSERT that a lock holds up until `create()` has raised leaves no row, and the id can be created then."""
    ax.configure(database.url)
    ax.activity.create("before")  # The connection is there already: the INSERT itself waits.
    before = count_rows(database.engine)
    ax.CONF.create_timeout = 0.3
    agent_id = uuid4()
    with tables_locked(database):
        with pytest.raises(ax.ActivityNotStoredError):
            ax.activity.create("task", agent_id=agent_id)
        time.sleep(0.2)
    ax.CONF.create_timeout = 10.0
    assert ax.flush(20.0)
    ax.activity.create("after")
    assert count_rows(database.engine) == (before[0] + 1, before[1] + 1)
    assert ax.activity.create("task", "The second time.", agent_id=agent_id) == agent_id
    assert [log.message for log in lines(database.engine, agent_id)] == ["The second time."]
    assert standing(database.engine, agent_id) == ("QUEUED", 1, 1, False)


# -- a tenant that is missing ---------------------------------------------------------------------------------------


@on_sqlite
def test_empty_metadata_filter(database: Database) -> None:
    """A filter without a key is refused, as "" is, by reads and writes: a missing tenant never means all tenants."""
    ax.configure(database.url)
    agent_id = ax.activity.create("task", metadata={"tenant": "one"})
    empty: dict[str, str] = {}
    with Session(database.engine) as session:
        for call in (
            lambda: ax.activity.detail(session, agent_id, metadata_filter=empty),
            lambda: ax.activity.list(session, metadata_filter=empty),
            lambda: ax.activity.cancel_pending(metadata_filter=empty),
            lambda: ax.activity.cancel_pending(session, metadata_filter=empty),
            lambda: asyncio.run(ax.activity.aio.cancel_pending(metadata_filter=empty)),
        ):
            with pytest.raises(ValueError, match="metadata_filter"):
                call()
    assert standing(database.engine, agent_id)[0] == "QUEUED"


# -- small parts ----------------------------------------------------------------------------------------------------


def started() -> UUID:
    """An activity whose attempt 1 runs here, without a block."""
    agent_id = ax.activity.create("task")
    assert ax.activity.update(agent_id, "Working.")
    assert ax.flush()
    return agent_id


def retried_elsewhere(other: Peer, agent_id: UUID, *, heard: bool) -> None:
    """Another process cancels and retries. Where `heard`, this process learns of the end by a log that is late."""
    assert other.call(remote.call, "cancel", agent_id)
    if heard:
        ax.activity.update(agent_id, "Still working.")
        assert ax.flush()
    assert other.call(remote.call, "retry", agent_id) == 2


def retry_canceled(other: Peer, agent_id: UUID) -> int:
    """Retry here what another process has canceled."""
    other.call(remote.call, "cancel", agent_id)
    return ax.activity.retry(agent_id)


def watched(run: ax.activity.ActivityRun) -> threading.Event:
    """An event that is set when the run is stopped, as instrumentation stops one."""
    stopped = threading.Event()
    assert run.view is not None
    run.view.when_canceled(stopped.set)
    return stopped


def reap_lost(engine: Engine, agent_id: UUID) -> int:
    """Reap the current attempt, which a worker ran that is lost."""
    values = {
        "status": ax.activity.Status.RUNNING,
        "worker_id": "lost",
        "lease_expires_at": datetime.now(UTC) - timedelta(minutes=1),
    }
    with engine.begin() as connection:
        connection.execute(update(Activity).where(Activity.agent_id == agent_id).values(values))
    return ax.activity.reap()


def standing(engine: Engine, agent_id: UUID) -> tuple[str, int, int, bool]:
    """Status and attempt of the row, attempt and lateness of its last log, once all is stored."""
    assert ax.flush()
    stored, last = row(engine, agent_id), lines(engine, agent_id)[-1]
    return str(stored.status), stored.attempt, last.attempt, last.late


LOCKS = {
    "sqlite": ("BEGIN IMMEDIATE", "ROLLBACK"),
    "postgres": ("LOCK TABLE agentexec_activity IN SHARE MODE", "ROLLBACK"),
    "mariadb": ("LOCK TABLES agentexec_activity WRITE, agentexec_activity_log WRITE", "UNLOCK TABLES"),
}


@contextmanager
def tables_locked(database: Database) -> Generator[None]:
    """Another connection holds a lock that our INSERT has to wait for."""
    lock, release = LOCKS[database.kind]
    with database.engine.connect() as connection:
        if database.kind == "sqlite":
            connection.connection.driver_connection.isolation_level = None  # type: ignore[union-attr]
        connection.execute(text(lock))
        try:
            yield
        finally:
            connection.execute(text(release))
