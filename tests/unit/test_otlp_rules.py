"""Where logs go over OTLP, what they are called, and what a receiver's answer means."""

from itertools import count
from typing import Any
from uuid import UUID, uuid4

import pytest

import agentexec_otel as ax
from agentexec_otel._model.mapping import event_name_of
from agentexec_otel.activity.models import Status
from agentexec_otel.export import (
    ActivityEvent,
    ExportError,
    MisconfiguredExportError,
    Opening,
    PoisonExportError,
    TransientExportError,
)
from agentexec_otel_exporters.otlp import OTLPActivityExporter
from agentexec_otel_exporters.otlp._answers import LONGEST_WAIT, Refused, Unanswered, Unsendable, error_of
from agentexec_otel_exporters.otlp.logs import SeenActivities
from tests.sql.rows import event

AGENT = UUID(int=7)

HTTP, GRPC = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL"


@pytest.mark.parametrize(
    ("environment", "arguments", "expected"),
    [
        ({}, {}, "otlp http/protobuf localhost:4318/v1/logs"),
        ({GRPC: "grpc"}, {}, "otlp grpc localhost:4317"),
        ({HTTP: "http://c:1/base/"}, {}, "otlp http/protobuf c:1/base/v1/logs"),
        ({HTTP: "http://u:canary@c:1?key=canary", GRPC: "grpc"}, {}, "otlp grpc c:1"),
        ({"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "https://c/own", HTTP: "http://d"}, {}, "otlp http/protobuf c/own"),
        ({"OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "grpc", GRPC: "http/protobuf", HTTP: "c:1"}, {}, "otlp grpc c:1"),
        ({HTTP: "http://c:1"}, {"endpoint": "http://d:2/v1/logs"}, "otlp http/protobuf d:2/v1/logs"),
        ({}, {"endpoint": "d:2", "protocol": "grpc"}, "otlp grpc d:2"),
    ],
)
def test_where_logs_go(
    environment: dict[str, str], arguments: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the variables of OpenTelemetry, unless the arguments say otherwise. The name of the receiver has no secret."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert OTLPActivityExporter(**arguments).identity == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"endpoint": "localhost:4318"}, "the OTLP endpoint is .*write it like http://localhost:4318/v1/logs"),
        ({"endpoint": "http://c:canary/v1/logs"}, "the OTLP endpoint is"),
        ({"endpoint": "ftp://c", "protocol": "grpc"}, "write it like http://localhost:4317$"),
        ({"protocol": "http/json"}, "the OTLP protocol is 'http/json': use http/protobuf or grpc"),
    ],
)
def test_endpoints_that_cannot_be_used(arguments: dict[str, Any], expected: str) -> None:
    """One sentence that says how to write it."""
    with pytest.raises(ax.ConfigurationError, match=expected) as caught:
        OTLPActivityExporter(**arguments)
    assert "\n" not in str(caught.value)


def opening() -> ActivityEvent:
    return event(AGENT, Status.QUEUED)._replace(opening=Opening("research"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (opening(), "created"),
        (event(AGENT)._replace(starts=True), "started"),
        (event(AGENT)._replace(claims=True), "started"),
        (event(AGENT), "log"),
        (event(AGENT)._replace(waiting={"for": "approval"}), "waiting"),
        (event(AGENT, Status.QUEUED), "log"),
        (event(AGENT, Status.QUEUED)._replace(reopens=True), "retried"),
        (event(AGENT, Status.QUEUED)._replace(claims=True, attempt=2), "retried"),
        *[(event(AGENT, status), "ended") for status in (Status.COMPLETE, Status.ERROR, Status.CANCELED)],
    ],
    ids=count(),
)
def test_names_of_events(given: ActivityEvent, expected: str) -> None:
    """An event has one name, which depends on nothing but the event."""
    assert event_name_of(given) == f"agentexec.activity.{expected}"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        *[(Refused(f"HTTP {code}"), TransientExportError) for code in (408, 429, 502, 503, 504)],
        *[(Refused(f"HTTP {code}"), PoisonExportError) for code in (400, 413, 422)],
        *[(Refused(f"HTTP {code}"), MisconfiguredExportError) for code in (301, 401, 403, 404, 405, 500, 501)],
        *[
            (Refused(code), TransientExportError)
            for code in ("CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS")
        ],
        (Refused("RESOURCE_EXHAUSTED", retry_after=1.0), TransientExportError),
        (Refused("RESOURCE_EXHAUSTED"), MisconfiguredExportError),
        (Refused("RESOURCE_EXHAUSTED", "Received message larger than max"), PoisonExportError),
        (Refused("INVALID_ARGUMENT"), PoisonExportError),
        *[(Refused(code), MisconfiguredExportError) for code in ("UNAUTHENTICATED", "INTERNAL", "UNKNOWN")],
        (Unanswered("ConnectionError"), TransientExportError),
        (Unsendable(), PoisonExportError),
    ],
    ids=str,
)
def test_what_an_answer_means(answer: Any, kind: type[ExportError]) -> None:
    """The failures of OTLP as the processor knows them."""
    assert type(error_of(answer, "c:1")) is kind


def test_what_is_said_of_an_answer() -> None:
    """One line, redacted and short, with a remedy if there is one. A wait that is too long is cut."""
    error = error_of(Refused("HTTP 401", f"bad\nkey sk-{'a1' * 24} {'x' * 999}"), "c:1")
    assert str(error).startswith("c:1 has answered HTTP 401: bad key ")
    assert "\n" not in str(error)
    assert "a1a1a1" not in str(error)
    assert str(error).endswith(": correct the key in OTEL_EXPORTER_OTLP_HEADERS")
    assert len(str(error)) < 400
    patient = error_of(Refused("HTTP 503", retry_after=1e9), "c:1")
    assert isinstance(patient, TransientExportError)
    assert patient.after == LONGEST_WAIT
    unsent = error_of(Unanswered("ConnectTimeout", sent=False), "c:1")
    assert isinstance(unsent, TransientExportError)
    assert not unsent.sent


def test_what_is_known_of_activities() -> None:
    """Within an attempt the first ending wins. What was not sent is not known, and the oldest are forgotten."""
    seen = SeenActivities()
    canceled, complete = event(AGENT, Status.CANCELED), event(AGENT, Status.COMPLETE)
    seen.answers([opening(), canceled])
    acks, states = seen.answers([opening(), canceled, complete])
    assert [(ack.status, ack.late) for ack in acks] == [
        (Status.QUEUED, False), (Status.CANCELED, False), (Status.CANCELED, True),
    ]  # fmt: skip
    seen.keep(states)
    (again,), states = seen.answers([event(AGENT, Status.QUEUED)._replace(reopens=True, claims=True)])
    assert (again.status, again.attempt, again.late) == (Status.QUEUED, 2, False)
    seen.keep(states)
    for _ in range(10_000):
        seen.keep(seen.answers([event(uuid4())])[1])
    (unknown,), _ = seen.answers([event(AGENT)])
    assert (unknown.status, unknown.attempt) == (Status.RUNNING, 1)


def test_exporters_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """A name that is no exporter is refused, with those that are. `sql` beside a database changes nothing."""
    monkeypatch.setattr(ax.CONF, "exporters", ("sql", "oltp"))
    with pytest.raises(
        ax.ConfigurationError, match="AGENTEXEC_EXPORTERS names 'oltp', which is no exporter: use otlp, sql"
    ):
        ax.configure(f"sqlite:///{tmp_path}/x.db")
    monkeypatch.setattr(ax.CONF, "exporters", ("sql",))
    ax.configure(f"sqlite:///{tmp_path}/x.db", create_tables=True)
    assert [one["exporter"] for one in ax.health()["exporters"]] == ["SQLExporter"]
    monkeypatch.setenv("AGENTEXEC_EXPORTERS", " sql, otlp,")
    assert ax.Settings().exporters == ("sql", "otlp")  # type: ignore[call-arg]


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence names the package and the pip command."""
    for protocol, package, extra in (
        ("http/protobuf", "opentelemetry-exporter-otlp-proto-http", "otlp"),
        ("grpc", "opentelemetry-exporter-otlp-proto-grpc", "otlp-grpc"),
    ):
        module = f"opentelemetry.exporter.otlp.proto.{protocol.partition('/')[0]}._log_exporter"
        monkeypatch.setitem(__import__("sys").modules, module, None)
        with pytest.raises(ax.MissingExtraError) as caught:
            OTLPActivityExporter(protocol=protocol)
        assert str(caught.value) == (
            f"sending logs by OTLP ({protocol}) needs the package {package}, which is not installed:"
            f" pip install 'agentexec-otel[{extra}]'"
        )
