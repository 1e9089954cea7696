"""A process that reports far more than anybody takes: `python -m tests.chaos.flood COUNT`. Prints one JSON object."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import agentexec_otel as ax
from agentexec_otel.export import ActivityEvent, ExportResult, TransientExportError
from agentexec_otel.testing import InMemoryActivityExporter
from tests.chaos.law import settled
from tests.chaos.producer import say

FIRST = 2_000
TEXT = "x" * 150


class Numbers(InMemoryActivityExporter):
    """Takes nothing until it is opened; keeps only the numbers."""

    identity = "a destination that comes and goes"  # type: ignore[assignment]
    away = False

    def __init__(self) -> None:
        super().__init__()
        self.numbers: dict[str, list[int]] = {}

    def export(self, events: Sequence[ActivityEvent], *, replay: bool = False) -> Sequence[ExportResult]:
        if self.away:
            raise TransientExportError("it is away")
        for event in events:
            head = event.message.split(" ")[0]
            if head.isdigit():
                self.numbers.setdefault(str(event.agent_id), []).append(int(head))
        results = super().export(events, replay=replay)
        self.events.clear()
        return results


def resident() -> float:
    """MiB of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / (1 << 20)


def main(count: int) -> None:
    exporter = Numbers()
    ax.configure(exporters=[exporter])
    ids = [ax.activity.create(f"flood {number}") for number in range(5)]
    exporter.away = True
    before = 0.0
    began = time.perf_counter()
    for number in range(count):
        if number == FIRST:
            before = resident()
        ax.activity.update(ids[number % 5], f"{number} {TEXT}", number % 100)
    took = time.perf_counter() - began
    grown = resident() - before
    pending = ax.health()["exporters"][0]["pending"]
    spooled = ax.health()["exporters"][0]["spool_bytes"]
    exporter.away = False
    began = time.perf_counter()
    flushed = ax.flush(120)
    drained = time.perf_counter() - began
    health = settled()
    wanted = [list(range(first, count, 5)) for first in range(5)]
    say(
        json.dumps(
            {
                "rate": count / took,
                "grown_mib": grown,
                "pending": pending,
                "spool_bytes": spooled,
                "flushed": flushed,
                "drained": drained,
                "complete": [exporter.numbers[str(agent_id)] for agent_id in ids] == wanted,
                "health": health,
            }
        )
    )


def start(count: str) -> None:
    """The program."""
    main(int(count))
