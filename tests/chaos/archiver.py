"""A process that archives or restores: its arguments are the call, the database's URL and the archive."""

import sys
from datetime import timedelta
from pathlib import Path

from sqlalchemy import create_engine

import agentexec_otel as ax

OLD = timedelta(days=30)
BATCH = 4


def start(call: str, url: str, path: str) -> None:
    """Say `ready`, and do it."""
    engine = create_engine(url)
    engine.connect().close()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    if call == "restore":
        ax.activity.restore(engine, Path(path), batch_size=BATCH)
    else:
        ax.activity.archive(engine, OLD, to=Path(path), batch_size=BATCH)
