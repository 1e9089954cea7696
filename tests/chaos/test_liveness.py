"""Who is alive, who is lost, and who is told."""

import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from opentelemetry import trace
from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel._model.span import SpanStyle
from agentexec_otel._runtime.following import Following
from agentexec_otel._runtime.liveness import Liveness, lost_ending
from agentexec_otel._runtime.spans import ActivityTracer
from agentexec_otel.activity.models import Activity, ActivityLog, Status
from agentexec_otel_exporters.sql import SQLExporter
from tests.chaos.conftest import ONE_FIRST
from tests.chaos.law import settled
from tests.chaos.processes import await_that, worker
from tests.databases import Database

pytestmark = pytest.mark.one_python

LEASE = 4.0
QUICK = {"AGENTEXEC_LEASE_SECONDS": f"{LEASE}", "AGENTEXEC_SWEEP_INTERVAL": "0.5"}
PATIENT = {**QUICK, "AGENTEXEC_SWEEP_INTERVAL": "0"}


@ONE_FIRST
def test_what_becomes_of_workers(database: Database, tmp_path: Path) -> None:
    """Killed: ERROR `lost`, soon. Frozen past the lease: the same, and its COMPLETE is kept as late. Slow but alive,
    taken over from a dead reporter, gone in good order, or waiting in the queue: never lost."""
    ax.configure(database.url)
    killed, frozen, slow, handed_over, left, queued = (ax.activity.create("task") for _ in range(6))
    names = ("killed", "frozen", "slow", "web", "heir", "leaver")
    with ExitStack() as stack:
        cast = {name: stack.enter_context(worker(tmp_path, database.url, name, **PATIENT)) for name in names}
        cast["sweeper"] = stack.enter_context(worker(tmp_path, database.url, "sweeper", **QUICK))
        for one in cast.values():
            one.says("configured")
        cast["web"].do(f"report {handed_over} accepted")
        cast["leaver"].do(f"report {left} on its way")
        for name, agent_id in (("killed", killed), ("frozen", frozen), ("slow", slow), ("heir", handed_over)):
            cast[name].do(f"run {agent_id}")
        cast["sweeper"].do(f"report {slow} somebody else looks in")
        began = time.monotonic()
        cast["killed"].kill()
        cast["web"].kill()
        cast["frozen"].signal(signal.SIGSTOP)
        cast["leaver"].tell("exit")
        assert cast["leaver"].join() == 0
        await_that(lambda: status(database, killed) is Status.ERROR, 10 * LEASE, "the loss of the killed one")
        took = time.monotonic() - began
        await_that(lambda: status(database, frozen) is Status.ERROR, 10 * LEASE, "the loss of the frozen one")
        cast["frozen"].signal(signal.SIGCONT)
        cast["frozen"].do("leave")
        time.sleep(max(0.0, began + 2.5 * LEASE - time.monotonic()))
        for name in ("slow", "heir"):
            cast[name].do("leave")
    assert [status(database, one) for one in (slow, handed_over, left, queued)] == [
        Status.COMPLETE,
        Status.COMPLETE,
        Status.RUNNING,
        Status.QUEUED,
    ]
    assert ax.activity.reap() == 0
    for lost in (killed, frozen):
        stored = row(database.engine, lost)
        assert (stored.error_type, stored.reason, stored.lease_expires_at) == ("WorkerLost", "lost", None)
    assert endings(database.engine, killed) == [("The worker was lost.", Status.ERROR, False)]
    assert endings(database.engine, frozen) == [
        ("The worker was lost.", Status.ERROR, False),
        ("Task completed successfully.", Status.ERROR, True),
    ]
    settled()
    print(f"lost {took:.2f} s after the kill with a lease of {LEASE:g} s")


@ONE_FIRST
def test_a_worker_learns_that_it_was_canceled(database: Database, tmp_path: Path) -> None:
    """Canceled by another process while it says nothing: `run.canceled` and `current().canceled` within a heartbeat."""
    ax.configure(database.url)
    agent_id = ax.activity.create("task")
    with worker(tmp_path, database.url, "one", **QUICK) as one:
        one.says("configured")
        one.do(f"run {agent_id}")
        assert ax.activity.cancel(agent_id)
        began = time.monotonic()
        one.do("canceled")
        took = time.monotonic() - began
        one.do("leave")
    assert status(database, agent_id) is Status.CANCELED
    assert took < LEASE / 3 + 5
    print(f"told after {took:.2f} s, the heartbeat is {LEASE / 3:.1f} s")


def test_four_reapers_at_once(database: Database) -> None:
    """Four processes' worth of reapers over 100 lost activities: each is ended once, with one line."""
    ax.configure(database.url)
    ids = [ax.activity.create("task") for _ in range(100)]
    for agent_id in ids:
        ax.activity.update(agent_id, "running")
    assert ax.flush()
    ax.shutdown()
    expire(database.engine)
    with ThreadPoolExecutor(4) as pool:
        reaped = list(pool.map(reap, [database] * 4))
    assert sum(reaped) == 100
    for one in ids:
        assert endings(database.engine, one) == [("The worker was lost.", Status.ERROR, False)]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_sweeper_that_was_away_waits_for_the_others(database: Database) -> None:
    """After an outage everybody's lease has expired: nobody is reaped before the others could show that they live."""
    ax.configure(database.url)
    agent_id = ax.activity.create("task")
    ax.activity.update(agent_id, "running")
    assert ax.flush()
    ax.shutdown()
    expire(database.engine)
    now = [0.0]
    exporter = SQLExporter(database.url)
    tracer = ActivityTracer(trace.get_tracer("test"), SpanStyle(), None)

    def soon(work: Callable[[], object], give_up: Callable[[], object] = lambda: None) -> None:
        work()

    following = Following(exporter, tracer, lambda event, live=None: None, soon, lambda end: None)
    liveness = Liveness(exporter, following, lambda: "the sweeper", lambda: now[0])

    def tick_until(end: float) -> None:
        while now[0] < end:
            now[0] += 1.0
            liveness.tick()

    tick_until(29)
    assert liveness.reaped == 0  # It has just come.
    now[0] = 60.0
    tick_until(89)
    assert liveness.reaped == 0  # It was stuck for half a minute.
    tick_until(105)
    assert liveness.reaped == 1
    exporter.shutdown(1)


def reap(database: Database) -> int:
    exporter = SQLExporter(database.url)
    try:
        return len(exporter.end_lost(lost_ending()))
    finally:
        exporter.shutdown(1)


def expire(engine: Engine) -> None:
    with Session(engine) as session:
        session.execute(update(Activity).values(lease_expires_at=datetime.now(UTC) - timedelta(hours=1)))
        session.commit()


def status(database: Database, agent_id: UUID) -> Status:
    return row(database.engine, agent_id).status


def row(engine: Engine, agent_id: UUID) -> Activity:
    with Session(engine, expire_on_commit=False) as session:
        return session.scalars(select(Activity).where(Activity.agent_id == agent_id)).one()


def endings(engine: Engine, agent_id: UUID) -> Sequence[tuple[str, Status, bool]]:
    """The lines that carry a terminal status."""
    with Session(engine) as session:
        found = session.execute(
            select(ActivityLog.message, ActivityLog.status, ActivityLog.late)
            .join(Activity)
            .where(Activity.agent_id == agent_id)
            .order_by(ActivityLog.seq)
        )
        return [(message, status, late) for message, status, late in found if status.terminal]
