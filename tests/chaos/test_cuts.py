"""Connections that break, hang and lie: stored once, and soon."""

import random
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel._model.ids import uuid7
from agentexec_otel.activity.models import ActivityLog, Status
from agentexec_otel.export import Ack, ActivityEvent, ActivityProcessor
from agentexec_otel_exporters.sql import SQLExporter
from tests.chaos.conftest import MARIADB_FIRST, SERVERS
from tests.chaos.journal import compare, history
from tests.chaos.law import assert_conserved, settled
from tests.chaos.processes import await_that, journals, producer
from tests.chaos.proxy import Proxy, Side
from tests.databases import Database

pytestmark = pytest.mark.one_python

CUTS = pytest.mark.parametrize(("cuts", "seconds"), [(20, 4.0), pytest.param(110, 20.0, marks=pytest.mark.slow)])
WORST_DELAY = 15.0
INSERT = b"INSERT INTO agentexec_activity_log"
SIDES: tuple[Side, ...] = ("both", "both", "both", "both", "server", "client")


@SERVERS
@CUTS
def test_cut_connections_lose_nothing(
    database: Database, proxy: Proxy, tmp_path: Path, cuts: int, seconds: float
) -> None:
    """Connections cut all the time, half-open ones among them: 0 lost, 0 doubled, no line later than 15 s."""
    with producer(tmp_path, proxy.url, "one") as one, Watch(database.engine) as watch:
        one.says("ready")
        began = time.monotonic()
        for number in range(cuts):
            time.sleep(max(0.0, began + number * seconds / cuts - time.monotonic()))
            # Only one side of some: the other one learns nothing. The last ones are left to hang.
            proxy.cut("client" if number == cuts - 1 else random.choice(SIDES))
        one.stop()
        report = one.report()
        assert report["flushed"]
        assert_conserved(report["health"], report["metrics"])
        await_that(lambda: watch.seen >= report["health"]["exporters"][0]["committed"], 10, "the last line")
    verdict = compare(database.engine, journals(tmp_path))
    assert verdict.sound, verdict
    assert watch.worst < WORST_DELAY
    assert len(one.stderr.splitlines()) <= 5 * cuts, one.stderr
    assert "Traceback" not in one.stderr
    print(f"{cuts} cuts: {verdict}, worst delay {watch.worst:.2f} s, slowest call {report['slowest_ms']:.1f} ms")


@pytest.mark.parametrize(
    ("database", "then_cut"),
    [
        pytest.param("postgres", "both", id="postgres, then cut"),
        pytest.param("mariadb", "both", id="mariadb, then cut"),
        pytest.param("mariadb", None, id="mariadb, then silent"),
        pytest.param("postgres", None, id="postgres, then silent", marks=pytest.mark.slow),
    ],
    indirect=["database"],
)
def test_a_lost_answer_to_commit(
    database: Database,
    proxy: Proxy,
    tracer_provider: TracerProvider,
    span_exporter: InMemorySpanExporter,
    then_cut: Side | None,
) -> None:
    """The COMMIT worked, its answer was lost: one row, and the ending is ours, by the span and the return value."""
    ax.configure(proxy.url, tracer_provider=tracer_provider)
    ax.CONF.terminal_timeout = 30.0
    agent_id = ax.activity.create("task")
    ax.activity.update(agent_id, "working", 10)
    assert ax.flush()
    proxy.swallow_answer_to_commit(then_cut)
    won = ax.activity.complete(agent_id, "done")
    assert proxy.commit_tried.is_set()
    assert won
    assert ax.flush()  # the span is claimed on the row before it ends
    (span,) = span_exporter.get_finished_spans()
    assert (span.attributes or {})["agentexec.status"] == "COMPLETE"
    assert [text for _, text in history(database.engine)[agent_id]] == ["Waiting to start.", "working", "done"]
    (exporter,) = settled()["exporters"]
    assert exporter["duplicate"] >= 1


@SERVERS
def test_a_lost_answer_to_the_commit_of_create(database: Database, proxy: Proxy) -> None:
    """`create()` whose answer was lost returns, and there is one activity with one line."""
    ax.configure(proxy.url)
    ax.activity.create("first")
    proxy.swallow_answer_to_commit("both")
    agent_id = ax.activity.create("second")
    assert proxy.commit_tried.is_set()
    assert [seq for seq, _ in history(database.engine)[agent_id]] == [1]
    settled()


@pytest.mark.parametrize(
    ("database", "words", "part"),
    [
        pytest.param("postgres", b"COMMIT", 0.0, id="postgres, before COMMIT"),
        pytest.param("mariadb", INSERT, 0.0, id="mariadb, before it has written"),
        pytest.param("mariadb", INSERT, 0.5, id="mariadb, within a statement", marks=pytest.mark.slow),
        pytest.param("mariadb", b"COMMIT", 0.0, id="mariadb, before COMMIT", marks=pytest.mark.slow),
    ],
    indirect=["database"],
)
def test_a_dead_session_gives_its_locks_back(database: Database, proxy: Proxy, words: bytes, part: float) -> None:
    """A writer vanishes between its locks and its COMMIT; the next writer of the same activity passes within 10 s."""
    ax.configure(database.url)
    agent_id = ax.activity.create("task")
    ax.shutdown()
    ax.configure(proxy.url)
    ax.activity.update(agent_id, "before")
    assert ax.flush()
    # The server sees the locking statements, and nothing after them: its side stays open and silent.
    proxy.hang_before(words, part)
    ax.activity.update(agent_id, "by the one that hangs")
    assert proxy.commit_tried.wait(10)
    began = time.monotonic()
    write_directly(database, agent_id)
    took = time.monotonic() - began
    assert took < 10
    proxy.let_pass()
    assert ax.flush(20)
    assert [text for _, text in history(database.engine)[agent_id]] == [
        "Waiting to start.",
        "before",
        "by the other one",
        "by the one that hangs",
    ]
    settled()
    print(f"the second writer waited {took:.2f} s")


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_a_session_that_waits_for_the_rest_of_a_pipeline(database: Database, proxy: Proxy) -> None:
    """PostgreSQL has no time-out for it: the writer ends the session that it left behind, and goes on at once."""
    ax.configure(proxy.url)
    agent_id = ax.activity.create("task")
    proxy.stop_within_a_pipeline()
    for number in range(20):
        ax.activity.update(agent_id, f"line {number}")
    assert ax.flush(20)
    assert proxy.commit_tried.is_set()
    assert [text for _, text in history(database.engine)[agent_id]][1:] == [f"line {number}" for number in range(20)]
    settled()


def write_directly(database: Database, agent_id: UUID) -> None:
    """A writer beside the configured one, with the same guards."""
    processor = ActivityProcessor(SQLExporter(database.url))
    line = ActivityEvent(uuid7(), agent_id, Status.RUNNING, "by the other one", None, time.time_ns(), expects_row=True)
    assert isinstance(processor.submit(line).result(30), Ack)
    processor.shutdown()


@MARIADB_FIRST
def test_a_server_that_says_nothing(database: Database, proxy: Proxy) -> None:
    """New connections that hang in the handshake are given up, and the first one that works stores everything."""
    ax.configure(database.url)
    agent_id = ax.activity.create("task")
    ax.shutdown()
    proxy.blackhole()
    ax.configure(proxy.url)
    ax.CONF.lookup_timeout = 0.1
    ax.activity.update(agent_id, "into the dark")
    time.sleep(1.0)
    proxy.let_pass()
    took = await_that(lambda: len(history(database.engine)[agent_id]) == 2, 15, "the line")
    settled()
    print(f"stored {took:.2f} s after the network's return")


class Watch:
    """Looks at the log every 0.1 s: how old the youngest lines are when they can first be seen."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: set[int] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.worst = 0.0

    @property
    def seen(self) -> int:
        """How many lines."""
        return len(self._known)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(0.1):
            with Session(self._engine) as session:
                newest = max(self._known, default=0)
                recent = select(ActivityLog.id, ActivityLog.created_at).where(ActivityLog.id > newest - 5_000)
                for number, created_at in session.execute(recent):
                    if number not in self._known:
                        self._known.add(number)
                        self.worst = max(self.worst, (datetime.now(UTC) - created_at).total_seconds())
