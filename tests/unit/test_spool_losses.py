"""Damage, removal and later versions of what is in the spool, as the writer and `health()` show it."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import pytest

from agentexec_otel._model.codec import SCHEMA, encode
from agentexec_otel.activity.models import Status
from agentexec_otel.export import ActivityProcessor
from agentexec_otel.export.spool import Spool
from tests.sql.recorder import Recorder
from tests.sql.rows import event, eventually
from tests.unit.spool_kit import crash, drain, read_all, segment_files, spans_of
from tests.unit.test_processor import adds_up


def spool_at(path: Path, **more: Any) -> Spool:
    return Spool(path, identity="db", **more)


def waiting(spool: Spool, count: int, **more: Any) -> tuple[ActivityProcessor, Recorder]:
    """A processor with that many events in its spool, whose exporter is busy with the first one."""
    exporter = Recorder(gate=Event())
    processor = ActivityProcessor(exporter, spool=spool, **more)
    processor.emit(event(uuid4(), message="0"))
    assert exporter.entered.wait(5)
    for number in range(1, count):
        processor.emit(event(uuid4(), message=str(number)))
    return processor, exporter


def go_on(exporter: Recorder, processor: ActivityProcessor) -> dict[str, Any]:
    assert exporter.gate is not None
    exporter.gate.set()
    assert processor.force_flush(10)
    health = processor.health()
    assert adds_up(health), health
    assert health["pending"] == 0
    return health


def flip(spool: Spool, index: int) -> None:
    (path,) = segment_files(spool)
    content = bytearray(path.read_bytes())
    begin, end, _ = spans_of(bytes(content))[index]
    content[(begin + end) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(content)


# -- damage -----------------------------------------------------------------------------------------------------


def test_a_damaged_record_of_a_dead_process_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One record is lost, the others are stored; one error says so, and the books include it."""
    dead = spool_at(tmp_path)
    for number in range(9):
        dead.append(encode(event(uuid4(), message=str(number))))
    crash(dead)
    flip(dead, 4)
    exporter = Recorder()
    processor = ActivityProcessor(exporter, spool=spool_at(tmp_path))
    assert processor.replay(5) == 8
    assert eventually(lambda: processor.health()["damaged"] == 1)
    health = processor.health()
    assert exporter.messages == ["0", "1", "2", "3", "5", "6", "7", "8"]
    assert (health["replayed"], health["committed"]) == (9, 8)
    assert adds_up(health)
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1
    assert processor.shutdown(5)


def test_a_damaged_record_of_a_living_process_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of those that wait in the spool alone, one is lost. Its segment is removed all the same."""
    spool = spool_at(tmp_path)
    processor, exporter = waiting(spool, 200, max_queue_size=16)
    flip(spool, 100)
    flip(spool, 199)
    health = go_on(exporter, processor)
    assert exporter.messages == [str(number) for number in range(199) if number != 100]
    assert health["damaged"] == 2
    assert "2 activity events are lost" in caplog.text
    assert read_all(spool) == []
    assert spool.size() < 1_000
    assert processor.shutdown(5)


def test_an_awaited_event_outlasts_its_record(tmp_path: Path) -> None:
    """A call waits for an event whose record is damaged: it is in memory as well, and stored in its place."""
    spool = spool_at(tmp_path)
    processor, exporter = waiting(spool, 100, max_queue_size=16)
    ended = processor.submit(event(uuid4(), Status.COMPLETE, "end"))
    processor.emit(event(uuid4(), message="after"))
    flip(spool, 100)
    health = go_on(exporter, processor)
    assert ended.done()
    assert exporter.messages[-3:] == ["99", "end", "after"]
    assert health["damaged"] == 0
    assert processor.shutdown(5)


# -- later versions ---------------------------------------------------------------------------------------------


def later(message: str) -> bytes:
    fields = json.loads(encode(event(uuid4(), message=message)))
    return json.dumps([SCHEMA + 1, {"anything": fields}]).encode()


def test_events_of_a_later_version_are_kept_for_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are neither stored, dropped nor dead letters; one warning; all others are replayed."""
    theirs = [later("theirs"), later("theirs, too")]
    for payloads in (theirs, [encode(event(uuid4(), message="ours"))]):
        dead = spool_at(tmp_path)
        for payload in payloads:
            dead.append(payload)
        crash(dead)
    exporter = Recorder()
    spool = spool_at(tmp_path)
    processor = ActivityProcessor(exporter, spool=spool)
    for _ in range(3):
        processor.replay(5)
    assert exporter.messages == ["ours"]
    health = processor.health()
    assert adds_up(health)
    assert (health["damaged"], health["dead_lettered"], health["replayed"]) == (0, 0, 1)
    assert len([record for record in caplog.records if "later version" in record.getMessage()]) == 1
    assert processor.shutdown(5)
    assert drain(spool_at(tmp_path)) == theirs


# -- removal ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["folder", "file"])
def test_removed_files_are_written_again(tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture) -> None:
    """Something clears the spool during an outage: the files come back with all that is outstanding, and it shows."""
    spool = spool_at(tmp_path / "state", segment_bytes=4_000)
    processor, exporter = waiting(spool, 50)
    count = len(segment_files(spool))
    assert count > 1
    if what == "folder":
        shutil.rmtree(tmp_path / "state")
    else:
        for path in segment_files(spool):
            path.unlink()
    assert processor.health()["durability"] == "memory"
    processor.emit(event(uuid4(), message="50"))
    spool.restore()
    assert processor.health()["durability"] == "process"
    processor.emit(event(uuid4(), message="51"))
    there = [payload for path in segment_files(spool) for _, _, payload in spans_of(path.read_bytes())]
    assert [json.loads(payload)[4] for payload in there] == [str(number) for number in range(52)]
    go_on(exporter, processor)
    assert exporter.messages == [str(number) for number in range(52)]
    assert spool.size() < 1_000
    assert processor.shutdown(5)


def test_the_writer_notices_that_the_spool_was_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Within a second while it is idle or waits for the next try: one warning, and `health()` counts the files."""
    spool = spool_at(tmp_path / "state")
    processor = ActivityProcessor(Recorder(), spool=spool)
    processor.emit(event(uuid4()))
    assert processor.force_flush(5)
    shutil.rmtree(tmp_path / "state")
    assert eventually(lambda: processor.health()["spool_restored"] == 1)
    assert eventually(lambda: "are written again" in caplog.text)
    assert len(segment_files(spool)) == 1
    assert len([record for record in caplog.records if "are written again" in record.getMessage()]) == 1
    assert processor.shutdown(5)


def test_a_spool_that_cannot_be_written_again_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file is in the folder's place: events are in memory, `health()` says so, and it is tried until it succeeds."""
    spool = spool_at(tmp_path / "state")
    processor = ActivityProcessor(Recorder(), spool=spool)
    processor.start()
    spool.append(b"outstanding")
    shutil.rmtree(tmp_path / "state")
    (tmp_path / "state").write_text("in the way")
    assert eventually(lambda: "was removed" in caplog.text)
    assert processor.health()["durability"] == "memory"
    processor.call(lambda: None, 5)
    processor.call(lambda: None, 5)
    assert len([record for record in caplog.records if "was removed" in record.getMessage()]) == 1
    (tmp_path / "state").unlink()
    assert eventually(lambda: processor.health()["durability"] == "process")
    assert processor.shutdown(5)


# -- what a call answers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", ["small spool", "no spool"])
def test_true_means_that_the_log_is_stored(tmp_path: Path, room: str) -> None:
    """With no room left, progress is answered by False, since a later log may replace it; what got True is stored."""
    spool = spool_at(tmp_path, max_bytes=20_000) if room == "small spool" else None
    exporter = Recorder(gate=Event())
    processor = ActivityProcessor(exporter, spool=spool, max_queue_size=16)
    processor.emit(event(uuid4(), message="in flight"))
    assert exporter.entered.wait(5)
    ids = [uuid4() for _ in range(30)]
    answers = {str(n): processor.emit(event(ids[n % 30], message=str(n))) for n in range(400)}
    assert processor.emit(event(ids[0], Status.COMPLETE, "end"))
    health = go_on(exporter, processor)
    stored = set(exporter.messages)
    assert {text for text, accepted in answers.items() if accepted} <= stored
    assert health["dropped"] == len(set(answers) - stored) > 0
    assert "end" in stored
    assert processor.shutdown(5)
