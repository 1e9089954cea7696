"""Tasks with real worker processes, on real Redis, RabbitMQ and NATS."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Timer
from typing import Any
from uuid import UUID, uuid4

import nats
import pytest
from nats.errors import Error as NatsError
from redis import Redis
from sqlalchemy import select
from sqlalchemy.orm import Session
from taskiq import AckableMessage, AsyncBroker, BrokerMessage, TaskiqResult

from agentexec_otel.activity.models import Activity, Status
from agentexec_otel.tasks.taskiq import nats as our_nats
from agentexec_otel.tasks.taskiq import rabbitmq as our_rabbitmq
from agentexec_otel.tasks.taskiq import redis as our_redis
from tests.brokers import URLS, need
from tests.chaos.proxy import Proxy
from tests.cli import terminal
from tests.databases import Database
from tests.e2e.task_system import Start, starting, statuses
from tests.sql.rows import eventually, lines, row

pytestmark = [pytest.mark.one_python, pytest.mark.chaos, pytest.mark.timeout(180)]


@pytest.fixture
def start(database: Database, tmp_path: Path) -> Iterator[Start]:
    """Make a system on a broker; everything of it is stopped at the end."""
    with starting(database, tmp_path) as make:
        yield make


on_postgres = pytest.mark.parametrize("database", ["postgres"], indirect=True)


@on_postgres
@pytest.mark.parametrize("broker", URLS)
def test_enqueued_in_one_process_and_run_in_another(start: Start, database: Database, broker: str) -> None:
    """On each broker: the result comes back as a model, failures are retried as attempts, one trace from end to end."""
    system = start(broker)
    manager = system.workers(1)
    said = system.client(
        """
with trace.get_tracer("app", tracer_provider=provider).start_as_current_span("request"):
    task = await ax.enqueue("job", Job(number=7), metadata={"tenant": "Ünï\\ncode ✓"}, message="Später …")
print(task.agent_id, (await task.result(60)).number)
flaky = await ax.enqueue("job", Job(number=8, fails=2))
print(flaky.agent_id, (await flaky.result(60)).number)
hopeless = await ax.enqueue("job", Job(number=9, fails=9))
try:
    await hopeless.result(60)
except ax.TaskFailedError as failure:
    print(hopeless.agent_id, failure.error_type)
"""
    )
    (task, seven), (flaky, eight), (hopeless, error) = [line.split() for line in said]
    assert (seven, eight, error) == ("7", "8", "ConnectionError")
    assert [(str(log.status), log.message) for log in lines(database.engine, UUID(task))] == [
        ("QUEUED", "Später …"),
        ("RUNNING", "Task started."),
        ("RUNNING", "Working."),
        ("COMPLETE", "Task completed successfully."),
    ]
    ended = [row(database.engine, UUID(one)) for one in (task, flaky, hopeless)]
    assert [(one.status, one.attempt) for one in ended] == [
        (Status.COMPLETE, 1),
        (Status.COMPLETE, 3),
        (Status.ERROR, 3),
    ]
    assert set(system.starts().values()) == {1, 3}
    manager.send_signal(signal.SIGTERM)
    assert manager.wait(30) == 0
    of_task = [line.split() for line in (system.folder / "spans.txt").read_text().splitlines()]
    request = next(span for span in of_task if span[0] == "request")
    activity = next(span for span in of_task if span[0] == "job" and span[1] == request[1])
    step = next(span for span in of_task if span[0] == "step" and span[1] == request[1])
    assert (activity[3], step[3]) == (request[2], activity[2])
    assert row(database.engine, UUID(task)).span_id == f"{int(activity[2]):016x}"


@on_postgres
@pytest.mark.parametrize("broker", URLS)
def test_workers_stop_in_good_order(start: Start, database: Database, broker: str) -> None:
    """SIGTERM: the task at work is finished, no other one is begun, and the next workers find what is left."""
    system = start(broker)
    manager = system.workers(1)
    (first,) = system.client("print((await ax.enqueue('job', Job(number=1, seconds=2))).agent_id)")
    assert eventually(lambda: row(database.engine, UUID(first)).status is Status.RUNNING, 30)
    manager.send_signal(signal.SIGTERM)
    assert manager.wait(30) == 0
    assert row(database.engine, UUID(first)).status is Status.COMPLETE
    (second,) = system.client("print((await ax.enqueue('job', Job(number=2))).agent_id)")
    assert row(database.engine, UUID(second)).status is Status.QUEUED
    system.workers(1)
    assert eventually(lambda: row(database.engine, UUID(second)).status is Status.COMPLETE, 60)
    assert "Traceback" not in system.log()


@on_postgres
@pytest.mark.parametrize("broker", URLS)
def test_workers_stop_while_the_database_is_away(start: Start, database: Database, broker: str) -> None:
    """A task that waits for the database does not hold up a worker that is to stop; the next worker runs it, once.

    That is so even if the broker has delivered the message again to the worker that has it.
    """
    with Proxy(database.url) as proxy:
        system = start(broker, AGENTEXEC_LEASE_SECONDS="2", AGENTEXEC_SHUTDOWN_TIMEOUT="1")
        direct = dict(system.environment)
        system.environment["TASKS_DATABASE"] = proxy.url
        manager = system.workers(1)
        system.environment.update(direct)
        assert system.client("print((await (await ax.enqueue('job', Job(number=1))).result(60)).number)") == ["1"]
        proxy.refuse()
        (waits,) = system.client("print((await ax.enqueue('job', Job(number=2))).agent_id)")
        assert eventually(lambda: "failing and will be retried" in system.log(), 30)
        time.sleep(5)  # More than twice the lease, after which Redis and NATS deliver the message again.
        manager.send_signal(signal.SIGTERM)
        assert manager.wait(30) == 0
    assert row(database.engine, UUID(waits)).status is Status.QUEUED
    system.workers(1)
    assert eventually(lambda: row(database.engine, UUID(waits)).status is Status.COMPLETE, 60)
    assert system.starts()[UUID(waits)] == 1


@pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
def test_canceled_from_elsewhere(start: Start, database: Database) -> None:
    """A task that runs in a worker is stopped within seconds by whoever cancels it; a queued one never starts."""
    system = start("redis")
    (early,) = system.client(
        """
task = await ax.enqueue("job", Job(number=1))
await ax.activity.aio.cancel(task.agent_id)
print(task.agent_id)
"""
    )
    system.workers(1)
    (running,) = system.client("print((await ax.enqueue('job', Job(number=2, seconds=90))).agent_id)")
    assert eventually(lambda: system.starts()[UUID(running)] == 1, 30)
    canceled = time.monotonic()
    system.client(f"await ax.activity.aio.cancel({running!r})")
    last = system.client("print((await (await ax.enqueue('job', Job(number=3))).result(30)).number)")
    assert (last, time.monotonic() - canceled < 60) == (["3"], True)
    assert eventually(lambda: "skipped setting result" in system.log(), 20)
    for one in (early, running):
        assert row(database.engine, UUID(one)).status is Status.CANCELED
    assert system.starts()[UUID(early)] == 0


@on_postgres
def test_a_thousand_tasks_and_a_killed_worker(start: Start, database: Database) -> None:
    """Four workers, one of them killed -9 midway, and a batch that is canceled: every activity ends once, as it was.

    Canceled before it started: never started. Running on the killed worker: ERROR, `lost`. Taken by it and not
    started: started by another. All others: COMPLETE.
    """
    system = start("redis", AGENTEXEC_LEASE_SECONDS="3", AGENTEXEC_SWEEP_INTERVAL="1")
    (batch,) = system.client(
        """
held = [await ax.enqueue("job", Job(number=n), metadata={"batch": "canceled"}) for n in range(100)]
print(await ax.activity.aio.cancel_pending(metadata_filter={"batch": "canceled"}))
"""
    )
    assert batch == "100"
    system.workers(4)
    system.client(
        """
tasks = []
for part in range(30):
    tasks += await asyncio.gather(*(ax.enqueue("job", Job(number=n, seconds=0.1)) for n in range(30)))
"""
    )
    assert eventually(lambda: len(system.starts()) >= 450, 60)
    victim = Counter(system.pids()).most_common(1)[0][0]
    os.kill(victim, signal.SIGKILL)
    assert eventually(lambda: not {"QUEUED", "RUNNING"} & set(statuses(database)), 90), statuses(database)
    with Session(database.engine) as session:
        activities = list(session.scalars(select(Activity)))
        assert len(activities) == 1_000
        starts = system.starts()
        for one in activities:
            endings = [log for log in one.logs if log.status.terminal and not log.late]
            assert len(endings) == 1, one.agent_id
            batched = one.metadata_ is not None
            assert (one.status is Status.CANCELED) is batched
            # Killed between the two, an activity has started, and its task has not.
            assert starts[one.agent_id] in ({0} if batched else {0, 1} if one.reason == "lost" else {1})
            assert (one.status is Status.ERROR) is (one.reason == "lost")
        lost = [one for one in activities if one.reason == "lost"]
    assert len(lost) <= 100
    of_victim = {
        line.split()[0]
        for line in (system.folder / "starts.txt").read_text().splitlines()
        if line.endswith(f" {victim}")
    }
    assert {str(one.agent_id) for one in lost if starts[one.agent_id]} <= of_victim


@on_postgres
def test_lost_task_of_the_only_worker(start: Start, database: Database) -> None:
    """A worker is killed, and nobody else is there: the one that replaces it ends what was lost, idle as it is."""
    system = start("redis", AGENTEXEC_LEASE_SECONDS="2", AGENTEXEC_SWEEP_INTERVAL="1")
    system.workers(1)
    (lost,) = system.client("print((await ax.enqueue('job', Job(number=1, seconds=90))).agent_id)")
    assert eventually(lambda: system.starts()[UUID(lost)] == 1, 30)
    os.kill(system.pids()[0], signal.SIGKILL)
    assert eventually(lambda: row(database.engine, UUID(lost)).reason == "lost", 30)


@on_postgres
@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_broker_away_between_start_and_acknowledgement(start: Start, database: Database, broker: str) -> None:
    """A task whose start is stored when the broker goes away runs, once; the worker then goes on with the next."""
    with Proxy(URLS[broker]) as to_broker, Proxy(database.url) as to_database:
        system = start(broker)
        direct = dict(system.environment)
        system.environment.update(TASKS_BROKER=to_broker.url, TASKS_DATABASE=to_database.url)
        system.workers(1)
        system.environment.update(direct)
        (first,) = system.client("print((await (await ax.enqueue('job', Job(number=1))).result(60)).number)")
        assert first == "1"
        to_database.refuse()
        (second,) = system.client("print((await ax.enqueue('job', Job(number=2, seconds=1))).agent_id)")
        time.sleep(1)  # The worker has its message, and waits for the database.
        to_broker.refuse()
        to_database.let_pass()
        assert eventually(lambda: row(database.engine, UUID(second)).status is not Status.QUEUED, 30)
        to_broker.let_pass()
        assert eventually(lambda: row(database.engine, UUID(second)).status is Status.COMPLETE, 30)
        assert system.client("print((await (await ax.enqueue('job', Job(number=3))).result(60)).number)") == ["3"]
        assert system.starts()[UUID(second)] == 1


@on_postgres
@pytest.mark.parametrize("away", ["refused", "without data"])
def test_redis_comes_back(start: Start, database: Database, away: str) -> None:
    """Redis is away for a while, or back without its data: what is at work is not disturbed, and the next task runs."""
    with Proxy(URLS["redis"]) as proxy:
        system = start("redis")
        direct = system.environment["TASKS_BROKER"]
        system.environment["TASKS_BROKER"] = proxy.url
        system.workers(1)
        system.environment["TASKS_BROKER"] = direct
        (running,) = system.client("print((await ax.enqueue('job', Job(number=1, seconds=6))).agent_id)")
        assert eventually(lambda: system.starts()[UUID(running)] == 1, 30)
        if away == "refused":
            proxy.refuse()
            time.sleep(2)
            proxy.let_pass()
        else:
            from_url: Any = Redis.from_url  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            with from_url(direct) as redis:
                redis.delete(system.environment["TASKS_QUEUE"])
            time.sleep(2)
        assert system.client("print((await (await ax.enqueue('job', Job(number=2))).result(60)).number)") == ["2"]
        assert eventually(lambda: row(database.engine, UUID(running)).status is Status.COMPLETE, 30)
        assert len(system.pids()) == 1


WAIT = """
task = await ax.enqueue("job", Job(number=5, seconds={seconds}))
try:
    print((await task.result(60)).number)
except ax.TaskFailedError as exc:
    print(exc.reason)
"""


@on_postgres
@pytest.mark.parametrize("killed", ["before", "after"])
def test_killed_as_it_keeps_the_result(start: Start, database: Database, killed: str) -> None:
    """A worker that dies before it has reported the end has lost the task: COMPLETE is only what has its result."""
    system = start("redis", AGENTEXEC_LEASE_SECONDS="2", AGENTEXEC_SWEEP_INTERVAL="1", TASKS_KILLED=killed)
    system.workers(1, "task_killed_app")
    assert system.client(WAIT.format(seconds=0)) == ["lost"]
    assert statuses(database) == {"ERROR": 1}


@on_postgres
@pytest.mark.parametrize(("away", "said"), [(3, {"5"}), (20, {"connection", "timeout"})])
def test_results_cannot_be_kept(start: Start, database: Database, away: int, said: set[str]) -> None:
    """A short outage of where results are kept delays an ending. After a longer one it is ERROR, and says so."""
    with Proxy(URLS["redis"]) as proxy:
        system = start("redis")
        direct = dict(system.environment)
        system.environment["TASKS_RESULTS"] = proxy.url
        system.workers(1)
        system.environment.update(direct)
        system.environment.pop("TASKS_RESULTS", None)
        assert system.client(WAIT.format(seconds=0)) == ["5"]
        proxy.refuse()
        letting_pass = Timer(away, proxy.let_pass)
        letting_pass.start()
        assert said.issuperset(system.client(WAIT.format(seconds=0)))
        letting_pass.join()
        assert system.client(WAIT.format(seconds=0)) == ["5"]
    last = " ".join(lines(database.engine, one)[-1].message for one in system.starts())
    assert ("Task failed: the result could not be kept (" in last) is ("timeout" in said)


@on_postgres
def test_secret_in_an_exception(start: Start, database: Database) -> None:
    """What a task raises is in the worker's log as it is in the row: with its traceback, without secrets."""
    system = start("redis")
    system.workers(1)
    secret = f"sk-proj-{uuid4().hex}{uuid4().hex}"
    system.client(f"await asyncio.gather((await ax.enqueue('raise', {secret!r})).result(60), return_exceptions=True)")
    log = system.log()
    assert log.count("Exception found while executing function.") == 2
    assert log.count("ValueError: refused for [redacted]") == 2
    assert "KeyError" in log
    assert secret not in log
    with Session(database.engine) as session:
        (failed,) = session.scalars(select(Activity.agent_id))
    assert lines(database.engine, failed)[-1].message == "Task failed: refused for [redacted]"


@on_postgres
def test_message_too_large_for_nats(start: Start, database: Database) -> None:
    """What the broker does not take for its size ends its activity, and the error says to look at the size, too."""
    (said,) = start("nats").client(
        """
try:
    await ax.enqueue("text", "x" * 2_000_000)
except ax.TaskNotSentError as exc:
    print(exc)
"""
    )
    assert "could not be sent (MaxPayloadError)" in said
    assert "takes messages of that size" in said
    assert statuses(database) == {"ERROR": 1}


@pytest.mark.parametrize("broker", ["redis", "nats"])
async def test_stop_as_an_empty_answer_arrives(broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker stops when canceled at each step after an answer, even where the client loses the cancellation."""
    need(broker)
    queue = f"test_{uuid4().hex}"
    worker = (our_redis if broker == "redis" else our_nats).broker(URLS[broker], queue, 1)
    await worker.startup()
    loop = asyncio.get_running_loop()
    feed_data = asyncio.StreamReader.feed_data

    def cancel(after: int) -> None:
        if after:
            loop.call_soon(cancel, after - 1)
        else:
            message.cancel()

    try:
        for step in range(1, 5):  # At 1 to 3 the clients lose a cancellation.
            messages = worker.listen()
            message = asyncio.ensure_future(anext(messages))
            await asyncio.sleep(0.05)

            def feed(reader: asyncio.StreamReader, data: bytes, step: int = step) -> None:
                monkeypatch.setattr(asyncio.StreamReader, "feed_data", feed_data)
                feed_data(reader, data)
                cancel(step)

            monkeypatch.setattr(asyncio.StreamReader, "feed_data", feed)
            await asyncio.wait([message], timeout=2.5)
            assert message.cancelled(), f"{step} steps after the answer"
    finally:
        await _delete(queue)
        await worker.shutdown()


async def test_redis_connection_that_was_cut() -> None:
    """The connections that a pool keeps are replaced unnoticed: the next task is sent, and the next result is kept."""
    need("redis")
    queue = f"test_{uuid4().hex}"
    with Proxy(URLS["redis"]) as proxy:
        client = our_redis.broker(proxy.url, queue, 1).with_result_backend(our_redis.results(proxy.url, queue))
        await client.startup()
        result: TaskiqResult[Any] = TaskiqResult(is_err=False, return_value=5, execution_time=0.0)
        for _ in range(2):
            await client.kick(BrokerMessage(task_id="1", task_name="x", message=b"{}", labels={}))
            await client.result_backend.set_result("1", result)
            proxy.cut()
            await asyncio.sleep(0.2)
        assert (await client.result_backend.get_result("1")).return_value == 5
        await client.shutdown()
    await _delete(queue)


async def test_nats_stops_answering(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is dead without a word is given up: the next message comes, and the next result is kept."""
    need("nats")
    monkeypatch.setattr(our_nats, "PING_SECONDS", 1)
    queue = f"test_{uuid4().hex}"
    with Proxy(URLS["nats"]) as proxy:
        worker = our_nats.broker(proxy.url, queue, 1).with_result_backend(our_nats.results(proxy.url, queue))
        client = our_nats.broker(URLS["nats"], queue, 1)
        try:
            await worker.startup()
            await client.startup()
            messages = worker.listen()
            proxy.blackhole()
            await client.kick(BrokerMessage(task_id="1", task_name="x", message=b"{}", labels={}))
            taken = asyncio.ensure_future(anext(messages))
            kept: TaskiqResult[Any] = TaskiqResult(is_err=False, return_value=5, execution_time=0.0)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(_set_result(worker, kept), 2)
            proxy.let_pass()
            message = await asyncio.wait_for(taken, 30)
            assert isinstance(message, AckableMessage)
            assert message.data == b"{}"
            await asyncio.wait_for(_set_result(worker, kept), 30)
            assert (await worker.result_backend.get_result("1")).return_value == 5
        finally:
            await _delete(queue)
            await worker.shutdown()
            await client.shutdown()


async def test_rabbitmq_stops_answering(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is dead without a word is given up after some heartbeats, and what was not done comes again."""
    need("rabbitmq")
    monkeypatch.setattr(our_rabbitmq, "HEARTBEAT", 1)
    queue = f"test_{uuid4().hex}"
    with Proxy(URLS["rabbitmq"]) as proxy:
        worker = our_rabbitmq.broker(proxy.url, queue, 1)
        worker.is_worker_process = True
        client = our_rabbitmq.broker(URLS["rabbitmq"], queue, 1)
        try:
            await worker.startup()
            await client.startup()
            messages = worker.listen()
            await client.kick(BrokerMessage(task_id="1", task_name="x", message=b"{}", labels={}))
            await asyncio.wait_for(anext(messages), 30)
            proxy.blackhole()
            again = asyncio.ensure_future(anext(messages))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(again), 2)
            proxy.let_pass()
            message = await asyncio.wait_for(again, 40)
            assert isinstance(message, AckableMessage)
            assert message.data == b"{}"
        finally:
            await worker.shutdown()
            await client.shutdown()


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("amqp://ann:s%40@host/v", "amqp://ann:s%40@host/v?heartbeat=10"),
        ("amqp://host?timeout=3", "amqp://host?timeout=3&heartbeat=10"),
        ("amqps://host/?heartbeat=60", "amqps://host/?heartbeat=60"),
    ],
)
def test_heartbeat_of_rabbitmq(given: str, used: str) -> None:
    """The URL may name another one."""
    assert our_rabbitmq.with_heartbeat(given) == used


async def _set_result(broker: AsyncBroker, result: TaskiqResult[Any]) -> None:
    """As soon as the connection for results works again."""
    while True:
        with suppress(TimeoutError, NatsError):
            async with asyncio.timeout(1):
                return await broker.result_backend.set_result("1", result)


async def _delete(queue: str) -> None:
    from_url: Any = Redis.from_url  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    with from_url(URLS["redis"]) as redis:
        redis.delete(queue, f"{queue}:result:1")
    connect: Any = nats.connect  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    client = await connect(URLS["nats"])
    for name in (queue, f"OBJ_{queue}_results"):
        with suppress(NatsError):
            await client.jetstream().delete_stream(name)
    await client.close()


@on_postgres
def test_message_of_nats_goes_to_one_worker(start: Start, database: Database) -> None:
    """The processes of a pool are forked from one, and still each message goes to one of them only."""
    system = start("nats")
    system.workers(3)
    system.client("await asyncio.gather(*[(await ax.enqueue('job', Job(number=n))).result(60) for n in range(30)])")
    assert set(system.starts().values()) == {1}
    assert "is not run here" not in system.log()


@on_postgres
def test_threads_for_all_that_has_started(start: Start, database: Database) -> None:
    """Tasks that are no coroutines run at the same time, as many as the pool's `concurrency` says."""
    system = start("redis")
    system.workers(1)
    system.client("for n in range(50): await ax.enqueue('in a thread', Job(number=n, seconds=20))")
    assert eventually(lambda: len(system.starts()) == 50, 15), f"{len(system.starts())}, {statuses(database)}"


SCRIPT = """
import multiprocessing, sys
from tests.e2e.task_app import job, pool as tasks

pool = tasks

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    pool.run(workers=1)
"""


@on_postgres
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_run_from_a_script(start: Start, database: Database, tmp_path: Path, method: str) -> None:
    """`pool.run()` at the end of a script, with each way in which Python starts processes."""
    system = start("redis")
    (tmp_path / "script.py").write_text(SCRIPT)
    with (tmp_path / "worker.log").open("ab") as log:
        command = [sys.executable, str(tmp_path / "script.py"), method]
        started = subprocess.Popen(command, env=system.environment, stderr=log, stdout=log, start_new_session=True)
    system.started.append(started)
    said = system.client("print((await (await ax.enqueue('job', Job(number=3))).result(60)).number)")
    assert said == ["3"]
    started.send_signal(signal.SIGINT)
    assert started.wait(30) == 0
    assert "Traceback" not in system.log()


WITH_WAKEUP = """
import asyncio, os, signal
from pathlib import Path

from taskiq import TaskiqEvents

import agentexec_otel as ax

ax.configure(os.environ["TASKS_DATABASE"])
pool = ax.Pool(broker=os.environ["TASKS_BROKER"], queue=os.environ["TASKS_QUEUE"])
reads, writes = os.pipe()
os.set_blocking(reads, False)
os.set_blocking(writes, False)

@pool.broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def started(state):
    signal.set_wakeup_fd(writes)
    asyncio.get_running_loop().call_later(1.0, Path("ready").touch)

@pool.broker.on_event(TaskiqEvents.WORKER_SHUTDOWN)
async def stopping(state):
    Path("signals").write_bytes(os.read(reads, 100))
"""


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_wakeup_descriptor_of_the_application(start: Start, database: Database, tmp_path: Path) -> None:
    """A worker stops on a signal, and the application's `signal.set_wakeup_fd` still hears of it."""
    system = start("redis")
    (tmp_path / "watched.py").write_text(WITH_WAKEUP)
    command = [sys.executable, "-c", "from agentexec_otel.cli import main; main()", "worker", "watched:pool"]
    with (tmp_path / "worker.log").open("ab") as log:
        started = subprocess.Popen(
            command, cwd=tmp_path, env=system.environment, stderr=log, stdout=log, start_new_session=True
        )
    system.started.append(started)
    assert eventually((tmp_path / "ready").exists, 30), system.log()
    started.send_signal(signal.SIGTERM)
    assert started.wait(30) == 0, system.log()
    assert (tmp_path / "signals").read_bytes()[:1] in (bytes([signal.SIGTERM]), bytes([signal.SIGINT]))


def test_command_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, no traceback, and the exit code 1."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the command adds the folder
    (tmp_path / "broken.py").write_text("raise KeyError('SETTING')\n")
    (tmp_path / "local.py").write_text("import agentexec_otel as ax\npool = ax.Pool('sqlite:///x.db')\nother = 1\n")
    for place, said in (
        ("local", "names no pool: write module:variable"),
        ("nowhere:pool", "there is no module 'nowhere'"),
        ("local:other", "is no ax.Pool"),
        ("local:pool", "give it a broker"),
        ("broken:pool", "importing 'broken' failed: KeyError: 'SETTING' (broken.py, line 1)"),
    ):
        done = terminal.run("worker", place)
        assert done.code == 1
        assert said in done.err
        assert "Traceback" not in done.err
        assert len(done.err.splitlines()) == 1, done.err
    del sys.modules["local"]
