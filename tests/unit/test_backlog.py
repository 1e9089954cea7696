"""`Backlog` under any mix of producers, limits and a writer: order, and what is dropped."""

from __future__ import annotations

from pathlib import Path
from random import Random
from uuid import UUID, uuid4

import pytest

from agentexec_otel.activity.models import Status
from agentexec_otel.export._backlog import Backlog
from agentexec_otel.export._delivery import Entry
from agentexec_otel.export.spool import Spool
from tests.sql.rows import event
from tests.unit.spool_kit import pending

QUEUE = 8


class Ledger:
    """What was put, what was taken, and what the counters say."""

    def __init__(self, backlog: Backlog) -> None:
        self.backlog = backlog
        self.put_lines: dict[UUID, list[str]] = {}
        self.endings: set[str] = set()
        self.taken: dict[UUID, list[str]] = {}

    def put(self, agent_id: UUID, vital: bool) -> None:
        lines = self.put_lines.setdefault(agent_id, [])
        text = f"{'vital' if vital else 'line'} {len(lines)}"
        lines.append(text)
        self.backlog.put(Entry(event(agent_id, Status.QUEUED if vital else Status.RUNNING, text)))

    def take(self, most: int) -> None:
        positions: list[int] = []
        for one in self.backlog.take(most, 0.0):
            assert isinstance(one, Entry)
            self.taken.setdefault(one.event.agent_id, []).append(one.event.message)
            if one.position is not None:
                positions.append(one.position)
        self.backlog.ack(positions)

    def check(self) -> None:
        """Each activity's events came once and in order, all vital ones among them; the books balance."""
        taken = put = 0
        for agent_id, lines in self.put_lines.items():
            texts = self.taken.get(agent_id, [])
            own = [text for text in texts if "dropped here" not in text]
            assert own == [text for text in lines if text in set(own)]
            assert {text for text in lines if text.startswith("vital")} <= set(own)
            taken += len(texts)
            put += len(lines)
        intake = self.backlog.intake
        assert intake.emitted == taken + intake.dropped
        gaps = [text for texts in self.taken.values() for text in texts if "dropped here" in text]
        assert sum(int(text.split()[0]) for text in gaps) == intake.coalesced
        assert intake.emitted == put + len(gaps)


@pytest.mark.parametrize(("spool_bytes", "reserve"), [(0, 0), (6_000, 0), (6_000, 2_000), (1 << 20, 0)])
def test_any_mix_is_taken_once_and_in_order(tmp_path: Path, spool_bytes: int, reserve: int) -> None:
    """With no spool, a small one, one with a reserve, and one with room: only progress is dropped."""
    for seed in range(60):
        rng = Random(seed)
        spool = None
        if spool_bytes:
            where = tmp_path / str(seed)
            spool = Spool(where, identity="db", max_bytes=spool_bytes, reserve_bytes=reserve, segment_bytes=1_500)
        ledger = Ledger(Backlog(spool, QUEUE))
        ids = [uuid4() for _ in range(rng.randint(1, 12))]
        for _ in range(rng.randint(1, 40)):
            for _ in range(rng.choice([1, 3, 30])):
                ledger.put(rng.choice(ids), vital=rng.random() < 0.15)
            for _ in range(rng.choice([0, 1, 5])):
                ledger.take(rng.randint(1, 12))
        while not ledger.backlog.idle:
            ledger.take(5)
        ledger.check()
        assert ledger.backlog.waiting == 0
        if spool is not None:
            assert pending(spool) == 0
            spool.close()
