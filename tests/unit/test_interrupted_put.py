"""Exceptions that a signal handler raises in the middle of reporting: the books balance, and nothing is left behind.

In a process of their own: the handler also raises in the standard library, which then leaks what it has just opened.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path
from threading import Event
from types import FrameType
from uuid import uuid4

import pytest

from agentexec_otel.activity.models import Status
from agentexec_otel.export import ActivityProcessor
from agentexec_otel.export.spool import Spool
from tests.sql.recorder import Recorder
from tests.sql.rows import event, eventually
from tests.unit.spool_kit import fork, segment_files, spans_of
from tests.unit.test_processor import adds_up


class InterruptionError(Exception):
    """What the handler raises, as a time limit does."""


def interrupt_often(work: Callable[[int], object], times: int) -> tuple[list[int], int]:
    """Call `work` again and again while a timer's handler raises. Return the calls that returned, and all calls."""
    rng = random.Random(7)
    done: list[int] = []
    calls = interrupted = 0

    def handler(number: int, frame: FrameType | None) -> None:
        raise InterruptionError

    before = signal.signal(signal.SIGALRM, handler)
    try:
        while interrupted < times:
            calls += 1
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(5e-6, 150e-6))
                work(calls)
                done.append(calls)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except InterruptionError:
                interrupted += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return done, calls


@pytest.mark.parametrize("room", ["queue", "spool", "memory", "nowhere"])
def test_the_books_balance_after_interruptions(tmp_path: Path, room: str) -> None:
    """Wherever an event would have gone: each call that returned is stored once, and every event has one fate."""

    def work() -> None:
        most = 60_000 if room == "nowhere" else 1 << 28
        spool = None if room == "memory" else Spool(tmp_path, identity="db", max_bytes=most)
        exporter = Recorder()
        processor = ActivityProcessor(exporter, spool=spool, max_queue_size=10_000 if room == "queue" else 16)
        processor.start()
        ids = [uuid4() for _ in range(5)]

        def report(number: int) -> None:
            vital = number % 7 == 0
            processor.emit(event(ids[number % 5], Status.QUEUED if vital else Status.RUNNING, f"{vital} {number}"))

        done, calls = interrupt_often(report, 3_000)
        assert processor.force_flush(30)
        assert eventually(lambda: processor.pending == 0)
        health = processor.health()
        assert adds_up(health), health
        texts = [text for text in exporter.messages if "dropped here" not in text]
        assert len(texts) == len(set(texts))
        assert {f"True {number}" for number in done if number % 7 == 0} <= set(texts)
        if room in {"queue", "spool"}:
            assert {f"{number % 7 == 0} {number}" for number in done} <= set(texts)
        assert health["committed"] == len(exporter.events)
        assert health["emitted"] <= calls + len(exporter.events) - len(texts)
        if spool is not None:
            processor.emit(event(ids[0]))  # Its acknowledgement removes what the last interruption has left.
            assert processor.force_flush(5)
            spool.append(b"the last one")
            assert [payload for _, payload in spool.read()] == [b"the last one"]
            # A file may stay without a record if its creation was interrupted at the last step.
            contents = [path.read_bytes() for path in segment_files(spool)]
            assert sum(len(spans_of(content)) for content in contents if content) == 1
            assert len(contents) < 300
        assert processor.shutdown(5)

    fork(work).join()


def test_pending_is_right_after_interrupted_jobs() -> None:
    """A call was interrupted that asks the writer to do something: `pending` counts events as before."""

    def work() -> None:
        exporter = Recorder(gate=Event())
        processor = ActivityProcessor(exporter)
        processor.start()
        interrupt_often(lambda _: processor.call_soon(lambda: None), 1_000)
        for _ in range(500):
            processor.emit(event(uuid4()))
        assert processor.pending == 500
        assert exporter.gate is not None
        exporter.gate.set()
        assert processor.force_flush(5)
        assert processor.shutdown(5)

    fork(work).join()
