"""``python -m benchmarks._queued tuples|update N``: prints by how many bytes N waiting events grow the process."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4


def _resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def tuples(count: int) -> int:
    """The same values, kept in the plainest way."""
    before = _resident()
    kept = [(uuid4(), f"Step {number}: analyzing competitors", number % 101, time.time_ns()) for number in range(count)]
    grown = _resident() - before
    assert len(kept) == count
    return grown


def updates(count: int) -> int:
    """Events that `update()` has queued, before a destination that takes the first batch and then does not answer."""
    import agentexec_otel as ax
    from agentexec_otel.activity import Status
    from agentexec_otel.testing import InMemoryActivityExporter

    class Away(InMemoryActivityExporter):
        def export(self, events: Sequence[Any], *, replay: bool = False) -> Sequence[Any]:
            if events[0].status is not Status.QUEUED:
                threading.Event().wait()
            return super().export(events, replay=replay)

    ax.CONF.max_queue_size = count + 1_000
    ax.configure(exporters=[Away()])
    agent_id = ax.activity.create("bench")
    for number in range(1_000):
        ax.activity.update(agent_id, f"Step {number}: warming up", number % 101)
    before = _resident()
    for number in range(count):
        ax.activity.update(agent_id, f"Step {number}: analyzing competitors", number % 101)
    return _resident() - before


def main(how: str, count: str) -> None:
    """Measure, print, and leave without waiting for the destination."""
    print({"tuples": tuples, "update": updates}[how](int(count)), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
