"""An OTLP/HTTP collector that keeps what it is sent."""

import gzip
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, ClassVar

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector(BaseHTTPRequestHandler):
    """As much of an OTLP/HTTP collector as it takes to parse what arrives."""

    spans: ClassVar[list[Span]] = []
    records: ClassVar[list[LogRecord]] = []
    paths: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        type(self).paths.append(self.path)
        if self.path == "/v1/traces":
            traces = ExportTraceServiceRequest.FromString(body)
            type(self).spans.extend(
                span for resource in traces.resource_spans for scope in resource.scope_spans for span in scope.spans
            )
        if self.path == "/v1/logs":
            logs = ExportLogsServiceRequest.FromString(body)
            type(self).records.extend(
                record
                for resource in logs.resource_logs
                for scope in resource.scope_logs
                for record in scope.log_records
            )
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name that http.server gives it
        """Say nothing."""


@contextmanager
def collecting() -> Generator[str]:
    """A collector at work, by its address."""
    for kept in (Collector.spans, Collector.records, Collector.paths):
        kept.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
