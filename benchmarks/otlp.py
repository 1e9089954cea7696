"""Logs over OTLP: how long a log takes until a receiver has it, and what a receiver that is away costs SQL."""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from typing import IO, Any, Final

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

import agentexec_otel as ax
from agentexec_otel_exporters.otlp import OTLPActivityExporter
from benchmarks._context import Context, Scale
from benchmarks._databases import Database
from benchmarks._measure import Row, Section, Table, Target, interleaved, percentile
from benchmarks._receiver import PREFIX
from benchmarks.live import Latency, Reader, measure_latency, row_id_of

_LOGS: Final = {Scale.SMOKE: 20, Scale.QUICK: 200, Scale.FULL: 600}
_LINES: Final = {Scale.SMOKE: 5, Scale.QUICK: 100, Scale.FULL: 300}
_PAUSE: Final = 1 / 200
_P95_MS: Final = 200.0
_UNCHANGED: Final = 1.25
_BATCHED: Final = "the LoggerProvider with a BatchLogRecordProcessor"


def run(context: Context) -> Section:
    """Measure the arrival once, and SQL on every database."""
    before = ax.CONF.spool_dir
    with tempfile.TemporaryDirectory(dir=context.folder) as folder, _receiver(Path(folder)) as receiver:
        ax.CONF.spool_dir = folder
        try:
            tables = [_arrival(context, receiver), *(_sql(context, receiver, one) for one in context.databases)]
        finally:
            ax.CONF.spool_dir = before
    return Section("otlp", "Logs over OTLP", tables)


# -- until the receiver has it ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Arrival:
    """One run, in milliseconds."""

    p50: float
    p95: float


def _arrival(context: Context, receiver: _Receiver) -> Table:
    logs = context.pick(_LOGS)
    cases: dict[str, Callable[[], _Arrival]] = {
        _BATCHED: partial(_batched, receiver, logs),
        "the exporter otlp, HTTP": partial(_live, receiver, receiver.http, "http/protobuf", logs),
        "the exporter otlp, gRPC": partial(_live, receiver, receiver.grpc, "grpc", logs),
    }
    found = interleaved(cases, context.runs, context.track("otlp arrival", context.runs * len(cases)))
    rows: list[Row] = []
    for figure in ("p50", "p95"):
        base = [getattr(one, figure) for one in found[_BATCHED]]
        for name, arrivals in found.items():
            ours = name != _BATCHED
            target = Target(_P95_MS, "value") if ours and figure == "p95" else None
            values = [getattr(one, figure) for one in arrivals]
            rows.append(Row(f"{name}: {figure}", "ms", values, base if ours else None, target))
    return Table(
        "200 logs a second, until the receiver has them",
        "OpenTelemetry's own processor with its defaults, by HTTP",
        rows,
        ["The receiver is Rotel, and a process behind it that notes the time: its hop is in the figures."],
    )


def _live(receiver: _Receiver, address: str, protocol: str, logs: int) -> _Arrival:
    ax.configure(exporters=[OTLPActivityExporter(address, protocol=protocol)])
    try:
        with ax.activity.run("bench") as run:
            ax.flush(30.0)
            return receiver.measure(run.update, logs)
    finally:
        ax.shutdown(30.0)


def _batched(receiver: _Receiver, logs: int) -> _Arrival:
    provider: Any = LoggerProvider()
    provider.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(receiver.http)))
    logger = provider.get_logger("bench")

    def emit(text: str) -> None:
        logger.emit(LogRecord(timestamp=time.time_ns(), severity_number=SeverityNumber.INFO, body=text))

    try:
        return receiver.measure(emit, logs)
    finally:
        provider.shutdown()


# -- what an outage costs SQL -------------------------------------------------------------------------------------


def _sql(context: Context, receiver: _Receiver, database: Database) -> Table:
    lines = context.pick(_LINES)
    cases: dict[str, Callable[[], Latency]] = {
        "SQL alone": lambda: _until_read(database, [], lines),
        "SQL beside a receiver": lambda: _until_read(database, [_exporter(receiver.http)], lines),
        "SQL beside a receiver that is away": lambda: _until_read(database, [_exporter(_nowhere())], lines),
    }
    found = interleaved(cases, context.runs, context.track(f"otlp {database.kind}", context.runs * len(cases)))
    rows: list[Row] = []
    for figure in ("p50", "p99"):
        up = [getattr(one, figure) for one in found["SQL beside a receiver"]]
        for name, latencies in found.items():
            values = [getattr(one, figure) for one in latencies]
            is_away = name.endswith("away")
            target = Target(_UNCHANGED) if is_away and figure == "p50" else None
            rows.append(Row(f"{name}: {figure}", "ms", values, up if is_away else None, target))
    return Table(f"{database.title}: from update() until another process reads it", "the same, receiver up", rows)


def _until_read(database: Database, exporters: list[OTLPActivityExporter], lines: int) -> Latency:
    database.reset()
    ax.configure(database.url, exporters=exporters)
    try:
        with Reader(database) as reader:
            agent_id = ax.activity.create("bench")
            ax.activity.update(agent_id, "The span is open from here on")
            time.sleep(0.1)
            return measure_latency(reader, partial(ax.activity.update, agent_id), row_id_of(database, agent_id), lines)
    finally:
        ax.shutdown(1.0)


def _exporter(address: str) -> OTLPActivityExporter:
    return OTLPActivityExporter(address, protocol="http/protobuf")


def _nowhere() -> str:
    """An address where nothing answers; another one each time, so that no run finds the spool of the one before."""
    with closing(socket.create_server(("127.0.0.1", 0))) as held:
        return f"http://127.0.0.1:{held.getsockname()[1]}/v1/logs"


# -- the receiver -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Receiver:
    """Rotel, and the process behind it."""

    http: str
    grpc: str
    orders: IO[str]
    answers: IO[str]

    def measure(self, report: Callable[[str], object], logs: int) -> _Arrival:
        """Report logs at 200 a second; how long they were on their way."""
        began = time.perf_counter()
        for number in range(logs):
            report(f"{PREFIX}{number}")
            time.sleep(max(0.0, began + (number + 1) * _PAUSE - time.perf_counter()))
        print(logs, file=self.orders, flush=True)
        waits = [nanoseconds / 1e6 for nanoseconds in json.loads(self.answers.readline())]
        return _Arrival(statistics.median(waits), percentile(waits, 0.95))


@contextmanager
def _receiver(folder: Path) -> Generator[_Receiver]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    http, grpc = (f"127.0.0.1:{one.getsockname()[1]}" for one in sockets)
    for one in sockets:
        one.close()
    behind = subprocess.Popen(
        [sys.executable, "-m", "benchmarks._receiver"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert behind.stdin is not None
    assert behind.stdout is not None
    address = f"http://127.0.0.1:{behind.stdout.readline().strip()}"
    with (folder / "rotel.log").open("wb") as log:
        rotel = subprocess.Popen(
            [
                str(distribution("rotel").locate_file("rotel/rotel-agent")),
                *("start", "--otlp-http-endpoint", http, "--otlp-grpc-endpoint", grpc, "--disable-batching"),
                *("--exporter", "otlp", "--otlp-exporter-endpoint", address, "--otlp-exporter-protocol", "http"),
            ],
            stdout=log,
            stderr=log,
        )
    try:
        _wait_for(http)
        yield _Receiver(f"http://{http}/v1/logs", f"http://{grpc}", behind.stdin, behind.stdout)
    finally:
        rotel.kill()
        rotel.wait()
        behind.communicate(timeout=30.0)


def _wait_for(address: str) -> None:
    host, _, port = address.partition(":")
    give_up = time.monotonic() + 20.0
    while time.monotonic() < give_up:
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0:
                return
        time.sleep(0.02)
    raise TimeoutError("Rotel does not answer")
