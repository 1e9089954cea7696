"""The pool of the tests with real workers: where everything is comes from the environment."""

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from pydantic import BaseModel
from taskiq import SimpleRetryMiddleware

import agentexec_otel as ax

FOLDER = Path(os.environ["TASKS_FOLDER"])


class FileExporter(SpanExporter):
    """One line per ended span."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Append them."""
        with (FOLDER / "spans.txt").open("a") as file:
            for span in spans:
                context = span.get_span_context()
                assert context is not None
                parent = span.parent.span_id if span.parent else 0
                file.write(f"{span.name} {context.trace_id} {context.span_id} {parent}\n")
        return SpanExportResult.SUCCESS


provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(FileExporter()))
ax.configure(os.environ["TASKS_DATABASE"], tracer_provider=provider)
pool = ax.Pool(
    broker=os.environ["TASKS_BROKER"],
    results=os.environ.get("TASKS_RESULTS"),
    queue=os.environ["TASKS_QUEUE"],
    concurrency=int(os.environ.get("TASKS_CONCURRENCY", "100")),
    keep_contexts=os.environ.get("TASKS_KEEP_CONTEXTS") == "1",
)
pool.broker.add_middlewares(SimpleRetryMiddleware())


class Job(BaseModel):
    """What the task is to do."""

    number: int
    seconds: float = 0.0
    fails: int = 0


class Done(BaseModel):
    """What it did, and where."""

    number: int
    pid: int


@pool.task("job", retry_on_error=True, max_retries=3)
async def job(agent_id: UUID, context: Job) -> Done:
    """Leave a trace of each start, and fail as often as told."""
    with (FOLDER / "starts.txt").open("a") as file:
        file.write(f"{agent_id} {os.getpid()}\n")
    starts = (FOLDER / "starts.txt").read_text().count(str(agent_id))
    with trace.get_tracer("app", tracer_provider=provider).start_as_current_span("step"):
        ax.activity.update(agent_id, "Working.", percentage=50)
        await asyncio.sleep(context.seconds)
    if starts <= context.fails:
        raise ConnectionError(f"start {starts}")
    return Done(number=context.number, pid=os.getpid())


@pool.task("text")
async def text(agent_id: UUID, context: str) -> int:
    """Say how long it is."""
    return len(context)


@pool.task("in a thread")
def in_a_thread(agent_id: UUID, context: Job) -> None:
    """Leave a trace of the start, and hold a thread."""
    with (FOLDER / "starts.txt").open("a") as file:
        file.write(f"{agent_id} {os.getpid()}\n")
    time.sleep(context.seconds)


@pool.task("raise", retry_on_error=True, max_retries=2)
async def fail(agent_id: UUID, context: str) -> None:
    """Raise an exception with that text, which has a cause with it."""
    try:
        raise KeyError(context)
    except KeyError as exc:
        raise ValueError(f"refused for {context}") from exc
