"""The SDK and the instrumentor set up by a file: ``OTEL_CONFIG_FILE``, or the two lines that load one."""

import json
import sys
from copy import deepcopy
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml

from tests.docs.blocks import ROOT, blocks_of
from tests.e2e.collector import Collector, collecting
from tests.e2e.test_instrumentor_zero_code import APP, complaints, start, stored

pytestmark = pytest.mark.one_python

BLOCKS = blocks_of(ROOT / "docs" / "how-to" / "configure-by-a-file.md")
FILE, SPAN_EXPORTER = (yaml.safe_load(block.code) for block in BLOCKS if block.language == "yaml")
(LOADING,) = (block.code for block in BLOCKS if block.language == "python")


def run(
    folder: Path, *command: str, code: str = APP, processors: Any = (), options: Any = None, **environment: str
) -> CompletedProcess[str]:
    """Run the code beside the page's file, with more in it, and a receiver at its endpoint."""
    content = deepcopy(FILE)
    content["tracer_provider"]["processors"] += processors
    content["instrumentation/development"]["python"]["agentexec"] |= options or {}
    with collecting() as address:
        text = json.dumps(content).replace("http://localhost:4318", address)  # which is YAML as well
        (folder / "otel.yaml").write_text(text, encoding="utf-8")
        url = f"sqlite:///{folder / 'app.db'}"
        environment |= {"AGENTEXEC_DATABASE_URL": url, "OTEL_EXPORTER_OTLP_ENDPOINT": address}
        done = start(folder, code, *command, **environment)
    assert (done.returncode, done.stdout) == (0, "Tea it is.\n"), done.stderr
    return done


def test_by_the_variable(tmp_path: Path) -> None:
    """Rows with the logs that the file's settings ask for; the span over OTLP, and in SQL by `agentexec_sql`."""
    ended = f"sqlite:///{tmp_path / 'ended.db'}"
    processors = SPAN_EXPORTER["tracer_provider"]["processors"]
    processors[0]["batch"]["exporter"]["agentexec_sql"]["database"] = ended
    done = run(
        tmp_path,
        str(Path(sys.executable).with_name("opentelemetry-instrument")),
        processors=processors,
        OTEL_CONFIG_FILE=str(tmp_path / "otel.yaml"),
        OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="*",
        OTEL_TRACES_EXPORTER="unheard_of",
        AGENTEXEC_PROGRESS="off",
    )
    assert [line for line in complaints(done) if "configurator kwargs" not in line] == []
    live, again = stored(f"sqlite:///{tmp_path / 'app.db'}"), stored(ended)
    assert (live.agent_type, live.status, live.requests) == ("Researcher", "COMPLETE", 2)
    assert "look_up is done" in [log.message for log in live.logs]
    assert (again.agent_id, again.status, again.requests) == (live.agent_id, "COMPLETE", 2)
    assert [log.message for log in again.logs] == [log.message for log in live.logs]
    (span,) = Collector.spans
    attributes = {attribute.key: attribute.value.string_value for attribute in span.attributes}
    assert (span.name, attributes["agentexec.agent_id"]) == ("Researcher", str(live.agent_id))


def test_by_the_application(tmp_path: Path) -> None:
    """The page's lines do the same; logs also go over OTLP if the file says so; an unknown name is reported."""
    options = {"exporters": ["sql", "otlp"], "create_tables": True, "progres": "off", "message_limit": None}
    done = run(tmp_path, code=LOADING + APP, options=options)
    (warning,) = complaints(done)
    assert "no option progres:" in warning
    live = stored(f"sqlite:///{tmp_path / 'app.db'}")
    assert live.status == "COMPLETE"
    assert [span.name for span in Collector.spans] == ["Researcher"]
    sent = [record.body.string_value for record in Collector.records]
    assert set(sent) >= {log.message for log in live.logs}


def test_a_value_that_cannot_be_used(tmp_path: Path) -> None:
    """It is logged with what is allowed, and the program runs as it would without us."""
    done = run(tmp_path, code=LOADING + APP, options={"progress": "loud"})
    assert "progress='loud' cannot be used: Input should be 'off', 'steps' or 'detail'" in done.stderr
    assert not (tmp_path / "app.db").exists()
    assert Collector.spans == []
