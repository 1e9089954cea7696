"""`ActivityProcessor`: the queue, the writer, its bounds, and its end."""

import os
import resource
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Event, Thread
from threading import enumerate as all_threads
from typing import Any
from uuid import UUID, uuid4

import pytest

import agentexec_otel as ax
from agentexec_otel.activity.models import Status
from agentexec_otel.export import (
    Ack,
    ActivityEvent,
    ActivityProcessor,
    ExportResult,
    MisconfiguredExportError,
    Opening,
    Reject,
    Retry,
    SpanRef,
    TransientExportError,
)
from agentexec_otel.export._backlog import Backlog
from agentexec_otel.export._delivery import Entry
from agentexec_otel.export.spool import Spool
from tests.sql.recorder import Recorder
from tests.sql.rows import event, eventually, opening
from tests.unit.spool_kit import pending

SPAN = SpanRef("1" * 32, "2" * 16, sampled=True)  # what marks the line that starts an activity


def processor_of(exporter: Any, **more: Any) -> ActivityProcessor:
    return ActivityProcessor(exporter, **more)


def adds_up(health: dict[str, Any]) -> bool:
    """The conservation law of the counters."""
    came = health["emitted"] + health["replayed"]
    went = ("committed", "duplicate", "dropped", "damaged", "dead_lettered", "rejected", "withdrawn", "pending")
    return bool(came == sum(health[name] for name in went))


def test_idle_writer_stores_at_once() -> None:
    """A single event that finds the writer idle is stored without waiting for others."""
    exporter = Recorder()
    processor = processor_of(exporter)
    for number in range(5):
        began = time.monotonic()
        processor.emit(event(uuid4(), message=str(number)))
        assert eventually(lambda: len(exporter.events) == number + 1)  # noqa: B023
        assert time.monotonic() - began < 0.5
    assert exporter.messages == ["0", "1", "2", "3", "4"]
    assert processor.shutdown(1.0)


def test_batches_form_while_one_is_in_flight() -> None:
    """Group commit without a timer: what comes during a transaction is the next batch, up to the limit, in order."""
    exporter = Recorder(gate=Event())
    processor = processor_of(exporter, max_batch_size=10)
    processor.emit(event(uuid4(), message="first"))
    assert exporter.entered.wait(5)
    for number in range(25):
        processor.emit(event(uuid4(), message=str(number)))
    assert processor.pending == 26
    assert exporter.gate is not None
    exporter.gate.set()
    assert processor.force_flush(5.0)
    assert [len(batch) for batch in exporter.batches] == [1, 10, 10, 5]
    assert exporter.messages == ["first", *map(str, range(25))]
    assert processor.shutdown(1.0)


def test_order_of_each_producer() -> None:
    """Four threads at once: everything arrives once, and each thread's own lines in their order."""
    exporter = Recorder()
    processor = processor_of(exporter)

    def produce(name: int) -> None:
        for number in range(500):
            processor.emit(event(uuid4(), message=f"{name} {number}"))

    threads = [Thread(target=produce, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert processor.force_flush(10.0)
    for name in range(4):
        own = [message for message in exporter.messages if message.startswith(f"{name} ")]
        assert own == [f"{name} {number}" for number in range(500)]
    assert len(exporter.events) == 2000
    assert adds_up(processor.health())
    assert processor.shutdown(1.0)


def test_only_progress_is_dropped() -> None:
    """A full queue takes every life-cycle event and each activity's latest line; what it drops it counts."""
    exporter = Recorder(gate=Event())
    processor = processor_of(exporter, max_queue_size=16)
    ids = [uuid4() for _ in range(3)]
    processor.emit(event(uuid4(), message="in flight"))
    assert exporter.entered.wait(5)
    started = [event(agent_id, message="started", span=SPAN)._replace(starts=True) for agent_id in ids]
    vital = [one for agent_id, start in zip(ids, started, strict=True) for one in (opening(agent_id), start)]
    accepted = [processor.emit(one) for one in vital]
    accepted += [
        processor.emit(event(ids[n % 3], message=f"line {n}", percentage=n % 101, span=SPAN)) for n in range(300)
    ]
    ends = [event(agent_id, Status.COMPLETE, "end") for agent_id in ids]
    accepted += [processor.emit(one) for one in ends]
    assert processor.pending < 40
    assert exporter.gate is not None
    exporter.gate.set()
    assert processor.force_flush(5.0)
    stored = exporter.events
    assert {one.event_id for one in (*vital, *ends)} <= {one.event_id for one in stored}
    for agent_id in ids:
        own = [one.message for one in stored if one.agent_id == agent_id]
        assert own[0] == "queued"
        assert own[-1] == "end"
        assert any(text.startswith("line 29") for text in own), "the latest line is kept"
    health = processor.health()
    assert health["dropped"] == 300 - sum(one.message.startswith("line") for one in stored)
    assert health["dropped"] > 200
    assert adds_up(health), health
    assert processor.shutdown(1.0)


def test_flush_waits_for_what_had_no_room() -> None:
    """After a flush that says so nothing is pending, the lines that were kept back in a full queue included."""

    def slowly(batch: Sequence[ActivityEvent]) -> list[ExportResult]:
        time.sleep(0.1)
        return [Ack(one.status) for one in batch]

    processor = processor_of(Recorder(answer=slowly), max_queue_size=16)
    ids = [uuid4() for _ in range(5)]
    for number in range(100):
        processor.emit(event(ids[number % 5], message=str(number)))
    assert processor.health()["dropped"] > 0
    assert processor.force_flush(10.0)
    assert processor.pending == 0
    assert processor.shutdown(1.0)


class FailingFlush(Recorder):
    """Its own flush does not succeed the first time."""

    def force_flush(self, timeout: float) -> bool:
        return super().force_flush(timeout) and len(self.flushes) > 1


def test_flush_that_succeeds_in_the_end() -> None:
    """A flush says what came of it when all was stored, not what a round before that has met."""

    def slowly(batch: Sequence[ActivityEvent]) -> list[ExportResult]:
        time.sleep(0.02)
        return [Ack(one.status) for one in batch]

    exporter = FailingFlush(answer=slowly)
    processor = processor_of(exporter, max_queue_size=1, max_batch_size=1)
    agent_id = uuid4()
    for number in range(20):
        processor.emit(event(agent_id, message=str(number)))
    assert processor.force_flush(10.0)
    assert len(exporter.flushes) > 2
    assert processor.pending == 0
    assert processor.shutdown(1.0)


def test_full_spool_keeps_the_order(tmp_path: Path) -> None:
    """With no room left in the spool, not even for an ending, that comes behind the lines that wait there."""
    exporter = Recorder(gate=Event())
    spool = Spool(tmp_path, identity="db", max_bytes=20_000)
    processor = processor_of(exporter, spool=spool, max_queue_size=16)
    agent_id, other = uuid4(), uuid4()
    processor.emit(event(other, message="in flight"))
    assert exporter.entered.wait(5)
    for number in range(200):
        processor.emit(event(agent_id, message=f"line {number}"))
    assert processor.health()["dropped"] > 0
    ended = processor.submit(event(agent_id, Status.COMPLETE, "end"))
    processor.emit(event(agent_id, message="too late"))
    processor.submit(event(agent_id, Status.QUEUED, "again"))
    assert exporter.gate is not None
    exporter.gate.set()
    assert processor.force_flush(10.0)
    assert ended.done()
    *numbers, gap, last, end, late, again = [one.message for one in exporter.events if one.agent_id == agent_id]
    assert numbers == [f"line {number}" for number in range(len(numbers))]
    assert len(numbers) > 20
    assert "dropped here" in gap
    assert (last, end, late, again) == ("line 199", "end", "too late", "again")
    health = processor.health()
    assert health["pending"] == 0
    assert adds_up(health), health
    assert processor.shutdown(1.0)


@pytest.mark.parametrize("reserve", [0, 5_000])
def test_order_behind_a_full_spool(tmp_path: Path, reserve: int) -> None:
    """Whenever a life-cycle event comes while the writer catches up, it is taken once, after its activity's lines.

    With a reserve it is in the spool as well, and is acknowledged there.
    """
    for rounds in range(12):
        spool = Spool(tmp_path / str(rounds), identity="db", max_bytes=20_000, reserve_bytes=reserve)
        backlog = Backlog(spool, 16)
        agent_id = uuid4()
        for number in range(200):
            backlog.put(Entry(event(agent_id, message=f"line {number}")))
        backlog.put(Entry(event(agent_id, Status.ERROR, "failed")))
        taken: list[Entry] = []
        for turn in range(100):
            if turn == rounds:
                backlog.put(Entry(event(agent_id, Status.QUEUED, "again")))
                backlog.put(Entry(event(agent_id, message="working")))
            taken += [one for one in backlog.take(16, 0.0) if isinstance(one, Entry)]
        assert backlog.idle
        texts = [one.event.message for one in taken]
        assert texts[-4:] == ["line 199", "failed", "again", "working"]
        assert len(set(texts)) == len(texts)
        backlog.ack([one.position for one in taken if one.position is not None])
        assert pending(spool) == 0
        spool.close()


def test_spool_outlasts_a_lack_of_descriptors(tmp_path: Path) -> None:
    """A moment without a free file descriptor costs the line of that moment its place in the spool, not all others."""
    exporter = Recorder(gate=Event())
    processor = processor_of(exporter, spool=Spool(tmp_path, identity="db"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        assert processor.emit(event(uuid4(), message="in memory"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert processor.emit(event(uuid4(), message="in the spool"))
    health = processor.health()
    assert (health["durability"], health["spool_bytes"] > 0) == ("process", True)
    assert exporter.gate is not None
    exporter.gate.set()
    assert processor.force_flush(5.0)
    assert exporter.messages == ["in memory", "in the spool"]
    assert processor.shutdown(1.0)


def test_submit_tells_how_it_ended() -> None:
    """The future of a submitted event has its answer, whichever it is."""
    answers: list[ExportResult] = [Ack(Status.COMPLETE, late=True), Reject("no"), Ack(Status.ERROR)]
    left = iter([answers[0], answers[1], Retry(), answers[2]])
    processor = processor_of(Recorder(answer=lambda batch: [next(left) for _ in batch]), max_batch_size=1)
    futures = [processor.submit(event(uuid4(), Status.COMPLETE)) for _ in answers]
    assert [future.result(5) for future in futures] == answers
    assert not futures[0].cancel()
    health = processor.health()
    assert (health["committed"], health["late"], health["retried"]) == (2, 1, 1)
    assert health["dead_lettered"] + health["rejected"] == 1
    assert adds_up(health)
    assert processor.shutdown(1.0)


@pytest.mark.parametrize(
    "raised",
    [
        RuntimeError("bug"),
        KeyboardInterrupt(),
        SystemExit(1),
        GeneratorExit(),
        type("OwnError", (BaseException,), {})(),
    ],
    ids=lambda raised: type(raised).__name__,
)
def test_writer_survives_whatever_is_raised(raised: BaseException) -> None:
    """Any exception of an exporter, an interrupt too, costs nothing: the batch is tried again, the writer goes on."""
    exporter = Recorder(raised)
    processor = processor_of(exporter)
    future = processor.submit(event(uuid4(), message="first"))
    assert future.result(5) == Ack(Status.RUNNING)
    processor.emit(event(uuid4(), message="second"))
    assert processor.force_flush(5.0)
    assert exporter.messages == ["first", "second"]
    assert adds_up(processor.health())
    assert processor.shutdown(1.0)


def test_follow_up_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """A failure of what is told about settled events, or of housekeeping, is logged, and the next events are stored."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    exporter = Recorder()
    processor = processor_of(exporter, on_acknowledged=fail, on_idle=fail)
    for _ in range(2):
        assert processor.submit(event(uuid4())).result(5) == Ack(Status.RUNNING)
    assert processor.shutdown(1.0)
    assert "ZeroDivisionError" in caplog.text


def test_job_that_fails_takes_no_line_along(caplog: pytest.LogCaptureFixture) -> None:
    """Where the writer cannot do something else in between, what was said behind that is stored all the same."""

    def fail() -> None:
        raise TransientExportError("away")

    exporter = Recorder(gate=Event())
    processor = processor_of(exporter)
    processor.emit(event(uuid4(), message="first"))
    assert exporter.entered.wait(5)
    processor.call_soon(fail)
    processor.emit(event(uuid4(), message="second"))
    assert exporter.gate is not None
    exporter.gate.set()
    assert processor.force_flush(5.0)
    assert exporter.messages == ["first", "second"]
    assert adds_up(processor.health())
    assert "TransientExportError" in caplog.text
    assert processor.shutdown(1.0)


def test_disk_that_cannot_be_synced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where the spool cannot be brought to the disk any more, lines are kept in memory, and all of them are stored."""
    exporter = Recorder(gate=Event())
    processor = processor_of(exporter, spool=Spool(tmp_path, identity="test", durability="disk"))
    processor.emit(event(uuid4(), message="first"))
    assert exporter.entered.wait(5)
    processor.emit(event(uuid4(), message="second"))
    processor.call_soon(lambda: None)
    processor.emit(event(uuid4(), message="third"))
    for link in Path("/proc/self/fd").iterdir():
        if link.is_symlink() and link.readlink().is_relative_to(tmp_path) and link.readlink().suffix == ".seg":
            os.close(int(link.name))
    assert exporter.gate is not None
    exporter.gate.set()
    assert processor.force_flush(5.0)
    assert exporter.messages == ["first", "second", "third"]
    assert adds_up(processor.health())
    assert "kept in memory only" in caplog.text
    assert processor.health()["durability"] == "memory"
    assert processor.shutdown(1.0)


# -- store() ------------------------------------------------------------------------------------------------------


def test_store_waits_for_the_commit() -> None:
    """`store` returns the exporter's answer, once it is there, also a refusal."""
    processor = processor_of(Recorder(answer=lambda batch: [Reject("exists already") for _ in batch]))
    assert processor.store(opening(), 5.0) == Reject("exists already")
    assert processor.health()["rejected"] == 1
    assert adds_up(processor.health())
    assert processor.shutdown(1.0)


def test_store_that_times_out_is_withdrawn() -> None:
    """What could not be stored in time is not stored later: it was waiting behind another batch, and is taken out."""
    exporter = Recorder(gate=Event())
    processor = processor_of(exporter)
    processor.emit(event(uuid4(), message="in flight"))
    assert exporter.entered.wait(5)
    with pytest.raises(ax.ActivityNotStoredError, match=r"no commit within 0\.1 s"):
        processor.store(opening(), 0.1)
    assert exporter.gate is not None
    exporter.gate.set()
    processor.emit(event(uuid4(), message="after"))
    assert processor.force_flush(5.0)
    assert exporter.messages == ["in flight", "after"]
    health = processor.health()
    assert health["withdrawn"] == 1
    assert adds_up(health), health
    assert processor.shutdown(1.0)


def test_commit_that_comes_late_is_taken_back() -> None:
    """If the commit comes after `create()` has raised, the activity is removed."""
    exporter = Recorder(gate=Event())
    processor = processor_of(exporter)
    created = opening()
    with pytest.raises(ax.ActivityNotStoredError):
        processor.store(created, 0.2)
    assert exporter.gate is not None
    exporter.gate.set()
    assert eventually(lambda: len(exporter.events) == 2)
    assert processor.force_flush(5.0)
    assert [(one.event_id, one.withdraws) for one in exporter.events] == [
        (created.event_id, False),
        (created.event_id, True),
    ]
    assert adds_up(processor.health()), processor.health()
    assert processor.shutdown(1.0)


class LosesReplies:
    """Stores what it is given, and then says that the destination is away, until it is told otherwise."""

    identity = None

    def __init__(self) -> None:
        self.stored: dict[UUID, ActivityEvent] = {}
        self.away = True

    def export(self, events: Sequence[ActivityEvent], *, replay: bool = False) -> Sequence[ExportResult]:
        answers: list[ExportResult] = []
        for one in events:
            if one.withdraws:
                self.stored.pop(one.event_id, None)
                answers.append(Ack(one.status))
                continue
            duplicate = one.event_id in self.stored
            known = any(other.agent_id == one.agent_id for other in self.stored.values())
            if one.expects_row and not known:
                answers.append(Reject("unknown"))
                continue
            self.stored[one.event_id] = one
            answers.append(Ack(one.status, duplicate=duplicate))
        if self.away:
            raise TransientExportError("the reply was lost")
        return answers

    def force_flush(self, timeout: float) -> bool:
        return True

    def shutdown(self, timeout: float) -> None:
        """Nothing to release."""


def test_withdrawn_though_it_was_stored() -> None:
    """A row that was stored although `create()` has raised is removed."""
    exporter = LosesReplies()
    processor = processor_of(exporter)
    created = opening()
    with pytest.raises(ax.ActivityNotStoredError, match="the reply was lost"):
        processor.store(created, 0.3)
    exporter.away = False
    assert eventually(lambda: not exporter.stored)
    assert processor.force_flush(5.0)
    assert adds_up(processor.health()), processor.health()
    assert processor.shutdown(1.0)


def test_nothing_is_left_of_what_was_never_sent(capsys: pytest.CaptureFixture[str]) -> None:
    """Where the destination was never reached, the end neither waits for what was withdrawn nor speaks of it."""

    def away(batch: Sequence[ActivityEvent]) -> Sequence[ExportResult]:
        exc = TransientExportError("the database is away")
        exc.sent = False
        raise exc

    processor = processor_of(Recorder(answer=away))
    with pytest.raises(ax.ActivityNotStoredError, match="the database is away"):
        processor.store(opening(), 0.2)
    began = time.monotonic()
    assert processor.shutdown(5.0)
    assert time.monotonic() - began < 2.5
    assert capsys.readouterr().err == ""
    assert processor.health()["withdrawn"] == 1
    assert adds_up(processor.health()), processor.health()


def test_refused_store_raises_at_once() -> None:
    """A destination that refuses us is told at once, each time; once it does not, the next try gets through."""
    refuses = True

    def answer(batch: Sequence[ActivityEvent]) -> Sequence[ExportResult]:
        if refuses:
            raise MisconfiguredExportError("no table: create it")
        stored.extend(batch)
        return [Reject("unknown") if one.expects_row else Ack(one.status) for one in batch]

    stored: list[ActivityEvent] = []
    processor = processor_of(Recorder(answer=answer))
    began = time.monotonic()
    for _ in range(3):
        with pytest.raises(ax.ActivityNotStoredError, match="no table: create it"):
            processor.store(opening(), 10.0)
    refuses = False
    created = opening()
    assert processor.store(created, 10.0) == Ack(Status.QUEUED)
    assert time.monotonic() - began < 3.0
    assert processor.force_flush(5.0)
    assert [one for one in stored if not one.expects_row] == [created]
    assert adds_up(processor.health()), processor.health()
    assert processor.shutdown(1.0)


# -- flush and shutdown -------------------------------------------------------------------------------------------


def test_flush_is_bounded_and_honest() -> None:
    """`force_flush` is true only when everything is stored, and returns in time when it is not."""
    exporter = Recorder(gate=Event())
    processor = processor_of(exporter)
    assert processor.force_flush(0.1)
    processor.emit(event(uuid4()))
    began = time.monotonic()
    assert not processor.force_flush(0.2)
    assert 0.15 < time.monotonic() - began < 1.0
    assert exporter.gate is not None
    exporter.gate.set()
    assert processor.force_flush(5.0)
    assert processor.shutdown(1.0)


def test_shutdown_flushes_and_stops() -> None:
    """Everything emitted before is stored, the exporter released once, and the thread gone; later calls do nothing."""
    before = set(all_threads())
    exporter = Recorder()
    processor = processor_of(exporter)
    for number in range(700):
        processor.emit(event(uuid4(), message=str(number)))
    assert processor.shutdown(5.0)
    assert len(exporter.events) == 700
    assert processor.shutdown(5.0)
    assert len(exporter.shutdowns) == 1
    assert not processor.emit(event(uuid4()))
    assert isinstance(processor.submit(event(uuid4(), Status.COMPLETE)).result(1), Reject)
    with pytest.raises(ax.ActivityNotStoredError, match="shut"):
        processor.store(opening(), 5.0)
    assert processor.shutdown(1.0)
    assert set(all_threads()) <= before


@pytest.mark.parametrize("away", [True, False], ids=["away", "hanging"])
def test_shutdown_is_bounded_and_honest(away: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """With a destination that is away or hangs, shutdown ends in time, is false, and says how many events were left."""
    gate = Event()
    exporter = Recorder(*(TransientExportError("away") for _ in range(1000 * away)), gate=None if away else gate)
    processor = processor_of(exporter)
    for _ in range(3):
        processor.emit(event(uuid4()))
        time.sleep(0.02)
    waiting = processor.submit(event(uuid4(), Status.COMPLETE))
    began = time.monotonic()
    assert not processor.shutdown(0.3)
    assert time.monotonic() - began < 1.5
    assert capsys.readouterr().err.startswith("agentexec-otel: 4 activity events were not stored in time")
    assert len(exporter.shutdowns) == 1
    assert not waiting.done() or isinstance(waiting.result(), Reject)
    gate.set()


def test_nobody_waits_for_a_writer_that_ends() -> None:
    """A call that waits for the writer while it is shut down in an outage is told, and does not hang."""
    exporter = Recorder(*(TransientExportError("away") for _ in range(1000)))
    processor = processor_of(exporter)
    processor.emit(event(uuid4()))
    failures: Future[BaseException] = Future()

    def wait() -> None:
        try:
            processor.call(lambda: None, 20.0)
        except TimeoutError as exc:
            failures.set_result(exc)

    waiter = Thread(target=wait)
    waiter.start()
    time.sleep(0.05)
    processor.shutdown(0.2)
    assert isinstance(failures.result(5), TimeoutError)
    waiter.join()


def test_exporter_that_fails_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    """What `force_flush` and `shutdown` of an exporter raise reaches nobody."""

    class Fails(Recorder):
        def force_flush(self, timeout: float) -> bool:
            raise RuntimeError("flush")

        def shutdown(self, timeout: float) -> None:
            raise RuntimeError("shutdown")

    other = Recorder()
    ax.configure(exporters=[Fails(), other])
    ax.activity.create("task")
    assert not ax.flush(1.0)
    ax.shutdown(1.0)
    assert len(other.events) == len(other.shutdowns) == 1


# -- several exporters --------------------------------------------------------------------------------------------


def test_exporters_of_others() -> None:
    """Each exporter gets every event, in order; only the first one decides, and another that hangs delays nobody."""
    first, second = Recorder(), Recorder(gate=Event())
    ax.configure(exporters=[first, second])
    began = time.monotonic()
    agent_id = ax.activity.create("task", metadata={"tenant": "acme"})
    assert ax.activity.update(agent_id, "Working.", 10)
    assert ax.activity.complete(agent_id)
    assert time.monotonic() - began < 2.0
    assert first.messages == ["Waiting to start.", "Working.", "Task completed successfully."]
    assert first.events[0].opening == Opening("task", {"tenant": "acme"}, {})
    assert second.gate is not None
    second.gate.set()
    assert ax.flush()
    assert second.events == first.events
    names = [one["exporter"] for one in ax.health()["exporters"]]
    assert names == ["Recorder", "Recorder"]


def test_exporter_beside_a_database(tmp_path: Any) -> None:
    """With a database, exporters handed in come behind it."""
    other = Recorder()
    ax.configure(f"sqlite:///{tmp_path}/x.db", exporters=[other], create_tables=True)
    with ax.activity.run("task") as run:
        run.update("Working.")
    assert ax.flush()
    assert [str(one.status) for one in other.events] == ["QUEUED", "RUNNING", "RUNNING", "COMPLETE"]
    assert [one["exporter"] for one in ax.health()["exporters"]] == ["SQLExporter", "Recorder"]
    assert ax.activity.retry(run.agent_id) == 2
    assert ax.flush()
    assert other.events[-1].reopens
