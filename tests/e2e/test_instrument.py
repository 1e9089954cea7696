"""`ax.instrument()` and `ax.uninstrument()`: by name, or whatever is installed."""

import logging
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points

import agents
import pytest
from agents import Runner
from agents.realtime import RealtimeAgent, RealtimeRunner
from agents.realtime.testing import ScriptedRealtimeModel
from agents.run import AgentRunner
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import agentexec_otel as ax
from tests.databases import Database
from tests.e2e.instrumented import activities, processors
from tests.e2e.scripted import agent, say

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
