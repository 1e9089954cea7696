"""`OpenAIRunner.run_streamed`: whoever reads the stream, and however far, the activity ends as the run does."""

import asyncio
import gc
import logging
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any, Literal, cast
from uuid import UUID, uuid4

import agents
import pytest
from agents import (
    Agent,
    GuardrailFunctionOutput,
    InputGuardrailTripwireTriggered,
    MaxTurnsExceeded,
    RunContextWrapper,
    RunResultStreaming,
    function_tool,
    input_guardrail,
)
from agents.stream_events import StreamEvent
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import agentexec_otel as ax
from agentexec_otel import ActivityCanceledError
from tests.databases import Database
from tests.e2e.instrumented import runs_done
from tests.e2e.scripted import (
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    Answer,
    Told,
    agent,
    call,
    look_ups,
    say,
    scripted,
    shown,
    told,
)

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

STARTED = ["Waiting to start.", "Task started."]
DONE = "Task completed successfully."
CANCELED = "Task canceled."
LIMIT_2 = "Max turns (2) exceeded; the agent was asked to wrap up."

recovery = pytest.mark.parametrize("recovery", [False, True], ids=["plain", "recovery"])


@pytest.fixture(autouse=True)
def sdk(database: Database, spans: InMemorySpanExporter, no_uploads: None) -> None:
    """Every test has activities in SQL and on spans."""


@pytest.fixture(autouse=True)
def nothing_attached_nothing_logged(sdk: None, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """After each test no span or activity is current, and neither OpenTelemetry nor asyncio has complained."""
    with caplog.at_level(logging.DEBUG, logger="opentelemetry"):
        yield
    assert not trace.get_current_span().get_span_context().is_valid
    assert ax.activity.current() is None
    logged = caplog.get_records("call")
    assert [record.getMessage() for record in logged if record.levelno >= logging.WARNING] == []


@pytest.fixture
def agent_id(sdk: None) -> UUID:
    """An activity that waits to be run."""
    return ax.activity.create("research")


def names(events: list[StreamEvent]) -> list[str]:
    """What happened, without the model's own chunks."""
    return [getattr(event, "name", event.type) for event in events if event.type != "raw_response_event"]


async def read(result: RunResultStreaming) -> list[StreamEvent]:
    """All events of a stream."""
    return [event async for event in result.stream_events()]


async def ended(database: Database, agent_id: UUID) -> Told:
    """The activity once it has ended, with nobody waiting for its stream."""
    for _ in range(200):
        await asyncio.sleep(0.01)
        if (activity := told(database, agent_id)).status not in ("QUEUED", "RUNNING"):
            return activity
    raise AssertionError("the activity has not ended within 2 s")


# -- read to the end --------------------------------------------------------------------------------------------


@recovery
async def test_a_stream_read_to_its_end_is_complete(database: Database, agent_id: UUID, recovery: bool) -> None:
    """The events are the SDK's, the activity is COMPLETE as soon as they are over, and has the run's tokens."""
    runner = ax.OpenAIRunner(agent_id, max_turns_recovery=recovery)
    result = runner.run_streamed(agent(*look_ups(1), say("found it")), "go")
    assert isinstance(result, RunResultStreaming)
    assert not result.is_complete
    events = await read(result)
    assert names(events) == ["agent_updated_stream_event", "tool_called", "tool_output", "message_output_created"]
    assert (result.final_output, result.is_complete, result.run_loop_exception) == ("found it", True, None)
    assert len(result.new_items) == 3
    activity = told(database, agent_id)
    assert (activity.status, activity.lines) == ("COMPLETE", [*STARTED, DONE])
    assert activity.tokens == (2 * INPUT_TOKENS, 2 * OUTPUT_TOKENS)


@recovery
async def test_a_stream_that_raises_is_an_error(database: Database, agent_id: UUID, recovery: bool) -> None:
    """The consumer gets the exception, the activity its type."""
    runner = ax.OpenAIRunner(agent_id, max_turns_recovery=recovery)
    result = runner.run_streamed(agent(*look_ups(1), ConnectionError("no route")), "go")
    with pytest.raises(ConnectionError):
        await read(result)
    assert isinstance(result.run_loop_exception, ConnectionError)
    activity = told(database, agent_id)
    assert (activity.status, activity.error_type) == ("ERROR", "ConnectionError")


@pytest.mark.parametrize("reads", [True, False], ids=["read", "never read"])
async def test_a_guardrail_that_trips_beside_the_model_is_an_error(
    database: Database, agent_id: UUID, reads: bool
) -> None:
    """Also where nobody reads the stream, which is where the SDK itself would find out."""

    @input_guardrail
    async def refuse(context: RunContextWrapper[Any], by: Agent[Any], given: object) -> GuardrailFunctionOutput:
        await asyncio.sleep(0.05)
        return GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)

    result = ax.OpenAIRunner(agent_id).run_streamed(agent(say("too fast"), input_guardrails=[refuse]), "go")
    if reads:
        with pytest.raises(InputGuardrailTripwireTriggered):
            await read(result)
    activity = await ended(database, agent_id)
    assert (activity.status, activity.reason) == ("ERROR", "guardrail_input")


@pytest.mark.parametrize("reads", [True, False], ids=["read", "never read"])
@pytest.mark.parametrize("seconds", [0.0, 0.5], ids=["behind the model", "before the model"])
async def test_a_guardrail_that_breaks_beside_the_model_is_an_error(
    database: Database, agent_id: UUID, reads: bool, seconds: float
) -> None:
    """The guardrail's own exception is how the run ends, also where the SDK tears the model's call for it."""

    @input_guardrail
    async def broken(context: RunContextWrapper[Any], by: Agent[Any], given: object) -> GuardrailFunctionOutput:
        await asyncio.sleep(0.05)
        raise ConnectionError("no moderation")

    at_work = agent(say("done"), seconds=seconds, input_guardrails=[broken])
    result = ax.OpenAIRunner(agent_id).run_streamed(at_work, "go")
    if reads:
        with pytest.raises(ConnectionError):
            await read(result)
    activity = await ended(database, agent_id)
    assert (activity.status, activity.error_type) == ("ERROR", "ConnectionError")


# -- not read to the end ----------------------------------------------------------------------------------------


@recovery
@pytest.mark.parametrize("mode", ["immediate", "after_turn"])
async def test_a_canceled_stream_is_canceled(
    database: Database, agent_id: UUID, recovery: bool, mode: Literal["immediate", "after_turn"]
) -> None:
    """Both ways to cancel a result end the activity as CANCELED, and the stream without an exception."""
    runner = ax.OpenAIRunner(agent_id, max_turns_recovery=recovery)
    result = runner.run_streamed(agent(*look_ups(9), seconds=0.02), "go")
    async for event in result.stream_events():
        if names([event]) == ["tool_output"]:
            result.cancel(mode)
    assert result.final_output is None
    activity = told(database, agent_id)
    assert (activity.status, activity.lines) == ("CANCELED", [*STARTED, CANCELED])
    assert activity.tokens[0]


@recovery
async def test_a_cancellation_that_comes_too_late_is_none(database: Database, agent_id: UUID, recovery: bool) -> None:
    """A run that was asked to stop after its turn, and gave its answer in it, is COMPLETE."""
    result = ax.OpenAIRunner(agent_id, max_turns_recovery=recovery).run_streamed(agent(say("done")), "go")
    async for event in result.stream_events():
        if event.type == "raw_response_event":
            result.cancel("after_turn")
    assert result.final_output == "done"
    assert told(database, agent_id).status == "COMPLETE"


@recovery
async def test_a_consumer_that_stops_reading_stops_nothing(database: Database, agent_id: UUID, recovery: bool) -> None:
    """The run goes on in the background, and ends as it ends."""
    result = ax.OpenAIRunner(agent_id, max_turns_recovery=recovery).run_streamed(agent(*look_ups(2), say("done")), "go")
    async for _ in result.stream_events():
        break
    assert (await ended(database, agent_id)).status == "COMPLETE"
    assert result.final_output == "done"


@recovery
async def test_a_generator_that_is_closed_elsewhere_is_no_matter(
    database: Database, agent_id: UUID, recovery: bool
) -> None:
    """Started in one task and closed in another: no context is detached where it was not attached."""
    result = ax.OpenAIRunner(agent_id, max_turns_recovery=recovery).run_streamed(agent(*look_ups(2), say("done")), "go")
    events = cast("AsyncGenerator[StreamEvent]", result.stream_events())
    await asyncio.create_task(anext(events))
    await asyncio.create_task(events.aclose())
    assert (await ended(database, agent_id)).status == "COMPLETE"


@recovery
async def test_a_canceled_consumer_cancels_the_run(database: Database, agent_id: UUID, recovery: bool) -> None:
    """As the SDK does it: a task that is canceled while it waits for an event takes the run with it."""
    result = ax.OpenAIRunner(agent_id, max_turns_recovery=recovery).run_streamed(agent(*look_ups(9), seconds=0.1), "go")
    consumer = asyncio.create_task(read(result))
    await asyncio.sleep(0.05)
    consumer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await consumer
    assert (await ended(database, agent_id)).status == "CANCELED"


async def test_a_consumer_that_is_canceled_before_the_guardrails_verdict_cancels_the_run(
    database: Database, agent_id: UUID
) -> None:
    """The model had answered, but nobody was given its answer: nobody could say that it was allowed."""

    @input_guardrail
    async def thorough(context: RunContextWrapper[Any], by: Agent[Any], given: object) -> GuardrailFunctionOutput:
        await asyncio.sleep(10)
        return GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)

    result = ax.OpenAIRunner(agent_id).run_streamed(agent(say("done"), input_guardrails=[thorough]), "go")
    consumer = asyncio.create_task(read(result))
    while result.final_output is None:  # noqa: ASYNC110  # nobody tells when the answer is there
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    consumer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await consumer
    assert (await ended(database, agent_id)).status == "CANCELED"


@pytest.mark.parametrize(
    ("answers", "status"),
    [([*look_ups(1), say("done")], "COMPLETE"), ([ConnectionError("no route")], "ERROR"), (look_ups(3), "ERROR")],
    ids=["answers", "model raises", "turns used up"],
)
async def test_a_stream_that_nobody_reads_ends_truthfully(
    database: Database, agent_id: UUID, answers: list[Answer], status: str
) -> None:
    """The background task decides, even if the result is gone."""
    ax.OpenAIRunner(agent_id).run_streamed(agent(*answers, seconds=0.02), "go", max_turns=2)
    gc.collect()
    assert (await ended(database, agent_id)).status == status


async def test_a_loop_that_closes_cancels_what_still_runs(database: Database, agent_id: UUID) -> None:
    """`asyncio.run` cancels what is left when it ends; the activity says so."""

    async def start() -> None:
        ax.OpenAIRunner(agent_id).run_streamed(agent(*look_ups(9), seconds=0.1), "go")
        await asyncio.sleep(0.05)

    await asyncio.to_thread(asyncio.run, start())
    assert told(database, agent_id).status == "CANCELED"


async def test_a_stream_stops_once_its_activity_is_canceled(database: Database, agent_id: UUID) -> None:
    """Canceled from elsewhere, the stream raises before its next model call; the history tells of no failure."""

    @function_tool
    async def cancel() -> str:
        """Do what a user does who presses a button."""
        await ax.activity.aio.cancel(agent_id)
        return "canceled"

    model = scripted(call("cancel"), say("never said"))
    result = ax.OpenAIRunner(agent_id).run_streamed(Agent(name="Agent", model=model, tools=[cancel]), "go")
    with pytest.raises(ActivityCanceledError):
        await read(result)
    assert len(model.calls) == 1
    activity = told(database, agent_id)
    assert activity.status == "CANCELED"
    assert not any("failed" in line for line in activity.lines)


# -- the turn limit ---------------------------------------------------------------------------------------------


async def test_the_turn_limit_is_an_error(database: Database, agent_id: UUID) -> None:
    """Without recovery, the consumer gets MaxTurnsExceeded and the activity the reason max_turns."""
    result = ax.OpenAIRunner(agent_id).run_streamed(agent(*look_ups(3)), "go", max_turns=2)
    with pytest.raises(MaxTurnsExceeded):
        await read(result)
    activity = told(database, agent_id)
    assert (activity.status, activity.reason) == ("ERROR", "max_turns")


async def test_wrapping_up_is_part_of_the_stream(database: Database, agent_id: UUID) -> None:
    """Its events follow those of the run, the result is its result, and the tokens of both count."""
    runner = ax.OpenAIRunner(agent_id, max_turns_recovery=True)
    second = agent(*look_ups(1), say("half of it"), name="Second")
    first = agent(call("transfer_to_second"), name="First", handoffs=[second])
    result = runner.run_streamed(first, "go", max_turns=2)
    events = await read(result)
    assert isinstance(result, RunResultStreaming)
    assert names(events) == [
        *["agent_updated_stream_event", "handoff_requested", "handoff_occured", "agent_updated_stream_event"],
        *["tool_called", "tool_output"],
        *["agent_updated_stream_event", "message_output_created"],
    ]
    assert (result.final_output, result.current_agent, result.last_agent) == ("half of it", second, second)
    assert (result.is_complete, result.run_loop_exception) == (True, None)
    assert shown(result.to_input_list()) == [
        *["go", "function_call", "function_call_output", "function_call", "function_call_output"],
        *[runner.prompts.wrap_up, "message"],
    ]
    activity = told(database, agent_id)
    assert (activity.status, activity.lines) == ("COMPLETE", [*STARTED, LIMIT_2, DONE])
    assert activity.tokens == (3 * INPUT_TOKENS, 3 * OUTPUT_TOKENS)


@pytest.mark.parametrize("then", [*look_ups(1), ConnectionError("no route")], ids=["still busy", "model raises"])
async def test_an_agent_that_cannot_wrap_up_is_an_error(database: Database, agent_id: UUID, then: Answer) -> None:
    """The consumer gets the first run's MaxTurnsExceeded, with what went wrong then as its cause."""
    runner = ax.OpenAIRunner(agent_id, max_turns_recovery=True, recovery_turns=1)
    with pytest.raises(MaxTurnsExceeded, match="2") as raised:
        await read(runner.run_streamed(agent(*look_ups(2), then), "go", max_turns=2))
    assert raised.value.__cause__ is not None
    activity = told(database, agent_id)
    assert (activity.status, activity.reason) == ("ERROR", "max_turns")


async def test_a_stream_that_nobody_reads_is_wrapped_up_all_the_same(database: Database, agent_id: UUID) -> None:
    """Recovery needs no consumer."""
    runner = ax.OpenAIRunner(agent_id, max_turns_recovery=True)
    result = runner.run_streamed(agent(*look_ups(2), say("half of it"), seconds=0.02), "go", max_turns=2)
    activity = await ended(database, agent_id)
    assert (activity.status, activity.lines) == ("COMPLETE", [*STARTED, LIMIT_2, DONE])
    assert result.final_output == "half of it"
    assert "message_output_created" in names(await read(result))


@pytest.mark.parametrize("mode", ["immediate", "after_turn"])
async def test_wrapping_up_can_be_canceled(
    database: Database, agent_id: UUID, mode: Literal["immediate", "after_turn"]
) -> None:
    """`cancel()` reaches the run that is at work."""
    runner = ax.OpenAIRunner(agent_id, max_turns_recovery=True)
    result = runner.run_streamed(agent(*look_ups(9), seconds=0.02), "go", max_turns=2)
    seen: list[str] = []
    async for event in result.stream_events():
        seen += names([event])
        if seen.count("tool_output") == 3:
            result.cancel(mode)
    assert told(database, agent_id).status == "CANCELED"


# -- owners and spans -------------------------------------------------------------------------------------------


async def test_a_block_around_the_stream_keeps_the_end(database: Database, agent_id: UUID) -> None:
    """Inside `ax.activity.run` a stream that is over ends nothing."""
    async with ax.activity.run(agent_id):
        await read(ax.OpenAIRunner(agent_id).run_streamed(agent(say("one")), "go"))
        assert told(database, agent_id).status == "RUNNING"
    assert told(database, agent_id).lines == [*STARTED, DONE]


@pytest.mark.parametrize("known", [True, False], ids=["created here", "created elsewhere"])
async def test_tools_work_beneath_the_span_of_their_activity(
    agent_id: UUID, spans: InMemorySpanExporter, tracer_provider: trace.TracerProvider, database: Database, known: bool
) -> None:
    """Two streams at once do not mix; the consumer's own context has neither of their spans."""
    if not known:
        ax.configure(database.url, tracer_provider=tracer_provider)
    tracer = tracer_provider.get_tracer("test")

    @function_tool
    async def traced(by: str) -> str:
        """Do something that is traced."""
        await asyncio.sleep(0.02)
        with tracer.start_as_current_span(f"inside {by}"):
            return "done"

    other_id = await ax.activity.aio.create("other")
    streams = [
        ax.OpenAIRunner(each).run_streamed(agent(call("traced", by=name), say("done"), tools=[traced]), "go")
        for name, each in (("research", agent_id), ("other", other_id))
    ]
    async with aclosing(cast("AsyncGenerator[StreamEvent]", streams[0].stream_events())) as events:
        async for _ in events:
            assert not trace.get_current_span().get_span_context().is_valid
    await read(streams[1])
    assert ax.flush()
    by_name = {span.name: span for span in spans.get_finished_spans()}
    assert sorted(by_name) == ["inside other", "inside research", "other", "research"]
    for name in ("research", "other"):
        parent, context = by_name[f"inside {name}"].parent, by_name[name].context
        assert parent is not None
        assert context is not None
        assert parent.span_id == context.span_id


async def test_an_unknown_activity_is_told_before_anything_runs(caplog: pytest.LogCaptureFixture) -> None:
    """At the call, and no task is left behind, if the database answers within a few milliseconds."""
    for _ in range(50):  # A loaded machine may not answer at the first try; the activity is then refused later.
        await runs_done()
        assert await asyncio.to_thread(ax.flush)
        caplog.clear()
        try:
            ax.OpenAIRunner(uuid4()).run_streamed(agent(say("unheard")), "go")
        except ax.ActivityNotFoundError:
            assert asyncio.all_tasks() == {asyncio.current_task()}
            return
    pytest.fail("the unknown activity was never reported")


async def test_what_the_sdk_refuses_is_an_error(database: Database, agent_id: UUID) -> None:
    """Its exception comes at the call, and the activity does not stay RUNNING."""
    with pytest.raises(TypeError, match="Run hooks"):
        ax.OpenAIRunner(agent_id).run_streamed(agent(say("x")), "go", hooks=agents.AgentHooks())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert told(database, agent_id).status == "ERROR"


async def test_a_database_that_does_not_answer_holds_nobody_up(
    database: Database, agent_id: UUID, tracer_provider: trace.TracerProvider
) -> None:
    """A stream for an activity of another process starts at once, runs, and is stored when the database is back."""
    ax.configure(database.url, tracer_provider=tracer_provider)
    with database.engine.connect() as connection:
        connection.exec_driver_sql("BEGIN EXCLUSIVE")
        began = time.perf_counter()
        result = ax.OpenAIRunner(agent_id).run_streamed(agent(say("done")), "go")
        assert time.perf_counter() - began < 0.3
        await read(result)
        assert result.final_output == "done"
        connection.rollback()
    assert (await ended(database, agent_id)).lines == [*STARTED, DONE]
