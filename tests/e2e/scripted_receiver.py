"""OTLP receivers that answer as a test says, by HTTP and gRPC: refusals that a real one gives in trouble only."""

import time
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import grpc
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsPartialSuccess,
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a receiver answers: a status of HTTP or gRPC, or a response with a partial success."""

    code: int = 0
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    text: str = ""
    rejected: int = 0
    retry_after: float | None = None
    seconds: float = 0.0


@dataclass(slots=True)
class Script:
    """The replies to come; after them, each request is accepted.

    Attributes:
        requests: Time and bodies of the log records of each request.
    """

    replies: list[Reply] = field(default_factory=list[Reply])
    requests: list[tuple[float, list[str]]] = field(default_factory=list[tuple[float, list[str]]])
    address: str = ""

    def next(self, request: ExportLogsServiceRequest) -> Reply:
        self.requests.append((time.monotonic(), list(_bodies(request))))
        reply = self.replies.pop(0) if self.replies else Reply()
        time.sleep(reply.seconds)
        return reply

    @property
    def bodies(self) -> list[list[str]]:
        return [bodies for _, bodies in self.requests]


def _bodies(request: ExportLogsServiceRequest) -> Iterator[str]:
    for resource in request.resource_logs:
        for scope in resource.scope_logs:
            for record in scope.log_records:
                yield record.body.string_value


def _response(reply: Reply) -> ExportLogsServiceResponse:
    partial = ExportLogsPartialSuccess(rejected_log_records=reply.rejected, error_message=reply.text)
    return ExportLogsServiceResponse(partial_success=partial)


@contextmanager
def http_receiver(*replies: Reply) -> Generator[Script]:
    """A receiver by HTTP."""
    script = Script(list(replies))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            reply = script.next(ExportLogsServiceRequest.FromString(body))
            answer = reply.text.encode() if reply.code else _response(reply).SerializeToString()
            self.send_response(reply.code or 200)
            for name, value in {"Content-Type": "application/x-protobuf", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            with suppress(BrokenPipeError):  # The sender is gone.
                self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name that http.server gives it
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    script.address = f"http://127.0.0.1:{server.server_port}/v1/logs"
    try:
        yield script
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def grpc_receiver(*replies: Reply) -> Generator[Script]:
    """A receiver by gRPC."""
    script = Script(list(replies))

    def export(request: ExportLogsServiceRequest, context: Any) -> ExportLogsServiceResponse:
        reply = script.next(request)
        if reply.code:
            if reply.retry_after is not None:
                context.set_trailing_metadata((("grpc-status-details-bin", _details(reply).SerializeToString()),))
            code = next(one for one in grpc.StatusCode if one.value[0] == reply.code)
            context.abort(code, reply.text)
        return _response(reply)

    handler = grpc.unary_unary_rpc_method_handler(
        export,
        request_deserializer=ExportLogsServiceRequest.FromString,
        response_serializer=ExportLogsServiceResponse.SerializeToString,
    )
    service = "opentelemetry.proto.collector.logs.v1.LogsService"
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    script.address = f"http://127.0.0.1:{port}"
    try:
        yield script
    finally:
        server.stop(None).wait()


def _details(reply: Reply) -> Status:
    info = RetryInfo()
    info.retry_delay.FromNanoseconds(int((reply.retry_after or 0) * 1e9))
    status = Status(code=Code.Value("UNAVAILABLE"), message=reply.text)
    status.details.add().Pack(info)
    return status
