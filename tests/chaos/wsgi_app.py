"""An application for gunicorn, configured before the fork: `gunicorn --preload tests.chaos.wsgi_app:app`."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import agentexec_otel as ax
from tests.chaos.journal import Journal

ax.configure(os.environ["CHAOS_URL"])
warm = ax.activity.create("made before the fork", "created 0")  # the parent has a connection and a writer


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Runs an activity; the answer is who did it."""
    written = Journal(Path(os.environ["CHAOS_JOURNAL"]))
    agent_id = ax.activity.create("request", "created 0")
    written.accepted(agent_id, "created 0")
    with ax.activity.run(agent_id) as run:
        for number in range(1, 6):
            run.update(f"line {number}")
            written.accepted(agent_id, f"line {number}")
    ax.activity.update(agent_id, "behind 1")
    written.accepted(agent_id, "behind 1")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
