"""A process that runs an activity until it is killed: `start(URL, ID)`. Spans go to OTEL_EXPORTER_OTLP_ENDPOINT."""

import sys
from uuid import UUID

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

import agentexec_otel as ax
from tests.chaos.producer import say


def start(url: str, agent_id: str) -> None:
    """Run it. Its child span is at the receiver by the time that `running` is printed."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
    ax.configure(url, tracer_provider=provider)
    with ax.activity.run(UUID(agent_id)) as run:
        run.update("half of it", 50)
        with provider.get_tracer("application").start_as_current_span("tool"):
            pass
        ax.flush()
        say("running")
        sys.stdin.read()
