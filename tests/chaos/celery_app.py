"""An application for Celery's prefork pool, configured before the fork, with folders as its broker."""

import os
from pathlib import Path
from typing import Any

from celery import Celery  # pyright: ignore[reportMissingTypeStubs]

import agentexec_otel as ax
from tests.chaos.journal import Journal

FOLDER = Path(os.environ["CHAOS_FOLDER"])
for name in ("in", "done"):
    (FOLDER / name).mkdir(exist_ok=True)

app: Any = Celery("chaos", broker="filesystem://")
app.conf.broker_transport_options = {
    "data_folder_in": str(FOLDER / "in"),
    "data_folder_out": str(FOLDER / "in"),
    "processed_folder": str(FOLDER / "done"),
    "control_folder": str(FOLDER / "done"),
}
app.conf.worker_enable_remote_control = False

ax.configure(os.environ["CHAOS_URL"])
warm = ax.activity.create("made before the fork", "created 0")


@app.task  # type: ignore[untyped-decorator]
def work(number: int) -> int:
    """Runs an activity, and leaves a line unflushed behind it."""
    written = Journal(Path(os.environ["CHAOS_JOURNAL"]))
    agent_id = ax.activity.create("task", "created 0")
    written.accepted(agent_id, "created 0")
    with ax.activity.run(agent_id) as run:
        for line in range(1, 6):
            run.update(f"line {line}")
            written.accepted(agent_id, f"line {line}")
    ax.activity.update(agent_id, "behind 1")
    written.accepted(agent_id, "behind 1")
    return number
