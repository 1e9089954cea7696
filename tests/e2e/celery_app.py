"""A Celery application whose tasks are tracked, on Redis; the worker's spans go to a file."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from celery import Celery  # pyright: ignore[reportMissingTypeStubs]
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

import agentexec_otel as ax
from agentexec_otel.tasks.celery import track

FOLDER = Path(os.environ["CELERY_TEST_FOLDER"])


class Spans(SpanExporter):
    """A line of JSON for each span that has ended."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with (FOLDER / "spans.jsonl").open("a") as file:
            for span in spans:
                file.write(json.dumps(view(span)) + "\n")
        return SpanExportResult.SUCCESS


def view(span: ReadableSpan) -> dict[str, Any]:
    """What the tests look at."""
    attributes = dict(span.attributes or {})
    context = span.get_span_context()
    assert context is not None
    return {
        "name": span.name,
        "trace_id": f"{context.trace_id:032x}",
        "span_id": f"{context.span_id:016x}",
        "parent_id": None if span.parent is None else f"{span.parent.span_id:016x}",
        "links": [f"{link.context.span_id:016x}" for link in span.links],
        "status": span.status.status_code.name,
        "agent_id": attributes.get("agentexec.agent_id"),
        "attempt": attributes.get("agentexec.attempt"),
    }


def note(word: str) -> None:
    """Tell the test what has happened."""
    with (FOLDER / "notes.txt").open("a") as file:
        file.write(f"{word}\n")


provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(SimpleSpanProcessor(Spans()))
tracer = provider.get_tracer("worker")

app: Any = Celery("tests", broker=os.environ["CELERY_TEST_REDIS"], backend=os.environ["CELERY_TEST_REDIS"])
app.conf.task_default_queue = os.environ["CELERY_TEST_QUEUE"]
app.conf.broker_connection_retry_on_startup = True
app.conf.worker_hijack_root_logger = False
app.conf.result_expires = 300

ax.configure(os.environ["CELERY_TEST_URL"], tracer_provider=provider)
track()


def follow(run: Any, seconds: float = 30.0) -> None:
    """Work on something, with a line now and then, until a test has had enough."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not (FOLDER / f"enough {run.agent_id}").exists():
        time.sleep(0.05)


@app.task(name="research")  # type: ignore[untyped-decorator]
def research(company: str) -> str:
    """Reports, and does something that has a span of its own."""
    run = ax.activity.current()
    assert run is not None
    run.update(f"Reading about {company}", percentage=40)
    with tracer.start_as_current_span("read"):
        note(f"research {trace.get_current_span().is_recording()}")
    return f"{company} is fine"


@app.task(name="fail")  # type: ignore[untyped-decorator]
def fail() -> None:
    """Fails."""
    raise LookupError("no such company")


@app.task(name="flaky", bind=True, max_retries=2)  # type: ignore[untyped-decorator]
def flaky(self: Any, failures: int) -> str:
    """Asks for another attempt as often as it is told to."""
    if self.request.retries < failures:
        try:
            raise TimeoutError("too slow")
        except TimeoutError as exc:
            raise self.retry(exc=exc, countdown=0) from exc
    return "at last"


@app.task(name="stubborn", autoretry_for=(OSError,), max_retries=1, default_retry_delay=0)  # type: ignore[untyped-decorator]
def stubborn() -> None:
    """Fails however often it is tried."""
    note("stubborn")
    raise OSError("no route")


@app.task(name="long")  # type: ignore[untyped-decorator]
def long() -> None:
    """Runs until it is stopped, or the test has had enough."""
    run = ax.activity.current()
    assert run is not None
    run.update("Working.")
    note(f"long {run.agent_id}")
    follow(run)
    note(f"long {run.agent_id} canceled: {run.canceled}")


@app.task(name="late", acks_late=True, reject_on_worker_lost=True)  # type: ignore[untyped-decorator]
def late() -> None:
    """Kills its process the first time; its message comes again."""
    first = not (FOLDER / "killed").exists()
    note("late")
    if first:
        (FOLDER / "killed").touch()
        time.sleep(0.2)
        os.kill(os.getpid(), 9)


@app.task(name="killed")  # type: ignore[untyped-decorator]
def killed() -> None:
    """Takes its process with it."""
    time.sleep(0.2)
    os.kill(os.getpid(), 9)


@app.task(name="replaced", bind=True)  # type: ignore[untyped-decorator]
def replaced(self: Any) -> None:
    """Has another task do its work."""
    raise self.replace(research.s("Acme"))
