"""What waits in memory while the database is away."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Final

from benchmarks._context import Context, Scale
from benchmarks._measure import Row, Section, Table, interleaved

_EVENTS: Final = {Scale.SMOKE: 2_000, Scale.QUICK: 50_000, Scale.FULL: 200_000, Scale.MILLION: 1_000_000}


def run(context: Context) -> Section:
    """Measure in fresh processes, scaled to a million events."""
    events = context.pick(_EVENTS)

    def queued(how: str) -> float:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks._queued", how, str(events)],
            check=True,
            capture_output=True,
            text=True,
            timeout=600,
        )
        return float(json.loads(done.stdout)) / events * 1e6 / 2**20

    cases = {how: lambda how=how: queued(how) for how in ("tuples", "update")}
    found = interleaved(cases, context.runs, context.track("memory", context.runs * len(cases)))
    title = f"Per million waiting events, measured with {events:,}"
    rows = [
        Row("a list of (uuid, message, percentage, time) tuples", "MiB", found["tuples"]),
        Row("update() before a database that does not answer", "MiB", found["update"], found["tuples"]),
    ]
    note = "The queue is bounded (`AGENTEXEC_MAX_QUEUE_SIZE`, 10,000 by default): so far it never gets by itself."
    return Section("memory", "Memory of waiting events", [Table(title, "the same values in tuples", rows, [note])])
