"""Unexpected exceptions in the writer's own loop: it says so once, waits between tries, and loses nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from threading import Event
from uuid import uuid4

import pytest

from agentexec_otel._model.codec import encode
from agentexec_otel.export import ActivityEvent, ActivityProcessor, ExportResult
from agentexec_otel.export.spool import Position, Spool
from tests.sql.recorder import Recorder
from tests.sql.rows import event, eventually
from tests.unit.spool_kit import crash, pending
from tests.unit.test_processor import adds_up


class Broken(Spool):
    """A spool whose acknowledgements fail in a way that nobody has foreseen, until it is mended."""

    broken = True
    calls = 0

    def ack(self, positions: Iterable[Position]) -> None:
        self.calls += 1
        if self.broken:
            raise ZeroDivisionError
        super().ack(positions)


def errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_lasting_failure_is_logged_once_and_backed_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No busy loop, one log with its traceback; once it passes, what had been taken is delivered and acknowledged."""
    exporter = Recorder()
    spool = Broken(tmp_path, identity="db")
    processor = ActivityProcessor(exporter, spool=spool)
    for number in range(3):
        processor.emit(event(uuid4(), message=str(number)))
        time.sleep(0.2)
    assert eventually(lambda: spool.calls >= 3)
    assert spool.calls < 20
    (record,) = errors(caplog)
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
    spool.broken = False
    assert processor.force_flush(10)
    assert exporter.messages == ["0", "1", "2"]
    assert pending(spool) == 0
    assert adds_up(processor.health())
    assert processor.shutdown(5)


@pytest.mark.parametrize("at", [0, 3, 9])
def test_items_that_were_taken_outlast_an_exception(at: int) -> None:
    """Events and jobs behind the one that failed come next, in order, and none of them twice."""
    order: list[str] = []
    seen: list[str] = []
    exporter = Recorder(gate=Event())

    def follow_up(stored: Sequence[ActivityEvent], result: ExportResult) -> None:
        seen.extend(one.message for one in stored)
        if seen[-1] == str(at):
            raise SystemExit  # as a span processor of the application might

    def note(number: int) -> None:
        order.append(f"{number} after {len(seen)}")

    processor = ActivityProcessor(exporter, on_acknowledged=follow_up)
    processor.emit(event(uuid4(), message="first"))
    assert exporter.entered.wait(5)
    for number in range(10):
        processor.emit(event(uuid4(), message=str(number)))
        if number % 4 == 0:
            processor.call_soon(partial(note, number))
    assert exporter.gate is not None
    exporter.gate.set()
    assert processor.force_flush(10)
    expected = [str(number) for number in range(10)]
    assert seen == ["first", *expected]
    assert list(dict.fromkeys(exporter.messages)) == ["first", *expected]
    assert order == ["0 after 2", "4 after 6", "8 after 10"]
    health = processor.health()
    assert adds_up(health), health
    assert health["pending"] == 0
    assert processor.shutdown(5)


def test_a_job_that_ends_the_thread_does_not_end_the_writer() -> None:
    """A job that raises more than an exception: what was reported behind it is stored."""

    def leave() -> None:
        raise SystemExit

    exporter = Recorder(gate=Event())
    processor = ActivityProcessor(exporter)
    processor.emit(event(uuid4(), message="first"))
    assert exporter.entered.wait(5)
    processor.call_soon(leave)
    processor.emit(event(uuid4(), message="second"))
    assert exporter.gate is not None
    exporter.gate.set()
    assert processor.force_flush(5)
    assert exporter.messages == ["first", "second"]
    assert adds_up(processor.health())
    assert processor.shutdown(5)


def test_a_replay_outlasts_an_exception(tmp_path: Path) -> None:
    """Events of a dead process stay in its file until they are stored, whatever fails in between."""
    dead = Spool(tmp_path, identity="db")
    for number in range(5):
        dead.append(encode(event(uuid4(), message=str(number))))
    crash(dead)
    exporter = Recorder()

    def follow_up(stored: Sequence[ActivityEvent], result: ExportResult) -> None:
        if stored[-1].message == "2":
            raise SystemExit

    processor = ActivityProcessor(exporter, spool=Spool(tmp_path, identity="db"), on_acknowledged=follow_up)
    processor.start()
    assert eventually(lambda: processor.health()["committed"] >= 5)
    assert list(dict.fromkeys(exporter.messages)) == ["0", "1", "2", "3", "4"]
    assert adds_up(processor.health())
    assert processor.shutdown(5)
