"""The spool in one process: records in, records acknowledged, records left."""

from __future__ import annotations

import os
import random
import shutil
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from agentexec_otel.export.spool import Spool, SpoolFullError, SpoolUnavailableError, journal
from tests.unit.spool_kit import crash, drain, fill, pending, read_all, segment_files, spans_of


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path / "spool", identity="db")
    yield opened
    opened.close()


def again(spool: Spool, tmp_path: Path) -> Spool:
    """What the next process opens."""
    return Spool(tmp_path / "spool", identity="db")


def releases_the_interpreter(work: Callable[[], object]) -> bool:
    """Whether `work` calls `os.write`, which lets other threads run while the disk takes the bytes."""
    called: list[object] = []
    sys.setprofile(lambda frame, event, function: called.append(function) if event == "c_call" else None)
    try:
        work()
    finally:
        sys.setprofile(None)
    return os.write in called


# -- the life of a record ---------------------------------------------------------------------------------------


def test_a_record_is_in_the_file_when_append_returns(spool: Spool) -> None:
    """No buffer of ours: another reader of the file finds it at once, with its length and checksum."""
    spool.append(b"one")
    spool.append(b"two")
    (path,) = segment_files(spool)
    assert [payload for _, _, payload in spans_of(path.read_bytes())] == [b"one", b"two"]


def test_an_append_keeps_the_interpreter_until_the_disk_blocks(tmp_path: Path) -> None:
    """After an append that has taken long, the next ones release the interpreter lock. A new file begins anew."""
    now, slow = 100.0, 0.0

    def clock() -> float:
        nonlocal now
        now += slow
        return now

    opened = Spool(tmp_path / "spool", identity="db", segment_bytes=2_000, clock=clock)
    append = partial(opened.append, b"x" * 100)
    with closing(opened):
        append()
        assert not releases_the_interpreter(append)
        slow = 0.5
        append()
        assert releases_the_interpreter(append)
        slow = 0.0
        while len(segment_files(opened)) == 1:
            append()
        assert not releases_the_interpreter(append)


def test_what_is_acknowledged_leaves_only_the_header(spool: Spool) -> None:
    """The live segment is cut back as soon as nothing is outstanding, and takes the next record."""
    first, second = spool.append(b"one"), spool.append(b"two")
    (path,) = segment_files(spool)
    spool.ack([second])
    assert len(spans_of(path.read_bytes())) == 2
    spool.ack([first])
    assert spans_of(path.read_bytes()) == []
    spool.append(b"three")
    assert [payload for _, _, payload in spans_of(path.read_bytes())] == [b"three"]
    assert segment_files(spool) == [path]


def test_acknowledging_twice_does_not_count_for_another_record(spool: Spool) -> None:
    """Late and repeated acknowledgements, also of a position from before the file was cut back, remove nothing."""
    first = spool.append(b"one")
    spool.ack([first])
    second, third = spool.append(b"two"), spool.append(b"three")
    spool.ack([first, first])
    spool.ack([second])
    spool.ack([second])
    assert spool.read() == [(third, b"three")]
    assert pending(spool) == 1


def test_positions_grow(spool: Spool) -> None:
    """Over rotation and cutting back: the caller may compare them."""
    positions: list[int] = []
    for round_ in range(5):
        new = [spool.append(b"x" * 10) for _ in range(round_ + 1)]
        positions += new
        spool.ack(new)
    assert positions == sorted(set(positions))
    assert positions[0] > 0


def test_a_full_segment_is_followed_by_another_and_removed_when_done(tmp_path: Path) -> None:
    """Segments of bounded size; those without outstanding records go, in whatever order that happens."""
    spool = Spool(tmp_path, identity="db", segment_bytes=1000)
    positions = [spool.append(b"%03d" % n * 30) for n in range(60)]
    files = segment_files(spool)
    assert len(files) > 5
    assert all(path.stat().st_size <= 1000 for path in files)
    assert [payload for path in files for _, _, payload in spans_of(path.read_bytes())] == [
        b"%03d" % n * 30 for n in range(60)
    ]
    spool.ack(positions[10:50])
    left = segment_files(spool)
    assert files[0] in left
    assert files[-1] in left
    assert len(left) < len(files)
    spool.ack(positions)
    assert segment_files(spool) == [files[-1]]
    assert pending(spool) == 0
    spool.close()


def test_a_record_longer_than_a_segment_gets_one_of_its_own(tmp_path: Path) -> None:
    """A small segment size splits nothing and refuses nothing."""
    spool = Spool(tmp_path, identity="db", segment_bytes=500)
    for n in range(3):
        spool.append(b"%d" % n * 5000)
    assert [len(spans_of(path.read_bytes())) for path in segment_files(spool)] == [1, 1, 1]
    spool.close()


@pytest.mark.parametrize("length", [0, (1 << 20) + 1])
def test_a_record_without_sense_is_refused(spool: Spool, length: int) -> None:
    """Empty and oversized records would be taken for damage when read back."""
    with pytest.raises(ValueError, match="record of"):
        spool.append(b"x" * length)
    spool.append(b"x" * (1 << 20))
    assert pending(spool) == 1


# -- reading back -----------------------------------------------------------------------------------------------


def test_what_is_not_in_memory_is_read_back_in_order(tmp_path: Path) -> None:
    """A caller who follows `read` by the last position sees every outstanding record once, over all segments."""
    spool = Spool(tmp_path, identity="db", segment_bytes=2000)
    appended = [(spool.append(payload), payload) for payload in (b"%04d" % n * 20 for n in range(300))]
    gone = {position for position, _ in appended[::7]}
    spool.ack(gone)
    found: list[tuple[int, bytes]] = []
    after = appended[9][0]
    while batch := spool.read(after, limit=300):
        assert sum(len(payload) for _, payload in batch) <= 300
        found += batch
        after = batch[-1][0]
    assert found == [(position, payload) for position, payload in appended[10:] if position not in gone]
    assert spool.read(appended[-1][0]) == []
    spool.close()


def test_a_record_over_the_limit_is_read_alone(spool: Spool) -> None:
    """The limit bounds memory; it never leaves a record unread."""
    positions = [spool.append(b"a" * 5000), spool.append(b"b" * 5000)]
    assert spool.read(limit=10) == [(positions[0], b"a" * 5000)]
    assert spool.read(positions[0], limit=10) == [(positions[1], b"b" * 5000)]


# -- what is left -----------------------------------------------------------------------------------------------


def test_close_leaves_what_is_outstanding_to_the_next(spool: Spool, tmp_path: Path) -> None:
    """Also while this process lives on; what was acknowledged in the same file may come again."""
    first = spool.append(b"one")
    spool.append(b"two")
    spool.ack([first])
    spool.close()
    spool.close()
    with pytest.raises(SpoolUnavailableError, match="closed"):
        spool.append(b"three")
    assert drain(again(spool, tmp_path)) == [b"one", b"two"]
    assert list(spool.path.iterdir()) == []


def test_close_leaves_no_empty_file(spool: Spool) -> None:
    """Nor does a spool that was never used."""
    assert list(spool.path.iterdir()) == []
    spool.ack([spool.append(b"one")])
    spool.close()
    assert list(spool.path.iterdir()) == []


def test_a_live_segment_is_nobodys_orphan(spool: Spool, tmp_path: Path) -> None:
    """Neither its own process nor another spool of that process takes it, and looking does not unlock it."""
    spool.append(b"one")
    other = again(spool, tmp_path)
    assert drain(spool) == drain(other) == drain(other) == []
    spool.append(b"two")
    assert len(spool.read()) == 2


def test_an_orphan_is_kept_until_it_is_done(spool: Spool, tmp_path: Path) -> None:
    """Closed, or left without a word: it comes again, whole."""
    spool.append(b"one")
    spool.append(b"two")
    crash(spool)
    later = again(spool, tmp_path)
    for orphan in later.recover():
        with closing(orphan):
            assert next(iter(orphan)) == b"one"
    for orphan in later.recover():
        with closing(orphan):
            assert list(orphan) == [b"one", b"two"]
    (held,) = later.recover()
    assert list(later.recover()) == []
    held.close()
    held.done()
    assert drain(later) == [b"one", b"two"]
    assert drain(later) == []


def test_the_orphans_of_one_owner_come_in_order(tmp_path: Path) -> None:
    """Records are replayed in the order in which they were appended."""
    spool = Spool(tmp_path / "spool", identity="db", segment_bytes=600)
    for n in range(100):
        spool.append(b"%03d" % n)
    crash(spool)
    assert drain(again(spool, tmp_path)) == [b"%03d" % n for n in range(100)]


def test_four_threads_that_recover_share_the_orphans(tmp_path: Path) -> None:
    """A record lock does not tell the threads of a process apart: each orphan is still given to one."""
    spool = Spool(tmp_path / "spool", identity="db", segment_bytes=600)
    for n in range(500):
        spool.append(b"%03d" % n)
    crash(spool)
    found: list[bytes] = []
    spools = [again(spool, tmp_path) for _ in range(4)]
    start = threading.Barrier(4)

    def recover(mine: Spool) -> None:
        start.wait()
        found.extend(drain(mine))

    threads = [threading.Thread(target=recover, args=(mine,)) for mine in spools]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [b"%03d" % n for n in range(500)]


# -- limits -----------------------------------------------------------------------------------------------------


def test_the_spool_stays_within_its_limit(tmp_path: Path, clock: Clock) -> None:
    """Own segments, orphans and files set aside together; acknowledging makes room again."""
    directory = tmp_path / "spool"
    old = Spool(directory, identity="db")
    for _ in range(30):
        old.append(b"x" * 100)
    crash(old)
    spool = Spool(directory, identity="db", max_bytes=10_000, segment_bytes=2_000, clock=clock)
    (spool.path / f"{segment_files(old)[0].stem}.corrupt").write_bytes(b"?" * 1_000)
    positions = fill(spool, b"y" * 100)
    with pytest.raises(SpoolFullError, match="limit"):
        spool.append(b"y" * 100)
    used = sum(path.stat().st_size for path in spool.path.iterdir())
    assert 9_000 < used <= 10_000
    assert spool.size() == used
    spool.ack(positions[:30])
    spool.append(b"y" * 100)
    assert len(drain(spool)) == 30
    clock.now += 1
    for _ in range(30):
        spool.append(b"y" * 100)
    assert sum(path.stat().st_size for path in spool.path.iterdir()) <= 10_000
    spool.close()


def test_only_vital_records_use_the_reserve(tmp_path: Path) -> None:
    """Progress is refused while there is still room for the end of what is running."""
    spool = Spool(tmp_path, identity="db", max_bytes=20_000, reserve_bytes=5_000, segment_bytes=2_000)
    fill(spool, b"x" * 100)
    assert 13_000 < spool.size() <= 15_000
    spool.append(b"x" * 100, vital=True)
    with pytest.raises(SpoolFullError):
        spool.append(b"x" * 100)
    fill(spool, b"x" * 100, vital=True)
    assert 18_000 < spool.size() <= 20_000
    spool.close()


def test_size_is_that_of_the_files(spool: Spool) -> None:
    """As of now, without a record and with two."""
    assert spool.size() == 0
    spool.append(b"one")
    spool.append(b"two")
    assert spool.size() == segment_files(spool)[0].stat().st_size


# -- durability -------------------------------------------------------------------------------------------------


def _count_syncs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Descriptors that were synced. What a disk does with it cannot be seen from here."""
    synced: list[int] = []
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        synced.append(fd)
        real(fd)

    monkeypatch.setattr(journal, "_fdatasync", fdatasync)
    return synced


def test_disk_durability_syncs_each_file_that_has_news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, and not again without news."""
    synced = _count_syncs(monkeypatch)
    spool = Spool(tmp_path, identity="db", durability="disk", segment_bytes=1000)
    for _ in range(20):
        spool.append(b"x" * 100)
    spool.sync()
    assert len(synced) == len(set(synced)) == len(segment_files(spool)) > 1
    spool.sync()
    assert len(synced) == len(segment_files(spool))
    spool.append(b"x")
    spool.sync()
    assert len(synced) == len(segment_files(spool)) + 1
    spool.close()


def test_process_durability_never_syncs(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel has survives the process; waiting for the disk is not paid for."""
    synced = _count_syncs(monkeypatch)
    spool.append(b"x")
    spool.sync()
    assert synced == []


def test_those_who_wait_for_the_disk_at_once_share_a_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight threads, those who come while one is at it find their records on the disk with the next one."""
    spool = Spool(tmp_path, identity="db", durability="disk")
    synced = _count_syncs(monkeypatch)
    start = threading.Barrier(8)

    def append_and_sync() -> None:
        start.wait()
        spool.append(b"x")
        appended.wait()
        spool.sync()

    appended = threading.Barrier(8)
    threads = [threading.Thread(target=append_and_sync) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(synced) == 1
    spool.close()


# -- threads ----------------------------------------------------------------------------------------------------


def test_threads_append_and_acknowledge_at_once(tmp_path: Path) -> None:
    """Nothing that was not acknowledged is missing, nothing is there twice, and every file is sound."""
    spool = Spool(tmp_path / "spool", identity="db", segment_bytes=5_000)
    kept: list[list[bytes]] = [[] for _ in range(4)]

    def work(number: int) -> None:
        rng = random.Random(number)
        mine: list[tuple[int, bytes]] = []
        for n in range(1500):
            payload = b"%d-%04d" % (number, n)
            mine.append((spool.append(payload), payload))
            if rng.random() < 0.1:
                rng.shuffle(mine)
                spool.ack(position for position, _ in mine[3:])
                del mine[3:]
        kept[number] = [payload for _, payload in mine]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outstanding = sorted(payload for some in kept for payload in some)
    assert sorted(payload for _, payload in read_all(spool)) == outstanding
    crash(spool)
    later = again(spool, tmp_path)
    recovered = drain(later)
    assert len(recovered) == len(set(recovered))
    assert set(outstanding) <= set(recovered)
    assert list(later.path.glob("*.corrupt")) == []


# -- somebody tampers -------------------------------------------------------------------------------------------


def test_a_removed_directory_is_made_again(spool: Spool, tmp_path: Path) -> None:
    """Somebody clears the state folder while we run: the next file is found by the next recoverer."""
    position = spool.append(b"lost with the folder")
    shutil.rmtree(tmp_path / "spool")
    spool.ack([position])
    spool.append(b"one")
    assert drain(spool) == []
    crash(spool)
    assert drain(again(spool, tmp_path)) == [b"one"]
    assert stat.S_IMODE((tmp_path / "spool").stat().st_mode) == 0o700


def test_an_outsider_who_looks_at_a_segment_does_not_free_it(spool: Spool, tmp_path: Path) -> None:
    """Closing any descriptor of the file drops our record lock: the owner's pid then still says who it is.

    Its own process would know anyway; what a sibling does is tested with processes.
    """
    spool.append(b"one")
    (path,) = segment_files(spool)
    path.read_bytes()
    assert drain(again(spool, tmp_path)) == []
