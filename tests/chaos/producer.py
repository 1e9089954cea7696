"""A process that reports activities at a steady rate: its argument is a JSON object.

It says `ready` once its activities exist, goes on until it reads a line or the end of its input, ends the activities,
and prints what `ax.health()` and the metrics say as one JSON object.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count, cycle
from pathlib import Path
from uuid import UUID

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

import agentexec_otel as ax
from tests.chaos.journal import Journal
from tests.chaos.law import metric_values


def main(url: str, journal: str, rate: float = 100, activities: int = 4, flush: float = 30, end: bool = True) -> None:
    """Report until told to stop.

    Args:
        rate: Lines a second.
        flush: How long to wait for the last line to be stored.
        end: Complete the activities at the end.
    """
    reader = InMemoryMetricReader()
    ax.configure(url, meter_provider=MeterProvider([reader]))
    written = Journal(Path(journal))
    ids = [ax.activity.create("chaos", message="created 0") for _ in range(activities)]
    for agent_id in ids:
        written.accepted(agent_id, "created 0")
    name = f"p{os.getpid()}"
    stop = threading.Event()
    threading.Thread(target=wait_for_word, args=(stop,), daemon=True).start()
    say("ready")
    slowest = 0.0
    started = time.perf_counter()
    for number, agent_id in numbered(ids):
        began = time.perf_counter()
        accepted = ax.activity.update(agent_id, f"{name} {number}", number % 100)
        slowest = max(slowest, time.perf_counter() - began)
        if accepted:
            written.accepted(agent_id, f"{name} {number}")
        if stop.wait(max(0.0, started + number / rate - time.perf_counter())):
            break
    if end:
        for agent_id in ids:
            ax.activity.complete(agent_id, "completed 1")
            written.accepted(agent_id, "completed 1")
    flushed = ax.flush(flush)
    said = {"health": ax.health(), "metrics": metric_values(reader)}
    say(json.dumps({"flushed": flushed, "slowest_ms": slowest * 1e3, **said}))


def wait_for_word(stop: threading.Event) -> None:
    sys.stdin.readline()
    stop.set()


def numbered(ids: list[UUID]) -> Iterator[tuple[int, UUID]]:
    return zip(count(1), cycle(ids), strict=False)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def start(options: str) -> None:
    """The program."""
    main(**json.loads(options))
