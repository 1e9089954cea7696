"""Three agent runs report their progress, a second process shows it live from SQL; then see what remains of them.

    python examples/demo.py

No key, no network: the agents and their runner are real, only the model is scripted (demo_agents.py). The same file
with `--watch URL` is the second process (demo_watch.py).
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from uuid import UUID

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import agentexec_otel as ax
from demo_watch import STYLES, watch

DATABASE = Path(tempfile.gettempdir()) / "agentexec-otel-demo" / "activities.db"
READY = DATABASE.with_name("watching")
PATIENCE = {"read_archive": 24}  # the watching process cancels this one at 24 %

console = Console(highlight=False)


def main() -> int:
    """Run the agents while a second process watches; then show what the database and the trace have kept."""
    url = fresh_database()
    spans = record_spans()
    ax.configure(url, create_tables=True)

    headline("Live", "A second process reads this from SQL while three groups of agents work in the first one.")
    with subprocess.Popen([sys.executable, __file__, "--watch", url]) as watcher:
        agent_ids = asyncio.run(work())
        ax.flush()
        exit_code = watcher.wait(timeout=60)

    engine = create_engine(url)
    with Session(engine) as session:
        headline("List", "ax.activity.list(session): how each run has ended.")
        show_list(session)
        headline("Detail", "ax.activity.detail(session, agent_id): all that the first run has said.")
        show_detail(session, agent_ids[0])

    engine.dispose()
    ax.shutdown()
    headline("Trace", "OpenTelemetry has the same: one span per run, its lines as events, the tools' spans beneath it.")
    show_trace(spans.get_finished_spans())
    console.print(f"\nThe database is still there: {DATABASE}", soft_wrap=True)
    return exit_code


async def work() -> list[UUID]:
    """Three runs at once. One succeeds, one uses up its turns, and one is canceled by the process that watches."""
    from agents import set_tracing_disabled  # takes a second, in which the other process starts

    from demo_agents import archivist, fact_checker, research_team

    set_tracing_disabled(True)  # the SDK's own traces would go to OpenAI
    with trace.get_tracer("demo").start_as_current_span("POST /research"):
        ids = [await ax.activity.aio.create(name) for name in ("research_market", "check_facts", "read_archive")]
    await asyncio.to_thread(wait_for, READY)
    team, checker, reader = (ax.OpenAIRunner(agent_id) for agent_id in ids)
    await asyncio.gather(
        team.run(research_team(team), input="How does the market for heat pumps develop?"),
        checker.run(fact_checker(checker), input="Is all of that true?", max_turns=5),
        reader.run(archivist(reader), input="Read everything there is.", max_turns=None),
        return_exceptions=True,  # the application sees the exceptions, too; here the activities tell the story
    )
    return ids


def wait_for(path: Path, timeout: float = 60.0) -> None:
    """Return when the file is there. Raises TimeoutError if it is not within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the process that watches has not started within {timeout} s")
        time.sleep(0.02)


def fresh_database() -> str:
    """The URL of a database that starts empty."""
    shutil.rmtree(DATABASE.parent, ignore_errors=True)
    DATABASE.parent.mkdir(parents=True)
    return f"sqlite:///{DATABASE}"


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
    table = Table("Task", "Status", "Progress", "Reason", "Last line")
    for item in ax.activity.list(session).items:
        progress = "" if item.latest_percentage is None else f"{item.latest_percentage} %"
        status = Text(item.status, STYLES[item.status])
        table.add_row(item.agent_type, status, progress, item.reason or "", Text(item.latest_log or ""))
    console.print(table)


def show_detail(session: Session, agent_id: UUID) -> None:
    """One run with its history."""
    activity = ax.activity.detail(session, agent_id)
    assert activity is not None
    table = Table("Time", "Status", "Progress", "Line", title=f"{activity.agent_type} {agent_id}", title_justify="left")
    for line in activity.logs:
        progress = "" if line.percentage is None else f"{line.percentage} %"
        table.add_row(
            f"{line.created_at:%H:%M:%S}", Text(line.status, STYLES[line.status]), progress, Text(line.message)
        )
    console.print(table)
    console.print(f"Tokens: {activity.input_tokens} in, {activity.output_tokens} out. Trace: {activity.trace_id}")


def show_trace(spans: Iterable[ReadableSpan]) -> None:
    """All spans as a tree, each with its events and their times since the trace began."""
    beneath: defaultdict[int | None, list[ReadableSpan]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.start_time or 0):
        beneath[span.parent.span_id if span.parent else None].append(span)
    for root in beneath[None]:
        began = root.start_time or 0
        tree = Tree(span_label(root))
        add_branches(tree, root, beneath, began)
        console.print(tree)


def add_branches(tree: Tree, span: ReadableSpan, beneath: dict[int | None, list[ReadableSpan]], began: int) -> None:
    """What happened in a span, in order of time: its events, and the spans beneath it."""
    assert span.context is not None
    happened: list[tuple[int, ReadableSpan | Text]] = [
        (child.start_time or 0, child) for child in beneath[span.context.span_id]
    ]
    for event in span.events:
        attributes = event.attributes or {}
        label = Text(f"+{(event.timestamp - began) / 1e9:.2f} s  ", style="dim")
        happened.append(
            (event.timestamp, label.append(str(attributes.get("agentexec.log.message", event.name)), "default"))
        )
    for _, entry in sorted(happened, key=lambda each: each[0]):
        if isinstance(entry, Text):
            tree.add(entry)
        else:
            add_branches(tree.add(span_label(entry)), entry, beneath, began)


def span_label(span: ReadableSpan) -> Text:
    """Name, status and duration of a span."""
    attributes = span.attributes or {}
    seconds = ((span.end_time or 0) - (span.start_time or 0)) / 1e9
    status = attributes.get("agentexec.status")
    return Text.assemble((span.name, "bold"), f"  {seconds:.2f} s", f"  {status}" if status else "")


if __name__ == "__main__":
    ax.CONF.spool_dir = str(DATABASE.with_name("spool"))  # all that the demo leaves behind is in one folder
    if sys.argv[1:2] == ["--watch"]:
        sys.exit(watch(sys.argv[2], READY, runs=3, patience=PATIENCE))
    sys.exit(main())
