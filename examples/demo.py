"""Three agent runs report their progress, a second process shows it live from SQL; then see what remains of them.

    python examples/demo.py [--dashboard]

No key, no network: the agents and their runner are real, only the model is scripted (demo_agents.py). The same file
with `--watch FOLDER` is the second process (demo_watch.py). Each run of the demo has a folder of its own. With
`--dashboard`, a browser can watch as well.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from uuid import UUID

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import format_trace_id
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity.models import Status
from demo_watch import STYLES, elapsed, watch

DATABASE = "activities.db"
READY = "watching"
PATIENCE = {"read_archive": 24}  # the watching process cancels this one at 24 %

console = Console(highlight=False)


def main(folder: Path, *, dashboard: bool) -> int:
    """Run the agents while a second process watches; then show what the database and the trace have kept."""
    spans = record_spans()
    ax.configure(database_url(folder), create_tables=True)
    served = serve_dashboard(folder) if dashboard else None

    headline("Live", "Three runs work in one process. A second process prints their logs from SQL.")
    with subprocess.Popen([sys.executable, __file__, "--watch", str(folder)]) as watcher:
        agent_ids = asyncio.run(work(watcher, folder))
        ax.flush()
        exit_code = watcher.wait(timeout=60)

    engine = create_engine(database_url(folder))
    with Session(engine) as session:
        headline("List", "ax.activity.list(session): how each run ended.")
        show_list(session)
        headline("Detail", "ax.activity.detail(session, agent_id): the history of one run.")
        show_detail(session, agent_ids[0])

    engine.dispose()
    ax.shutdown()
    headline(
        "Trace",
        "OpenTelemetry has one span per run, beneath the span that created it (POST /research stands for a request to "
        "your service). Events are the logs that the run's own process reported. The watching process wrote the log of "
        "the cancellation: it is in SQL only.",
    )
    show_trace(spans.get_finished_spans())
    console.print(f"\nThe database of this run:\n{folder / DATABASE}", soft_wrap=True)
    if served is not None:
        console.print("\nThe dashboard is still there. Stop with Ctrl-C.")
        served.join()
    return exit_code


def serve_dashboard(folder: Path) -> threading.Thread:
    """Serve the dashboard of this run in a thread."""
    from dashboard_server import DashboardServer  # needs the extra `web`

    server = DashboardServer(database_url(folder), port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    console.print(f"\nThe dashboard of these runs: {server.url}")
    return thread


async def work(watcher: subprocess.Popen[bytes], folder: Path) -> list[UUID]:
    """Three runs at once. One succeeds, one uses up its turns, and one is canceled by the process that watches."""
    from agents import set_tracing_disabled  # takes a second, in which the other process starts

    from demo_agents import archivist, fact_checker, research_team

    set_tracing_disabled(True)  # the SDK's own traces would go to OpenAI
    with trace.get_tracer("demo").start_as_current_span("POST /research"):
        ids = [await ax.activity.aio.create(name) for name in ("research_market", "check_facts", "read_archive")]
    await asyncio.to_thread(wait_until_ready, watcher, folder / READY)
    team, checker, reader = (ax.OpenAIRunner(agent_id) for agent_id in ids)
    await asyncio.gather(
        team.run(research_team(team), input="How does the market for heat pumps develop?"),
        checker.run(fact_checker(checker), input="Is all of that true?", max_turns=5),
        reader.run(archivist(reader), input="Read everything there is.", max_turns=None),
        return_exceptions=True,  # the application sees the exceptions, too; here the activities tell the story
    )
    return ids


def wait_until_ready(watcher: subprocess.Popen[bytes], ready: Path, timeout: float = 60.0) -> None:
    """Return when the process has made the file. Raises RuntimeError if it does not within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not ready.exists():
        if watcher.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the process that watches has not started")
        time.sleep(0.02)


def database_url(folder: Path) -> str:
    """The database that both processes use."""
    return f"sqlite:///{folder / DATABASE}"


def record_spans() -> InMemorySpanExporter:
    """OpenTelemetry, set up as an application does it; except that the spans are kept here, to be shown."""
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(provider)
    return spans


def headline(title: str, explanation: str) -> None:
    """A section, and one line about what is to be seen in it."""
    console.print()
    console.rule(Text(title, style="bold"), align="left")
    console.print(Text(explanation, style="dim"), end="\n\n")


def show_list(session: Session) -> None:
    """The page that a dashboard would show."""
    table = Table("Task", "Status", "Progress", "Reason", "Last log")
    for item in ax.activity.list(session).items:
        progress = "" if item.latest_percentage is None else f"{item.latest_percentage} %"
        status = Text(item.status, STYLES[item.status])
        table.add_row(item.agent_type, status, progress, item.reason or "", Text(item.latest_log or ""))
    console.print(table)


def show_detail(session: Session, agent_id: UUID) -> None:
    """One run with its history."""
    activity = ax.activity.detail(session, agent_id)
    assert activity is not None
    table = Table("Time", "Status", "Progress", "Log", title=f"{activity.agent_type} {agent_id}", title_justify="left")
    for line in activity.logs:
        progress = "" if line.percentage is None else f"{line.percentage} %"
        seconds = elapsed(activity.created_at, line.created_at)
        table.add_row(seconds, Text(line.status, STYLES[line.status]), progress, Text(line.message))
    console.print(table)
    console.print(f"Tokens, as the scripted model counts: {activity.input_tokens} in, {activity.output_tokens} out.")
    console.print(f"Trace id: {activity.trace_id}")


def show_trace(spans: Iterable[ReadableSpan]) -> None:
    """All spans as a tree, each with its events and their times since the trace began."""
    beneath: defaultdict[int | None, list[ReadableSpan]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.start_time or 0):
        beneath[span.parent.span_id if span.parent else None].append(span)
    for root in beneath[None]:
        assert root.context is not None
        began = root.start_time or 0
        tree = Tree(span_label(root).append(f"  trace id {format_trace_id(root.context.trace_id)}", "dim"))
        add_branches(tree, root, beneath, began)
        console.print(tree)


def add_branches(tree: Tree, span: ReadableSpan, beneath: dict[int | None, list[ReadableSpan]], began: int) -> None:
    """What happened in a span, in order of time: its events, and the spans beneath it."""
    assert span.context is not None
    happened: list[tuple[int, ReadableSpan | Text]] = [
        (child.start_time or 0, child) for child in beneath[span.context.span_id]
    ]
    for event in span.events:
        message = str((event.attributes or {}).get("agentexec.log.message", event.name))
        label = Text.assemble((f"+{(event.timestamp - began) / 1e9:.2f} s  ", "dim"), message)
        happened.append((event.timestamp, label))
    for _, entry in sorted(happened, key=lambda each: each[0]):
        if isinstance(entry, Text):
            tree.add(entry)
        else:
            add_branches(tree.add(span_label(entry)), entry, beneath, began)


def span_label(span: ReadableSpan) -> Text:
    """Name, status and duration of a span."""
    attributes = span.attributes or {}
    seconds = ((span.end_time or 0) - (span.start_time or 0)) / 1e9
    label = Text.assemble((span.name, "bold"), f"  {seconds:.2f} s")
    if status := attributes.get("agentexec.status"):
        label.append(f"  {status}", STYLES[Status(str(status))])
    return label


def start(arguments: list[str]) -> int:
    """Be the first process, which makes the folder, or the one that watches. All that a run leaves is in the folder."""
    watching, dashboard = arguments[:1] == ["--watch"], arguments[:1] == ["--dashboard"]
    folder = Path(arguments[1] if watching else tempfile.mkdtemp(prefix="agentexec-otel-demo-"))
    ax.CONF.spool_dir = str(folder / "spool")
    if watching:
        return watch(database_url(folder), folder / READY, runs=3, patience=PATIENCE)
    return main(folder, dashboard=dashboard)


if __name__ == "__main__":
    try:
        sys.exit(start(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
