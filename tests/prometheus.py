"""A real Prometheus, and processes that it scrapes."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chaos.private import free_port
from tests.docs.blocks import ROOT
from tests.sql.rows import eventually


class Worker:
    """A process that Prometheus scrapes, and that does what it is told; its arguments are DATABASE PORT."""

    def __init__(self, module: str, database: str, **environment: str) -> None:
        self.port = free_port()
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, database, str(self.port)],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self, task: str, number: int, seed: int = 0) -> None:
        """Ask for a task."""
        assert self.process.stdin is not None
        print(task, number, seed, file=self.process.stdin, flush=True)

    def wait(self) -> None:
        """Wait for its end."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "done\n"

    def kill(self) -> None:
        """End the process, and close its pipes."""
        self.process.kill()
        self.process.communicate()


class Prometheus:
    """A server that scrapes each second, or less often. A scrape may take as long."""

    def __init__(self, folder: Path, targets: Sequence[int], interval: int = 1) -> None:
        binary = shutil.which("prometheus")
        if binary is None:
            pytest.fail("prometheus is missing: install Debian's prometheus")
        config = {
            "global": {"scrape_interval": f"{interval}s", "scrape_timeout": f"{interval}s"},
            "scrape_configs": [
                {"job_name": "workers", "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in targets]}]}
            ],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))
        port = free_port()
        # Plain HTTP: reading all certificates takes 40 ms for each client.
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", verify=False)
        arguments = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        with (folder / "prometheus.log").open("w") as log:
            self._process = subprocess.Popen(
                [binary, *arguments, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log
            )
        assert eventually(self._is_ready, timeout=30)

    def _is_ready(self) -> bool:
        try:
            return self._http.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def query(self, promql: str) -> list[tuple[dict[str, str], float]]:
        """The labels and the value of each series."""
        answer: dict[str, Any] = self._http.get("/api/v1/query", params={"query": promql}).json()
        assert answer["status"] == "success", (promql, answer)
        return [(one["metric"], float(one["value"][1])) for one in answer["data"]["result"]]

    def value(self, promql: str, expected: float) -> float:
        """The value of one series, once it is as expected, or after 15 s."""
        deadline = time.monotonic() + 15
        while True:
            found = self.query(promql)
            value = found[0][1] if found else float("nan")
            if value == expected or time.monotonic() > deadline:
                return value
            time.sleep(0.2)

    def kill(self) -> None:
        """End the server."""
        self._http.close()
        self._process.kill()
        self._process.wait()
