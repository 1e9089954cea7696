"""Runs that end in every way, traced to an OTLP endpoint: `produce.py ENDPOINT HEADERS LIBRARY FOLDER`.

A process of its own, since libraries patch the SDK. Prints a JSON object: of each run, by its name, the row.
"""

import asyncio
import json
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import agents
from agents import Agent, OpenAIResponsesModel, RunConfig, Runner
from openai import AsyncOpenAI
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import agentexec_otel as ax
from tests.e2e import openai_server
from tests.e2e.openai_server import OpenAIServer, Say
from tests.e2e.scripted import look_up


def instrument(library: str, provider: TracerProvider) -> None:
    """Ours, beside this library for the spans of agents, tools and models."""
    if library == "openinference":
        import_module("openinference.instrumentation.openai_agents").OpenAIAgentsInstrumentor().instrument(
            tracer_provider=provider
        )
    ax.instrument(spans=library == "official")


async def research() -> None:
    """A run with two calls of a model and one of a tool."""
    with OpenAIServer() as server:
        url = server.script([openai_server.call("look_up", topic="tea"), Say("done")])
        async with AsyncOpenAI(api_key="none", base_url=url) as client:
            agent = Agent(name="Researcher", model=OpenAIResponsesModel("gpt-local", client), tools=[look_up])
            await Runner.run(agent, "Tea or coffee?", run_config=RunConfig(group_id="chat 7"))


def main(endpoint: str, headers: str, library: str, folder: str) -> None:
    provider = TracerProvider(resource=Resource.create({"service.name": "research-service"}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint, headers=json.loads(headers))))
    url = f"sqlite:///{Path(folder) / 'app.db'}"
    agents.set_trace_processors([])
    ax.configure(url, tracer_provider=provider, create_tables=True)
    instrument(library, provider)
    asyncio.run(research())
    with suppress(TimeoutError), ax.activity.run("failing"):
        raise TimeoutError("no answer in 30 s")
    ax.activity.cancel(ax.activity.create("canceled"), "Not needed.")
    ax.flush()
    provider.shutdown()
    with Session(create_engine(url)) as session:
        items = ax.activity.list(session).items
    print(json.dumps({item.agent_type: item.model_dump(mode="json") for item in items}))


if __name__ == "__main__":
    main(*sys.argv[1:])
