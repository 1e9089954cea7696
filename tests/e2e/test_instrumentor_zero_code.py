"""An application that knows nothing of us, started by ``opentelemetry-instrument``, and one that we cannot help."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import agentexec_otel as ax

APP = """
import asyncio

from agents import Agent, Runner, function_tool
from agents.testing import ScriptedModel, assistant_message, function_call


@function_tool
def look_up(topic: str) -> str:
    return f"facts about {topic}"


model = ScriptedModel([[function_call("look_up", {"topic": "tea"}, call_id="1")], [assistant_message("Tea it is.")]])
print(asyncio.run(Runner.run(Agent(name="Researcher", model=model, tools=[look_up]), "go")).final_output)
"""
INSTRUMENTED = f"import agentexec_otel as ax\nax.AgentExecInstrumentor().instrument()\n{APP}"


def start(folder: Path, code: str, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the code as a file, with these environment variables."""
    app = folder / "app.py"
    app.write_text(code, encoding="utf-8")
    return subprocess.run(
        [*command, sys.executable, str(app)] if command else [sys.executable, str(app)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "OPENAI_API_KEY": "", "XDG_STATE_HOME": str(folder / "state"), **environment},
    )


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What was written to stderr, but for the SDK's remark that it has no key to upload its traces with."""
    return [line for line in done.stderr.splitlines() if not line.startswith("OPENAI_API_KEY is not set")]


def test_zero_code(tmp_path: Path) -> None:
    """Rows, lines, the outcome, our span as the root and the official GenAI spans beneath it, and the app untouched."""
    pytest.importorskip("opentelemetry.distro")
    url = f"sqlite:///{tmp_path / 'app.db'}"
    done = start(
        tmp_path,
        APP,
        str(Path(sys.executable).with_name("opentelemetry-instrument")),
        AGENTEXEC_DATABASE_URL=url,
        AGENTEXEC_CREATE_TABLES="true",
        OTEL_TRACES_EXPORTER="console",
        OTEL_METRICS_EXPORTER="none",
        OTEL_LOGS_EXPORTER="none",
        # Two packages give their instrumentor the name openai_agents; Logfire and SQLAlchemy's are not meant here.
        OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="sqlalchemy,sqlite3,psycopg,dbapi",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Tea it is."), done.stdout
    engine = create_engine(url)
    with Session(engine) as session:
        (item,) = ax.activity.list(session).items
        activity = ax.activity.detail(session, item.agent_id)
    engine.dispose()
    assert activity is not None
    assert (activity.agent_type, activity.status, activity.requests) == ("Researcher", "COMPLETE", 2)
    assert "Calling look_up" in [line.message for line in activity.logs]
    spans = [json.loads(text) for text in re.findall(r"^\{$.*?^\}$", done.stdout, re.MULTILINE | re.DOTALL)]
    (root,) = [span for span in spans if span["parent_id"] is None]
    assert root["name"] == "Researcher"
    assert root["attributes"]["agentexec.agent_id"] == str(activity.agent_id)
    assert root["attributes"]["agentexec.status"] == "COMPLETE"
    assert len(spans) > 1


def test_nothing_configured(tmp_path: Path) -> None:
    """One warning that says what to set, and the run as it is."""
    done = start(tmp_path, INSTRUMENTED + APP)
    assert (done.returncode, done.stdout) == (0, 2 * "Tea it is.\n")
    (warning,) = complaints(done)
    assert "AGENTEXEC_DATABASE_URL" in warning


def test_no_database_answers(tmp_path: Path) -> None:
    """The run is as fast and as right as ever; what is to be stored waits in the spool."""
    done = start(
        tmp_path, INSTRUMENTED, AGENTEXEC_DATABASE_URL="postgresql+psycopg://nobody@127.0.0.1:1/none",
        AGENTEXEC_SHUTDOWN_TIMEOUT="1",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "Tea it is.\n"), done.stderr
    assert "Traceback" not in done.stderr
    assert "are kept in" in done.stderr


def test_two_lines(tmp_path: Path) -> None:
    """`ax.configure(...)` and `AgentExecInstrumentor().instrument()` do the same."""
    url = f"sqlite:///{tmp_path / 'app.db'}"
    code = INSTRUMENTED.replace("ax.Agent", f"ax.configure({url!r}, create_tables=True)\nax.Agent", 1)
    done = start(tmp_path, code)
    assert (done.returncode, done.stdout, complaints(done)) == (0, "Tea it is.\n", [])
    engine = create_engine(url)
    with Session(engine) as session:
        assert [item.status for item in ax.activity.list(session).items] == ["COMPLETE"]
    engine.dispose()
