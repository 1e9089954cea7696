"""`run()`: the block that owns an activity, on every database."""

import asyncio
import signal
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Event, Thread, Timer
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity.models import Status
from tests.databases import Database
from tests.sql.processes import Peer
from tests.sql.remote import call, configure, stop
from tests.sql.rows import eventually, lines, row


@pytest.fixture(autouse=True)
def configured(database: Database) -> None:
    ax.configure(database.url)


def history(database: Database, agent_id: UUID) -> list[tuple[str, str]]:
    assert ax.flush()
    return [(str(log.status), log.message) for log in lines(database.engine, agent_id)]


def test_block_ends_complete(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block writes QUEUED, RUNNING and COMPLETE with the configured texts, and what is reported in between."""
    monkeypatch.setattr(ax.CONF, "activity_message_started", "Agent is working...")
    with ax.activity.run("research", metadata={"tenant": "acme"}) as run:
        assert run.owner
        assert run.update("Reading.", 30)
        assert ax.activity.update(run.agent_id, "Writing.", 60)
        run.record_usage(1200, 34)
    stored = row(database.engine, run.agent_id)
    assert (stored.status, stored.latest_percentage, stored.metadata_) == (Status.COMPLETE, 100, {"tenant": "acme"})
    assert (stored.input_tokens, stored.output_tokens) == (1200, 34)
    assert stored.worker_id
    assert history(database, run.agent_id) == [
        ("QUEUED", "Waiting to start."),
        ("RUNNING", "Agent is working..."),
        ("RUNNING", "Reading."),
        ("RUNNING", "Writing."),
        ("COMPLETE", "Task completed successfully."),
    ]


class RefusedError(Exception):
    """An application's own error."""


def fail_in(run: ax.activity.ActivityRun, raised: BaseException) -> None:
    with run:
        assert ax.activity.current() is run
        run.update("Half way.", 50)
        raise raised


ENDINGS: list[tuple[Callable[[], BaseException], str | None, str, str]] = [
    (lambda: RefusedError("no {braces} here"), f"{__name__}.RefusedError", "other", "Task failed: no {braces} here"),
    (TimeoutError, "TimeoutError", "timeout", "Task failed: TimeoutError"),
    (lambda: KeyError("bug"), "KeyError", "other", "Task failed: KeyError: 'bug'"),
    (lambda: SystemExit(3), "SystemExit", "other", "Task failed: SystemExit: 3"),
    (lambda: SystemExit(0), None, "canceled", "Task canceled."),
    (KeyboardInterrupt, None, "canceled", "Task canceled."),
    (asyncio.CancelledError, None, "canceled", "Task canceled."),
]


def test_block_ends_as_it_was_left(database: Database) -> None:
    """An exception is ERROR with its type and a reason, a cancellation CANCELED; the exception goes on."""
    for make, error_type, reason, text in ENDINGS:
        raised = make()
        status = Status.CANCELED if reason == "canceled" else Status.ERROR
        run = ax.activity.run("task")
        with pytest.raises(type(raised)) as caught:
            fail_in(run, raised)
        assert caught.value is raised
        stored = row(database.engine, run.agent_id)
        assert (stored.status, stored.error_type, stored.reason) == (status, error_type, reason)
        assert stored.latest_percentage == 50
        assert history(database, run.agent_id)[-1] == (str(status), text)


def test_existing_activity_is_run(database: Database) -> None:
    """An id, as UUID or text, runs the activity that has it, with a first line of its own; a name creates a new one."""
    for as_text in (False, True):
        agent_id = ax.activity.create("task")
        with ax.activity.run(str(agent_id) if as_text else agent_id, "Here we go.") as run:
            assert run.agent_id == agent_id
        assert history(database, agent_id)[1] == ("RUNNING", "Here we go.")
    wanted = uuid4()
    with ax.activity.run("new", agent_id=wanted) as run:
        assert run.agent_id == wanted
    assert row(database.engine, wanted).agent_type == "new"


def test_metadata_belongs_to_a_new_activity() -> None:
    """An id together with `metadata` or `agent_id` is refused before anything happens."""
    given: list[Any] = [{"metadata": {"a": 1}}, {"agent_id": uuid4()}]
    for more in given:
        with pytest.raises(ValueError, match="belong to a new activity"):
            ax.activity.run(uuid4(), **more)


@pytest.mark.parametrize("given", [None, 5, b"research"], ids=["None", "int", "bytes"])
def test_neither_a_name_nor_an_id(given: Any) -> None:
    """What is neither a task name nor an id is refused, where it would have made an activity named `None`."""
    with pytest.raises(ValueError, match="give it a task name or an agent_id"):
        ax.activity.run(given)


def test_inner_block_leaves_the_end_to_the_outer(database: Database) -> None:
    """A block inside one of the same activity reports only; its failure decides nothing, and `current()` follows."""
    assert ax.activity.current() is None
    with ax.activity.run("task") as outer:
        assert ax.activity.current() is outer
        inner = ax.activity.run(outer.agent_id, "Inside.")
        with pytest.raises(RefusedError):
            fail_in(inner, RefusedError())
        assert not inner.owner
        with ax.activity.run(outer.agent_id):
            pass
        assert ax.activity.current() is outer
        assert ax.flush()
        assert row(database.engine, outer.agent_id).status is Status.RUNNING
    assert ax.activity.current() is None
    assert history(database, outer.agent_id) == [
        ("QUEUED", "Waiting to start."),
        ("RUNNING", "Task started."),
        ("RUNNING", "Inside."),
        ("RUNNING", "Half way."),
        ("COMPLETE", "Task completed successfully."),
    ]


def test_ended_inside_stays_ended(database: Database) -> None:
    """`complete`, `error` and `cancel` inside the block are its end; leaving it changes nothing."""
    for end, status in (
        (ax.activity.complete, "COMPLETE"),
        (ax.activity.error, "ERROR"),
        (ax.activity.cancel, "CANCELED"),
    ):
        with ax.activity.run("task") as run:
            end(run.agent_id, "By hand.")
        assert ax.flush()
        in_time = [log for log in lines(database.engine, run.agent_id) if not log.late]
        assert [(str(log.status), log.message) for log in in_time[2:]] == [(status, "By hand.")]
        assert row(database.engine, run.agent_id).status == status


@pytest.mark.parametrize("tokens", [None, 10])
@pytest.mark.parametrize(("end", "raises"), [("cancel", True), ("complete", False)])
def test_an_ending_is_not_repeated(database: Database, end: str, raises: bool, tokens: int | None) -> None:
    """After the application has ended it in its own words, the block adds only its usage, if it has any."""
    with suppress(ax.ActivityCanceledError), ax.activity.run("task") as run:
        if tokens is not None:
            run.record_usage(tokens, 3)
        getattr(ax.activity, end)(run.agent_id, "By hand.")
        if raises:
            raise ax.ActivityCanceledError(run.agent_id)
    assert ax.flush()
    added = [] if tokens is None else [(True, "Usage: input tokens 10, output tokens 3.")]
    told = [(log.late, log.message) for log in lines(database.engine, run.agent_id)]
    assert told[2:] == [(False, "By hand."), *added]
    assert row(database.engine, run.agent_id).input_tokens == tokens


def test_an_exception_after_the_end_is_kept(database: Database) -> None:
    """`error()` inside the block is its end; the exception that leaves it later says more, so it is a late log."""
    with suppress(ValueError), ax.activity.run("task") as run:
        run.record_usage(10, 3)
        ax.activity.error(run.agent_id, "By hand.")
        raise ValueError("the reason")
    assert ax.flush()
    told = [(log.late, log.message) for log in lines(database.engine, run.agent_id)]
    assert told[2:] == [(False, "By hand."), (True, "Task failed: the reason")]


def test_canceled_by_another_thread(database: Database) -> None:
    """The block learns that another thread of its process has canceled it, and its own end comes late."""
    with ax.activity.run("task") as run:
        assert not run.canceled
        thread = Thread(target=ax.activity.cancel, args=(run.agent_id,))
        thread.start()
        thread.join()
        assert run.canceled
    assert row(database.engine, run.agent_id).status is Status.CANCELED


def test_canceled_by_another_process(database: Database, peers: tuple[Peer, Peer]) -> None:
    """The block learns with its next line that another process has canceled it; the row keeps CANCELED."""
    peers[0].call(configure, database.url)
    with ax.activity.run("task") as run:
        assert ax.flush()
        assert peers[0].call(call, "cancel", run.agent_id)
        run.update("Still here.")
        assert eventually(lambda: run.canceled)
    assert peers[0].call(stop)
    assert ax.flush()
    stored, logs = row(database.engine, run.agent_id), lines(database.engine, run.agent_id)
    assert stored.status is Status.CANCELED
    assert [(log.late, str(log.status)) for log in logs[2:]] == [
        (False, "CANCELED"), (True, "CANCELED"), (True, "CANCELED"),
    ]  # fmt: skip


def test_run_of_an_activity_that_has_ended(database: Database) -> None:
    """Running it again without a retry keeps its lines as late, and its end as it was."""
    agent_id = ax.activity.create("task")
    ax.activity.error(agent_id)
    with ax.activity.run(agent_id) as run:
        run.update("Too late.")
    assert ax.flush()
    assert row(database.engine, agent_id).status is Status.ERROR
    assert [log.late for log in lines(database.engine, agent_id)] == [False, False, True, True, True]


def test_block_is_entered_once() -> None:
    """A block cannot be used twice, and has no id before it is entered."""
    run = ax.activity.run("task")
    with pytest.raises(RuntimeError, match="inside of it"):
        _ = run.agent_id
    with run:
        pass
    with pytest.raises(RuntimeError, match=r"call ax\.activity\.run"), run:
        pass


async def test_async_block(database: Database) -> None:
    """`async with` does the same; `current()` holds across `await`, threads and tasks, and not beside them."""
    seen: list[UUID | None] = []

    def note() -> None:
        found = ax.activity.current()
        seen.append(found.agent_id if found is not None else None)

    async def one(number: int) -> UUID:
        async with ax.activity.run("task") as run:
            await asyncio.sleep(0.01)
            assert ax.activity.current() is run
            run.update(f"Line {number}.")
            await asyncio.to_thread(note)
        return run.agent_id

    ids = await asyncio.gather(*(one(number) for number in range(3)))
    assert ax.activity.current() is None
    assert sorted(filter(None, seen)) == sorted(ids)
    for number, agent_id in enumerate(ids):
        assert row(database.engine, agent_id).status is Status.COMPLETE
        assert ("RUNNING", f"Line {number}.") in history(database, agent_id)


async def test_an_async_block_waits_for_no_thread(database: Database) -> None:
    """The application may keep all threads of its event loop busy, even with what waits for this very block."""
    agent_id = await ax.activity.aio.create("research")
    busy = Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    waiting = loop.run_in_executor(None, busy.wait, 20)
    try:
        async with asyncio.timeout(5), ax.activity.run(agent_id), ax.activity.run("part") as part:
            pass
    finally:
        busy.set()
        await waiting
    assert ax.flush()
    assert {row(database.engine, each).status for each in (agent_id, part.agent_id)} == {Status.COMPLETE}


async def test_canceled_task_is_canceled(database: Database) -> None:
    """Cancelling the asyncio task that runs an activity ends it as CANCELED, and the cancellation goes on."""
    entered = asyncio.Event()
    runs: list[ax.activity.ActivityRun] = []

    async def work() -> None:
        async with ax.activity.run("task") as run:
            runs.append(run)
            entered.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert row(database.engine, runs[0].agent_id).status is Status.CANCELED


async def test_abandoned_generator(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """An async generator that another task closes than the one that started it ends its activity, without complaint."""
    runs: list[Any] = []

    async def stream() -> AsyncGenerator[int]:
        async with ax.activity.run("stream") as run:
            runs.append(run)
            for number in range(10):
                yield number

    generator = stream()

    async def begin() -> None:
        await anext(generator)

    async def close() -> None:
        await generator.aclose()

    await asyncio.create_task(begin())
    await asyncio.create_task(close())
    assert ax.flush()
    assert row(database.engine, runs[0].agent_id).status is Status.CANCELED
    assert ax.activity.current() is None
    assert not caplog.records


@contextmanager
def nobody_writes(database: Database, seconds: float) -> Generator[None]:
    """The database is away for that long, and the block is left once it is back."""
    with database.engine.connect() as holder:
        holder.exec_driver_sql("BEGIN IMMEDIATE")
        back = Timer(seconds, holder.rollback)
        back.start()
        yield
        back.join()


def nothing_is_left_queued(database: Database) -> bool:
    """Whatever was stored of an activity whose creator has gone is ended."""
    with Session(database.engine) as session:
        return ax.flush() and ax.activity.count_active(session) == 0


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_canceled_before_it_has_begun(database: Database) -> None:
    """A task that is canceled while its block waits for the row leaves none behind that waits for ever to be run."""

    async def work() -> None:
        async with ax.activity.run("task"):
            pytest.fail("entered")

    with nobody_writes(database, 0.6):
        task = asyncio.create_task(work())
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert nothing_is_left_queued(database)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_canceled_as_its_row_is_committed(database: Database) -> None:
    """Nor does a call that is canceled once its row is there, and before it could return the id."""
    task = asyncio.create_task(ax.activity.aio.create("task"))
    await asyncio.sleep(0)
    assert ax.flush()  # On the loop, which hears of the commit only after the cancellation.
    assert not nothing_is_left_queued(database)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert nothing_is_left_queued(database)


def enter(name: str) -> object:
    return ax.activity.run(name).__enter__()


BEGINNINGS: list[Callable[[str], object]] = [ax.activity.create, enter]


class TimeLimitError(Exception):
    """As a worker raises it in whatever its main thread does at the moment."""


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("begin", BEGINNINGS)
def test_interrupted_before_it_has_begun(database: Database, begin: Callable[[str], object]) -> None:
    """So does a call that Ctrl-C, or an exception of another signal handler, has ended."""

    def interrupt(*_: object) -> None:
        raise TimeLimitError

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with nobody_writes(database, 0.6):
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(TimeLimitError):
                begin("task")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert nothing_is_left_queued(database)
