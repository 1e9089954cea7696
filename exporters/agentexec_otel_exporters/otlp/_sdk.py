"""The official OTLP exporters, for encoding and transport. What they keep private is used here only.

Their `export` retries inside, says no more than SUCCESS or FAILURE, and does not read partial success. Here a request
is sent once, and its answer is returned. `tests/unit/test_otlp_sdk.py` checks what this module relies on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from importlib import import_module
from typing import Any, Final, NoReturn

from agentexec_otel._errors import MissingExtraError
from agentexec_otel_exporters.otlp._answers import Accepted, Answer, Refused, Unanswered, Unsendable
from agentexec_otel_exporters.otlp._endpoint import Endpoint

HTTP_EXPORTER: Final = "opentelemetry.exporter.otlp.proto.http._log_exporter"
GRPC_EXPORTER: Final = "opentelemetry.exporter.otlp.proto.grpc._log_exporter"
_MESSAGES: Final = "opentelemetry.proto.collector.logs.v1.logs_service_pb2"
_PACKAGES: Final = {
    "http/protobuf": (HTTP_EXPORTER, "opentelemetry-exporter-otlp-proto-http", "otlp"),
    "grpc": (GRPC_EXPORTER, "opentelemetry-exporter-otlp-proto-grpc", "otlp-grpc"),
}
# A channel that has failed waits before it connects again, by default up to two minutes.
RECONNECT: Final = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
)


def check_installed(endpoint: Endpoint) -> None:
    """Raise `MissingExtraError` if the official exporter for this protocol is not installed."""
    module, package, extra = _PACKAGES[endpoint.protocol]
    try:
        import_module(module)
    except ImportError:
        raise MissingExtraError(f"sending logs by OTLP ({endpoint.protocol})", package, extra) from None


def sender_for(endpoint: Endpoint, headers: Mapping[str, str] | None) -> Sender:
    """A sender, whose further settings come from ``OTEL_EXPORTER_OTLP_*``."""
    make = _HTTPSender if endpoint.protocol == "http/protobuf" else _GRPCSender
    return make(endpoint, headers)


def not_from_writer(record: logging.LogRecord) -> bool:
    """Suppress what an exporter logs of each request that fails: the processor reports the outage once."""
    return record.threadName != "agentexec-writer"


# -- HTTP -------------------------------------------------------------------------------------------------------


class NotAcceptedError(Exception):
    """Raised in the session: the exporter takes no exception but those of requests for a reason to retry."""


class _HTTPSender:
    """Sends by the exporter's own `export`, through a session that keeps the answer."""

    def __init__(self, endpoint: Endpoint, headers: Mapping[str, str] | None) -> None:
        self._answer: Answer = Unsendable()
        module = import_module(HTTP_EXPORTER)
        self._exporter = module.OTLPLogExporter(
            endpoint=endpoint.url, headers=None if headers is None else dict(headers), session=self._session()
        )
        logging.getLogger(HTTP_EXPORTER).addFilter(not_from_writer)

    def _session(self) -> Any:
        requests: Any = import_module("requests")
        session = requests.Session()
        request = session.request

        def keep_answer(*args: Any, **kwargs: Any) -> Any:
            try:
                response = _request_twice(requests, request, *args, **kwargs)
            except requests.RequestException as exc:
                self._refuse(Unanswered(type(exc).__name__, sent=not _never_connected(exc)))
            if not 200 <= response.status_code < 300:
                self._refuse(Refused(f"HTTP {response.status_code}", response.text, _retry_after(response.headers)))
            self._answer = _accepted(response)
            return response

        session.request = keep_answer
        return session

    def _refuse(self, answer: Answer) -> NoReturn:
        self._answer = answer
        raise NotAcceptedError

    def send(self, records: Sequence[Any]) -> Answer:
        """Send one request, and return what became of it. Raises nothing for a receiver that is away or refuses."""
        self._answer = Unsendable()
        with suppress(NotAcceptedError):  # Passed on by some releases; others return FAILURE.
            self._exporter.export(records)
        return self._answer

    def close(self) -> None:
        """Close connections. A request under way may fail."""
        self._exporter.shutdown()


def _request_twice(requests: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    """Send a request, and once more if the receiver has closed the connection that was kept open."""
    try:
        return request(*args, **kwargs)
    except requests.Timeout:
        raise
    except requests.ConnectionError as exc:
        if _never_connected(exc):
            raise
        return request(*args, **kwargs)


def _never_connected(exc: BaseException) -> bool:
    # The exceptions of requests hold those of urllib3.
    reason = getattr(exc.args[0] if exc.args else None, "reason", None)
    return type(reason).__name__ in ("NewConnectionError", "ConnectTimeoutError", "NameResolutionError")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, which the header has as a number or as a date."""
    value = headers.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _accepted(response: Any) -> Accepted:
    messages: Any = import_module(_MESSAGES)
    if not response.headers.get("Content-Type", "").startswith("application/x-protobuf"):
        return Accepted()
    try:
        return _partial_success(messages.ExportLogsServiceResponse.FromString(response.content))
    except import_module("google.protobuf.message").DecodeError:
        return Accepted()


def _partial_success(response: Any) -> Accepted:
    partial = response.partial_success
    return Accepted(partial.rejected_log_records, partial.error_message)


# -- gRPC -------------------------------------------------------------------------------------------------------


class _GRPCSender:
    """Sends by the exporter's stub, with the exporter's headers and timeout."""

    def __init__(self, endpoint: Endpoint, headers: Mapping[str, str] | None) -> None:
        module = import_module(GRPC_EXPORTER)
        self._exporter = module.OTLPLogExporter(
            endpoint=endpoint.url, headers=None if headers is None else dict(headers), channel_options=RECONNECT
        )
        self._rpc_error: Any = import_module("grpc").RpcError
        self._encode = module.encode_logs

    def send(self, records: Sequence[Any]) -> Answer:
        """Send one request, and return what became of it. Raises nothing for a receiver that is away or refuses."""
        exporter = self._exporter
        try:
            request = self._encode(records)
        except Exception:  # noqa: BLE001  # whatever protobuf raises for a value that it does not take
            return Unsendable()
        try:
            response = exporter._client.Export(request, metadata=exporter._headers, timeout=exporter._timeout)
        except self._rpc_error as exc:
            code = exc.code().name
            return Refused(code, exc.details() or "", _retry_info(dict(exc.trailing_metadata() or ())))
        except (RuntimeError, ValueError) as exc:  # No thread can be started, or the channel is closed: at exit.
            return Unanswered(type(exc).__name__)
        return _partial_success(response)

    def close(self) -> None:
        """Close connections. A request under way may fail."""
        self._exporter.shutdown()


def _retry_info(metadata: Mapping[str, Any]) -> float | None:
    """Seconds of the ``RetryInfo``: within the status, as gRPC has it, or alone, as the official exporter reads it."""
    details: Any = import_module("google.rpc.error_details_pb2")
    info = details.RetryInfo()
    if (alone := metadata.get("google.rpc.retryinfo-bin")) is not None:
        info.ParseFromString(alone)
        return _seconds(info)
    status: Any = import_module("google.rpc.status_pb2").Status()
    status.ParseFromString(metadata.get("grpc-status-details-bin", b""))
    return next((_seconds(info) for detail in status.details if detail.Unpack(info)), None)


def _seconds(info: Any) -> float:
    return float(info.retry_delay.seconds) + float(info.retry_delay.nanos) / 1e9


Sender = _HTTPSender | _GRPCSender
