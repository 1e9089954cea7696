"""`ax.configure(otlp_endpoint=…)`: a provider for applications that have none, seen from the collector's side."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from opentelemetry.sdk.trace import TracerProvider

import agentexec_otel as ax
from tests.e2e.collector import Collector, collecting


@pytest.fixture
def collector() -> Iterator[str]:
    """The address of a collector."""
    with collecting() as address:
        yield address


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def plain(attributes: Any) -> dict[str, Any]:
    told: list[KeyValue] = list(attributes)
    return {one.key: getattr(one.value, one.value.WhichOneof("value") or "string_value") for one in told}


APPLICATION = """
import sys
import agentexec_otel as ax

ax.configure(sys.argv[1], create_tables=True, otlp_endpoint=sys.argv[2])
with ax.activity.run("research", metadata={"tenant": "acme"}) as run:
    run.update("Lone \\ud800 surrogate, NUL \\x00 and \\x1b[31m", 50)
try:
    with ax.activity.run("failing \\ud800"):
        raise ValueError("bad \\ud800 value")
except ValueError:
    pass
ax.configure(sys.argv[1], otlp_endpoint=sys.argv[2])
with ax.activity.run("again"):
    pass
print(run.agent_id)
"""


def test_spans_and_records_arrive(collector: str, tmp_path: Path) -> None:
    """A script that has no provider and just ends: all its spans and records arrive, readable whatever the text."""
    result = python(APPLICATION, f"sqlite:///{tmp_path}/x.db", collector, AGENTEXEC_EVENT_MODE="both")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert set(Collector.paths) == {"/v1/traces", "/v1/logs"}
    by_name = {span.name: span for span in Collector.spans}
    assert sorted(by_name) == ["again", "failing \ufffd", "research"]
    span = by_name["research"]
    assert plain(span.attributes)["agentexec.agent_id"] == result.stdout.strip()
    assert plain(span.attributes)["agentexec.metadata.tenant"] == "acme"
    assert [plain(event.attributes)["agentexec.log.message"] for event in span.events] == [
        "Waiting to start.",
        "Task started.",
        "Lone \ufffd surrogate, NUL \u2400 and \\x1b[31m",
        "Task completed successfully.",
    ]
    assert plain(span.events[2].attributes)["agentexec.log.percentage"] == 50
    failing = by_name["failing \ufffd"]
    assert failing.status.code == Status.STATUS_CODE_ERROR
    assert failing.status.message == "Task failed: bad \ufffd value"
    assert plain(failing.attributes)["error.type"] == "ValueError"
    own = [record for record in Collector.records if record.span_id == span.span_id]
    assert [record.body.string_value for record in own][-1] == "Task completed successfully."
    assert {record.event_name for record in Collector.records} == {"agentexec.activity.log"}
    assert {record.trace_id for record in own} == {span.trace_id}


def test_refused_beside_a_provider(tmp_path: Path, tracer_provider: TracerProvider) -> None:
    """An application that has a provider keeps it: together with an endpoint that is an error, in one sentence."""
    with pytest.raises(
        ax.ConfigurationError, match="has a TracerProvider already: add an OTLP span processor"
    ) as caught:
        ax.configure(
            f"sqlite:///{tmp_path}/x.db",
            tracer_provider=tracer_provider,
            otlp_endpoint="http://user:canary@127.0.0.1:1",
        )
    assert "\n" not in str(caught.value)
    assert "canary" not in str(caught.value)
    assert not ax.health()["configured"]


GLOBAL_PROVIDER = """
import sys

class Without:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("opentelemetry.exporter.otlp"):
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Without())
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
provider = TracerProvider()
trace.set_tracer_provider(provider)
import agentexec_otel as ax
try:
    ax.configure("sqlite:////tmp/never.db", otlp_endpoint="http://127.0.0.1:1")
except ax.ConfigurationError as refused:
    print(refused)
print(trace.get_tracer_provider() is provider)
trace._TRACER_PROVIDER = None
try:
    ax.configure("sqlite:////tmp/never.db", otlp_endpoint="http://127.0.0.1:1")
except ax.MissingExtraError as missing:
    print(missing)
"""


def test_refused_beside_a_global_provider_and_without_the_package() -> None:
    """A global provider is never replaced; without the package one sentence names it and the pip command."""
    result = python(GLOBAL_PROVIDER)
    assert result.returncode == 0, result.stderr
    refused, kept, missing = result.stdout.splitlines()
    assert "has a TracerProvider already" in refused
    assert kept == "True"
    assert missing == (
        "otlp_endpoint needs the package opentelemetry-exporter-otlp-proto-http, which is not installed:"
        " pip install 'agentexec-otel[otlp]'"
    )
