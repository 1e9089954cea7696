"""A worker in a process of its own: `work.py DATABASE`. Does one thing for each line that it reads, and answers."""

import json
import sys
import time
from typing import Any
from uuid import UUID

import agentexec_otel as ax


def create(agent_type: str, metadata: dict[str, Any] | None = None) -> str:
    """Create an activity."""
    return str(ax.activity.create(agent_type, "Queued.", metadata=metadata))


def update(agent_id: str, message: str, percentage: int | None = None) -> float:
    """Report progress. Returns when the call was made, in seconds since 1970."""
    called_at = time.time()
    ax.activity.update(UUID(agent_id), message, percentage)
    return called_at


def updates(agent_id: str, messages: list[str]) -> None:
    """Report progress often."""
    for message in messages:
        ax.activity.update(UUID(agent_id), message)
    ax.flush()


def complete(agent_id: str) -> bool:
    """End it."""
    return ax.activity.complete(UUID(agent_id))


def work(agent_type: str, metadata: dict[str, Any] | None = None) -> str:
    """Run an activity until it is canceled. Returns how it ended."""
    try:
        with ax.activity.run(agent_type, metadata=metadata) as run:
            for step in range(600):
                run.update(f"Step {step}", step % 100)
                time.sleep(0.1)
                if run.canceled:
                    raise ax.ActivityCanceledError(run.agent_id)
    except ax.ActivityCanceledError:
        return "canceled"
    return "completed"


TASKS = {task.__name__: task for task in (create, update, updates, complete, work)}

if __name__ == "__main__":
    ax.configure(sys.argv[1])
    for line in sys.stdin:
        name, arguments = json.loads(line)
        print(json.dumps(TASKS[name](*arguments)), flush=True)
