"""`make dashboard`: the example's activities live, and obey the dashboard."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.docs.blocks import ROOT

pytestmark = pytest.mark.one_python

ACT = {"X-AgentExec-Action": "test"}


class Example:
    """The program in a process of its own, and a client of its dashboard."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "output.txt"
        program = ROOT / "examples" / "live_activities.py"
        arguments = "--dashboard", "--port", "0", "--activities", "60", "--seed", "1", "--long", "300"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, program, *arguments],
                env=os.environ | {"TMPDIR": str(folder)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.client = httpx.Client(base_url=self._url(), timeout=30, trust_env=False)

    def _url(self) -> str:
        return str(self.eventually(lambda: re.findall(r"dashboard: (http://\S+)\n", self.output.read_text()))[0])

    def activities(self, **parameters: Any) -> list[dict[str, Any]]:
        """A page of the list."""
        return list(self.client.get("api/activities", params={"page_size": 200, **parameters}).json()["items"])

    def activity(self, agent_id: str) -> dict[str, Any]:
        """One, with its logs."""
        return dict(self.client.get(f"api/activities/{agent_id}", params={"include_late": True}).json())

    def eventually(self, look: Callable[[], Any]) -> Any:
        """What `look` has found, once it finds something."""
        deadline = time.monotonic() + 60
        while not (found := look()):
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.1)
        return found

    def stop(self) -> int:
        """Press Ctrl-C. The exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=30)


@pytest.fixture
def example(tmp_path: Path) -> Iterator[Example]:
    example = Example(tmp_path)
    yield example
    example.client.close()
    example.process.kill()
    example.process.wait()


def test_activities_live(example: Example, tmp_path: Path) -> None:
    """A day of history, and a producer that stops what is canceled, runs what is retried, and leaves nothing."""
    now = datetime.now(UTC)
    ended = example.activities(status=["COMPLETE", "ERROR", "CANCELED"])
    assert len(ended) >= 60
    assert len({item["agent_type"] for item in ended}) >= 6
    for item in ended[-60:]:
        moments = [datetime.fromisoformat(item[name]) for name in ("created_at", "started_at", "ended_at")]
        assert now - timedelta(days=1, minutes=1) < moments[0]
        assert moments == sorted(moments)
    assert {item["reason"] for item in ended if item["status"] == "ERROR"} >= {"rate_limit", "timeout"}
    assert [item["waiting"]["for"] for item in example.activities(waiting=True)][:1] == ["approval"]

    running = example.activities(status="RUNNING", agent_type="reconcile_ledger")[0]["agent_id"]
    assert example.client.post(f"api/activities/{running}/cancel", headers=ACT).json() == {"canceled": True}
    assert example.client.post(f"api/activities/{running}/retry", headers=ACT).json() == {"attempt": 2}
    # The producer takes it only after its first attempt has stopped.
    example.eventually(lambda: example.activity(running)["status"] == "RUNNING")
    logs = example.activity(running)["logs"]
    assert [log["status"] for log in logs if log["attempt"] == 2][:2] == ["QUEUED", "RUNNING"]

    new = example.eventually(lambda: example.activities(created_after=now.isoformat(), status="COMPLETE"))
    assert new[0]["model"]
    assert new[0]["metadata"].keys() == {"tenant", "customer", "priority"}

    assert example.stop() == 0
    assert "Traceback" not in example.output.read_text()
    assert not [*tmp_path.glob("agentexec-otel-live-*")]
