"""What an activity says while a run of agents waits for approvals, and which model it has called."""

from typing import Any

import agents
import pytest
from agents import Agent, Model, ModelProvider, RunConfig, Runner, function_tool
from agents.models import get_default_model
from agents.models.openai_responses import OpenAIResponsesModel
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import agentexec_otel as ax
from agentexec_otel.activity.schemas import ActivityDetailSchema
from agentexec_otel.instrumentation.openai_agents._run_arguments import model_of
from tests.databases import Database
from tests.e2e.instrumented import activities, only
from tests.e2e.scripted import agent, call, say, scripted

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture(autouse=True)
def sdk(instrumented: None) -> None:
    """Every test has the SDK instrumented, and its traces go nowhere else."""


@pytest.fixture(params=["steps", "off"])
def progress(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether runs add logs of their own makes no difference to what waits."""
    monkeypatch.setattr(ax.CONF, "progress", request.param)
    return str(request.param)


@function_tool(needs_approval=True)
async def pay() -> str:
    """Pay."""
    return "paid"


@function_tool(needs_approval=True)
async def publish() -> str:
    """Publish."""
    return "published"


def waits_for(activity: ActivityDetailSchema) -> list[str]:
    """The tools whose calls wait for an approval."""
    assert activity.status == "RUNNING"
    assert activity.waiting is not None
    assert activity.waiting["for"] == "approval"
    return [item["tool"] for item in activity.waiting["items"]]


def approved(result: Any) -> Any:
    """The state of a run with everything approved."""
    state = result.to_state()
    for item in result.interruptions:
        state.approve(item)
    return state


async def test_each_call_is_named(database: Database, progress: str) -> None:
    """By its tool and its id; with some of them approved, it waits for the others, then no more."""
    what = agent([*call("pay"), *call("publish")], say("done"), tools=[pay, publish])
    result = await Runner.run(what, "go")
    waiting = only(database)
    assert waits_for(waiting) == ["pay", "publish"]
    assert waiting.waiting is not None
    assert [item["call_id"] for item in waiting.waiting["items"]] == [item.call_id for item in result.interruptions]
    state: Any = result.to_state()
    state.approve(result.interruptions[0])
    result = await Runner.run(what, state)
    assert waits_for(only(database)) == ["publish"]
    await Runner.run(what, approved(result))
    assert (only(database).status, only(database).attempt, only(database).waiting) == ("COMPLETE", 1, None)


@pytest.mark.parametrize("runner", ["Runner", "OpenAIRunner"])
async def test_the_block_of_the_application(database: Database, progress: str, runner: str) -> None:
    """It waits while the application asks in its block; the resumed run ends that, and the block ends it."""
    what = agent(call("pay"), say("done"), tools=[pay])
    async with ax.activity.run("request") as block:
        runs: Any = Runner if runner == "Runner" else ax.OpenAIRunner(block.agent_id)
        result = await runs.run(what, "go")
        assert waits_for(only(database)) == ["pay"]
        await runs.run(what, approved(result))
        assert only(database).waiting is None
    activity = only(database)
    assert (activity.status, activity.requests) == ("COMPLETE", 2)


@pytest.mark.parametrize("around", ["block", "block and OpenAIRunner", "trace"])
async def test_what_is_left_while_it_waits(database: Database, progress: str, around: str) -> None:
    """A block or a trace of the application that is left while a run in it waits: resumed later, it is the same."""
    what = agent(call("pay"), say("done"), tools=[pay])
    if around == "trace":
        with agents.trace("request"):
            result = await Runner.run(what, "go")
    else:
        async with ax.activity.run("request") as block:
            runs: Any = Runner if around == "block" else ax.OpenAIRunner(block.agent_id)
            result = await runs.run(what, "go")
    assert waits_for(only(database)) == ["pay"]
    await Runner.run(what, approved(result))
    activity = only(database)
    assert (activity.agent_type, activity.status, activity.requests) == ("request", "COMPLETE", 2)


async def test_an_agent_that_is_a_tool(database: Database, progress: str) -> None:
    """The activity waits for the call of the inner agent, once."""
    asked = agent(call("pay"), say("paid"), tools=[pay], name="Inner").as_tool("ask", "Ask.")
    what = agent(call("ask", input="go"), say("done"), tools=[asked])
    result = await Runner.run(what, "go")
    activity = only(database)
    assert waits_for(activity) == ["pay"]
    assert [log.message for log in activity.logs].count("Stopped for the approval of 1 tool call.") == 1
    await Runner.run(what, approved(result))
    assert only(database).status == "COMPLETE"


async def test_a_run_that_is_rejected_waits_no_more(database: Database, progress: str) -> None:
    """The model is told, and goes on."""
    what = agent(call("pay"), say("not paid"), tools=[pay])
    result = await Runner.run(what, "go")
    state: Any = result.to_state()
    state.reject(result.interruptions[0])
    await Runner.run(what, state)
    assert (only(database).status, only(database).waiting) == ("COMPLETE", None)


# -- the model --------------------------------------------------------------------------------------------------


class Provider(ModelProvider):
    """Has a scripted model under every name."""

    def get_model(self, model_name: str | None) -> Model:
        return scripted(call("look_up", topic="x") if model_name == "large" else say("done"))


async def test_the_last_model_is_stored(database: Database, spans: InMemorySpanExporter) -> None:
    """Of several the one that was called last, on row and span; the run's configuration decides over agents."""
    config = RunConfig(model_provider=Provider())
    second = Agent(name="Second", model="small")
    first = Agent(name="First", model="medium")
    async with ax.activity.run("request") as block:
        await Runner.run(first, "go", run_config=config)
        await Runner.run(second, "go", run_config=config)
    await Runner.run(first, "go", run_config=RunConfig(model="tiny", model_provider=Provider()))
    newest, request = activities(database)
    assert (request.agent_id, request.model, newest.model) == (block.agent_id, "small", "tiny")
    assert [(span.attributes or {})["gen_ai.request.model"] for span in spans.get_finished_spans()] == ["small", "tiny"]


async def test_a_model_without_a_name(database: Database) -> None:
    """The column stays empty."""
    await Runner.run(agent(say("done")), "go")
    assert (only(database).model, only(database).requests) == (None, 1)


def test_names_of_models(database: Database) -> None:
    """As the SDK resolves them: what the run says, what the agent says, the SDK's default."""

    class Broken:
        @property
        def model(self) -> str:
            raise RuntimeError

    named: Any = OpenAIResponsesModel("gpt-large", openai_client=None)  # type: ignore[arg-type]  # it is not called
    broken: Any = Agent(name="A")
    broken.model = Broken()
    assert model_of(Agent(name="A"), None) == get_default_model()
    assert model_of(Agent(name="A"), {"model": "chosen"}) == "chosen"
    assert model_of(Agent(name="A", model="own"), RunConfig()) == "own"
    assert model_of(Agent(name="A", model=named), None) == "gpt-large"
    assert model_of(Agent(name="A"), RunConfig(model_provider=Provider())) is None
    assert model_of(broken, None) is None
