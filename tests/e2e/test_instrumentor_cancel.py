"""Canceling an instrumented run from another process, and runs that are left behind."""

import asyncio
import contextlib
import gc
import logging
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import agents
import pytest
from agents import FunctionTool, RunConfig, Runner, function_tool, trace
from agents.testing import ModelCall, ModelStep, ScriptedModel
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import agentexec_otel as ax
from agentexec_otel._runtime import live as live_module
from tests.databases import Database
from tests.e2e.instrumented import activities, only, runs_done
from tests.e2e.outcome_scenarios import refuse_output
from tests.e2e.scripted import INPUT_TOKENS, OUTPUT_TOKENS, agent, call, look_ups, say
from tests.sql import remote
from tests.sql.processes import shared_peers

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture(autouse=True)
def sdk(instrumented: None) -> None:
    """Every test has the SDK instrumented."""


CancelElsewhere = Callable[[UUID], Awaitable[None]]


@pytest.fixture
def cancel_elsewhere(database: Database, pytestconfig: pytest.Config) -> Iterator[CancelElsewhere]:
    """`ax.activity.cancel` in another process; returns once it has committed."""
    peer = shared_peers(pytestconfig)[0]
    peer.call(remote.configure, database.url, settings={"spool_dir": "off"})

    async def cancel(agent_id: UUID) -> None:
        assert await asyncio.to_thread(peer.call, remote.call, "cancel", agent_id)

    yield cancel
    peer.call(remote.stop)


async def running(database: Database) -> Any:
    """The id of the run that has just been started."""
    await asyncio.sleep(0.3)
    return (await asyncio.to_thread(only, database)).agent_id


@pytest.mark.parametrize("progress", ["steps", "off"])
@pytest.mark.parametrize("how", ["run", "streamed", "in a trace", "as a tool", "in a block", "OpenAIRunner"])
async def test_a_run_stops_at_its_next_step(
    database: Database, spans: InMemorySpanExporter, cancel_elsewhere: CancelElsewhere, how: str, progress: Any
) -> None:
    """Within 2 s of the commit; row and span end CANCELED with the same tokens, and the application is told."""
    ax.CONF.progress = progress
    busy = agent(*look_ups(500), say("never"), seconds=0.1)

    async def run() -> None:
        if how == "streamed":
            async for _ in Runner.run_streamed(busy, "go", max_turns=None).stream_events():
                pass
        elif how == "in a trace":
            with agents.trace("Traced"):
                await Runner.run(busy, "go", max_turns=None)
        elif how == "as a tool":
            outer = agent(call("ask", input="go"), tools=[busy.as_tool("ask", "Ask.", max_turns=500)])
            await Runner.run(outer, "go")
        elif how == "in a block":
            async with ax.activity.run("block"):
                await Runner.run(busy, "go", max_turns=None)
        elif how == "OpenAIRunner":
            await ax.OpenAIRunner(await ax.activity.aio.create("task")).run(busy, "go", max_turns=None)
        else:
            await Runner.run(busy, "go", max_turns=None)

    task = asyncio.create_task(run())
    await cancel_elsewhere(await running(database))
    committed = time.monotonic()
    with pytest.raises(ax.ActivityCanceledError):
        await asyncio.wait_for(task, 10)
    assert time.monotonic() - committed < 5
    activity = only(database)
    assert (activity.status, activity.reason) == ("CANCELED", "canceled")
    assert (activity.input_tokens or 0) >= INPUT_TOKENS
    (span,) = spans.get_finished_spans()
    told = span.attributes or {}
    assert (told["agentexec.status"], told["agentexec.reason"]) == ("CANCELED", "canceled")
    assert told["gen_ai.usage.input_tokens"] == activity.input_tokens
    assert told["agentexec.requests"] == activity.requests


async def test_the_tool_that_is_running_is_not_torn(database: Database, cancel_elsewhere: CancelElsewhere) -> None:
    """It works to its end; what would have come next does not begin, be it the model or the next tool of the turn."""
    began: list[str] = []
    ended: list[str] = []
    committed = asyncio.Event()

    @function_tool
    async def work(name: str) -> str:
        """Work."""
        began.append(name)
        await committed.wait()
        await asyncio.sleep(2.5)
        ended.append(name)
        return "ok"

    answers = [*call("work", name="first"), *call("work", name="second")]
    config = agents.RunConfig(tool_execution=agents.ToolExecutionConfig(max_function_tool_concurrency=1))
    task = asyncio.create_task(Runner.run(agent(answers, say("never"), tools=[work]), "go", run_config=config))
    await cancel_elsewhere(await running(database))
    committed.set()
    with pytest.raises(ax.ActivityCanceledError):
        await asyncio.wait_for(task, 10)
    assert began == ended == ["first"]
    assert only(database).status == "CANCELED"


def late_tool(database: Database, after: asyncio.Event, began: list[str]) -> FunctionTool:
    """A tool that cancels the run once `after` is set, and would then begin."""

    async def late_guardrail(data: Any) -> Any:
        await after.wait()
        await ax.activity.aio.cancel((await asyncio.to_thread(only, database)).agent_id)
        await asyncio.to_thread(ax.flush)
        return agents.ToolGuardrailFunctionOutput(output_info=None)

    @function_tool(tool_input_guardrails=[agents.ToolInputGuardrail(guardrail_function=late_guardrail)])
    async def late() -> str:
        """Never begin."""
        began.append("late")
        return "ok"

    return late


async def test_another_tool_is_not_torn_by_the_one_that_is_stopped(database: Database) -> None:
    """A tool that would begin while another one works waits for it before the run is stopped."""
    ended: list[str] = []
    slow_began = asyncio.Event()

    @function_tool
    async def slow() -> str:
        """Work."""
        slow_began.set()
        await asyncio.sleep(1)
        ended.append("slow")
        return "ok"

    class Late(agents.RunHooks[Any]):
        async def on_agent_start(self, context: Any, agent: Any) -> None:
            return None

    late = late_tool(database, slow_began, ended)
    with pytest.raises(ax.ActivityCanceledError):
        await Runner.run(agent([*call("slow"), *call("late")], say("never"), tools=[slow, late]), "go", hooks=Late())
    assert ended == ["slow"]


@pytest.mark.parametrize("how", ["run", "streamed", "OpenAIRunner", "OpenAIRunner streamed"])
async def test_an_agent_that_waits_for_an_approval_is_not_waited_for(database: Database, how: str) -> None:
    """A tool that is an agent, and waits, is at work no more: another one that begins late ends a canceled run."""
    waits = asyncio.Event()

    @function_tool(needs_approval=True)
    async def pay() -> str:
        """Never begin."""
        return "paid"

    began: list[str] = []
    late = late_tool(database, waits, began)

    class Ask(agents.RunHooks[Any]):
        async def on_tool_start(self, context: Any, agent: Any, tool: Any) -> None:
            asyncio.get_running_loop().call_later(0.2, waits.set)

    asked = agent(call("pay"), say("never"), tools=[pay]).as_tool("ask", "Ask.")
    outer = agent([*call("ask", input="go"), *call("late")], say("never"), tools=[asked, late])

    async def run() -> None:
        runner = ax.OpenAIRunner(await ax.activity.aio.create("task")) if "OpenAIRunner" in how else Runner
        if "streamed" in how:
            async for _ in runner.run_streamed(outer, "go", hooks=Ask()).stream_events():
                pass
        else:
            await runner.run(outer, "go", hooks=Ask())

    with pytest.raises(ax.ActivityCanceledError):
        await asyncio.wait_for(run(), 20)
    assert began == []
    assert only(database).status == "CANCELED"


async def test_what_stops_a_canceled_run_is_no_failure(database: Database) -> None:
    """Nothing in its history says that a tool has failed which was only not begun, nor does a group of tasks."""
    began = asyncio.Event()

    @function_tool
    async def cancel() -> str:
        """Do what a user does who presses a button."""
        began.set()
        await ax.activity.aio.cancel((await asyncio.to_thread(only, database)).agent_id)
        return "canceled"

    config = agents.RunConfig(tool_execution=agents.ToolExecutionConfig(max_function_tool_concurrency=1))
    answers = [*call("cancel"), *call("look_up", topic="never looked up")]
    with pytest.raises(ExceptionGroup), agents.trace("Group"):  # noqa: PT012  # the block is what is tested
        async with asyncio.TaskGroup() as group:
            group.create_task(Runner.run(agent(answers, say("never"), tools=[cancel]), "go", run_config=config))
            await began.wait()
    activity = only(database)
    assert activity.status == "CANCELED"
    assert [line.message for line in activity.logs if "fail" in line.message] == []


@pytest.mark.parametrize("streamed", [False, True], ids=["run", "streamed"])
async def test_a_stopped_agent_is_no_answer(database: Database, streamed: bool) -> None:
    """Where what a tool returns is the final output, an agent as a tool that was stopped gives none: it is told."""

    @function_tool
    async def cancel() -> str:
        """Do what a user does who presses a button."""
        await ax.activity.aio.cancel((await asyncio.to_thread(only, database)).agent_id)
        return "canceled"

    asked = agent(call("cancel"), say("never"), tools=[cancel]).as_tool("ask", "Ask.")
    outer = agent(call("ask", input="go"), tools=[asked], tool_use_behavior="stop_on_first_tool")
    with pytest.raises(ax.ActivityCanceledError):  # noqa: PT012  # one of two ways to run
        if not streamed:
            await Runner.run(outer, "go")
        else:
            async for _ in Runner.run_streamed(outer, "go").stream_events():
                pass
    assert only(database).status == "CANCELED"


async def test_a_part_that_is_canceled_stops_no_whole(database: Database) -> None:
    """A tool may have an activity of its own, and get over the cancellation of that one."""

    @function_tool
    async def part() -> str:
        """Work in an activity of its own."""
        with contextlib.suppress(ax.ActivityCanceledError):
            async with ax.activity.run("part") as run:
                ax.activity.cancel(run.agent_id)
                await Runner.run(agent(*look_ups(1), say("never")), "go")
        return "canceled"

    result = await Runner.run(agent(call("part"), say("without it, then"), tools=[part], name="Whole"), "go")
    assert result.final_output == "without it, then"
    assert {each.agent_type: each.status for each in activities(database)} == {"Whole": "COMPLETE", "part": "CANCELED"}


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
@pytest.mark.parametrize("approved", [True, False])
async def test_a_run_that_is_canceled_while_it_waits_is_not_resumed(
    database: Database, cancel_elsewhere: CancelElsewhere, approved: bool, elsewhere: bool
) -> None:
    """Not even the tool that was approved begins, whoever has canceled, and there is no second activity."""
    paid: list[str] = []

    @function_tool(needs_approval=True)
    async def pay() -> str:
        """Pay."""
        paid.append("paid")
        return "paid"

    what = agent(call("pay"), say("never"), tools=[pay])
    result = await Runner.run(what, "go")
    agent_id = only(database).agent_id
    if elsewhere:
        await cancel_elsewhere(agent_id)
    else:
        await ax.activity.aio.cancel(agent_id)
    state = result.to_state()
    (state.approve if approved else state.reject)(result.interruptions[0])
    with pytest.raises(ax.ActivityCanceledError):
        await Runner.run(what, state)
    assert paid == []
    assert (only(database).agent_id, only(database).status) == (agent_id, "CANCELED")


async def test_a_resumed_run_that_was_torn_is_resumed_again(database: Database) -> None:
    """Nobody has canceled it but a client that hung up: it goes on in a new activity, and the first keeps its own."""
    began = asyncio.Event()

    @function_tool(needs_approval=True)
    async def pay() -> str:
        """Pay, the second time."""
        if not began.is_set():
            began.set()
            await asyncio.sleep(30)
        return "paid"

    what = agent(call("pay"), say("done"), tools=[pay])
    written = (await Runner.run(what, "go")).to_state().to_string()

    async def resume() -> Any:
        state: Any = await agents.RunState.from_string(what, written)
        state.approve(state.get_interruptions()[0])
        return (await Runner.run(what, state)).final_output

    torn = asyncio.create_task(resume())
    await asyncio.wait_for(began.wait(), 10)
    torn.cancel()
    await asyncio.wait([torn], timeout=10)
    assert torn.cancelled()
    assert (only(database).status, only(database).requests) == ("CANCELED", 1)
    assert await resume() == "done"
    again, first = activities(database)
    assert (first.status, first.requests, first.input_tokens) == ("CANCELED", 1, INPUT_TOKENS)
    assert (again.status, again.requests, again.input_tokens) == ("COMPLETE", 1, INPUT_TOKENS)


@pytest.mark.parametrize("streamed", [False, True], ids=["run", "streamed"])
@pytest.mark.parametrize(
    ("ends_by", "status"),
    [
        ("returning", "COMPLETE"),
        ("the model", "ERROR"),
        ("a tool", "ERROR"),
        ("max turns", "ERROR"),
        ("a guardrail", "ERROR"),
        ("task.cancel", "CANCELED"),
        ("activity.cancel", "CANCELED"),
        ("activity.complete", "COMPLETE"),
        ("activity.error", "ERROR"),
    ],
)
async def test_tokens_are_kept_however_a_run_ends(
    database: Database, spans: InMemorySpanExporter, streamed: bool, ends_by: str, status: str
) -> None:
    """All that was spent until then, and the number of model calls, on the row and on the span."""
    third_call = asyncio.Event()

    async def wait(_: ModelCall) -> Any:
        third_call.set()
        if ends_by.startswith("activity."):
            getattr(ax.activity, ends_by.removeprefix("activity."))(activities(database)[0].agent_id, "Enough.")
            assert ax.flush(5)  # The end is stored before the run is left.
            return call("look_up", topic="never looked up") if status == "CANCELED" else say("done")
        return await asyncio.sleep(30)

    last: dict[str, Any] = {
        "returning": say("done"),
        "the model": ConnectionError("no route"),
        "a tool": call("broken"),
        "a guardrail": say("done"),
    }
    what = agent(*look_ups(2), output_guardrails=[refuse_output] if ends_by == "a guardrail" else [])
    assert isinstance(what.model, ScriptedModel)
    what.model.enqueue(last[ends_by] if ends_by in last else ModelStep.respond(wait))

    async def run() -> None:
        turns = 2 if ends_by == "max turns" else 10
        if not streamed:
            await Runner.run(what, "go", max_turns=turns)
            return
        async for _ in Runner.run_streamed(what, "go", max_turns=turns).stream_events():
            pass

    task = asyncio.create_task(run())
    if ends_by == "task.cancel":
        await third_call.wait()
        task.cancel()
    await asyncio.wait([task], timeout=10)
    await runs_done()
    ended = only(database)
    answered = 2 if ends_by in ("the model", "max turns", "task.cancel") else 3
    assert ended.status == status
    assert (ended.input_tokens, ended.output_tokens) == (answered * INPUT_TOKENS, answered * OUTPUT_TOKENS)
    assert ended.requests == answered
    (span,) = spans.get_finished_spans()
    told = span.attributes or {}
    assert told["gen_ai.usage.input_tokens"] == ended.input_tokens
    assert told["gen_ai.usage.output_tokens"] == ended.output_tokens
    assert told["agentexec.requests"] == ended.requests
    assert told["agentexec.status"] == status
    if ends_by == "activity.error":
        assert span.status.description == "Enough."


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
async def test_abandoned_streams_leave_nothing_behind(
    database: Database,
    spans: InMemorySpanExporter,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
) -> None:
    """Never read, broken out of, or closed in another task: all end, memory stays, and no context is complained of."""
    known = count // 10
    of_runs = ("ActivityStream", "RunResultStreaming", "StepHooks", "TrackedRun")
    runs_before = max(map(alive, of_runs))  # The exceptions that other tests are given keep their frames.
    before = max(map(alive, ("ActivityRun", "Progress", "Tally")))  # Of other tests in this process.
    monkeypatch.setattr(live_module, "MAX_KNOWN", known)  # what a process remembers of activities that are over

    async def settle() -> None:
        await runs_done()
        await asyncio.to_thread(ax.flush, 60)
        spans.clear()

    async def batch(first: int, size: int) -> int:
        for number in range(first, first + size):
            await abandon(number)
            if number % (known // 2) == 0:
                await settle()
        await settle()
        gc.collect()
        return resident_kib()

    warm = await batch(0, count // 3)
    full = await batch(count // 3, count - count // 3)
    assert full - warm < 16 * 1024  # KiB, for thousands of runs
    assert max(map(alive, ("ActivityRun", "Progress", "Tally"))) - before <= known + 1
    assert max(map(alive, of_runs)) - runs_before <= 1
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert told == []
    assert ax.activity.current() is None
    with database.engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT status, count(*) FROM agentexec_activity GROUP BY status").all()
    assert {str(status): number for status, number in found} == {"COMPLETE": count}


async def close_elsewhere(events: Any) -> None:
    await events.aclose()


async def abandon(number: int) -> None:
    """Start a streamed run and leave it: unread, after its first event, or closed in another task."""
    result = Runner.run_streamed(agent(say("done")), "go")
    if number % 3 == 1:
        async for _ in result.stream_events():
            break
    elif number % 3 == 2:
        events = result.stream_events()
        await anext(aiter(events))
        await asyncio.create_task(close_elsewhere(events))
    await asyncio.sleep(0)


def alive(name: str) -> int:
    """How many objects of classes with this name there are."""
    name_of = type.__dict__["__name__"].__get__  # Some tests make classes that do not tell their name.
    return sum(name_of(type(each)) == name for each in gc.get_objects())


def resident_kib() -> int:
    """The memory of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize() // 1024


def test_a_process_that_cancels_needs_no_sdk(database: Database) -> None:
    """The one that cancels imports no agents."""
    code = "import sys, agentexec_otel as ax; ax.activity.cancel; assert 'agents' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


async def test_tokens_are_kept_of_a_run_that_was_ended_and_waits_for_an_approval(
    database: Database, spans: InMemorySpanExporter
) -> None:
    """It is not gone on with, so row and span have all that is ever to come."""

    @function_tool
    async def finish() -> str:
        """Think that all is done."""
        run = ax.activity.current()
        assert run is not None
        return str(await ax.activity.aio.complete(run.agent_id))

    @function_tool(needs_approval=True)
    async def pay() -> str:
        """Pay."""
        return "paid"

    result = await Runner.run(agent(call("finish"), call("pay"), tools=[finish, pay]), "go")
    assert result.interruptions
    assert (only(database).status, only(database).requests) == ("COMPLETE", 2)
    (span,) = spans.get_finished_spans()
    assert (span.attributes or {})["agentexec.requests"] == 2


@pytest.mark.parametrize("says", ["nothing", "run.update"])
async def test_a_run_that_is_canceled_and_retried_at_once_is_stopped(
    database: Database, spans: InMemorySpanExporter, says: str
) -> None:
    """It takes nothing of the next attempt, which waits for somebody else; its span says that it was canceled."""
    retried = asyncio.Event()

    @function_tool
    async def work() -> str:
        """Work on while the user changes their mind."""
        run = ax.activity.current()
        assert run is not None
        await asyncio.to_thread(ax.activity.cancel, run.agent_id)
        assert await asyncio.to_thread(ax.activity.retry, run.agent_id) == 2
        if says == "run.update":
            run.update("Still at work.")
        retried.set()
        return "worked"

    with pytest.raises(ax.ActivityCanceledError):
        await Runner.run(agent(call("work"), say("never"), tools=[work]), "go")
    assert retried.is_set()
    activity = only(database)
    assert (activity.status, activity.requests) == ("QUEUED", None)
    assert [line.message for line in activity.logs if line.attempt == 2] == ["Waiting to start."]
    (span,) = spans.get_finished_spans()
    assert (span.attributes or {})["agentexec.status"] == "CANCELED"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of what the SDK leaves half done
@pytest.mark.parametrize("how", ["Runner", "Runner in a trace", "OpenAIRunner"])
def test_a_stream_whose_loop_is_closed_under_it_is_canceled(database: Database, how: str) -> None:
    """Once its task is gone: nobody can go on with it. The trace that it was begun in ends, too."""
    agent_id = ax.activity.create("Agent")
    runner: Any = ax.OpenAIRunner(agent_id) if how == "OpenAIRunner" else Runner
    config = RunConfig(trace_id=f"trace_{agent_id.hex}") if how == "Runner" else None
    around = trace("Chat", trace_id=f"trace_{agent_id.hex}") if "trace" in how else contextlib.nullcontext()

    async def start() -> None:
        with around:
            runner.run_streamed(agent(*look_ups(9), seconds=10), "go", run_config=config)
        await asyncio.sleep(0.05)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(start())
    loop.close()
    gc.collect()
    assert only(database).status == "CANCELED"
