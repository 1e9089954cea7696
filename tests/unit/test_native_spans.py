"""What makes the span of an activity an agent's run for tracing backends, and the settings for single backends."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import get_current_span
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

import agentexec_otel as ax
from tests.unit.test_spans import attributes, the_span

Configure = Callable[..., str]


@pytest.fixture
def configure(spans: InMemorySpanExporter, tracer_provider: TracerProvider, tmp_path: Path) -> Configure:
    """Configures with these settings; returns the database."""

    def run(**settings: object) -> str:
        for name, value in settings.items():
            setattr(ax.CONF, name, value)
        url = f"sqlite:///{tmp_path / 'native.db'}"
        ax.configure(url, tracer_provider=tracer_provider, create_tables=True)
        return url

    return run


def test_a_span_is_an_agents_run_from_its_start(spans: InMemorySpanExporter) -> None:
    """Samplers and live views see the kind, the name and the conversation before the run ends."""
    with ax.activity.run("task", metadata={"conversation_id": "c7"}):
        running: Any = get_current_span()
        seen = dict(running.attributes)
    assert seen["gen_ai.operation.name"] == "invoke_agent"
    assert (seen["gen_ai.agent.name"], the_span(spans).name) == ("task", "task")
    assert (seen["gen_ai.conversation.id"], seen["session.id"]) == ("c7", "c7")


@pytest.mark.parametrize(
    ("metadata", "conversation", "session"),
    [
        ({}, None, None),
        ({"tenant": "acme"}, None, None),
        ({"session_id": "s"}, "s", "s"),
        ({"thread_id": 7}, "7", "7"),
        ({"group_id": "g"}, "g", "g"),
        ({"group_id": "g", "session_id": "s"}, "g", "s"),
        ({"conversation_id": "c", "thread_id": "t", "group_id": "g", "session_id": "s"}, "c", "s"),
        ({"conversation_id": "", "thread_id": None, "group_id": "g", "session_id": ["s"]}, "g", "g"),
    ],
)
def test_metadata_names_the_conversation(
    spans: InMemorySpanExporter, metadata: dict[str, Any], conversation: str | None, session: str | None
) -> None:
    """By the keys that applications use for it; empty values and lists name none."""
    ax.activity.complete(ax.activity.create("task", metadata=metadata))
    found = attributes(the_span(spans))
    assert (found.get("gen_ai.conversation.id"), found.get("session.id")) == (conversation, session)


@pytest.mark.parametrize(
    ("settings", "canceled", "failed"),
    [
        ({}, {}, {}),
        ({"span_levels": ("langfuse",)}, {"langfuse.observation.level": "WARNING"},
         {"langfuse.observation.level": "ERROR"}),
        ({"span_levels": ("langfuse", "logfire")}, {"langfuse.observation.level": "WARNING", "logfire.level_num": 13},
         {"langfuse.observation.level": "ERROR", "logfire.level_num": 17}),
        ({"span_levels": ("logfire",), "canceled_is_error": True}, {"logfire.level_num": 17},
         {"logfire.level_num": 17}),
    ],
    ids=["none", "langfuse", "both", "canceled is an error"],
)  # fmt: skip
def test_backends_with_levels(
    configure: Configure,
    spans: InMemorySpanExporter,
    settings: dict[str, Any],
    canceled: dict[str, Any],
    failed: dict[str, Any],
) -> None:
    """A canceled activity is a warning, a failed one an error, a complete one neither; only for the backends named."""
    configure(**settings)
    ax.activity.complete(ax.activity.create("complete"))
    ax.activity.error(ax.activity.create("failed"), "Out of paper.")
    ax.activity.cancel(ax.activity.create("canceled"), "Not needed.")

    def levels(name: str) -> dict[str, Any]:
        found = attributes(the_span(spans, name))
        return {name: value for name, value in found.items() if name.startswith(("langfuse.", "logfire."))}

    assert (levels("canceled"), levels("failed"), levels("complete")) == (canceled, failed, {})


def test_logfire_knows_the_levels() -> None:
    """The numbers are those of its SDK."""
    constants = pytest.importorskip("logfire._internal.constants")
    assert constants.ATTRIBUTES_LOG_LEVEL_NUM_KEY == "logfire.level_num"
    assert (constants.LEVEL_NUMBERS["warn"], constants.LEVEL_NUMBERS["error"]) == (13, 17)


def test_without_usage(configure: Configure, spans: InMemorySpanExporter) -> None:
    """`AGENTEXEC_SPAN_USAGE=off` leaves the tokens out of the span, not out of the row."""
    url = configure(span_usage=False)
    with ax.activity.run("task") as run:
        run.record_usage(10, 20, 2, 5, 7, model="gpt-local")
    found = attributes(the_span(spans))
    assert [name for name in found if name.startswith("gen_ai.usage.")] == []
    assert (found["gen_ai.request.model"], found["agentexec.requests"]) == ("gpt-local", 2)
    with Session(create_engine(url, poolclass=NullPool)) as session:
        item = ax.activity.get(session, run.agent_id)
    assert item is not None
    assert (item.input_tokens, item.output_tokens) == (10, 20)


def test_events_named_by_their_message(configure: Configure, spans: InMemorySpanExporter) -> None:
    """In one line of at most 120 characters; the attributes have all of it."""
    configure(event_name="message")
    long = "word " * 40
    messages = ["Reading\n  page 7.", long, "x" * 120, " \n "]
    with ax.activity.run("task") as run:
        for message in messages:
            run.update(message)
    events = the_span(spans).events[2:-1]
    assert [one.name for one in events] == [
        "Reading page 7.",
        f"{long[:119]}…",
        "x" * 120,
        "agentexec.activity.log",
    ]
    assert [(one.attributes or {})["agentexec.log.message"] for one in events][:3] == messages[:3]
