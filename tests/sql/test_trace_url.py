"""`trace_url` of the queries: the link to an activity's span."""

from datetime import datetime, timedelta

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from sqlalchemy.orm import Session

import agentexec_otel as ax
from tests.databases import Database

TEMPLATE = "https://acme.example/{trace_id}/{span_id}?from={start_iso}&to={end_iso}"


def minute(moment: datetime, offset: int) -> str:
    return f"{moment + timedelta(minutes=offset):%Y-%m-%dT%H:%M:%SZ}"


def test_every_query_has_it(database: Database, spans: InMemorySpanExporter) -> None:
    """Item, page and detail; from the activity's creation to its end, so far to its latest log."""
    ax.CONF.trace_url_template = TEMPLATE
    ended = ax.activity.create("ended")
    ax.activity.complete(ended)
    running = ax.activity.create("running")
    ax.activity.update(running, "Working.")
    queued = ax.activity.create("queued")
    assert ax.flush()
    with Session(database.engine) as session:
        items = {item.agent_id: item for item in ax.activity.list(session).items}
        behind_cursor = {item.agent_id: item for item in ax.activity.list(session, cursor="").items}
        for agent_id in (ended, running, queued):
            found, detail = ax.activity.get(session, agent_id), ax.activity.detail(session, agent_id)
            assert found is not None
            assert detail is not None
            urls = {one.trace_url for one in (items[agent_id], behind_cursor[agent_id], found, detail)}
            last = found.ended_at or found.updated_at
            times = f"from={minute(found.created_at, -1)}&to={minute(last, 1)}"
            if agent_id == queued:
                assert urls == {None}
            else:
                assert found.trace_id is not None
                assert urls == {f"https://acme.example/{found.trace_id}/{found.span_id}?{times}"}


def test_none_without_a_template(database: Database, spans: InMemorySpanExporter) -> None:
    """The field is there, and None."""
    agent_id = ax.activity.create("task")
    ax.activity.complete(agent_id)
    assert ax.flush()
    with Session(database.engine) as session:
        item = ax.activity.get(session, agent_id)
    assert item is not None
    assert item.trace_id is not None
    assert item.model_dump()["trace_url"] is None


@pytest.mark.parametrize("sampled", [True, False])
def test_none_if_the_span_is_not_exported(database: Database, sampled: bool) -> None:
    """The sampler has decided; a link would lead nowhere."""
    ax.CONF.trace_url_template = TEMPLATE
    provider = TracerProvider(ALWAYS_ON if sampled else ALWAYS_OFF, shutdown_on_exit=False)
    ax.configure(database.url, tracer_provider=provider)
    agent_id = ax.activity.create("task")
    ax.activity.complete(agent_id)
    assert ax.flush()
    with Session(database.engine) as session:
        item = ax.activity.get(session, agent_id)
    assert item is not None
    assert item.trace_id is not None
    assert (item.trace_url is not None) is sampled
    provider.shutdown()
