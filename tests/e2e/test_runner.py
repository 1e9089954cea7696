"""`OpenAIRunner.run`: the real Agents SDK with a scripted model, on SQLite."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import agents
import pytest
from agents import (
    Agent,
    GuardrailFunctionOutput,
    InputGuardrailTripwireTriggered,
    MaxTurnsExceeded,
    ModelBehaviorError,
    RunContextWrapper,
    RunHooks,
    Runner,
    RunResult,
    SQLiteSession,
    Tool,
    function_tool,
    input_guardrail,
)
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import agentexec_otel as ax
from agentexec_otel import ActivityCanceledError
from tests.databases import Database
from tests.e2e.scripted import INPUT_TOKENS, OUTPUT_TOKENS, Answer, agent, call, look_ups, say, scripted, shown, told

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

STARTED = ["Waiting to start.", "Task started."]
DONE = "Task completed successfully."
LIMIT_2 = "Max turns (2) exceeded; the agent was asked to wrap up."


@pytest.fixture(autouse=True)
def sdk(database: Database, spans: InMemorySpanExporter, no_uploads: None) -> None:
    """Every test has activities in SQL and on spans."""


@pytest.fixture
def agent_id(sdk: None) -> UUID:
    """An activity that waits to be run."""
    return ax.activity.create("research")


# -- how runs end -----------------------------------------------------------------------------------------------


async def test_a_run_that_returns_is_complete(database: Database, agent_id: UUID) -> None:
    """RUNNING when it starts, COMPLETE with the configured message and the run's tokens when it returns."""
    result = await ax.OpenAIRunner(agent_id).run(agent(*look_ups(1), say("found it")), input="go")
    assert isinstance(result, RunResult)
    assert result.final_output == "found it"
    activity = told(database, agent_id)
    assert (activity.status, activity.lines, activity.percentage) == ("COMPLETE", [*STARTED, DONE], 100)
    assert activity.tokens == (2 * INPUT_TOKENS, 2 * OUTPUT_TOKENS)


@pytest.mark.parametrize(
    ("failure", "error_type", "reason"),
    [
        (ConnectionError("no route"), "ConnectionError", "connection"),
        (ModelBehaviorError("gibberish"), "agents.exceptions.ModelBehaviorError", "model_behavior"),
    ],
)
async def test_a_model_that_raises_is_an_error(
    database: Database, agent_id: UUID, failure: Exception, error_type: str, reason: str
) -> None:
    """The exception goes on to the caller; the activity says what it was, and keeps the tokens spent until then."""
    with pytest.raises(type(failure)):
        await ax.OpenAIRunner(agent_id).run(agent(*look_ups(1), failure), "go")
    activity = told(database, agent_id)
    assert (activity.status, activity.error_type, activity.reason) == ("ERROR", error_type, reason)
    assert activity.lines == [*STARTED, f"Task failed: {failure}"]
    assert activity.tokens == (INPUT_TOKENS, OUTPUT_TOKENS)


async def test_a_failed_tool_alone_fails_no_run(database: Database, agent_id: UUID) -> None:
    """The SDK tells the model of it, and a run that goes on to an answer is COMPLETE."""
    await ax.OpenAIRunner(agent_id).run(agent(call("fails"), say("without it, then")), "go")
    assert told(database, agent_id).status == "COMPLETE"


async def test_a_tool_that_raises_into_the_run_is_an_error(database: Database, agent_id: UUID) -> None:
    """Where the application lets a tool's exception through, that is how the run ends."""
    with pytest.raises(agents.UserError):
        await ax.OpenAIRunner(agent_id).run(agent(call("broken"), say("never said")), "go")
    activity = told(database, agent_id)
    assert activity.status == "ERROR"
    assert "the tool broke" in activity.lines[-1]


async def test_a_tripped_guardrail_is_an_error(database: Database, agent_id: UUID) -> None:
    """Its reason says that it was a guardrail."""

    @input_guardrail
    async def refuse(context: RunContextWrapper[Any], by: Agent[Any], given: object) -> GuardrailFunctionOutput:
        return GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)

    with pytest.raises(InputGuardrailTripwireTriggered):
        await ax.OpenAIRunner(agent_id).run(agent(say("no"), input_guardrails=[refuse]), "go")
    activity = told(database, agent_id)
    assert (activity.status, activity.reason) == ("ERROR", "guardrail_input")


async def test_an_unknown_activity_is_told_before_anything_runs() -> None:
    """No agent works for an activity that does not exist."""
    model = scripted(say("unheard"))
    with pytest.raises(ax.ActivityNotFoundError):
        await ax.OpenAIRunner(uuid4()).run(Agent(name="Agent", model=model), "go")
    assert model.calls == ()


# -- cancellation -----------------------------------------------------------------------------------------------


async def test_a_canceled_task_is_canceled(database: Database, agent_id: UUID) -> None:
    """`task.cancel()` ends the activity as CANCELED, and the task as canceled."""
    task = asyncio.create_task(ax.OpenAIRunner(agent_id).run(agent(*look_ups(9), seconds=0.05), "go"))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert told(database, agent_id).status == "CANCELED"


async def test_a_timeout_around_the_run_cancels_it(database: Database, agent_id: UUID) -> None:
    """`asyncio.timeout` ends the activity as CANCELED, and still raises its TimeoutError."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await ax.OpenAIRunner(agent_id).run(agent(*look_ups(9), seconds=0.05), "go")
    assert told(database, agent_id).status == "CANCELED"


async def test_a_run_stops_once_its_activity_is_canceled(database: Database, agent_id: UUID) -> None:
    """Canceled from elsewhere, the run makes no further model call and raises; nothing calls that a failure."""
    runner = ax.OpenAIRunner(agent_id)

    @function_tool
    async def cancel() -> str:
        """Do what a user does who presses a button."""
        await ax.activity.aio.cancel(agent_id, "Not needed any more.")
        return "canceled"

    model = scripted(call("cancel"), say("never said"))
    with pytest.raises(ActivityCanceledError, match=str(agent_id)):
        await runner.run(Agent(name="Agent", model=model, tools=[cancel]), "go")
    assert len(model.calls) == 1
    activity = told(database, agent_id)
    assert activity.status == "CANCELED"
    assert not any("failed" in line for line in activity.lines)


# -- the turn limit ---------------------------------------------------------------------------------------------


async def test_the_turn_limit_is_an_error(database: Database, agent_id: UUID) -> None:
    """Without recovery, a run that uses up its turns is ERROR for the reason max_turns."""
    with pytest.raises(MaxTurnsExceeded):
        await ax.OpenAIRunner(agent_id).run(agent(*look_ups(3)), "go", max_turns=2)
    activity = told(database, agent_id)
    assert (activity.status, activity.reason) == ("ERROR", "max_turns")
    assert activity.lines == [*STARTED, "Task failed: Max turns (2) exceeded"]


async def test_an_agent_that_wraps_up_is_complete(database: Database, agent_id: UUID) -> None:
    """With recovery it is shown the conversation and the prompt, may answer, and the tokens of both runs count."""
    runner = ax.OpenAIRunner(agent_id, max_turns_recovery=True, wrap_up_prompt="Time is up.")
    model = scripted(*look_ups(2), say("half of it"))
    result = await runner.run(agent().clone(model=model), "go", max_turns=2)
    assert result.final_output == "half of it"
    assert model.last_call is not None
    assert shown(model.last_call.input) == ["go", *["function_call", "function_call_output"] * 2, "Time is up."]
    activity = told(database, agent_id)
    assert (activity.status, activity.lines) == ("COMPLETE", [*STARTED, LIMIT_2, DONE])
    assert activity.tokens == (3 * INPUT_TOKENS, 3 * OUTPUT_TOKENS)


@pytest.mark.parametrize("then", [*look_ups(1), ConnectionError("no route")], ids=["still busy", "model raises"])
async def test_an_agent_that_cannot_wrap_up_is_an_error(database: Database, agent_id: UUID, then: Answer) -> None:
    """Whatever goes wrong while wrapping up, the run has failed for having used up its turns."""
    runner = ax.OpenAIRunner(agent_id, max_turns_recovery=True, recovery_turns=1)
    with pytest.raises(MaxTurnsExceeded, match="2") as raised:
        await runner.run(agent(*look_ups(2), then), "go", max_turns=2)
    assert raised.value.__cause__ is not None
    activity = told(database, agent_id)
    assert (activity.status, activity.reason) == ("ERROR", "max_turns")


async def test_recovery_turns_bound_the_wrapping_up(agent_id: UUID) -> None:
    """The agent is given exactly that many more turns."""
    model = scripted(*look_ups(10))
    runner = ax.OpenAIRunner(agent_id, max_turns_recovery=True, recovery_turns=3)
    with pytest.raises(MaxTurnsExceeded):
        await runner.run(agent().clone(model=model), "go", max_turns=2)
    assert len(model.calls) == 2 + 3


async def test_the_agent_that_was_at_work_wraps_up(agent_id: UUID) -> None:
    """After a handoff that is the agent which took over, not the one the run began with."""
    second = agent(*look_ups(1), say("summary"), name="Second")
    first = agent(call("transfer_to_second"), name="First", handoffs=[second])
    result = await ax.OpenAIRunner(agent_id, max_turns_recovery=True).run(first, "go", max_turns=2)
    assert result.last_agent is second
    assert result.final_output == "summary"


async def test_a_limit_inside_a_tool_can_be_wrapped_up(agent_id: UUID) -> None:
    """An agent used as a tool that lets its limit through leaves a call without an output, which is not shown again."""
    inner = agent(*look_ups(3), name="Inner")
    tool = inner.as_tool("inner", "Look deeper.", max_turns=1, failure_error_function=None)
    runner = ax.OpenAIRunner(agent_id, max_turns_recovery=True, wrap_up_prompt="Time is up.")
    model = scripted(*look_ups(1), call("inner", input="deeper"), say("what we have"))
    result = await runner.run(agent(tools=[tool]).clone(model=model), "go")
    assert result.final_output == "what we have"
    assert model.last_call is not None
    assert shown(model.last_call.input) == ["go", "function_call", "function_call_output", "Time is up."]


async def test_a_session_is_not_told_twice(agent_id: UUID) -> None:
    """With a session, wrapping up adds the prompt to it and repeats nothing."""
    session = SQLiteSession("conversation")
    runner = ax.OpenAIRunner(agent_id, max_turns_recovery=True, wrap_up_prompt="Time is up.")
    model = scripted(*look_ups(2), say("half of it"))
    await runner.run(agent().clone(model=model), "go", max_turns=2, session=session)
    calls = ["function_call", "function_call_output"] * 2
    assert shown(await session.get_items()) == ["go", *calls, "Time is up.", "message"]
    assert model.last_call is not None
    assert shown(model.last_call.input) == ["go", *calls, "Time is up."]
    session.close()


async def test_a_conversation_kept_by_the_server_is_sent_only_what_is_new(agent_id: UUID) -> None:
    """The outputs that the server has not seen yet and the prompt, as an answer to its last response."""
    runner = ax.OpenAIRunner(agent_id, max_turns_recovery=True, wrap_up_prompt="Time is up.")
    model = scripted(*look_ups(2), say("half of it"))
    await runner.run(agent().clone(model=model), "go", max_turns=2, auto_previous_response_id=True)
    assert model.last_call is not None
    assert shown(model.last_call.input) == [
        "function_call_output",
        "Time is up.",
    ]
    assert model.last_call.previous_response_id == "resp-789"


async def test_an_error_handler_that_recovers_is_complete(database: Database, agent_id: UUID) -> None:
    """The SDK's own way to handle the limit works as ever, and makes a run COMPLETE."""
    handlers: agents.RunErrorHandlers[Any] = {"max_turns": lambda _: "handled"}
    result = await ax.OpenAIRunner(agent_id).run(agent(*look_ups(3)), "go", max_turns=2, error_handlers=handlers)
    assert result.final_output == "handled"
    assert told(database, agent_id).status == "COMPLETE"


# -- owners, hooks and spans ------------------------------------------------------------------------------------


async def test_a_block_around_the_run_keeps_the_end(database: Database, agent_id: UUID) -> None:
    """Inside `ax.activity.run` the runner ends nothing: two runs and a line of the owner's make one activity."""
    async with ax.activity.run(agent_id) as owner:
        await ax.OpenAIRunner(agent_id).run(agent(say("one")), "go")
        await ax.OpenAIRunner(agent_id).run(agent(say("two")), "go")
        assert told(database, agent_id).status == "RUNNING"
        owner.update("Both parts are done.", 90)
    activity = told(database, agent_id)
    assert (activity.status, activity.lines) == ("COMPLETE", [*STARTED, "Both parts are done.", DONE])


async def test_a_block_around_a_failed_run_decides(database: Database, agent_id: UUID) -> None:
    """An owner that copes with the failure of a run may still complete."""
    with ax.activity.run(agent_id), pytest.raises(ConnectionError):
        await ax.OpenAIRunner(agent_id).run(agent(ConnectionError("no route")), "go")
    assert told(database, agent_id).status == "COMPLETE"


async def test_the_callers_hooks_are_called(agent_id: UUID) -> None:
    """The runner's own look at each step takes no callback away."""
    seen: list[str] = []

    class Hooks(RunHooks[Any]):
        async def on_agent_start(self, *_: Any, **__: Any) -> None:
            seen.append("agent_start")

        async def on_llm_start(self, *_: Any, **__: Any) -> None:
            seen.append("llm_start")

        async def on_llm_end(self, *_: Any, **__: Any) -> None:
            seen.append("llm_end")

        async def on_tool_start(self, context: RunContextWrapper[Any], agent: Agent[Any], tool: Tool) -> None:
            seen.append(tool.name)

        async def on_agent_end(self, *_: Any, **__: Any) -> None:
            seen.append("agent_end")

    await ax.OpenAIRunner(agent_id).run(agent(*look_ups(1), say("done")), "go", hooks=Hooks())
    turn = ["llm_start", "llm_end"]
    assert seen == ["agent_start", *turn, "look_up", *turn, "agent_end"]


async def test_hooks_of_the_wrong_kind_are_refused_as_by_the_sdk(agent_id: UUID) -> None:
    """The SDK's own message, not ours."""
    with pytest.raises(TypeError, match="Run hooks must be instances of RunHooks"):
        await ax.OpenAIRunner(agent_id).run(agent(say("done")), "go", hooks=agents.AgentHooks())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def test_one_span_with_the_lines_as_events(
    database: Database, agent_id: UUID, spans: InMemorySpanExporter, tracer_provider: trace.TracerProvider
) -> None:
    """The activity is one span, what the tools do is beneath it, and nothing stays current afterwards."""
    tracer = tracer_provider.get_tracer("test")

    @function_tool
    async def traced() -> str:
        """Do something that is traced."""
        with tracer.start_as_current_span("inside"):
            return "done"

    runner = ax.OpenAIRunner(agent_id)
    answers = [call("report_activity", message="Half way", percentage=50), call("traced"), say("done")]
    await runner.run(agent(*answers, tools=[traced, runner.tools.report_status]), "go")
    assert not trace.get_current_span().get_span_context().is_valid
    assert ax.activity.current() is None
    assert ax.flush()
    by_name = {span.name: span for span in spans.get_finished_spans()}
    assert sorted(by_name) == ["inside", "research"]
    research, inside = by_name["research"], by_name["inside"]
    assert research.context is not None
    assert inside.parent is not None
    assert inside.parent.span_id == research.context.span_id
    messages = [(event.attributes or {})["agentexec.log.message"] for event in research.events]
    assert messages == [*STARTED, "Half way", DONE]


# -- the runner itself ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"), [(ax.OpenAIRunner.run, Runner.run), (ax.OpenAIRunner.run_streamed, Runner.run_streamed)]
)
def test_what_the_sdk_takes_the_runner_takes(ours: Callable[..., Any], theirs: Callable[..., Any]) -> None:
    """Same names, kinds, defaults and types, in the same order."""

    def parameters(function: Callable[..., Any]) -> list[tuple[str, object, object]]:
        found = inspect.signature(function, eval_str=True).parameters.values()
        return [(each.name, each.kind, each.default) for each in found if each.name not in ("self", "cls")]

    assert parameters(ours) == parameters(theirs)


def test_prompts_are_the_callers_where_given() -> None:
    """Custom texts are used as they are; the defaults name the tool they are about."""
    custom = ax.OpenAIRunner(uuid4(), report_status_prompt="Report.", wrap_up_prompt="")
    assert (custom.prompts.report_status, custom.prompts.wrap_up) == ("Report.", "")
    default = ax.OpenAIRunner(str(uuid4()))
    assert default.tools.report_status.name in default.prompts.report_status
    assert default.prompts.wrap_up


@pytest.mark.parametrize("arguments", [{"agent_id": "no uuid"}, {"agent_id": uuid4(), "recovery_turns": 0}])
def test_bad_arguments_are_refused_at_once(arguments: dict[str, Any]) -> None:
    """At the constructor, not when the run begins."""
    with pytest.raises(ValueError, match=r"no uuid|recovery_turns"):
        ax.OpenAIRunner(**arguments)


async def test_an_interrupted_run_says_what_it_waits_for(database: Database, agent_id: UUID) -> None:
    """A run that stops for an approval tells so, and stays RUNNING until the run that goes on has ended."""

    @function_tool(needs_approval=True)
    async def publish() -> str:
        """Publish the report."""
        return "published"

    runner = ax.OpenAIRunner(agent_id)
    by = agent(call("publish"), say("it is out"), tools=[publish])
    result = await runner.run(by, "go")
    assert ax.flush()
    assert told(database, agent_id).status == "RUNNING"
    state = result.to_state()
    state.approve(result.interruptions[0])
    result = await runner.run(by, state)
    assert result.final_output == "it is out"
    waited = "Stopped for the approval of 1 tool call."
    assert told(database, agent_id).lines == [*STARTED, waited, STARTED[-1], DONE]
