"""The example `examples/fastapi_app` as a process."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.docs.blocks import ROOT

EXAMPLES = ROOT / "examples"


class Service:
    """The service as `make app` runs it."""

    def __init__(self, folder: Path, *arguments: str, **variables: str) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
        environment |= {f"APP_{name.upper()}": value for name, value in variables.items()}
        self.stdout, self.stderr = folder / "stdout.txt", folder / "stderr.txt"
        with self.stdout.open("wb") as stdout, self.stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fastapi_app", "--port", "0", *arguments],
                cwd=EXAMPLES,
                env=environment,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    def url(self) -> str:
        """Where it listens."""
        deadline = time.monotonic() + 60
        while not (found := re.match(r"(http://\S+)  \(.*\n", self.stdout.read_text())):
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)
        return found[1]

    def said(self) -> str:
        """All that it has printed."""
        return self.stdout.read_text() + self.stderr.read_text()

    def stopped(self) -> int:
        """Its exit code, once it has ended, and with it all processes that it has started."""
        code = self.process.wait(timeout=30)
        with pytest.raises(ProcessLookupError):
            os.killpg(self.process.pid, 0)
        return code


@contextmanager
def service(folder: Path, *arguments: str, **variables: str) -> Generator[tuple[Service, httpx.Client], None, None]:
    """Run it; nothing of it is left behind."""
    running = Service(folder, *arguments, **variables)
    try:
        with httpx.Client(base_url=running.url(), timeout=30, trust_env=False) as client:
            yield running, client
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.process.pid, signal.SIGKILL)
        running.process.wait()
