"""What becomes of logs that a receiver of OTLP does not accept at once, by HTTP and gRPC."""

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import agentexec_otel as ax
from agentexec_otel_exporters.otlp import OTLPActivityExporter
from tests.chaos.processes import await_that
from tests.e2e.scripted_receiver import Reply, Script, grpc_receiver, http_receiver

pytestmark = pytest.mark.one_python

Receiving = Callable[..., AbstractContextManager[Script]]

# The status codes of gRPC that are used here.
INVALID_ARGUMENT, PERMISSION_DENIED, RESOURCE_EXHAUSTED, UNAVAILABLE = 3, 7, 8, 14


@pytest.fixture(autouse=True)
def _spool(tmp_path: Path) -> Iterator[None]:
    before = ax.CONF.spool_dir
    ax.CONF.spool_dir = str(tmp_path / "spool")
    yield
    ax.shutdown(1.0)
    ax.CONF.spool_dir = before


def report(script: Script, protocol: str, logs: int = 3) -> dict[str, Any]:
    """Report logs to this receiver, and wait until each has its answer. What `health()` says then."""
    ax.configure(exporters=[OTLPActivityExporter(script.address, protocol=protocol)])
    with ax.activity.run("research") as run:
        for number in range(logs):
            run.update(f"log {number}")
    assert ax.flush(20.0)
    (health,) = ax.health()["exporters"]
    found: dict[str, Any] = health
    return found


def accepted(script: Script, refused: int) -> list[str]:
    return [body for bodies in script.bodies[refused:] for body in bodies]


ALL = ["Waiting to start.", "Task started.", "log 0", "log 1", "log 2", "Task completed successfully."]


@pytest.mark.parametrize(
    ("receiving", "protocol", "replies"),
    [
        pytest.param(http_receiver, "http/protobuf", [Reply(503), Reply(429), Reply(502), Reply(504)], id="http"),
        pytest.param(grpc_receiver, "grpc", [Reply(UNAVAILABLE), Reply(4), Reply(10), Reply(15)], id="grpc"),
    ],
)
def test_retryable_answers_are_retried(
    receiving: Receiving, protocol: str, replies: list[Reply], caplog: pytest.LogCaptureFixture
) -> None:
    """Each log is accepted once and in order after the receiver has been busy, which is two lines in the log."""
    with receiving(*replies) as script:
        health = report(script, protocol)
        assert accepted(script, len(replies)) == ALL
    assert (health["committed"], health["dead_lettered"], health["last_error"]) == (6, 0, None)
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 2, warnings
    assert warnings[0].startswith("storing activity events is failing and will be retried: ")
    assert "127.0.0.1" in warnings[0]


@pytest.mark.parametrize(
    ("receiving", "protocol", "reply"),
    [
        pytest.param(http_receiver, "http/protobuf", Reply(503, {"Retry-After": "1"}), id="http"),
        pytest.param(grpc_receiver, "grpc", Reply(UNAVAILABLE, retry_after=1.0), id="grpc-unavailable"),
        pytest.param(grpc_receiver, "grpc", Reply(RESOURCE_EXHAUSTED, retry_after=1.0), id="grpc-exhausted"),
    ],
)
def test_the_wait_that_is_asked_for_is_kept(receiving: Receiving, protocol: str, reply: Reply) -> None:
    """No request is sent before Retry-After, or RetryInfo, is over."""
    with receiving(reply) as script:
        report(script, protocol)
        (first, _), (second, _), *_ = script.requests
        assert accepted(script, 1) == ALL
    assert second - first >= 1.0


@pytest.mark.parametrize(
    ("receiving", "protocol"), [(http_receiver, "http/protobuf"), (grpc_receiver, "grpc")], ids=["http", "grpc"]
)
def test_rejected_records_are_dead_letters(
    receiving: Receiving, protocol: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Records that a partial success rejects are kept as dead letters and not sent again; the run goes on."""
    with receiving(Reply(), Reply(rejected=1, text="no  such\ntenant")) as script:
        health = report(script, protocol)
        bodies = accepted(script, 0)
    assert bodies == ALL
    assert health["dead_lettered"] == len(script.bodies[1])
    assert health["committed"] == len(ALL) - len(script.bodies[1])
    (file,) = (tmp_path / "spool").rglob("dead-letters.jsonl")
    letters = [json.loads(line) for line in file.read_text().splitlines()]
    assert [letter["event"][4] for letter in letters] == script.bodies[1]
    assert f"has rejected 1 of the {len(letters)} log records of a request: no such tenant" in letters[0]["reason"]
    assert ax.activity.update(UUID(letters[0]["event"][2]), "The activity is still known")


@pytest.mark.parametrize(
    ("receiving", "protocol"), [(http_receiver, "http/protobuf"), (grpc_receiver, "grpc")], ids=["http", "grpc"]
)
def test_a_warning_is_logged_once(receiving: Receiving, protocol: str, caplog: pytest.LogCaptureFixture) -> None:
    """A partial success that rejects nothing is a warning: logged once, and every log is stored."""
    with receiving(*[Reply(text="attributes were cut")] * 20) as script:
        health = report(script, protocol, logs=20)
    assert (health["committed"], health["dead_lettered"]) == (23, 0)
    (warning,) = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.endswith(" has accepted log records with a warning: attributes were cut")


@pytest.mark.parametrize(
    ("receiving", "protocol", "code"),
    [
        pytest.param(http_receiver, "http/protobuf", 400, id="http"),
        pytest.param(grpc_receiver, "grpc", INVALID_ARGUMENT, id="grpc"),
    ],
)
def test_a_malformed_record_is_found(receiving: Receiving, protocol: str, code: int, tmp_path: Path) -> None:
    """A request that is refused for its content is halved, until the record that is refused is alone: a dead letter."""

    class Picky(list[Reply]):
        def __bool__(self) -> bool:
            return "log 1" in script.bodies[-1]

        def pop(self, index: object = None) -> Reply:
            return Reply(code, text="bad data")

    with receiving() as script:
        script.replies = Picky()
        health = report(script, protocol)
        taken = [body for bodies in script.bodies if "log 1" not in bodies for body in bodies]
    assert taken == [body for body in ALL if body != "log 1"]
    assert (health["committed"], health["dead_lettered"]) == (5, 1)


@pytest.mark.parametrize(
    ("receiving", "protocol", "reply", "said"),
    [
        pytest.param(http_receiver, "http/protobuf", Reply(401), "correct the key in OTEL_EXPORTER", id="http-401"),
        pytest.param(http_receiver, "http/protobuf", Reply(500), "has answered HTTP 500", id="http-500"),
        pytest.param(http_receiver, "http/protobuf", Reply(302), "has answered HTTP 302", id="http-302"),
        pytest.param(grpc_receiver, "grpc", Reply(PERMISSION_DENIED), "correct the key in OTEL_EXPORTER", id="grpc"),
    ],
)
def test_a_refusal_that_will_not_pass_keeps_the_logs(
    receiving: Receiving, protocol: str, reply: Reply, said: str, tmp_path: Path
) -> None:
    """A wrong key and the like: `health()` names it, and the next process delivers what is in the spool."""
    with receiving(Reply(), *[reply] * 9) as script:
        ax.configure(exporters=[OTLPActivityExporter(script.address, protocol=protocol)])
        with ax.activity.run("research") as run:
            run.update("log 0")
        await_that(lambda: ax.health()["exporters"][0]["last_error"] is not None, 10)
        (health,) = ax.health()["exporters"]
        assert said in health["last_error"]
        assert not ax.shutdown(0.2)
        assert len(script.requests) <= 8  # Not more often than a shutdown tries again.
        script.replies.clear()
        script.requests.clear()
        ax.configure(exporters=[OTLPActivityExporter(script.address, protocol=protocol)])
        ax.recover(10.0)
        assert ax.flush(10.0)
        assert accepted(script, 0) == ["Task started.", "log 0", "Task completed successfully."]


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_silent_receiver_does_not_keep_a_process(protocol: str, tmp_path: Path) -> None:
    """A receiver that takes the connection and never answers: the process ends in time, and the spool has the logs."""
    receiving = http_receiver if protocol == "http/protobuf" else grpc_receiver
    code = f"""
import agentexec_otel as ax
from agentexec_otel_exporters.otlp import OTLPActivityExporter
import sys
ax.CONF.shutdown_timeout = 1.0
exporter = OTLPActivityExporter(sys.argv[1], protocol={protocol!r})
ax.configure("sqlite:///app.db", create_tables=True, exporters=[exporter])
with ax.activity.run("research"):
    pass
"""
    with receiving(*[Reply(seconds=5.0)] * 3) as script:
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", code, script.address],
            env={"AGENTEXEC_SPOOL_DIR": str(tmp_path / "spool"), "PATH": ""},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        took = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("agentexec-otel: ")
    assert "were not stored in time and are kept in" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert took < 60
