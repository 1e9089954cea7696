"""What `agentexec_otel_exporters.otlp._sdk` relies on in the official exporters: a release without it fails here."""

import logging
from contextlib import suppress
from importlib import import_module
from typing import Any
from uuid import UUID

import pytest
import requests
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.sdk.resources import Resource

from agentexec_otel.activity.models import Status
from agentexec_otel_exporters.otlp import _sdk
from agentexec_otel_exporters.otlp._answers import Refused, Unsendable
from agentexec_otel_exporters.otlp._endpoint import Endpoint
from agentexec_otel_exporters.otlp.logs import record_mapping
from tests.e2e.scripted_receiver import Reply, http_receiver
from tests.sql.rows import event

AGENT = UUID(int=7)
http_module: Any = import_module(_sdk.HTTP_EXPORTER)
grpc_module: Any = import_module(_sdk.GRPC_EXPORTER)


def test_the_http_exporter_takes_a_session() -> None:
    """The exporter sends through the session that it is given, by its method `request`."""
    sent: list[Any] = []
    session: Any = requests.Session()

    def request(method: str, url: str, **kwargs: Any) -> None:
        sent.append(url)
        raise _sdk.NotAcceptedError

    session.request = request
    exporter: Any = http_module.OTLPLogExporter(endpoint="http://127.0.0.1:1/v1/logs", session=session, timeout=1)
    record = record_mapping(Resource.get_empty())(event(AGENT), False)
    with suppress(_sdk.NotAcceptedError):  # Passed on by some releases.
        exporter.export([record])
    assert sent == ["http://127.0.0.1:1/v1/logs"]


@pytest.mark.parametrize("status", [503, 400])
def test_the_http_exporter_sends_once(status: int, caplog: pytest.LogCaptureFixture) -> None:
    """A request that is refused is not tried again inside, and its answer is returned."""
    with http_receiver(*[Reply(status, text="busy")] * 3) as script:
        sender = _sdk.sender_for(Endpoint("http/protobuf", script.address), {"key": "canary"})
        answer = sender.send([record_mapping(Resource.get_empty())(event(AGENT), False)])
        sender.close()
        assert len(script.requests) == 1
    assert answer == Refused(f"HTTP {status}", "busy")
    assert "canary" not in caplog.text


def test_records_that_cannot_be_encoded() -> None:
    """Whatever the encoder refuses is reported as such, by both exporters, and nothing is sent."""
    for endpoint in (Endpoint("http/protobuf", "http://127.0.0.1:1/v1/logs"), Endpoint("grpc", "127.0.0.1:1")):
        sender = _sdk.sender_for(endpoint, None)
        assert sender.send([object()]) == Unsendable()
        sender.close()


def test_the_grpc_exporter_has_its_parts() -> None:
    """`_client` with `Export`, `_headers` and `_timeout` are there, and `channel_options` is an argument."""
    exporter: Any = grpc_module.OTLPLogExporter(
        endpoint="http://127.0.0.1:1", headers={"key": "value"}, timeout=3, channel_options=_sdk.RECONNECT
    )
    assert callable(exporter._client.Export)
    assert ("key", "value") in exporter._headers
    assert exporter._timeout == 3
    assert grpc_module.encode_logs is encode_logs
    exporter.shutdown()


def test_the_encoder_keeps_every_field() -> None:
    """Event name, body, severity, time and ids of a record reach the wire."""
    mapped = record_mapping(Resource.get_empty())(event(AGENT, Status.ERROR, "failed")._replace(attempt=2), True)
    (resource,) = encode_logs([mapped]).resource_logs
    (record,) = resource.scope_logs[0].log_records
    assert (record.event_name, record.body.string_value, record.severity_text) == (
        "agentexec.activity.ended",
        "failed",
        "ERROR",
    )
    values = {one.key: one.value for one in record.attributes}
    assert values["agentexec.attempt"].int_value == 2
    assert values["agentexec.log.late"].bool_value


def test_loggers_of_the_exporters() -> None:
    """What is suppressed on the writer's thread is logged under the name of the exporter's module."""
    assert http_module._logger.name == _sdk.HTTP_EXPORTER
    record = logging.LogRecord("x", logging.ERROR, "x", 1, "x", None, None)
    record.threadName = "agentexec-writer"
    assert not _sdk.not_from_writer(record)
