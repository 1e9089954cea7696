"""Tasks on real brokers, with messages that no worker can run and workers that are killed."""

import asyncio
import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

import agentexec_otel as ax
from agentexec_otel.activity.models import Status
from tests.brokers import URLS
from tests.databases import Database
from tests.e2e.poison import FAILED, RAW, REFUSED, send
from tests.e2e.task_system import Start, System, starting, statuses
from tests.sql.rows import eventually, lines, row

pytestmark = [pytest.mark.one_python, pytest.mark.timeout(180)]

on_postgres = pytest.mark.parametrize("database", ["postgres"], indirect=True)


@pytest.fixture
def start(database: Database, tmp_path: Path) -> Iterator[Start]:
    """Make a system on a broker; everything of it is stopped at the end."""
    ax.configure(database.url)
    with starting(database, tmp_path) as make:
        yield make


def poison(system: System, broker: str) -> tuple[list[UUID], list[UUID]]:
    """Send each kind of message that no task can run. Returns the activities that it must not touch, and must fail."""
    queue = system.environment["TASKS_QUEUE"]
    spared, failed = ([ax.activity.create("job") for _ in kinds] for kinds in (REFUSED, FAILED))
    made = [make(one) for make, one in zip(REFUSED.values(), spared, strict=True)]
    made += [make(one) for make, one in zip(FAILED.values(), failed, strict=True)]

    async def send_all() -> None:
        for data in (*RAW.values(), *(json.dumps(one).encode() for one in made)):
            await send(broker, queue, data)

    asyncio.run(send_all())
    return spared, failed


@on_postgres
@pytest.mark.parametrize("broker", URLS)
def test_messages_that_no_task_can_run(start: Start, database: Database, broker: str) -> None:
    """Each is refused once: acknowledged, one log without its content, one dead letter; the worker continues."""
    system = start(broker, TASKS_CONCURRENCY="4")
    system.workers(1)
    assert system.client("print((await (await ax.enqueue('job', Job(number=1))).result(60)).number)") == ["1"]
    (worker,) = system.worker_pids()
    spared, failed = poison(system, broker)
    kinds = len(RAW) + len(REFUSED) + len(FAILED)
    assert eventually(lambda: len(system.dead_letters()) >= kinds, 60), len(system.dead_letters())
    said = system.client("print((await (await ax.enqueue('job', Job(number=2))).result(60)).number)")
    assert said == ["2"]
    assert len(system.dead_letters()) == kinds
    assert system.log().count("a message of a task was refused and is kept in") == kinds
    assert system.worker_pids() == [worker]
    assert "Traceback" not in system.log()
    assert "hello" not in system.log()
    assert "not-a-uuid" not in system.log()
    assert {(row(database.engine, one).status, row(database.engine, one).attempt) for one in spared} == {
        (Status.QUEUED, 1)
    }
    assert [row(database.engine, one).status for one in failed] == [Status.ERROR] * len(failed)
    assert [len(lines(database.engine, one)) for one in failed] == [3] * len(failed)
    assert {path.stat().st_mode & 0o777 for path in (system.folder / "state").rglob("dead-letters.jsonl")} == {0o600}


SIZES = pytest.mark.parametrize(
    ("tasks", "kills"), [(60, 3), pytest.param(300, 12, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
AT_ONCE = 10
ENQUEUE = """
for n in range({first}, {last}):
    name = "in a thread" if n % 10 == 7 else "job"
    task = await ax.enqueue(name, Job(number=n, seconds=n % 5 / 2, fails=1 if n % 10 == 3 else 0))
    print(task.agent_id)
"""
UNKEPT = """
for one in {ids}:
    try:
        wrong = (await pool.broker.result_backend.get_result(one)).is_err
    except Exception as exc:
        wrong = type(exc).__name__
    if wrong:
        print(one, wrong)
"""


@on_postgres
@SIZES
@pytest.mark.parametrize("broker", URLS)
def test_killed_amid_poison(start: Start, database: Database, broker: str, tasks: int, kills: int) -> None:
    """Three workers, killed again and again amid poison: each activity ends once and truthfully, with its result."""
    system = start(broker, TASKS_CONCURRENCY=str(AT_ONCE), AGENTEXEC_LEASE_SECONDS="3", AGENTEXEC_SWEEP_INTERVAL="1")
    system.workers(3)
    assert eventually(lambda: len(system.worker_pids()) == 3, 30)
    # Clients leave it to the workers to recover what those that were killed have left.
    system.environment.update(AGENTEXEC_SWEEP_INTERVAL="0", XDG_STATE_HOME=str(system.folder / "clients"))
    ids: list[UUID] = []
    spared: list[UUID] = []
    failed: list[UUID] = []
    for part in range(kills):
        said = system.client(ENQUEUE.format(first=part * tasks // kills, last=(part + 1) * tasks // kills))
        ids += map(UUID, said)
        if part % 3 == 1:
            untouched, ended = poison(system, broker)
            spared, failed = spared + untouched, failed + ended
        assert eventually(lambda: len(system.worker_pids()) == 3, 30)
        os.kill(random.choice(system.worker_pids()), signal.SIGKILL)
    open_now = {"QUEUED": len(spared)}
    assert eventually(lambda: _open(database) == open_now, 90), _open(database)
    assert {row(database.engine, one).attempt for one in spared} == {1}
    _end_once(system, database, [*ids, *failed])
    lost = [one for one in ids if row(database.engine, one).status is Status.ERROR]
    assert len(lost) <= kills * AT_ONCE
    complete = [str(one) for one in ids if one not in lost]
    assert system.client(UNKEPT.format(ids=complete)) == []
    assert len(system.dead_letters()) >= kills // 3 * (len(RAW) + len(REFUSED))
    assert eventually(lambda: len(system.worker_pids()) == 3)
    assert system.log().count("is dead. Scheduling reload") == kills
    print(f"{broker}: {len(complete)} of {tasks} complete, {len(lost)} lost, {len(system.dead_letters())} dead letters")


def _open(database: Database) -> dict[str, int]:
    """The activities that have not ended."""
    return {name: number for name, number in statuses(database).items() if not Status(name).terminal}


def _end_once(system: System, database: Database, ids: list[UUID]) -> None:
    """Each has one ending. What is complete was started once per attempt; what is not was lost, or is poison.

    A worker that is killed just after it has sent a retry loses its attempt, and the next attempt has an ending, too.
    """
    starts = system.starts()
    for one in ids:
        activity = row(database.engine, one)
        *lost, last = [log for log in lines(database.engine, one) if log.status.terminal and not log.late]
        assert (last.status, last.attempt) == (activity.status, activity.attempt), one
        assert [(log.attempt, log.message) for log in lost] in ([], [(1, "The worker was lost.")]), one
        assert activity.attempt > len(lost), one
        if activity.status is Status.COMPLETE:
            assert starts[one] == activity.attempt, one
        else:
            assert activity.status is Status.ERROR
            assert activity.reason == "lost" or starts[one] == 0, one
