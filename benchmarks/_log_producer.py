"""The other process of the benchmark of viewers: ``python -m benchmarks._log_producer URL LOGS RATE ID...``.

Reports logs, each with the time of its call, and ends the activities. A rate of 0 is as fast as possible.
"""

from __future__ import annotations

import sys
import time

import agentexec_otel as ax


def main(url: str, logs: str, rate: str, *ids: str) -> None:
    """Report to the activities in turn."""
    ax.configure(url)
    for agent_id in ids:
        ax.activity.update(agent_id, "Ready.")
    pause = 1 / float(rate) if float(rate) else 0.0
    due = time.monotonic()
    for number in range(int(logs)):
        ax.activity.update(ids[number % len(ids)], f"sent at {time.time_ns()}")
        due += pause
        time.sleep(max(0.0, due - time.monotonic()))
    for agent_id in ids:
        ax.activity.complete(agent_id)
    ax.shutdown(60.0)


if __name__ == "__main__":
    main(*sys.argv[1:])
