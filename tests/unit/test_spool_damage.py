"""The corruption matrix: what a spool file may look like after a bad day, and what is made of it."""

from __future__ import annotations

import logging
import os
import random
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from agentexec_otel._model.codec import encode
from agentexec_otel.export.spool import Spool
from agentexec_otel.export.spool.segment import MAX_RECORD
from tests.sql.rows import event
from tests.unit.spool_kit import drain, segment_files, spans_of, with_header

PAYLOADS = [b"first", b"the second record", b"\x00third\xff"]


@dataclass(frozen=True, slots=True)
class Bench:
    """A spool directory, and the bytes of a sound segment that somebody left in it."""

    spool: Spool
    path: Path
    sound: bytes

    @property
    def corrupt(self) -> Path:
        return self.path.with_suffix(".corrupt")

    @property
    def body(self) -> int:
        """Where the first record begins."""
        return spans_of(self.sound)[0][0]

    def recover(self, content: bytes) -> list[bytes]:
        self.corrupt.unlink(missing_ok=True)
        self.path.write_bytes(content)
        return drain(self.spool)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    owner = Spool(tmp_path, identity="db")
    for payload in PAYLOADS:
        owner.append(payload)
    owner.close()
    (path,) = segment_files(owner)
    return Bench(Spool(tmp_path, identity="db"), path, path.read_bytes())


def test_a_sound_file_is_delivered_and_removed(bench: Bench) -> None:
    """The matrix begins with a file that has nothing wrong."""
    assert bench.recover(bench.sound) == PAYLOADS
    assert not bench.path.exists()
    assert not bench.corrupt.exists()


def test_a_file_cut_at_any_byte_gives_every_whole_record(bench: Bench) -> None:
    """A torn tail loses the record it is in, a cut between records nothing, a cut header everything; never more."""
    spans = spans_of(bench.sound)
    boundaries = {bench.body} | {end for _, end, _ in spans}
    for length in range(len(bench.sound) + 1):
        expected = [payload for _, end, payload in spans if end <= length]
        assert bench.recover(bench.sound[:length]) == expected, length
        assert not bench.path.exists(), length
        torn = length not in boundaries and length > 0
        assert bench.corrupt.exists() == torn, length
        if torn:
            assert bench.corrupt.read_bytes() == bench.sound[:length]


def test_a_bit_flipped_anywhere_costs_one_record_at_most(bench: Bench) -> None:
    """The header is repaired; in a record, all others are delivered, and the file is kept for inspection."""
    spans = spans_of(bench.sound)
    for index in range(len(bench.sound)):
        expected = [payload for begin, end, payload in spans if not begin <= index < end]
        for bit in range(8):
            content = bytearray(bench.sound)
            content[index] ^= 1 << bit
            assert bench.recover(bytes(content)) == expected, (index, bit)
            assert not bench.path.exists(), (index, bit)
            assert bench.corrupt.exists() == (index >= bench.body), (index, bit)
            if index >= bench.body:
                assert bench.corrupt.read_bytes() == content, (index, bit)


@pytest.mark.parametrize("first", range(16))
def test_two_bits_flipped_in_a_header_give_nothing(bench: Bench, first: int) -> None:
    """The checksum corrects one: with two, nothing says whose records these are. The file is set aside."""
    content = bytearray(bench.sound)
    content[first] ^= 1
    content[first + 20] ^= 1
    assert bench.recover(bytes(content)) == []
    assert bench.corrupt.read_bytes() == content


def test_garbage_between_records_costs_nothing_else(bench: Bench) -> None:
    """Blocks of another file, or of zeros, in the middle: what is around them is delivered, once."""
    spans = spans_of(bench.sound)
    for begin, _, _ in spans:
        for garbage in (bytes(5_000), random.Random(begin).randbytes(300_000), bench.sound):
            again = PAYLOADS if garbage == bench.sound else []
            index = [begin for begin, _, _ in spans].index(begin)
            content = bench.sound[:begin] + garbage + bench.sound[begin:]
            assert bench.recover(content) == PAYLOADS[:index] + again + PAYLOADS[index:]
            assert bench.corrupt.exists()


def test_the_search_for_records_is_bounded(bench: Bench) -> None:
    """A file made of lengths that lie costs a bounded amount of reading, whatever its size."""
    forged = struct.pack("<II", MAX_RECORD, 0) * (1 << 18)
    began = time.process_time()
    assert bench.recover(bench.sound + forged + bench.sound[bench.body :])[:3] == PAYLOADS
    assert time.process_time() - began < 10  # Without the limit it is 250,000 MiB, minutes.
    assert bench.corrupt.exists()


def test_no_message_passes_for_a_record(tmp_path: Path) -> None:
    """A record quoted in a message is found neither when it is sound nor when its length is damaged."""
    forged = encode(event(uuid4(), message="forged"))
    quoted = event(uuid4(), message=(struct.pack("<II", len(forged), zlib.crc32(forged)) + forged).decode("latin-1"))
    owner = Spool(tmp_path, identity="db")
    for payload in (encode(quoted), b"next"):
        owner.append(payload)
    owner.close()
    (path,) = segment_files(owner)
    content = bytearray(path.read_bytes())
    content[spans_of(bytes(content))[0][0]] ^= 1
    path.write_bytes(content)
    assert drain(Spool(tmp_path, identity="db")) == [b"next"]


def test_the_damaged_are_reported(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """No silent path: one warning each, without content."""
    for _ in range(2):
        bench.recover(bench.sound[:-1])
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "first" not in caplog.text


def test_damage_in_one_file_does_not_keep_the_next_from_delivery(tmp_path: Path) -> None:
    """A torn record costs nothing of the next segment."""
    owner = Spool(tmp_path, identity="db", segment_bytes=600)
    for n in range(50):
        owner.append(b"%02d" % n * 10)
    owner.close()
    files = segment_files(owner)
    last_of_first = spans_of(files[0].read_bytes())[-1]
    with files[0].open("r+b") as file:
        file.truncate(last_of_first[1] - 1)
    missing = int(last_of_first[2][:2])
    assert drain(owner) == [b"%02d" % n * 10 for n in range(50) if n != missing]


@pytest.mark.parametrize("size", [1 << 20, 12, 8, 7])
def test_a_tail_of_zeros_is_no_record(bench: Bench, size: int) -> None:
    """Blocks that never reached the disk read as zeros, and crc32 of nothing is zero as well."""
    assert zlib.crc32(b"") == 0
    assert bench.recover(bench.sound + bytes(size)) == PAYLOADS
    assert bench.corrupt.exists()


@pytest.mark.parametrize("length", [2**32 - 1, MAX_RECORD + 1, MAX_RECORD, 2**31])
def test_a_monstrous_length_is_not_believed(bench: Bench, length: int) -> None:
    """A damaged length field asks for 4 GiB: nothing near it is allocated, and what came before is delivered."""
    content = bench.sound + struct.pack("<II", length, 0) + b"x" * 100
    tracemalloc.start()
    try:
        assert bench.recover(content) == PAYLOADS
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_RECORD
    finally:
        tracemalloc.stop()
    assert bench.corrupt.exists()


def test_an_empty_file_is_removed(bench: Bench) -> None:
    """Its owner died between creating it and writing the header: nothing was ever accepted."""
    assert bench.recover(b"") == []
    assert list(bench.spool.path.iterdir()) == []
    assert not bench.corrupt.exists()


def test_a_file_without_records_is_removed(bench: Bench) -> None:
    """Its owner died after everything was acknowledged."""
    assert bench.recover(bench.sound[: bench.body]) == []
    assert list(bench.spool.path.iterdir()) == []


def test_the_oldest_damaged_files_make_room(bench: Bench) -> None:
    """Files set aside are for a look; they must not fill the spool for ever."""
    for number in range(12):
        path = bench.path.with_name(bench.path.name.replace("-000001", f"-{number + 2:06d}"))
        path.write_bytes(bench.sound[:-1])
        os.utime(path, (number, number))
    bench.path.unlink()
    assert drain(bench.spool) == PAYLOADS[:-1] * 12
    kept = sorted(int(path.stem[-6:]) - 2 for path in bench.spool.path.glob("*.corrupt"))
    assert kept == list(range(4, 12))


# -- what is not ours -------------------------------------------------------------------------------------------


def _stranger_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _stranger_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _stranger_link(path: Path) -> None:
    target = path.rename(path.parent.parent / "target")
    path.symlink_to(target)


def _rename(name: str) -> Callable[[Path], None]:
    def rename(path: Path) -> None:
        path.rename(path.with_name(name))

    return rename


STRANGERS: dict[str, Callable[[Path], object]] = {
    "another identity": lambda path: path.write_bytes(with_header(path.read_bytes(), changes={"identity": "0" * 64})),
    "older format": lambda path: path.write_bytes(with_header(path.read_bytes(), version=0)),
    "newer format": lambda path: path.write_bytes(with_header(path.read_bytes(), version=2)),
    "newer format, other fields": lambda path: path.write_bytes(
        with_header(path.read_bytes(), 65535, {"identity": None})
    ),
    "named pipe": _stranger_pipe,
    "directory": _stranger_directory,
    "symbolic link": _stranger_link,
    "foreign name": _rename("notes.txt"),
    "nearly our name": _rename("host-1-2-abcdefgh-000001.seg"),
    "hidden file": _rename(".nfs0001"),
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_what_is_not_ours_is_left_alone_and_reported_once(
    bench: Bench, stranger: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Another version may come back for it; another database must never get it."""
    STRANGERS[stranger](bench.path)
    before = [(path, path.lstat().st_size, path.lstat().st_mode) for path in bench.spool.path.iterdir()]
    assert drain(bench.spool) == []
    assert drain(bench.spool) == []
    assert [(path, path.lstat().st_size, path.lstat().st_mode) for path in bench.spool.path.iterdir()] == before
    assert [path for path in bench.spool.path.iterdir() if path.suffix == ".corrupt"] == []
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_another_identity_has_another_directory(bench: Bench, tmp_path: Path) -> None:
    """Same folder, other database or prefix: neither sees the other's files, nor counts their bytes."""
    other = Spool(tmp_path, identity="other db")
    assert other.path != bench.spool.path
    assert drain(other) == []
    assert other.size() == 0
    assert drain(bench.spool) == PAYLOADS


def test_a_later_minor_version_may_say_more_about_itself(bench: Bench) -> None:
    """Unknown fields of a header do not make it damaged."""
    assert bench.recover(with_header(bench.sound, changes={"fresh": "field"})) == PAYLOADS


@pytest.mark.parametrize(("name", "value"), [("pid", "1"), ("place", 5), ("started", None), ("started", 1.5)])
def test_a_header_with_a_sound_checksum_and_no_sense_is_damage(bench: Bench, name: str, value: object) -> None:
    """Whatever wrote it: nothing is delivered on its word, and nothing is raised."""
    assert bench.recover(with_header(bench.sound, changes={name: value})) == []
    assert bench.corrupt.exists()


@pytest.mark.parametrize("body", [b"[" * 60_000, b"[]", b"null", b"{", b"\xff"])
def test_a_hostile_header_raises_nothing(bench: Bench, body: bytes) -> None:
    """Deep JSON, other JSON, no JSON: left alone or set aside."""
    start = struct.pack("<8sHH", b"AXSPOOL\n", 1, len(body))
    assert bench.recover(start + struct.pack("<I", zlib.crc32(start + body)) + body) == []
