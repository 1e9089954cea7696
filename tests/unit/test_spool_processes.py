"""The spool over the life and death of processes: killed, forked, interrupted, limited."""

from __future__ import annotations

import ctypes
import os
import random
import resource
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from types import FrameType

import pytest

from agentexec_otel.export.spool import Position, Spool, SpoolFullError
from tests.unit.spool_kit import (
    Child,
    Log,
    drain,
    fill,
    fork,
    pending,
    read_all,
    run_and_exit,
    segment_files,
    with_header,
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def open_spool(directory: Path, segment_bytes: int = 4 << 20) -> Spool:
    return Spool(directory, identity="db", segment_bytes=segment_bytes)


def c_fork(work: Callable[[], object]) -> Child:
    """A fork that Python does not notice, as by uWSGI: no at-fork hook runs.

    Only from a process without other threads, such as a forked one: Python itself would hang in the child.
    """
    pid = ctypes.PyDLL(None).fork()
    if pid == 0:
        run_and_exit(work)
    return Child(pid)


class Gate:
    """Processes that wait here go on together."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def wait(self) -> None:
        os.close(self._write)
        os.read(self._read, 1)

    def open(self) -> None:
        os.close(self._write)
        os.close(self._read)


# -- killed -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_what_append_accepted_survives_kill_9(directory: Path, tmp_path: Path, seed: int) -> None:
    """Killed at a random moment: every append that returned is recovered, once, in order, and no file is damaged.

    The journal of the dead process is the oracle: it has a line for every call that returned. One record more may be
    there, of the call that did not.
    """
    rng = random.Random(seed)
    accepted = Log(tmp_path / "journal")
    acked = Log(tmp_path / "acked")

    def produce() -> None:
        spool = open_spool(directory, segment_bytes=rng.choice([700, 5_000, 1 << 20]))
        outstanding: list[tuple[int, bytes]] = []
        for n in range(10**9):
            payload = b"%09d" % n * rng.choice([1, 20])
            position = spool.append(payload)
            accepted.write(payload)
            outstanding.append((position, payload))
            if rng.random() < 0.02:
                for _, done in outstanding:
                    acked.write(done)  # first: what is in this file may be missing
                spool.ack(position for position, _ in outstanding)
                outstanding.clear()

    child = fork(produce)
    while len(accepted.lines()) < 20:
        time.sleep(0.001)
    time.sleep(rng.uniform(0.0, 0.1))
    child.kill()
    spool = open_spool(directory)
    recovered = drain(spool)
    kept = accepted.lines()
    assert recovered == sorted(set(recovered))
    assert set(kept) - set(acked.lines()) <= set(recovered)
    assert len(set(recovered) - set(kept)) <= 1
    # The kernel may stop a write that crosses a page when its process is killed: that record was never accepted.
    assert len(list(spool.path.glob("*.corrupt"))) <= 1
    assert drain(spool) == []


def test_a_sibling_does_not_take_what_a_living_process_holds(directory: Path) -> None:
    """Its lock says so; and where an outsider has made it lose its lock, its pid and start time do."""
    spool = open_spool(directory)
    spool.append(b"one")

    def look() -> None:
        assert drain(open_spool(directory)) == []

    fork(look).join()
    segment_files(spool)[0].read_bytes()
    fork(look).join()
    spool.append(b"two")
    assert [payload for _, payload in spool.read()] == [b"one", b"two"]
    spool.close()


def test_a_sibling_takes_what_a_living_process_has_closed(directory: Path) -> None:
    """After `shutdown()` the application may run for months; what it left is delivered all the same."""
    spool = open_spool(directory)
    spool.append(b"one")
    spool.close()

    def take() -> None:
        assert drain(open_spool(directory)) == [b"one"]

    fork(take).join()


def test_a_recycled_pid_keeps_nothing_from_being_replayed(directory: Path) -> None:
    """The owner's pid lives, but as a process that started at another time."""
    fork(lambda: open_spool(directory).append(b"one")).join()
    spool = open_spool(directory)
    (path,) = segment_files(spool)
    path.write_bytes(with_header(path.read_bytes(), changes={"pid": os.getppid()}))
    assert drain(spool) == [b"one"]


REPLACEMENT = """
import os, sys, types
root, directory, found = sys.argv[1:]
for name in ("agentexec_otel", "agentexec_otel.export"):  # the packages without what else they import
    package = sys.modules[name] = types.ModuleType(name)
    package.__path__ = [os.path.join(root, *name.split("."))]
from agentexec_otel.export.spool import Spool
payloads = [payload for orphan in Spool(directory, identity="db").recover() for payload in orphan]
open(found, "wb").write(b" ".join(payloads))
"""


def test_a_process_that_replaces_itself_finds_what_it_left(directory: Path, tmp_path: Path) -> None:
    """exec keeps pid and start time, so only the process itself can tell that nobody holds the file any more."""
    root, found = Path(__file__).parents[2], tmp_path / "found"

    def work() -> None:
        open_spool(directory).append(b"one")
        os.execv(sys.executable, [sys.executable, "-c", REPLACEMENT, str(root), str(directory), str(found)])

    fork(work).join()
    assert found.read_bytes() == b"one"


def test_four_recoverers_at_once_deliver_each_record_once(directory: Path, tmp_path: Path) -> None:
    """Four processes, forty orphans: each orphan goes to one of them."""

    def leave() -> None:
        spool = open_spool(directory, segment_bytes=2_000)
        for n in range(1_200):
            spool.append(b"%05d" % n * 10)

    fork(leave).join()
    assert len(segment_files(open_spool(directory))) > 30
    delivered = Log(tmp_path / "delivered")
    takers = Log(tmp_path / "takers")
    gate = Gate()

    def recover() -> None:
        spool = open_spool(directory)
        gate.wait()
        for orphan in spool.recover():
            takers.write(b"%d" % os.getpid())
            for payload in orphan:
                delivered.write(payload)
            time.sleep(0.002)
            orphan.done()

    children = [fork(recover) for _ in range(4)]
    gate.open()
    for child in children:
        child.join()
    assert Counter(delivered.lines()) == Counter(b"%05d" % n * 10 for n in range(1_200))
    assert len(set(takers.lines())) > 1
    assert list(open_spool(directory).path.iterdir()) == []


def test_a_recoverer_that_is_killed_leaves_the_orphan_to_the_next(directory: Path, tmp_path: Path) -> None:
    """Its lock goes with it."""
    fork(lambda: open_spool(directory).append(b"one")).join()
    started = Log(tmp_path / "started")

    def recover_and_hang() -> None:
        for orphan in open_spool(directory).recover():
            started.write(b"".join(orphan))
            time.sleep(30)

    child = fork(recover_and_hang)
    while not started.lines():
        time.sleep(0.001)
    spool = open_spool(directory)
    assert drain(spool) == []
    child.kill()
    assert drain(spool) == [b"one"]


# -- forked -----------------------------------------------------------------------------------------------------


Fork = Callable[[Callable[[], object]], Child]
every_fork = pytest.mark.parametrize("forker", [fork, c_fork])


@every_fork
def test_a_child_begins_with_nothing_of_its_parents(directory: Path, forker: Fork) -> None:
    """Its appends go to a file of its own; it can neither read, acknowledge nor remove what its parent holds."""

    def parent() -> None:
        spool = open_spool(directory)
        position = spool.append(b"parent")
        forker(lambda: child(spool, position)).join()
        assert [payload for _, payload in spool.read()] == [b"parent"]
        assert drain(spool) == [b"child"]
        spool.ack([position])
        assert pending(spool) == 0

    def child(spool: Spool, position: Position) -> None:
        inherited = len(list(Path("/proc/self/fd").iterdir()))
        assert spool.append(b"child") != position
        assert [payload for _, payload in spool.read()] == [b"child"]
        spool.ack([position])
        assert pending(spool) == 1
        assert drain(spool) == []
        # Its own segment has come, its parent's has gone; at Python's forks that was before.
        assert len(list(Path("/proc/self/fd").iterdir())) == inherited + (forker is fork)

    fork(parent).join()


@every_fork
def test_a_child_that_outlives_its_parent_keeps_nothing_from_being_replayed(
    directory: Path, tmp_path: Path, forker: Fork
) -> None:
    """Even one that never touches the spool, and so still has its parent's descriptors open."""
    ready = Log(tmp_path / "ready")

    def parent() -> None:
        spool = open_spool(directory)
        spool.append(b"one")
        forker(idle)
        time.sleep(30)

    def idle() -> None:
        ready.write(b"%d" % os.getpid())
        time.sleep(30)

    process = fork(parent)
    while not ready.lines():
        time.sleep(0.001)
    spool = open_spool(directory)
    assert drain(spool) == []
    process.kill()
    child = int(ready.lines()[0])
    try:
        held = [str(path.readlink()) for path in Path(f"/proc/{child}/fd").iterdir()]
        assert any(name.startswith(str(directory)) and name.endswith(".seg") for name in held) == (forker is c_fork)
        assert drain(spool) == [b"one"]
    finally:
        os.kill(child, signal.SIGKILL)


@every_fork
def test_an_orphan_in_hand_at_a_fork_remains_the_parents(directory: Path, forker: Fork) -> None:
    """The child's copy does not remove or unlock it."""
    fork(lambda: open_spool(directory).append(b"one")).join()

    def parent() -> None:
        spool = open_spool(directory)
        (orphan,) = spool.recover()
        assert list(orphan) == [b"one"]
        forker(orphan.done).join()
        assert len(segment_files(spool)) == 1
        forker(nothing_to_recover).join()
        orphan.done()
        assert segment_files(spool) == []

    def nothing_to_recover() -> None:
        assert list(open_spool(directory).recover()) == []

    fork(parent).join()


def test_200_forks_while_other_threads_append(directory: Path) -> None:
    """No child meets a lock that nobody will release: each appends within its alarm, and nothing is lost or doubled."""
    spool = open_spool(directory, segment_bytes=20_000)
    stop = threading.Event()
    appended = [0, 0]

    def load(number: int) -> None:
        while not stop.is_set():
            spool.append(b"parent %d %d" % (number, appended[number]))
            appended[number] += 1
            if appended[number] % 20 == 0:
                time.sleep(0.002)

    threads = [threading.Thread(target=load, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        for n in range(0, 200, 5):
            children = [fork(partial(spool.append, b"child %d" % (n + m))) for m in range(5)]
            for child in children:
                child.join()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert sorted(drain(spool)) == sorted(b"child %d" % n for n in range(200))
    spool.close()
    expected = Counter(b"parent %d %d" % (number, n) for number in range(2) for n in range(appended[number]))
    assert Counter(drain(open_spool(directory))) == expected
    assert min(appended) > 200


# -- interrupted ------------------------------------------------------------------------------------------------


@contextmanager
def signals(handler: Callable[[int, FrameType | None], object]) -> Generator[None]:
    """SIGUSR1 for the main thread, as fast as another thread can send it."""
    stop = threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    def send() -> None:
        while not stop.is_set():
            signal.pthread_kill(main, signal.SIGUSR1)
            time.sleep(0.0002)

    before = signal.signal(signal.SIGUSR1, handler)
    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("reserve", [0, 256 << 20], ids=["roomy", "nearly full"])
def test_a_signal_handler_may_append_in_the_middle_of_an_append(directory: Path, reserve: int) -> None:
    """And acknowledge: it neither waits for the interrupted call nor damages its record or its file.

    With little room left, every append looks at the limits again, and may be interrupted there, too.
    """

    def work() -> None:
        spool = Spool(directory, identity="db", segment_bytes=50_000, reserve_bytes=reserve)
        outstanding: dict[Position, bytes] = {}
        numbers = count()
        rng = random.Random(0)
        running: list[int] = []
        handled: list[Position] = []

        def append(prefix: bytes) -> Position:
            payload = prefix + b"%d" % next(numbers)
            position = spool.append(payload, vital=True)
            assert position not in outstanding
            outstanding[position] = payload
            return position

        def ack(positions: list[Position]) -> None:
            for position in positions:
                del outstanding[position]
            spool.ack(positions)

        def handler(number: int, frame: FrameType | None) -> None:
            if len(running) < 3:  # Python interrupts a handler by the next signal, without end
                running.append(number)
                position = append(b"a longer one, from the handler ")
                handled.append(position)
                if rng.randrange(20):
                    ack([position])
                running.pop()

        with signals(handler):
            while len(handled) < 1_200:
                batch = [append(b"main ") for _ in range(rng.randrange(1, 4))]
                ack(batch if rng.randrange(100) else batch[1:])
        assert len(outstanding) > 50
        assert read_all(spool) == sorted(outstanding.items())
        spool.close()
        later = open_spool(directory)
        recovered = drain(later)
        assert len(recovered) == len(set(recovered))
        assert set(outstanding.values()) <= set(recovered)
        assert list(later.path.glob("*.corrupt")) == []

    fork(work).join()


def test_an_exception_in_the_middle_of_an_append_damages_nothing(directory: Path) -> None:
    """Ctrl-C, or a SIGTERM handler that raises: what was accepted before and after is all there."""

    class InterruptionError(Exception):
        pass

    def work() -> None:
        spool = open_spool(directory)
        accepted: list[bytes] = []
        interrupted = 0

        def handler(number: int, frame: FrameType | None) -> None:
            if frame is not None and frame.f_code.co_filename.endswith("spool/journal.py"):
                raise InterruptionError

        with signals(handler):
            while interrupted < 100:
                payload = b"%07d" % len(accepted)
                try:
                    spool.append(payload)
                except InterruptionError:
                    interrupted += 1
                    accepted.append(b"")
                else:
                    accepted.append(payload)
        assert len(spool.read()) > 0
        spool.close()
        recovered = drain(open_spool(directory))
        assert len(recovered) == len(set(recovered))
        assert {payload for payload in accepted if payload} <= set(recovered)

    fork(work).join()


# -- limited ----------------------------------------------------------------------------------------------------


def test_a_limit_on_the_size_of_files_is_met_by_more_files(directory: Path) -> None:
    """The part of a record that still fitted is cut off; the record goes to the next file."""

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        spool = open_spool(directory)
        for n in range(500):
            spool.append(b"%04d" % n * 30)
        assert all(path.stat().st_size <= 10_000 for path in segment_files(spool))
        assert len(spool.read(limit=1 << 20)) > 50
        with suppress(SpoolFullError):
            spool.append(b"x" * 20_000)
        spool.append(b"last")

    fork(work).join()
    spool = open_spool(directory)
    assert drain(spool) == [b"%04d" % n * 30 for n in range(500)] + [b"last"]
    assert list(spool.path.glob("*.corrupt")) == []


def test_a_limit_too_small_for_any_record_is_a_full_spool(directory: Path) -> None:
    """And no file is left behind for each try."""

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
        spool = open_spool(directory)
        for _ in range(20):
            assert fill(spool, b"x" * 1_000) == []
        assert len(segment_files(spool)) <= 1
        assert spool.append(b"small")

    fork(work).join()
    assert drain(open_spool(directory)) == [b"small"]


def test_a_process_that_becomes_a_daemon_goes_on(directory: Path) -> None:
    """It forks and closes every descriptor, whatever it is: the next record goes to a new file."""
    spool = open_spool(directory)
    spool.append(b"parent")

    def daemon() -> None:
        os.closerange(3, 256)
        taken = [os.open(directory.parent / "other", os.O_RDWR | os.O_CREAT) for _ in range(253)]
        spool.append(b"daemon")
        assert {os.fstat(fd).st_size for fd in taken} == {0}

    fork(daemon).join()
    assert drain(spool) == [b"daemon"]
    spool.close()


def test_descriptors_that_became_somebody_elses_are_not_touched(directory: Path) -> None:
    """Closed behind our back, without a fork: nothing is cut, closed or unlinked by a number that is not ours."""

    def work() -> None:
        idle = Spool(directory, identity="another")
        spool = open_spool(directory)
        positions: list[Position] = []
        for n in range(3):
            positions.append(spool.append(b"%d" % n))
            os.closerange(3, 256)
        taken = [os.open(directory.parent / f"other {n}", os.O_RDWR | os.O_CREAT) for n in range(253)]
        for fd in taken:
            os.write(fd, b"x" * 10_000)
        spool.ack(positions)
        assert segment_files(spool) == []
        spool.append(b"after")
        spool.close()
        del spool, idle
        assert {os.fstat(fd).st_size for fd in taken} == {10_000}

    fork(work).join()
    assert drain(open_spool(directory)) == [b"after"]


def test_running_out_of_descriptors_is_survived(directory: Path) -> None:
    """No new file for now: refused, and taken again as soon as there are some."""

    def work() -> None:
        spool = open_spool(directory)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        with pytest.raises(SpoolFullError, match="Too many open files"):
            spool.append(b"refused")
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        spool.append(b"one")

    fork(work).join()
    assert drain(open_spool(directory)) == [b"one"]
