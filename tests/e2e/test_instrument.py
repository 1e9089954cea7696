"""`ax.instrument()` and `ax.uninstrument()`: by name, or whatever is installed."""

import logging
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

import agents
import pytest
from agents import Agent, OpenAIResponsesModel, Runner
from agents.realtime import RealtimeAgent, RealtimeRunner
from agents.realtime.testing import ScriptedRealtimeModel
from agents.run import AgentRunner
from openai import AsyncOpenAI
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import agentexec_otel as ax
from tests.databases import Database
from tests.e2e import openai_server
from tests.e2e.instrumented import activities, processors
from tests.e2e.openai_server import OpenAIServer, Say
from tests.e2e.scripted import agent, look_up, say

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture(autouse=True)
def sdk(database: Database, spans: InMemorySpanExporter) -> Iterator[None]:
    """Activities are stored, nothing is instrumented, and the SDK's traces go nowhere."""
    before = processors()
    agents.set_trace_processors([])
    yield
    ax.uninstrument()
    agents.set_trace_processors(list(before))


@pytest.mark.parametrize("names", [(), ("openai_agents",), ("openai_agents", "openai_agents")])
async def test_runs_are_tracked_until_uninstrumented(
    database: Database, names: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """Calls may be repeated, and nothing is logged; what was patched is as it was before."""
    unpatched = AgentRunner.run, AgentRunner.run_sync, AgentRunner.run_streamed
    for _ in range(2):
        ax.instrument(*names)
    await Runner.run(agent(say("done")), "go")
    assert [activity.status for activity in activities(database)] == ["COMPLETE"]
    for _ in range(2):
        ax.uninstrument(*names)
    assert (AgentRunner.run, AgentRunner.run_sync, AgentRunner.run_streamed) == unpatched
    assert processors() == ()
    await Runner.run(agent(say("done")), "go")
    assert len(activities(database)) == 1
    assert caplog.messages == []


def test_it_is_the_same_as_the_instrumentor() -> None:
    """Whichever of the two was called, the other knows."""
    ax.instrument("openai_agents")
    assert ax.AgentExecInstrumentor().is_instrumented_by_opentelemetry
    ax.AgentExecInstrumentor().uninstrument()
    ax.uninstrument("openai_agents")
    (entry,) = entry_points(group="opentelemetry_instrumentor", name="agentexec")
    assert entry.load() is ax.AgentExecInstrumentor


def test_an_unknown_name_is_refused_and_nothing_is_instrumented() -> None:
    """The message names it, what there is, and the command that installs that."""
    unpatched = AgentRunner.run
    for call in (ax.instrument, ax.uninstrument):
        with pytest.raises(ValueError, match=r"'openai', only 'openai_agents' \(pip install 'agentexec-otel\[openai-a"):
            call("openai_agents", "openai")
    assert AgentRunner.run is unpatched


@pytest.fixture
def uninstalled(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter without the Agents SDK."""
    for module in [name for name in sys.modules if name.startswith("agentexec_otel.instrumentation.openai_agents")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "agents", None)


@pytest.mark.usefixtures("uninstalled")
def test_a_framework_that_is_not_installed_is_named_with_the_pip_command() -> None:
    """If it was asked for by name."""
    with pytest.raises(ax.MissingExtraError, match=r"openai_agents needs .* pip install 'agentexec-otel\[openai-a"):
        ax.instrument("openai_agents")
    ax.uninstrument("openai_agents")


@pytest.mark.usefixtures("uninstalled")
def test_without_a_framework_there_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """An application that instruments whatever there is starts all the same."""
    with caplog.at_level(logging.WARNING):
        ax.instrument()
        ax.uninstrument()
    assert caplog.messages == [
        "ax.instrument() has found no agent framework: pip install 'agentexec-otel[openai-agents]'"
    ]


# -- with OpenTelemetry's own instrumentation ---------------------------------------------------------------------


async def run_against_a_server() -> None:
    """A run that calls a tool; its model is behind OpenAI's client."""
    with OpenAIServer() as server:
        url = server.script([openai_server.call("look_up", topic="tea"), Say("done")])
        async with AsyncOpenAI(api_key="none", base_url=url) as client:
            model = OpenAIResponsesModel("gpt-local", client)
            await Runner.run(Agent(name="Agent", model=model, tools=[look_up]), "go")


def tree(spans: InMemorySpanExporter) -> list[str]:
    """Each span's operation below its parent's, in the order of their starts."""
    assert ax.flush()
    found = {span.context.span_id: span for span in spans.get_finished_spans() if span.context is not None}

    def path(span: ReadableSpan) -> str:
        above = "" if span.parent is None else f"{path(found[span.parent.span_id])} > "
        return f"{above}{(span.attributes or {}).get('gen_ai.operation.name')}"

    return [path(span) for span in sorted(found.values(), key=lambda span: span.start_time or 0)]


async def test_spans_of_agents_tools_and_models_are_below_the_activity(
    spans: InMemorySpanExporter, tracer_provider: TracerProvider
) -> None:
    """They go where the activity's span goes; after `uninstrument` there are none."""
    for _ in range(2):
        ax.instrument(spans=True)
    await run_against_a_server()
    run = "invoke_agent > invoke_workflow > invoke_agent"
    assert tree(spans) == [
        "invoke_agent",
        "invoke_agent > invoke_workflow",
        run,
        f"{run} > chat",
        f"{run} > execute_tool",
        f"{run} > chat",
    ]
    ax.uninstrument()
    spans.clear()
    await run_against_a_server()
    assert spans.get_finished_spans() == ()
    assert processors() == ()


async def test_spans_may_come_later(spans: InMemorySpanExporter) -> None:
    """To an application that has instrumented without them."""
    ax.instrument()
    ax.instrument("openai_agents", spans=True)
    await run_against_a_server()
    assert len(tree(spans)) == 6


async def test_instrumentation_of_the_application_is_left_alone(
    spans: InMemorySpanExporter, tracer_provider: TracerProvider
) -> None:
    """What it has instrumented itself, it has to uninstrument itself."""
    official: Any = import_module("opentelemetry.instrumentation.genai.openai_agents").OpenAIAgentsInstrumentor()
    official.instrument(tracer_provider=tracer_provider)
    ax.instrument(spans=True)
    await run_against_a_server()
    assert len(tree(spans)) == 6
    ax.uninstrument()
    assert official.is_instrumented_by_opentelemetry
    official.uninstrument()
    assert processors() == ()


@pytest.mark.parametrize("module", ["openai_agents", "openai"])
def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """With the pip command, and nothing is instrumented."""
    monkeypatch.setitem(sys.modules, f"opentelemetry.instrumentation.genai.{module}", None)
    unpatched = AgentRunner.run
    package = f"opentelemetry-instrumentation-genai-{module.replace('_', '-')}"
    with pytest.raises(ax.MissingExtraError) as caught:
        ax.instrument(spans=True)
    assert str(caught.value) == (
        f"ax.instrument(spans=True) needs the package {package}, which is not installed:"
        " pip install 'agentexec-otel[openai-agents-spans]'"
    )
    assert AgentRunner.run is unpatched


async def test_realtime_sessions_are_not_tracked(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """One warning says so; after uninstrumenting, none."""
    for instrument in (ax.instrument, ax.uninstrument):
        instrument("openai_agents")
        for _ in range(2):
            runner = RealtimeRunner(RealtimeAgent(name="Voice"), model=ScriptedRealtimeModel([]))
            async with await runner.run():
                pass
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["realtime sessions are not tracked: only runs of the OpenAI Agents SDK get an activity"]
    assert activities(database) == []
