"""A process that creates and completes as fast as it can: `python -m tests.chaos.hammer URL COUNT`.

It begins with a line of its input, and prints how long each commit took, in seconds, as JSON.
"""

import json
import sys
import time

import agentexec_otel as ax
from tests.chaos.law import settled
from tests.chaos.producer import say


def main(url: str, count: int) -> None:
    ax.configure(url)
    took: list[float] = []
    say("ready")
    sys.stdin.readline()
    for number in range(count):
        began = time.perf_counter()
        agent_id = ax.activity.create("hammer", f"created {number}")
        took.append(time.perf_counter() - began)
        ax.activity.update(agent_id, f"line {number}")
        began = time.perf_counter()
        if not ax.activity.complete(agent_id, f"completed {number}"):
            raise SystemExit("somebody else has completed it")
        took.append(time.perf_counter() - began)
    settled()
    say(json.dumps(took))


def start(url: str, count: str) -> None:
    """The program."""
    main(url, int(count))
