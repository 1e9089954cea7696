"""A process that has imported everything and forks on request, since importing takes longer than most tests.

Its arguments are more modules to import. It reads one JSON object a line, and prints `PID` for each, later `PID CODE`
when that one has ended.
"""

import importlib
import json
import os
import select
import signal
import sys
from typing import Any

import agentexec_otel as ax

PRELOADED = (
    "agentexec_otel_exporters.sql",
    "opentelemetry.exporter.otlp.proto.http._log_exporter",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk.metrics",
    "opentelemetry.sdk.trace",
    "psycopg",
    "pymysql",
    "sqlalchemy.dialects.mysql.pymysql",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite",
)


def serve() -> None:
    """Until the end of the input."""
    children: set[int] = set()
    buffer = b""
    while True:
        readable, _, _ = select.select([0], [], [], 0.01 if children else None)
        if readable:
            received = os.read(0, 1 << 16)
            if not received:
                return
            *lines, buffer = (buffer + received).split(b"\n")
            for line in lines:
                pid = os.fork()
                if pid == 0:
                    become(json.loads(line))
                    return
                children.add(pid)
                say(f"{pid}")
        for pid in list(children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                children.discard(pid)
                say(f"{pid} {os.waitstatus_to_exitcode(status)}")


def become(request: dict[str, Any]) -> None:
    """A program like any other: its own input, output, environment and settings."""
    for number, path, flags in (
        (0, request["stdin"], os.O_RDONLY),
        (1, request["stdout"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        (2, request["stderr"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    if request.get("session"):
        os.setsid()
    os.environ.clear()
    os.environ.update(request["environment"])
    settings = ax.Settings()  # type: ignore[call-arg]
    for name in ax.Settings.model_fields:
        if getattr(ax.CONF, name) != getattr(settings, name):
            setattr(ax.CONF, name, getattr(settings, name))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    module = importlib.import_module(request["module"])
    sys.argv = [request["module"], *request["arguments"]]
    module.start(*request["arguments"])


def say(text: str) -> None:
    os.write(1, text.encode() + b"\n")


if __name__ == "__main__":
    for name in (*PRELOADED, *sys.argv[1:]):
        importlib.import_module(name)
    serve()
