"""The spool against a model of it: any sequence of appends, acknowledgements, crashes, damage and recoveries."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agentexec_otel.export.spool import Position, Spool, SpoolFullError
from agentexec_otel.export.spool.segment import KEPT_CORRUPT
from tests.unit.spool_kit import crash, pending, read_all, segment_files, spans_of

SEGMENT = 700
TOTAL = 8_000


@dataclass(slots=True)
class Left:
    """What must come out of the file of a dead process.

    Attributes:
        damaged: Number of records that are damaged.
        flipped: A bit of it is flipped. In the header that is repaired.
        headless: Cut in its header, so that nobody is given it.
    """

    payloads: list[bytes]
    damaged: int = 0
    flipped: bool = False
    headless: bool = False

    @property
    def given(self) -> bool:
        return not self.headless and bool(self.payloads or self.damaged)


class SpoolMachine(RuleBasedStateMachine):
    """What is promised, kept in plain dictionaries.

    `outstanding` and `acked` are this process's records, `left` the files of dead ones by name, without suffix. What
    such a file holds is read by the page that describes the format, at the moment its process dies.
    """

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="axspool-"))
        self.outstanding: dict[Position, bytes] = {}
        self.acked: list[Position] = []
        self.left: dict[str, Left] = {}
        self.set_aside = 0
        self.numbers = count()
        self.seconds = count()  # so that a measured size is never taken for granted
        self.open()

    def open(self) -> None:
        def clock() -> float:
            return next(self.seconds)

        self.spool = Spool(self.directory, identity="db", segment_bytes=SEGMENT, max_bytes=TOTAL, clock=clock)

    # -- the living -------------------------------------------------------------------------------------------

    @rule(size=st.integers(0, 900))
    def append(self, size: int) -> None:
        """Taken, unless it would not fit."""
        payload = b"%06d" % next(self.numbers) + b"x" * size
        try:
            position = self.spool.append(payload)
        except SpoolFullError:
            assert self.used() + len(payload) + 300 > TOTAL
        else:
            assert position > max(self.outstanding, default=0)
            self.outstanding[position] = payload

    @precondition(lambda self: self.outstanding)
    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        """Some, in any order."""
        self._ack(data.draw(st.lists(st.sampled_from(sorted(self.outstanding)), min_size=1)))

    @precondition(lambda self: self.outstanding)
    @rule()
    def ack_all(self) -> None:
        """Everything, which leaves the header of one file."""
        self._ack(list(self.outstanding))
        assert len([path for path in segment_files(self.spool) if path.stem not in self.left]) <= 1

    def _ack(self, positions: list[Position]) -> None:
        self.spool.ack(positions)
        for position in positions:
            self.outstanding.pop(position, None)
        self.acked += positions

    @precondition(lambda self: self.acked)
    @rule(data=st.data())
    def ack_again(self, data: st.DataObject) -> None:
        """Means nothing."""
        self.spool.ack(data.draw(st.lists(st.sampled_from(self.acked))))

    @rule(limit=st.integers(1, 2_000), skip=st.integers(0, 5))
    def read_back(self, limit: int, skip: int) -> None:
        """Everything outstanding behind a position, once and in order."""
        expected = sorted(self.outstanding.items())
        skip = min(skip, len(expected))
        after = expected[skip - 1][0] if skip else 0
        assert read_all(self.spool, after, limit) == expected[skip:]

    # -- the dead ---------------------------------------------------------------------------------------------

    @rule()
    def close(self) -> None:
        """Each file that is left has something outstanding."""
        self.spool.close()
        outstanding = set(self.outstanding.values())
        for stem in self._bury():
            assert outstanding & set(self.left[stem].payloads)

    @rule()
    def kill(self) -> None:
        """Nothing is tidied up."""
        crash(self.spool)
        self._bury()

    def _bury(self) -> list[str]:
        fresh = [path for path in segment_files(self.spool) if path.stem not in self.left]
        for path in fresh:
            self.left[path.stem] = Left([payload for _, _, payload in spans_of(path.read_bytes())])
        there = {payload for path in fresh for payload in self.left[path.stem].payloads}
        assert set(self.outstanding.values()) <= there
        self.outstanding.clear()
        self.acked.clear()
        self.open()
        return [path.stem for path in fresh]

    @precondition(lambda self: self.left)
    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        """The machine died in the middle of a write."""
        path, content = self._victim(data)
        if path is not None:
            length = data.draw(st.integers(0, len(content) - 1))
            spans = spans_of(content)
            path.write_bytes(content[:length])
            boundaries = {0, spans[0][0]} | {end for _, end, _ in spans}
            self.left[path.stem] = Left(
                [payload for _, end, payload in spans if end <= length],
                damaged=length not in boundaries,
                headless=length < spans[0][0],
            )

    @precondition(lambda self: self.left)
    @rule(data=st.data())
    def flip(self, data: st.DataObject) -> None:
        """The disk erred by a bit: one record is lost at most."""
        path, content = self._victim(data)
        if path is not None:
            index = data.draw(st.integers(0, len(content) - 1))
            spans = spans_of(content)
            flipped = bytearray(content)
            flipped[index] ^= 1 << data.draw(st.integers(0, 7))
            path.write_bytes(flipped)
            sound = [payload for begin, end, payload in spans if not begin <= index < end]
            self.left[path.stem] = Left(sound, damaged=len(spans) - len(sound), flipped=True)

    def _victim(self, data: st.DataObject) -> tuple[Path | None, bytes]:
        """A file that is left, has a record, and is sound so far."""
        sound = [stem for stem, left in self.left.items() if left.payloads and not left.damaged and not left.flipped]
        if not sound:
            return None, b""
        stem = sound[data.draw(st.integers(0, len(sound) - 1))]  # by number: names are random
        (path,) = (path for path in segment_files(self.spool) if path.stem == stem)
        return path, path.read_bytes()

    @rule(data=st.data())
    def recover(self, data: st.DataObject) -> None:
        """Each file gives exactly what was left in it; those that are not done stay, those that give nothing go."""
        expected = {stem: left for stem, left in self.left.items() if left.given}
        self.set_aside += sum(left.headless for left in self.left.values() if left.damaged)
        for stem in set(self.left) - set(expected):
            del self.left[stem]
        done = {stem: data.draw(st.booleans()) for stem in expected}
        for orphan in self.spool.recover():
            stem = orphan.name.rpartition(".")[0]
            left = expected.pop(stem)
            assert list(orphan) == left.payloads
            assert orphan.damaged == left.damaged
            if done[stem]:
                orphan.done()
                del self.left[stem]
                self.set_aside += bool(left.damaged)
            else:
                orphan.close()
        assert expected == {}

    # -- always -----------------------------------------------------------------------------------------------

    def used(self) -> int:
        return sum(path.stat().st_size for path in self.spool.path.iterdir())

    @invariant()
    def counts_are_right(self) -> None:
        """And the directory stays within its limit, files set aside included."""
        assert pending(self.spool) == len(self.outstanding)
        assert self.spool.size() == self.used() <= TOTAL
        assert len(list(self.spool.path.glob("*.corrupt"))) == min(self.set_aside, KEPT_CORRUPT)

    @invariant()
    def what_is_outstanding_is_in_a_file(self) -> None:
        """At any moment, since the process may be killed at any moment."""
        own = [path for path in segment_files(self.spool) if path.stem not in self.left]
        there = {payload for path in own for _, _, payload in spans_of(path.read_bytes())}
        assert set(self.outstanding.values()) <= there

    @invariant()
    def what_is_left_is_there(self) -> None:
        """Nobody removes the file of another before it has been recovered."""
        assert set(self.left) <= {path.stem for path in segment_files(self.spool)}

    def teardown(self) -> None:
        self.spool.close()
        shutil.rmtree(self.directory)


TestSpoolMachine = SpoolMachine.TestCase
TestSpoolMachine.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
