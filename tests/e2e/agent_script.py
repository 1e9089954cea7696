"""A script that uses the Agents SDK, as `python SCRIPT` runs it, in a fork of `tests.chaos.zygote`."""

import os
import runpy
import sys
from pathlib import Path

PRELOADED = ("agents", "agents.testing", "opentelemetry.sdk.trace.export", "sqlalchemy.orm")


def start(script: str) -> None:
    """Be the script, in its own folder."""
    os.chdir(Path(script).parent)
    sys.argv = [script]
    runpy.run_path(script, run_name="__main__")
