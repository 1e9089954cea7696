"""Celery tasks as activities, with real workers on a real Redis."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from uuid import UUID, uuid4

import pytest
from celery import Celery  # pyright: ignore[reportMissingTypeStubs]
from celery import signals as signals_of_celery  # pyright: ignore[reportMissingTypeStubs]
from celery.exceptions import Reject  # pyright: ignore[reportMissingTypeStubs]
from opentelemetry import context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import select
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity.models import Activity, Status
from agentexec_otel.tasks.celery import track, untrack
from tests.brokers import REDIS, need
from tests.chaos.proxy import Proxy
from tests.databases import Database, Servers, create_tables, open_database
from tests.e2e.scripted import INPUT_TOKENS, agent, look_ups, say
from tests.sql.rows import eventually, lines, row

celery_signals: Any = signals_of_celery

ROOT = Path(__file__).parents[2]


pytestmark = [pytest.mark.one_python, pytest.mark.chaos]


class Worker:
    """A `celery worker` on a queue of its own, with everything that it leaves in a folder."""

    def __init__(self, folder: Path, url: str, pool: str = "prefork", **environment: str) -> None:
        folder.mkdir()
        self.folder = folder
        self.queue = f"agentexec_test_{uuid4().hex}"
        self._log = (folder / "log.txt").open("wb")
        command = ["-m", "celery", "-A", "tests.e2e.celery_app", "worker", "-P", pool, "-c", "2", "-l", "INFO"]
        self.process = subprocess.Popen(
            [sys.executable, *command, "--without-gossip", "--without-mingle", "-n", self.queue],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": f"{ROOT}:{ROOT / 'exporters'}",
                "CELERY_TEST_FOLDER": str(folder),
                "CELERY_TEST_URL": url,
                "CELERY_TEST_REDIS": REDIS,
                "CELERY_TEST_QUEUE": self.queue,
                "XDG_STATE_HOME": str(folder / "state"),
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        self.app: Any = Celery("publisher", broker=REDIS, backend=REDIS, set_as_current=False)
        self.app.conf.task_default_queue = self.queue

    def __enter__(self) -> Self:
        assert eventually(lambda: " ready." in self.log or self.process.poll() is not None, 60), self.log
        assert self.process.poll() is None, self.log
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
        self._log.close()
        with self.app.connection_for_write() as connection:
            redis = connection.default_channel.client
            if left := redis.keys(f"*{self.queue}*"):
                redis.delete(*left)
        self.app.close()

    @property
    def log(self) -> str:
        return (self.folder / "log.txt").read_text(errors="replace")

    @property
    def notes(self) -> list[str]:
        file = self.folder / "notes.txt"
        return file.read_text().splitlines() if file.exists() else []

    def spans(self, agent_id: UUID) -> list[dict[str, Any]]:
        """The spans of that activity, in the order in which they ended."""
        return [span for span in self.all_spans() if span["agent_id"] == str(agent_id)]

    def all_spans(self) -> list[dict[str, Any]]:
        file = self.folder / "spans.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def send(self, name: str, *args: Any, **options: Any) -> UUID:
        """Publish a task; its activity's id."""
        sent = self.app.send_task(name, args=args, **options)
        return UUID(sent.id)

    def result(self, agent_id: UUID, timeout: float = 20) -> Any:
        return self.app.AsyncResult(str(agent_id)).get(timeout=timeout)

    def state(self, agent_id: UUID) -> str:
        return str(self.app.AsyncResult(str(agent_id)).state)

    def enough(self, agent_id: UUID) -> None:
        """Let a task of the name `long` end."""
        (self.folder / f"enough {agent_id}").touch()

    def kill(self) -> None:
        """SIGKILL for it and all its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


@pytest.fixture(scope="module")
def redis() -> None:
    """Redis is there."""
    need("redis")


@pytest.fixture(scope="module", params=["postgres"])
def shared(
    request: pytest.FixtureRequest, servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    """A database for many tests, as a worker takes seconds to start. SQLite is for those with other pools."""
    with open_database(request.param, servers, tmp_path_factory.mktemp(request.param)) as opened:
        create_tables(opened)
        yield opened


@pytest.fixture(scope="module")
def prefork(redis: None, shared: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker with two processes."""
    with Worker(tmp_path_factory.mktemp("worker") / "prefork", shared.url) as running:
        yield running


@pytest.fixture
def publisher(shared: Database, tracer_provider: TracerProvider) -> Iterator[TracerProvider]:
    """This process publishes, and tracks what it does."""
    ax.configure(shared.url, tracer_provider=tracer_provider)
    track()
    yield tracer_provider
    untrack()


@pytest.fixture
def worker(prefork: Worker, publisher: TracerProvider) -> Worker:
    """The worker, and a publisher that tracks."""
    return prefork


def told(database: Database, agent_id: UUID) -> list[tuple[str, str]]:
    return [(str(line.status), line.message) for line in lines(database.engine, agent_id)]


def ended(database: Database, agent_id: UUID, timeout: float = 20.0) -> Activity:
    """The row once it is there, and has ended."""

    def status() -> Status | None:
        with Session(database.engine) as session:
            return session.scalar(select(Activity.status).where(Activity.agent_id == agent_id))

    assert eventually(lambda: (found := status()) is not None and found.terminal, timeout), told(database, agent_id)
    return row(database.engine, agent_id)


def runs(database: Database, agent_id: UUID) -> bool:
    return row(database.engine, agent_id).status is Status.RUNNING


# -- how tasks end ----------------------------------------------------------------------------------------------


def test_success(shared: Database, worker: Worker, publisher: TracerProvider) -> None:
    """QUEUED when `send_task` returns, COMPLETE at the end; one trace from the publisher to the task's own spans."""
    with publisher.get_tracer("web").start_as_current_span("request") as request:
        agent_id = worker.send("research", "Acme")
        assert told(shared, agent_id)[0] == ("QUEUED", "Waiting to start.")
    assert worker.result(agent_id) == "Acme is fine"
    done = ended(shared, agent_id)
    assert (done.status, done.agent_type, done.latest_percentage, done.attempt) == ("COMPLETE", "research", 100, 1)
    assert told(shared, agent_id) == [
        ("QUEUED", "Waiting to start."),
        ("RUNNING", "Task started."),
        ("RUNNING", "Reading about Acme"),
        ("COMPLETE", "Task completed successfully."),
    ]
    assert eventually(lambda: worker.spans(agent_id))
    (span,) = worker.spans(agent_id)
    parent = request.get_span_context()
    assert (span["trace_id"], span["parent_id"]) == (f"{parent.trace_id:032x}", f"{parent.span_id:016x}")
    assert (span["name"], span["status"], done.span_id) == ("research", "UNSET", span["span_id"])
    (child,) = [one for one in worker.all_spans() if one["parent_id"] == span["span_id"]]
    assert (child["name"], child["trace_id"]) == ("read", span["trace_id"])


def test_failure(shared: Database, worker: Worker) -> None:
    """What a task raises is its activity's ERROR, and its span's."""
    agent_id = worker.send("fail")
    failed = ended(shared, agent_id)
    assert (failed.status, failed.error_type, failed.reason) == ("ERROR", "LookupError", "other")
    assert told(shared, agent_id)[-1] == ("ERROR", "Task failed: no such company")
    assert eventually(lambda: [span["status"] for span in worker.spans(agent_id)] == ["ERROR"])


def test_soft_time_limit(shared: Database, worker: Worker) -> None:
    """A task that meets its soft time limit has taken too long: the reason is that of any other timeout."""
    agent_id = worker.send("long", soft_time_limit=1)
    failed = ended(shared, agent_id)
    assert (failed.status, failed.reason) == ("ERROR", "timeout")
    assert failed.error_type == "billiard.exceptions.SoftTimeLimitExceeded"


def test_unknown_task(shared: Database, worker: Worker) -> None:
    """A worker that does not have the task drops its message; the activity fails, and says so."""
    agent_id = worker.send("nothing.of.that.name")
    failed = ended(shared, agent_id)
    assert (failed.status, failed.error_type) == ("ERROR", "celery.exceptions.NotRegistered")
    assert "the worker has no task 'nothing.of.that.name': have it import" in told(shared, agent_id)[-1][1]


@pytest.mark.parametrize(
    ("header", "value"), [("agentexec_agent_id", "x"), ("agentexec_attempt", "x"), ("agentexec_attempt", 999_999_999)]
)
def test_forged_header(shared: Database, worker: Worker, header: str, value: object) -> None:
    """A header that is malformed, or cannot be, keeps no task from running, and its activity ends as it does."""

    def forge(headers: dict[str, Any], **_: Any) -> None:
        headers[header] = value

    celery_signals.before_task_publish.connect(forge, weak=False, dispatch_uid="forge")
    agent_id = worker.send("research", "Acme")
    celery_signals.before_task_publish.disconnect(dispatch_uid="forge")
    assert worker.result(agent_id) == "Acme is fine"
    done = ended(shared, agent_id)
    assert (done.status, done.attempt) == ("COMPLETE", 1)


def test_retry_then_success(shared: Database, worker: Worker, publisher: TracerProvider) -> None:
    """`self.retry()` is the next attempt of the same activity: a second span, linked to the first, which is ERROR."""
    with publisher.get_tracer("web").start_as_current_span("request"):
        agent_id = worker.send("flaky", 1)
    assert worker.result(agent_id) == "at last"
    done = ended(shared, agent_id)
    assert (done.status, done.attempt, done.error_type) == ("COMPLETE", 2, None)
    assert told(shared, agent_id) == [
        ("QUEUED", "Waiting to start."),
        ("RUNNING", "Task started."),
        ("RUNNING", "Task failed and will be tried again: too slow"),
        ("QUEUED", "Waiting to start."),
        ("RUNNING", "Task started."),
        ("COMPLETE", "Task completed successfully."),
    ]
    assert eventually(lambda: len(worker.spans(agent_id)) == 2)
    first, second = worker.spans(agent_id)
    assert [(span["attempt"], span["status"]) for span in (first, second)] == [(1, "ERROR"), (2, "UNSET")]
    assert second["links"] == [first["span_id"]]
    assert first["trace_id"] == second["trace_id"]


def test_retries_exhausted(shared: Database, worker: Worker) -> None:
    """`autoretry_for`: the last attempt's failure is the activity's."""
    agent_id = worker.send("stubborn")
    failed = ended(shared, agent_id)
    assert (failed.status, failed.error_type, failed.attempt) == ("ERROR", "OSError", 2)
    assert [status for status, _ in told(shared, agent_id)] == [
        *("QUEUED", "RUNNING", "RUNNING", "QUEUED", "RUNNING", "ERROR"),
    ]
    assert eventually(lambda: [span["status"] for span in worker.spans(agent_id)] == ["ERROR", "ERROR"])


def test_replaced(shared: Database, worker: Worker) -> None:
    """A task that has another one do its work is complete; the other one is an activity of its own."""
    agent_id = worker.send("replaced")
    assert worker.result(agent_id) == "Acme is fine"
    assert ended(shared, agent_id).status is Status.COMPLETE
    assert [status for status, _ in told(shared, agent_id)] == ["QUEUED", "RUNNING", "COMPLETE"]


# -- how they are stopped ---------------------------------------------------------------------------------------


def test_revoked_before_the_start(shared: Database, worker: Worker) -> None:
    """A task that the worker drops since it was revoked ends CANCELED, and has never run."""
    agent_id = worker.send("long", countdown=1.5)
    time.sleep(0.3)
    worker.app.control.revoke(str(agent_id))
    canceled = ended(shared, agent_id)
    assert (canceled.status, canceled.reason) == ("CANCELED", "canceled")
    assert told(shared, agent_id) == [("QUEUED", "Waiting to start."), ("CANCELED", "Task canceled.")]


def test_expired_before_the_start(shared: Database, worker: Worker) -> None:
    """A task that has expired ends CANCELED, with the reason `timeout`."""
    agent_id = worker.send("long", countdown=1.5, expires=0.5)
    canceled = ended(shared, agent_id)
    assert (canceled.status, canceled.reason) == ("CANCELED", "timeout")


def test_terminated_while_running(shared: Database, worker: Worker) -> None:
    """`revoke(terminate=True)` ends the activity as CANCELED, at once."""
    agent_id = worker.send("long")
    assert eventually(lambda: f"long {agent_id}" in worker.notes)
    worker.app.control.revoke(str(agent_id), terminate=True)
    canceled = ended(shared, agent_id)
    assert (canceled.status, canceled.reason) == ("CANCELED", "canceled")
    assert worker.result(worker.send("research", "Acme"))  # The pool has replaced its process, and goes on.


def test_activity_canceled_before_the_start(shared: Database, worker: Worker) -> None:
    """A task whose activity was canceled is not run, and whoever waits for its result is told."""
    agent_id = worker.send("long", countdown=1.5)
    assert ax.activity.cancel(agent_id)
    assert eventually(lambda: worker.state(agent_id) == "REVOKED")
    assert f"long {agent_id}" not in worker.notes
    assert [status for status, _ in told(shared, agent_id)] == ["QUEUED", "CANCELED"]


def test_activity_canceled_while_running(shared: Database, worker: Worker) -> None:
    """The task can ask, and the activity stays CANCELED whatever it does."""
    agent_id = worker.send("long")
    assert eventually(lambda: ("RUNNING", "Working.") in told(shared, agent_id))
    assert ax.activity.cancel(agent_id)
    time.sleep(1.5)  # It says nothing, and learns of it all the same.
    worker.enough(agent_id)
    worker.result(agent_id)
    assert f"long {agent_id} canceled: True" in worker.notes
    assert ended(shared, agent_id).status is Status.CANCELED
    assert [status for status, _ in told(shared, agent_id)] == ["QUEUED", "RUNNING", "RUNNING", "CANCELED"]


# -- how they are lost ------------------------------------------------------------------------------------------


def test_process_of_the_task_is_killed(shared: Database, worker: Worker) -> None:
    """The worker's main process says so at once."""
    agent_id = worker.send("killed")
    lost = ended(shared, agent_id)
    assert (lost.status, lost.error_type, lost.reason) == ("ERROR", "billiard.exceptions.WorkerLostError", "lost")


def test_message_comes_again(shared: Database, worker: Worker) -> None:
    """`acks_late` and `reject_on_worker_lost`: the redelivery is the next attempt, and ends as the task does then."""
    agent_id = worker.send("late")
    done = ended(shared, agent_id)
    assert (done.status, done.attempt) == ("COMPLETE", 2)
    assert worker.notes.count("late") == 2
    assert eventually(lambda: [span["attempt"] for span in worker.spans(agent_id)] == [2])


@pytest.mark.usefixtures("redis")
def test_worker_is_killed(shared: Database, tmp_path: Path) -> None:
    """`kill -9` for all of a worker: its activity ends as ERROR, lost, once the lease is over."""
    ax.CONF.lease_seconds, ax.CONF.sweep_interval = 1.0, 0.3
    ax.configure(shared.url)
    track()
    try:
        with Worker(tmp_path / "worker", shared.url, AGENTEXEC_LEASE_SECONDS="1") as victim:
            agent_id = victim.send("long")
            assert eventually(lambda: f"long {agent_id}" in victim.notes)
            time.sleep(1.5)
            assert runs(shared, agent_id)  # It shows that it is alive.
            victim.kill()
            lost = ended(shared, agent_id)
            assert (lost.status, lost.error_type, lost.reason) == ("ERROR", "WorkerLost", "lost")
    finally:
        untrack()


# -- a database that is away ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("redis")
@pytest.mark.parametrize("trouble", ["refused", "black hole"])
@pytest.mark.parametrize("shared", ["postgres"], indirect=True)
def test_database_away(shared: Database, tmp_path: Path, trouble: str) -> None:
    """Neither publishing nor running waits longer than two seconds, and what happened is stored once it is back."""
    with Proxy(shared.url) as proxy, Worker(tmp_path / "worker", proxy.url, pool="solo") as worker:
        ax.configure(proxy.url)
        track()
        try:
            warm = worker.send("research", "Acme")
            ended(shared, warm)
            proxy.refuse() if trouble == "refused" else proxy.blackhole()
            began = time.monotonic()
            first = worker.send("research", "Acme")
            sent = time.monotonic() - began
            assert worker.result(first) == "Acme is fine"
            done = time.monotonic() - began
            proxy.let_pass()
            complete = ended(shared, first, 60)
            # What the worker has stored first is a stub until the publisher's line is there.
            assert eventually(lambda: row(shared.engine, first).agent_type == "research", 30)
        finally:
            untrack()
    assert sent < 2.5
    assert done < 6.5
    print(f"{trouble}: published after {sent:.2f} s, run after {done:.2f} s")
    assert complete.status is Status.COMPLETE
    assert {message for _, message in told(shared, first)} == {
        *("Waiting to start.", "Task started.", "Reading about Acme", "Task completed successfully.")
    }


# -- other pools, and none --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("redis")
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_other_pools(database: Database, tmp_path: Path, tracer_provider: TracerProvider, pool: str) -> None:
    """As in prefork; a process that stays tells of every attempt, too."""
    ax.configure(database.url, tracer_provider=tracer_provider)
    track()
    try:
        with Worker(tmp_path / "worker", database.url, pool=pool) as worker:
            good, bad = worker.send("flaky", 2), worker.send("stubborn")
            dropped, canceled = worker.send("long", countdown=2), worker.send("long", countdown=2)
            worker.app.control.revoke(str(dropped))
            ax.activity.cancel(canceled)
            done, failed = ended(database, good), ended(database, bad)
            assert (done.status, done.attempt) == ("COMPLETE", 3)
            assert (failed.status, failed.error_type, failed.attempt) == ("ERROR", "OSError", 2)
            assert eventually(lambda: worker.state(canceled) == "REVOKED")
            assert ended(database, dropped).status is Status.CANCELED
            assert [status for status, _ in told(database, canceled)] == ["QUEUED", "CANCELED"]
            assert eventually(lambda: len(worker.spans(good)) == 3)
            assert [span["status"] for span in worker.spans(good)] == ["ERROR", "ERROR", "UNSET"]
    finally:
        untrack()


@pytest.fixture
def eager(database: Database, tracer_provider: TracerProvider) -> Iterator[Any]:
    """An application that runs its tasks where they are called."""
    app: Any = Celery("eager", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.task_always_eager = True
    ax.configure(database.url, tracer_provider=tracer_provider)
    track()
    yield app
    untrack()


ON_SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@ON_SQLITE
def test_eager(database: Database, eager: Any, span_exporter: InMemorySpanExporter) -> None:
    """With `task_always_eager` a task is an activity all the same, its retries are attempts, and tasks may nest."""
    seen: list[UUID] = []

    @eager.task(name="inner", bind=True)  # type: ignore[untyped-decorator]
    def inner(self: Any) -> None:
        seen.append(ax.activity.current().agent_id)  # type: ignore[union-attr]
        if self.request.retries == 0:
            raise self.retry(exc=OSError("once"), countdown=0)

    @eager.task(name="outer")  # type: ignore[untyped-decorator]
    def outer() -> None:
        inner.delay()
        seen.append(ax.activity.current().agent_id)  # type: ignore[union-attr]

    agent_id = UUID(outer.delay().id)
    assert ax.flush()
    assert seen[0] == seen[1] != seen[2] == agent_id
    assert ax.activity.current() is None
    assert not trace.get_current_span().get_span_context().is_valid
    assert ended(database, agent_id).status is Status.COMPLETE
    done = ended(database, seen[0])
    assert (done.status, done.attempt, done.agent_type) == ("COMPLETE", 2, "inner")
    spans = {
        (span.name, (span.attributes or {})["agentexec.attempt"]): span for span in span_exporter.get_finished_spans()
    }
    assert sorted(spans) == [("inner", 1), ("inner", 2), ("outer", 1)]
    above = spans["outer", 1].get_span_context()
    for attempt in (1, 2):
        parent = spans["inner", attempt].parent
        assert parent is not None
        assert above is not None
        assert parent.span_id == above.span_id


@ON_SQLITE
@pytest.mark.parametrize(
    ("reason", "said"),
    [("no such order", "no such order"), (None, "it has rejected its message"), (LookupError("no row"), "no row")],
)
def test_rejected(database: Database, eager: Any, reason: object, said: str) -> None:
    """A task that rejects its message has failed, and its activity says why in the words that it gave."""

    @eager.task(name="picky")  # type: ignore[untyped-decorator]
    def picky() -> None:
        raise Reject(reason, requeue=False)

    agent_id = UUID(picky.delay().id)
    assert ended(database, agent_id).status is Status.ERROR
    assert told(database, agent_id)[-1] == ("ERROR", f"Task failed: {said}")


@ON_SQLITE
def test_an_agent_in_a_task(database: Database, eager: Any, no_uploads: None) -> None:
    """`OpenAIRunner` leaves the end to the task: COMPLETE once, behind what the task does after the run."""

    @eager.task(name="ask")  # type: ignore[untyped-decorator]
    def ask() -> str:
        run = ax.activity.current()
        assert run is not None
        result = asyncio.run(ax.OpenAIRunner(run.agent_id).run(agent(*look_ups(1), say("found it")), input="go"))
        run.update("Filed.", 90)
        return str(result.final_output)

    sent = ask.delay()
    assert sent.get() == "found it"
    done = ended(database, UUID(sent.id))
    assert (done.status, done.input_tokens) == ("COMPLETE", 2 * INPUT_TOKENS)
    assert told(database, UUID(sent.id))[-2:] == [("RUNNING", "Filed."), ("COMPLETE", "Task completed successfully.")]


@ON_SQLITE
async def test_eager_on_an_event_loop(database: Database, eager: Any) -> None:
    """An eager task in a coroutine is tracked, too."""

    @eager.task(name="quick")  # type: ignore[untyped-decorator]
    def quick() -> None:
        ax.activity.current().update("Here.")  # type: ignore[union-attr]

    agent_id = UUID(quick.delay().id)
    await asyncio.to_thread(ended, database, agent_id)
    assert [status for status, _ in told(database, agent_id)] == ["QUEUED", "RUNNING", "RUNNING", "COMPLETE"]


@ON_SQLITE
def test_names_ids_and_metadata(database: Database, eager: Any) -> None:
    """Only what is asked for is tracked; an id that is no UUID gets one; metadata comes as a header."""
    found: list[UUID | None] = []

    def work() -> None:
        run = ax.activity.current()
        found.append(run.agent_id if run is not None else None)

    tasks = {name: eager.task(name=name)(work) for name in ("agents.research", "mail.send", "celery.own")}
    for task in tasks.values():
        task.apply_async(task_id=f"nightly {task.name}", headers={"agentexec_metadata": {"tenant": "acme"}})
    track("mail.*", "celery.own")
    for task in tasks.values():
        task.delay()
    assert [one is not None for one in found] == [True, True, False, False, True, True]
    assert ax.flush()
    assert found[0] is not None
    stored = row(database.engine, found[0])
    assert (stored.agent_type, stored.metadata_) == ("agents.research", {"tenant": "acme"})


@ON_SQLITE
def test_beside_another_library_that_sets_a_context(database: Database, eager: Any) -> None:
    """Whichever of two libraries goes first at the end of a task, no context is left behind."""
    tokens: list[Any] = []

    def begin(**_: Any) -> None:
        tokens.append(context.attach(context.set_value("other", 1)))

    def finish(**_: Any) -> None:
        context.detach(tokens.pop())

    @eager.task(name="quick")  # type: ignore[untyped-decorator]
    def quick() -> None:
        assert context.get_value("other") == 1

    for before in (True, False):
        untrack()
        if not before:
            track()
        celery_signals.task_prerun.connect(begin)
        celery_signals.task_postrun.connect(finish)
        track()
        try:
            ended(database, UUID(quick.apply_async(throw=True).id))
            assert context.get_value("other") is None
            assert not trace.get_current_span().get_span_context().is_valid
        finally:
            celery_signals.task_prerun.disconnect(begin)
            celery_signals.task_postrun.disconnect(finish)


# -- who else there is ------------------------------------------------------------------------------------------


def test_publisher_that_does_not_track(shared: Database, prefork: Worker) -> None:
    """The activity begins with the task's start where nobody has created it."""
    ax.configure(shared.url)
    untrack()
    agent_id = prefork.send("research", "Acme")
    assert prefork.result(agent_id) == "Acme is fine"
    assert ended(shared, agent_id).status is Status.COMPLETE
    assert [status for status, _ in told(shared, agent_id)] == ["QUEUED", "RUNNING", "RUNNING", "COMPLETE"]


def test_delivered_twice(shared: Database, worker: Worker) -> None:
    """Two messages of one task at the same time: both run, the activity has one end, and the second span is none."""
    agent_id = worker.send("long")
    assert eventually(lambda: f"long {agent_id}" in worker.notes)
    worker.send("long", task_id=str(agent_id))
    assert eventually(lambda: worker.notes.count(f"long {agent_id}") == 2)
    worker.enough(agent_id)
    assert ended(shared, agent_id).status is Status.COMPLETE
    assert eventually(lambda: len(told(shared, agent_id)) == 7)
    assert [line.late for line in lines(shared.engine, agent_id)].count(True) == 1
    assert len(worker.spans(agent_id)) == 1


def test_again_after_the_end(shared: Database, worker: Worker) -> None:
    """A message that comes again after a success changes nothing; after a failure it is the next attempt."""
    good, bad = worker.send("research", "Acme"), worker.send("fail")
    ended(shared, good)
    ended(shared, bad)
    worker.send("research", "Acme", task_id=str(good))
    worker.send("fail", task_id=str(bad))
    assert eventually(lambda: row(shared.engine, bad).attempt == 2 and row(shared.engine, bad).status.terminal)
    assert eventually(lambda: len(told(shared, good)) == 5)
    assert row(shared.engine, good).attempt == 1
    assert [line.late for line in lines(shared.engine, good)] == [False] * 4 + [True]


@pytest.mark.parametrize(
    ("missing", "code", "answer"),
    [
        ("taskiq", "from agentexec_otel.tasks.celery import track; track()", ""),
        ("taskiq", "import agentexec_otel as ax; ax.Pool", "ax.Pool needs the package taskiq, which is not installed"),
        (
            "taskiq",
            "from agentexec_otel.tasks import ActivityMiddleware",
            "ActivityMiddleware needs the package taskiq",
        ),
        ("celery", "import agentexec_otel.tasks.celery", "agentexec_otel.tasks.celery needs the package celery"),
    ],
)
def test_without_the_other_engine(missing: str, code: str, answer: str) -> None:
    """Celery is enough for `track`; what is missing is named in one sentence."""
    hide = f"import sys; sys.modules[{missing!r}] = None\n"
    program = [sys.executable, "-c", f"{hide}try:\n    {code}\nexcept ImportError as exc:\n    print(exc)"]
    finished = subprocess.run(program, capture_output=True, text=True, check=True, cwd=ROOT)
    assert finished.stdout.startswith(answer), finished.stdout
    assert bool(finished.stdout) is bool(answer)
