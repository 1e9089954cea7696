"""An application that knows nothing of us, started by ``opentelemetry-instrument``, and one that we cannot help."""

import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity.schemas import ActivityDetailSchema
from tests.chaos.processes import environment_with
from tests.e2e import agent_script
from tests.e2e.collector import Collector, collecting
from tests.e2e.forked import Forked

pytestmark = pytest.mark.one_python

ROOT = Path(__file__).parents[2]

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
    """Run the code as a file, with these environment variables: by the command, or as `python` does."""
    app = folder / "app.py"
    app.write_text(code, encoding="utf-8")
    environment = {"OPENAI_API_KEY": "", "XDG_STATE_HOME": str(folder / "state"), **environment}
    if not command:
        out, err = folder / "stdout.txt", folder / "stderr.txt"
        exit_code = Forked(agent_script, environment_with(environment), out, err, str(app)).wait(100)
        return subprocess.CompletedProcess([str(app)], exit_code, out.read_text(), err.read_text())
    return subprocess.run(
        [*command, sys.executable, str(app)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, **environment},
    )


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What was written to stderr, but for the SDK's remark that it has no key to upload its traces with."""
    return [line for line in done.stderr.splitlines() if not line.startswith("OPENAI_API_KEY is not set")]


def exported_by(page: str) -> dict[str, str]:
    """The variables that the page's ``bash`` block with ``opentelemetry-instrument`` sets."""
    (block,) = (
        block
        for block in re.findall(r"^```bash$(.*?)^```$", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
        if "opentelemetry-instrument python" in block
    )
    return dict(re.findall(r"([A-Z_]+)=(\S+)", block))


@pytest.mark.parametrize(
    "settings",
    [
        exported_by("docs/how-to/auto-instrument-openai-agents.md"),
        {"OTEL_TRACES_EXPORTER": "otlp_proto_http", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"},
    ],
    ids=["as the page says", "traces alone"],
)
def test_zero_code(tmp_path: Path, settings: dict[str, str]) -> None:
    """Live rows, the outcome, and one trace over OTLP: our span its root, the official ones beneath it, none of SQL."""
    pytest.importorskip("opentelemetry.distro")
    url = f"sqlite:///{tmp_path / 'app.db'}"
    go_on = tmp_path / "go on"
    waiting = APP.replace(
        "    return", f"    while not Path({str(go_on)!r}).exists():\n        time.sleep(0.02)\n    return"
    )
    with collecting() as address, ThreadPoolExecutor(1) as pool:
        app = pool.submit(
            start,
            tmp_path,
            f"import time\nfrom pathlib import Path\n{waiting}",
            str(Path(sys.executable).with_name("opentelemetry-instrument")),
            **settings
            | {
                "AGENTEXEC_DATABASE_URL": url,
                "AGENTEXEC_CREATE_TABLES": "true",
                "OTEL_EXPORTER_OTLP_ENDPOINT": address,
                "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "sqlalchemy",  # which refuses SQLAlchemy 2.1, and says so
            },
        )
        try:
            live = until_it_says("Calling look_up", url, app)
        finally:
            go_on.touch()
        done = app.result()
    assert (done.returncode, done.stdout) == (0, "Tea it is.\n"), done.stderr
    assert "Traceback" not in done.stderr
    assert live.status == "RUNNING"
    ended = stored(url)
    assert (ended.agent_id, ended.agent_type, ended.status) == (live.agent_id, "Researcher", "COMPLETE")
    assert (ended.requests, ended.logs[-1].status) == (2, "COMPLETE")
    (root,) = [span for span in Collector.spans if not span.parent_span_id]
    assert root.name == "Researcher"
    assert {span.trace_id for span in Collector.spans} == {root.trace_id}
    told = {attribute.key: attribute.value.string_value for attribute in root.attributes}
    assert (told["agentexec.agent_id"], told["agentexec.status"]) == (str(ended.agent_id), "COMPLETE")
    names = [span.name for span in Collector.spans]
    assert names.count("execute_tool look_up") == 1
    assert names.count("invoke_agent Researcher") == 1


@pytest.mark.one_python
@pytest.mark.parametrize(
    ("settings", "captured"),
    [
        ({}, False),
        ({"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "span_only"}, True),
        (
            {
                "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "span_only",
                "OPENAI_AGENTS_TRACE_INCLUDE_SENSITIVE_DATA": "false",
            },
            False,
        ),
    ],
    ids=["by default", "when asked for", "when the SDK says no"],
)
def test_content_is_captured_by_the_official_instrumentation_alone(
    tmp_path: Path, settings: dict[str, str], captured: bool
) -> None:
    """As the variable of OpenTelemetry and the SDK's own say; our span and rows hold neither arguments nor results."""
    pytest.importorskip("opentelemetry.instrumentation.genai.openai_agents")
    url = f"sqlite:///{tmp_path / 'app.db'}"
    set_up = """
from opentelemetry import trace
from opentelemetry.instrumentation.genai.openai_agents import OpenAIAgentsInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

out = open("spans.jsonl", "w", buffering=1)  # Not stdout: `print` writes in two parts, and a span can come between.
exporter = ConsoleSpanExporter(out=out, formatter=lambda span: span.to_json(indent=None) + "\\n")
trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))
OpenAIAgentsInstrumentor().instrument()
"""
    done = start(
        tmp_path,
        set_up + INSTRUMENTED,
        AGENTEXEC_DATABASE_URL=url,
        AGENTEXEC_CREATE_TABLES="true",
        AGENTEXEC_PROGRESS="detail",
        OTEL_SEMCONV_STABILITY_OPT_IN="gen_ai_latest_experimental",
        **settings,
    )
    assert done.returncode == 0, done.stderr
    told = {json.loads(line)["name"]: line for line in (tmp_path / "spans.jsonl").read_text().splitlines()}
    assert ("facts about tea" in told["execute_tool look_up"]) is captured
    assert "facts about tea" not in told["Researcher"]
    assert "facts about tea" not in " ".join(line.message for line in stored(url).logs)


def stored(url: str) -> ActivityDetailSchema:
    """The one activity."""
    engine = create_engine(url)
    try:
        with Session(engine) as session:
            (item,) = ax.activity.list(session).items
            activity = ax.activity.detail(session, item.agent_id)
    finally:
        engine.dispose()
    assert activity is not None
    return activity


def until_it_says(line: str, url: str, app: Future[subprocess.CompletedProcess[str]]) -> ActivityDetailSchema:
    """The activity, once it has this line, while the application runs."""
    while not app.done():
        time.sleep(0.05)
        with suppress(ax.ConfigurationError, ValueError):  # there are no tables or no activity yet
            activity = stored(url)
            if line in [log.message for log in activity.logs]:
                return activity
    raise AssertionError(app.result().stderr)


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
