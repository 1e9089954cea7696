"""Arize Phoenix and MLflow, each from an environment of its own (`make receivers`), read back through their APIs."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.error import URLError
from urllib.request import Request, urlopen

from tests.chaos.private import free_port

ENVIRONMENTS: Final = Path(os.environ.get("AGENTEXEC_TEST_RECEIVERS", "~/.cache/agentexec-otel/receivers")).expanduser()
_STARTING_SECONDS: Final = 300.0  # They import a great deal.


@dataclass(frozen=True, slots=True)
class SeenSpan:
    """A span as a backend shows it. `status` is ``ERROR``, or anything else."""

    name: str
    kind: str
    parent: str | None
    status: str
    events: tuple[str, ...]


class Backend(Protocol):
    """What is asked of a backend.

    Attributes:
        template: The value of ``AGENTEXEC_TRACE_URL_TEMPLATE`` for it.
        endpoint: Where it takes spans, and the headers for that.
    """

    template: str
    endpoint: str
    headers: Mapping[str, str]

    def spans(self, trace_id: str) -> list[SeenSpan]:
        """The spans of a trace."""
        ...

    def tokens(self, trace_id: str) -> int:
        """The total of tokens that it shows for a trace."""
        ...

    def session(self, trace_id: str) -> str | None:
        """The session in which it puts a trace."""
        ...


class Phoenix:
    """Arize Phoenix."""

    headers: Mapping[str, str] = {}

    def __init__(self, url: str) -> None:
        self._url = url
        self.template = f"phoenix:{url}"
        self.endpoint = f"{url}/v1/traces"

    def spans(self, trace_id: str) -> list[SeenSpan]:
        found = [
            span
            for span in _ask(f"{self._url}/v1/projects/default/spans?limit=1000")["data"]
            if span["context"]["trace_id"] == trace_id
        ]
        names = {span["context"]["span_id"]: span["name"] for span in found}
        return [
            SeenSpan(
                span["name"],
                span["span_kind"],
                names.get(span["parent_id"]),
                span["status_code"],
                tuple(event["name"] for event in span["events"]),
            )
            for span in found
        ]

    def tokens(self, trace_id: str) -> int:
        root = self._trace(trace_id, "rootSpan { cumulativeTokenCountTotal }")["rootSpan"]
        return int(root["cumulativeTokenCountTotal"] or 0)

    def session(self, trace_id: str) -> str | None:
        found = self._trace(trace_id, "session { sessionId }")["session"]
        return None if found is None else str(found["sessionId"])

    def _trace(self, trace_id: str, fields: str) -> Any:
        query = f'{{ getTraceByOtelId(traceId: "{trace_id}") {{ ... on Trace {{ {fields} }} }} }}'
        return _ask(f"{self._url}/graphql", {"query": query})["data"]["getTraceByOtelId"]


class MLflow:
    """MLflow's tracking server."""

    headers: Mapping[str, str] = {"x-mlflow-experiment-id": "0"}

    def __init__(self, url: str) -> None:
        self._url = url
        self.template = f"mlflow:{url}/#/experiments/0"
        self.endpoint = f"{url}/v1/traces"

    def spans(self, trace_id: str) -> list[SeenSpan]:
        found = _ask(f"{self._url}/api/3.0/mlflow/traces/get?trace_id=tr-{trace_id}")["trace"]["spans"]
        names = {span["span_id"]: span["name"] for span in found}
        return [
            SeenSpan(
                span["name"],
                _attribute(span, "mlflow.spanType"),
                names.get(span.get("parent_span_id", "")),
                span["status"].get("code", "").removeprefix("STATUS_CODE_"),
                tuple(event["name"] for event in span.get("events", ())),
            )
            for span in found
        ]

    def tokens(self, trace_id: str) -> int:
        usage = self._metadata(trace_id).get("mlflow.trace.tokenUsage")
        return 0 if usage is None else int(json.loads(usage)["total_tokens"])

    def session(self, trace_id: str) -> str | None:
        return self._metadata(trace_id).get("mlflow.trace.session")

    def _metadata(self, trace_id: str) -> dict[str, str]:
        found = _ask(f"{self._url}/api/3.0/mlflow/traces/tr-{trace_id}")["trace"]["trace_info"]
        return dict(found.get("trace_metadata", {}))


def _attribute(span: Mapping[str, Any], name: str) -> str:
    values = (one["value"].get("string_value") for one in span["attributes"] if one["key"] == name)
    return next((str(value) for value in values), "")


def _ask(url: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, data, {"Content-Type": "application/json"}), timeout=60) as answer:
        return json.load(answer)


# -- their processes ----------------------------------------------------------------------------------------------


@contextmanager
def phoenix(folder: Path) -> Generator[Phoenix]:
    """Phoenix at work, with a database in this folder."""
    port, grpc = free_port(), free_port()
    variables = {
        "PHOENIX_WORKING_DIR": str(folder),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(grpc),
        "PHOENIX_TELEMETRY_ENABLED": "false",
    }
    with _running([str(ENVIRONMENTS / "phoenix/bin/phoenix"), "serve"], variables, folder, f"http://127.0.0.1:{port}"):
        yield Phoenix(f"http://127.0.0.1:{port}")


@contextmanager
def mlflow(folder: Path) -> Generator[MLflow]:
    """MLflow's tracking server at work, with a database in this folder."""
    port = free_port()
    store = f"sqlite:///{folder / 'mlflow.db'}"
    command = [str(ENVIRONMENTS / "mlflow/bin/mlflow"), "server", "--backend-store-uri", store]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with _running(
        command,
        {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        folder,
        f"http://127.0.0.1:{port}",
    ):
        yield MLflow(f"http://127.0.0.1:{port}")


@contextmanager
def _running(command: list[str], variables: Mapping[str, str], folder: Path, url: str) -> Generator[None]:
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **variables}, stdout=output, stderr=output, start_new_session=True
        )
    try:
        _await_answer(process, url, log)
        yield
    finally:
        os.killpg(process.pid, 15)
        process.wait(60)


def _await_answer(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _STARTING_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-2_000:]
        try:
            with urlopen(url, timeout=5):
                return
        except (URLError, TimeoutError, ConnectionError):
            time.sleep(0.5)
    raise AssertionError(f"{url} does not answer: {log.read_text()[-2_000:]}")
