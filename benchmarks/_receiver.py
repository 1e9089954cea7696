"""The receiver of the OTLP benchmark, behind Rotel: ``python -m benchmarks._receiver``.

It prints its port. For each line of its input, which is a number, it prints how many nanoseconds as many logs were on
their way.
"""

from __future__ import annotations

import gzip
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue
from threading import Thread
from typing import Any, Final

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

PREFIX: Final = "log "
"""What the bodies begin with that are measured."""

_PATIENCE: Final = 60.0
_waits: SimpleQueue[int] = SimpleQueue()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        now_ns = time.time_ns()
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
        for resource in ExportLogsServiceRequest.FromString(body).resource_logs:
            for scope in resource.scope_logs:
                for record in scope.log_records:
                    if record.body.string_value.startswith(PREFIX):
                        _waits.put(now_ns - record.time_unix_nano)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name that http.server gives it
        """Say nothing."""


def main() -> None:
    """Serve until the end of the input."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    for line in sys.stdin:
        print(json.dumps([_waits.get(timeout=_PATIENCE) for _ in range(int(line))]), flush=True)


if __name__ == "__main__":
    main()
