"""kill -9: what a call has taken is in the database after recovery, once."""

import random
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

import agentexec_otel as ax
from tests.chaos.journal import compare
from tests.chaos.law import settled
from tests.chaos.processes import journals, producer
from tests.databases import Database

KILLS = pytest.mark.parametrize("kills", [6, pytest.param(50, marks=pytest.mark.slow)])
AT_ONCE = 3


@KILLS
def test_killed_workers_lose_nothing(database: Database, tmp_path: Path, kills: int) -> None:
    """Workers killed at random moments: every event whose call had returned is stored after recovery, once."""
    for first in range(0, kills, AT_ONCE):
        names = [f"worker{number}" for number in range(first, min(kills, first + AT_ONCE))]
        with ExitStack() as stack:
            workers = [stack.enter_context(producer(tmp_path, database.url, name, rate=400)) for name in names]
            for worker in workers:
                worker.says("ready")
            for worker in workers:
                time.sleep(random.uniform(0.0, 0.15))
                worker.kill()
    ax.configure(database.url)
    replayed = ax.recover()
    settled()
    verdict = compare(database.engine, journals(tmp_path))
    assert verdict.accepted > kills * 4
    assert verdict.sound, verdict
    print(f"{kills} kills: {verdict}, {replayed} replayed")
