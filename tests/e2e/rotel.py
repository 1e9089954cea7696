"""Rotel, an OTLP collector written in Rust. What it takes by HTTP or gRPC, it sends on to a collector of the test."""

import re
import socket
import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from tests.chaos.processes import await_that
from tests.e2e.collector import Collector, collecting


@dataclass(frozen=True, slots=True)
class Rotel:
    """The addresses of a running Rotel, and the file in which it writes what it has received."""

    http: str
    grpc: str
    log: Path

    @property
    def bodies(self) -> list[str]:
        """The bodies of the log records in the order of their arrival. It passes on several requests at once."""
        return re.findall(r"^Body: Str\((.*)\)$", self.log.read_text(), re.MULTILINE)

    known: set[str] = field(default_factory=set[str])

    def forget(self) -> None:
        """Leave out what it has passed on so far, also if it does so again."""
        self.known.update(map(uid_of, Collector.records))

    @property
    def records(self) -> list[LogRecord]:
        """The log records that it has passed on, each once, in the order in which they were reported."""
        found = {uid: record for record in list(Collector.records) if (uid := uid_of(record)) not in self.known}
        return [found[uid] for uid in sorted(found)]

    def wait_for(self, records: int, timeout: float = 20.0) -> list[LogRecord]:
        """The log records, once there are as many."""
        await_that(lambda: len(self.records) >= records, timeout, f"{records} log records")
        return self.records


@contextmanager
def rotel(folder: Path) -> Generator[Rotel]:
    """A Rotel at work."""
    http, grpc = free_ports(2)
    path = folder / "rotel.log"
    with collecting() as behind, path.open("ab") as log:
        process = subprocess.Popen(
            [
                str(distribution("rotel").locate_file("rotel/rotel-agent")),
                "start",
                *("--otlp-http-endpoint", f"127.0.0.1:{http}", "--otlp-grpc-endpoint", f"127.0.0.1:{grpc}"),
                *("--exporter", "otlp", "--otlp-exporter-endpoint", behind, "--otlp-exporter-protocol", "http"),
                "--disable-batching",
                *("--debug-log", "logs", "--debug-log-verbosity", "detailed"),
            ],
            stdout=log,
            stderr=log,
        )
        try:
            await_that(lambda: answers(http) and answers(grpc), 20, "Rotel")
            yield Rotel(f"http://127.0.0.1:{http}", f"http://127.0.0.1:{grpc}", path)
        finally:
            process.kill()
            process.wait()


def free_ports(number: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [int(one.getsockname()[1]) for one in held]
    for one in held:
        one.close()
    return ports


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def uid_of(record: LogRecord) -> str:
    return str(plain(record.attributes)["log.record.uid"])


def plain(attributes: Sequence[KeyValue]) -> dict[str, Any]:
    """Attributes as Python values."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value") or "string_value") for one in attributes}
