"""The process-wide wiring: health, flush, and the end of the process."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity.models import Status
from agentexec_otel.export import ActivityEvent, ExportResult, TransientExportError
from agentexec_otel.testing import InMemoryActivityExporter
from tests.sql.recorder import Recorder


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/x.db"


def history(url: str, agent_id: UUID | str) -> list[tuple[str, str]]:
    engine = create_engine(url)
    with Session(engine) as session:
        found = ax.activity.logs(session, agent_id)
    engine.dispose()
    return [(str(log.status), log.message) for log in found]


# -- health -------------------------------------------------------------------------------------------------------


def test_health_before_and_after(url: str) -> None:
    """Unconfigured, configured and shut down: always plain values that JSON takes."""
    assert ax.health() == {"configured": False, "ok": False, "reaped": 0, "exporters": []}
    ax.configure(url, create_tables=True)
    with ax.activity.run("task") as run:
        run.update("Half way.", 50)
    assert ax.flush()
    health = ax.health()
    assert json.loads(json.dumps(health)) == health
    assert (health["configured"], health["ok"]) == (True, True)
    (writer,) = health["exporters"]
    assert (writer["exporter"], writer["emitted"], writer["committed"], writer["pending"]) == ("SQLExporter", 4, 4, 0)
    assert (writer["last_error"], writer["dropped"], writer["duplicate"], writer["late"]) == (None, 0, 0, 0)
    assert ax.shutdown()
    assert ax.health()["exporters"][0]["committed"] == 4


def test_after_shutdown(url: str) -> None:
    """Shut down, calls store nothing and raise nothing, but `create`, which promises a row; until configured again."""
    ax.configure(url, create_tables=True)
    agent_id = ax.activity.create("task")
    assert ax.shutdown()
    assert ax.shutdown()
    assert not ax.activity.update(agent_id, "Nobody is there.")
    assert not ax.activity.complete(agent_id)
    with ax.activity.run(agent_id) as run:
        run.update("Nor now.")
    with pytest.raises(ax.ActivityNotStoredError, match="shut"):
        ax.activity.create("task")
    assert history(url, agent_id) == [("QUEUED", "Waiting to start.")]
    ax.configure(url)
    assert ax.activity.complete(agent_id)
    assert len(history(url, agent_id)) == 2


def test_health_in_trouble() -> None:
    """While a destination is away, `ok` is false and `last_error` says why; afterwards both are as before."""
    exporter = Recorder()
    ax.configure(exporters=[exporter])
    agent_id = ax.activity.create("task")
    exporter.raises.extend(TransientExportError("the destination is away") for _ in range(3))
    ax.activity.update(agent_id, "Waits.")
    deadline = time.monotonic() + 5
    while ax.health()["ok"] and time.monotonic() < deadline:
        time.sleep(0.005)
    health = ax.health()
    assert not health["ok"]
    assert health["exporters"][0]["last_error"] == "the destination is away"
    assert health["exporters"][0]["pending"] == 1
    assert ax.flush()
    health = ax.health()
    assert health["ok"]
    assert health["exporters"][0]["retried"] == 3


def test_counters_of_a_life() -> None:
    """Late lines are committed and counted as late; every event is accounted for once."""
    ax.configure(exporters=[InMemoryActivityExporter()])
    agent_id = ax.activity.create("task")
    ax.activity.complete(agent_id)
    ax.activity.cancel(agent_id)
    ax.activity.update(agent_id, "Late.")
    assert ax.flush()
    (counted,) = ax.health()["exporters"]
    assert (counted["emitted"], counted["committed"], counted["late"]) == (4, 4, 2)


# -- settings -----------------------------------------------------------------------------------------------------


def test_redact_hook_comes_first(url: str) -> None:
    """The hook sees every text before it is queued, stored or handed to another exporter."""
    memory = InMemoryActivityExporter()

    def hide(text: str) -> str:
        return text.replace("Acme", "***")

    ax.configure(url, exporters=[memory], redact=hide, create_tables=True)
    agent_id = ax.activity.create("Acme task", "Acme waits.", metadata={"customer": "Acme"})
    ax.activity.update(agent_id, "Acme works.")
    with pytest.raises(RuntimeError), ax.activity.run("other") as run:
        raise RuntimeError("Acme failed")
    ax.activity.error(agent_id, "Acme.")
    assert ax.flush()
    told = [*history(url, agent_id), *history(url, run.agent_id)]
    assert [text for _, text in told if "***" in text] == [
        "*** waits.",
        "*** works.",
        "***.",
        "Task failed: *** failed",
    ]
    assert "Acme" not in f"{told} {memory.events}"


def test_settings_are_checked_when_assigned() -> None:
    """A value out of range is refused when it is assigned, and named."""
    for name, value in (("message_limit", 5), ("event_mode", "loud"), ("max_batch_size", 0), ("create_timeout", -1)):
        with pytest.raises(ValueError, match=name):
            setattr(ax.CONF, name, value)


def test_empty_variables_count_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that compose or a shell has set to nothing is as one that is not set, as OpenTelemetry has it."""
    for name in ax.Settings.model_fields:
        monkeypatch.setenv(f"AGENTEXEC_{name.upper()}", "")
    assert ax.Settings.model_validate({}) == ax.Settings.model_construct()


@pytest.mark.parametrize(("chosen", "durability"), [("~/spool", "process"), ("off", "memory"), ("OFF", "memory")])
def test_the_spool_is_where_the_setting_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chosen: str, durability: str
) -> None:
    """`~` is the user's home and `off` is off however it is written: neither makes a folder of that name."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    monkeypatch.setattr(ax.CONF, "spool_dir", chosen)
    ax.configure(f"sqlite:///{tmp_path}/a.db", create_tables=True)
    ax.activity.create("task")
    (exporter,) = ax.health()["exporters"]
    assert exporter["durability"] == durability
    assert list(here.iterdir()) == []
    assert [folder.name for folder in home.iterdir()] == (["spool"] if durability == "process" else [])


def test_create_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """`create()` waits as long as the setting says, and no longer."""
    monkeypatch.setattr(ax.CONF, "create_timeout", 0.2)
    ax.configure(exporters=[Recorder(*(TransientExportError("away") for _ in range(1000)))])
    began = time.monotonic()
    with pytest.raises(ax.ActivityNotStoredError, match="away"):
        ax.activity.create("task")
    assert 0.15 < time.monotonic() - began < 1.5
    ax.shutdown(0.1)


def test_terminal_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """`complete()` waits a bounded time for its commit and then returns True: the event is kept and stored later."""
    monkeypatch.setattr(ax.CONF, "terminal_timeout", 0.2)
    exporter = Recorder()
    ax.configure(exporters=[exporter])
    agent_id = ax.activity.create("task")
    exporter.raises.extend(TransientExportError("away") for _ in range(4))
    began = time.monotonic()
    assert ax.activity.complete(agent_id)
    assert 0.15 < time.monotonic() - began < 1.5
    assert ax.flush()
    assert exporter.events[-1].status is Status.COMPLETE


async def test_nothing_waits_on_an_event_loop() -> None:
    """On an event loop progress and endings return at once, however slow the destination is."""
    exporter = Recorder()
    ax.configure(exporters=[exporter])
    agent_id = await ax.activity.aio.create("task")
    exporter.raises.extend(TransientExportError("away") for _ in range(3))
    began = time.monotonic()
    assert ax.activity.update(agent_id, "Working.")
    assert ax.activity.complete(agent_id)
    assert time.monotonic() - began < 0.1
    assert ax.flush()
    assert [one.message for one in exporter.events][1:] == ["Working.", "Task completed successfully."]


# -- the end of the process ---------------------------------------------------------------------------------------

PROCESS = """
import sys, threading, time
import agentexec_otel as ax
ax.configure(sys.argv[1], create_tables=True)
print(agent_id := ax.activity.create("task"), flush=True)
for number in range(200):
    ax.activity.update(agent_id, f"Line {number}.", number // 2)
raise RuntimeError("the application failed")
"""


def test_exit_flushes(url: str) -> None:
    """What was reported before the interpreter ends is stored; its output and exit code are its own."""
    result = python(PROCESS, url)
    agent_id = result.stdout.strip()
    assert agent_id, result.stderr
    assert [text for _, text in history(url, agent_id)][1:] == [f"Line {number}." for number in range(200)]
    assert result.stderr.splitlines()[-1] == "RuntimeError: the application failed"
    assert "agentexec-otel" not in result.stderr
    assert result.returncode == 1


BLOCKED = """
import sys, time, threading
import agentexec_otel as ax
from agentexec_otel.export import Ack

class Hangs:
    identity = None
    def export(self, events, *, replay=False):
        if not any(event.opening for event in events):
            threading.Event().wait()
        return [Ack(event.status) for event in events]
    def force_flush(self, timeout):
        return True
    def shutdown(self, timeout):
        pass

ax.configure(exporters=[Hangs()])
agent_id = ax.activity.create("task")
for number in range(3):
    ax.activity.update(agent_id, f"Line {number}.")
print(time.time(), flush=True)
"""


def test_exit_is_bounded() -> None:
    """A destination that hangs delays the exit by the time-out; one line on stderr says how many events were left."""
    result = python(BLOCKED, AGENTEXEC_SHUTDOWN_TIMEOUT="0.5")
    assert result.returncode == 0
    assert time.time() - float(result.stdout) < 6
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("agentexec-otel: 3 activity events were not stored in time")


def python(code: str, *arguments: str, **environment: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_spans_end_if_the_writer_needs_all_the_time() -> None:
    """A destination that hangs does not use up the time of the spans: `shutdown` returns after they were exported."""
    hangs = threading.Event()
    exported: list[str] = []

    class Hanging(InMemoryActivityExporter):
        def export(self, events: Sequence[ActivityEvent], *, replay: bool = False) -> Sequence[ExportResult]:
            if any(event.status is Status.COMPLETE for event in events):
                hangs.wait(10)
            return super().export(events, replay=replay)

    class Slow(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            time.sleep(0.05)
            exported.append(span.name)

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Slow())
    ax.configure(exporters=[Hanging()], tracer_provider=provider)
    with ax.activity.run("task"):
        ax.CONF.terminal_timeout = 0
    began = time.monotonic()
    assert not ax.shutdown(2.0)
    assert time.monotonic() - began < 2.5
    assert exported == ["task"]
    hangs.set()
