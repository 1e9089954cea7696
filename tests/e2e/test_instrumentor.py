"""`AgentExecInstrumentor`: runs of an application that knows nothing of activities, on SQLite with a scripted model."""

import asyncio
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import agents
import pytest
from agents import (
    Agent,
    OpenAIConversationsSession,
    RunConfig,
    RunContextWrapper,
    RunHooks,
    Runner,
    RunState,
    SQLiteSession,
    Tool,
    function_tool,
)
from agents.run import AgentRunner, set_default_agent_runner
from agents.tracing import TracingProcessor
from openai import APIConnectionError, AsyncOpenAI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import agentexec_otel as ax
from tests.conftest import reset_runtime
from tests.databases import Database
from tests.e2e.instrumented import activities, gated_engine, lines, only, processors, runs_done
from tests.e2e.scripted import CACHED_TOKENS, INPUT_TOKENS, OUTPUT_TOKENS, REASONING_TOKENS, agent, call, look_ups, say

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture(autouse=True)
def sdk(instrumented: None) -> None:
    """Every test has the SDK instrumented, and its traces go nowhere else."""


@pytest.fixture(autouse=True)
def nothing_attached_nothing_logged(sdk: None, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """After each test no span or activity is current, and neither OpenTelemetry nor we have complained."""
    with caplog.at_level(logging.INFO):
        yield
    assert not trace.get_current_span().get_span_context().is_valid
    assert ax.activity.current() is None
    about = ("opentelemetry", "agentexec_otel", "asyncio")
    logged = caplog.get_records("call")
    assert [record.getMessage() for record in logged if record.name.startswith(about)] == []


# -- an activity per top-level run ------------------------------------------------------------------------------


async def test_a_run_is_an_activity(database: Database, spans: InMemorySpanExporter) -> None:
    """Named after the starting agent, COMPLETE, with the run's tokens and calls on the row and on the one root span."""
    await Runner.run(agent(*look_ups(1), say("found it"), name="Researcher"), "go")
    activity = only(database)
    assert (activity.agent_type, activity.status) == ("Researcher", "COMPLETE")
    assert (activity.input_tokens, activity.output_tokens, activity.requests) == (
        2 * INPUT_TOKENS,
        2 * OUTPUT_TOKENS,
        2,
    )
    assert (activity.cached_input_tokens, activity.reasoning_tokens) == (2 * CACHED_TOKENS, 2 * REASONING_TOKENS)
    (span,) = spans.get_finished_spans()
    told_by_span = span.attributes or {}
    assert span.name == "Researcher"
    assert told_by_span["gen_ai.usage.cache_read.input_tokens"] == 2 * CACHED_TOKENS
    assert told_by_span["gen_ai.usage.input_tokens"] == 2 * INPUT_TOKENS
    assert told_by_span["agentexec.requests"] == 2


async def test_what_the_run_config_says_is_on_the_activity(database: Database) -> None:
    """The workflow's name is the type, ``trace_metadata`` and ``group_id`` the metadata, whatever values they hold."""
    config = RunConfig(workflow_name="Support", group_id="chat 7", trace_metadata={"tenant": "t1", "when": object})
    await Runner.run(agent(say("done")), "go", run_config=config)
    activity = only(database)
    assert activity.agent_type == "Support"
    assert activity.metadata == {"group_id": "chat 7", "tenant": "t1", "when": str(object)}
    assert config.trace_id is None


@pytest.mark.parametrize(
    ("options", "metadata", "conversation"),
    [
        ({"conversation_id": "conv_1"}, {"conversation_id": "conv_1"}, ("conv_1", "conv_1")),
        ({"run_config": RunConfig(group_id="g")}, {"group_id": "g", "session_id": "s"}, ("g", "s")),
        ({}, {"session_id": "s"}, ("s", "s")),
    ],
    ids=["conversation of OpenAI", "session and group", "session"],
)
async def test_the_conversation_of_a_run_is_on_its_span(
    database: Database,
    spans: InMemorySpanExporter,
    options: dict[str, Any],
    metadata: dict[str, Any],
    conversation: tuple[str, str],
) -> None:
    """The ids that the SDK is given are metadata, and those that name a conversation for tracing backends."""
    session = None if "conversation_id" in options else SQLiteSession("s")
    await Runner.run(agent(say("done")), "go", session=session, **options)
    if session is not None:
        session.close()
    assert only(database).metadata == metadata
    (span,) = spans.get_finished_spans()
    found = span.attributes or {}
    assert (found["gen_ai.conversation.id"], found["session.id"]) == conversation


async def test_a_session_without_an_id_yet(database: Database) -> None:
    """That of a conversation which OpenAI has still to create: the run is tracked all the same, here until it fails."""
    async with AsyncOpenAI(api_key="none", base_url="http://127.0.0.1:9/v1", max_retries=0) as client:
        session: Any = OpenAIConversationsSession(openai_client=client)
        with pytest.raises(APIConnectionError):
            await Runner.run(agent(say("done")), "go", session=session)
    assert (only(database).metadata, only(database).status) == (None, "ERROR")


class Unspeakable:
    """What has no text."""

    def __str__(self) -> str:
        raise LookupError("no words")

    __repr__ = __str__


@pytest.mark.parametrize(
    ("metadata", "kept"),
    [("text", None), ({"it": Unspeakable()}, {"it": "<Unspeakable>"}), ({Unspeakable(): 1}, {"<Unspeakable>": 1})],
    ids=["no mapping", "value", "key"],
)
async def test_no_metadata_keeps_a_run_from_being_tracked(database: Database, metadata: Any, kept: object) -> None:
    """What has no text is told by its type, and what is no mapping is left out."""
    await Runner.run(agent(say("done")), "go", run_config=RunConfig(trace_metadata=metadata))
    with agents.trace("Chat", metadata=metadata):
        pass
    assert [(one.status, one.metadata) for one in activities(database)] == [("COMPLETE", kept)] * 2


@pytest.mark.parametrize("config", [5, {"unknown": 1}], ids=["no configuration", "unknown setting"])
async def test_what_is_no_configuration_is_refused_by_the_sdk(database: Database, config: Any) -> None:
    """The application sees the SDK's own error, and its activity ends with that."""
    with pytest.raises(TypeError, match="run_config"):
        await Runner.run(agent(say("done")), "go", run_config=config)
    assert (only(database).status, only(database).error_type) == ("ERROR", "TypeError")


async def test_the_sdks_trace_has_the_activitys_id(database: Database) -> None:
    """Both dashboards show the same id."""
    seen: list[str] = []

    class Listener(Quiet):
        def on_trace_start(self, trace: Any) -> None:
            seen.append(trace.trace_id)

    agents.add_trace_processor(Listener())
    await Runner.run(agent(say("done")), "go")
    assert seen == [f"trace_{only(database).agent_id.hex}"]


async def test_a_trace_id_of_the_application_names_the_activity(database: Database) -> None:
    """Where it is a UUID; another one is kept in the metadata."""
    wanted = uuid4()
    await Runner.run(agent(say("done")), "go", run_config=RunConfig(trace_id=f"trace_{wanted.hex}"))
    await Runner.run(agent(say("done")), "go", run_config=RunConfig(trace_id="trace_of_mine"))
    second, first = activities(database)
    assert (first.agent_id, first.metadata) == (wanted, None)
    assert second.metadata == {"trace_id": "trace_of_mine"}


async def test_an_activity_that_waits_is_run_by_its_id(database: Database) -> None:
    """What a web process has created as QUEUED is what runs, not a second one."""
    agent_id = await ax.activity.aio.create("import", metadata={"tenant": "t1"})
    await Runner.run(agent(say("done")), "go", run_config=RunConfig(trace_id=f"trace_{agent_id.hex}"))
    assert (only(database).agent_id, only(database).status) == (agent_id, "COMPLETE")


@pytest.mark.parametrize("how", ["waits", "was retried", "is new"])
async def test_an_activity_that_could_not_be_read_in_time_is_run_all_the_same(
    database: Database,
    spans: InMemorySpanExporter,
    tracer_provider: TracerProvider,
    how: str,
) -> None:
    """A stream does not wait for a slow database to tell whether its activity exists: it is found out behind that."""
    agent_id = uuid4() if how == "is new" else await ax.activity.aio.create("import")
    if how == "was retried":
        await asyncio.to_thread(ax.activity.error, agent_id, "no luck")
        await asyncio.to_thread(ax.activity.retry, agent_id)
    reset_runtime()  # Another process has done that.
    spans.clear()
    engine, gate = gated_engine(database)
    ax.configure(engine, tracer_provider=tracer_provider)
    config = RunConfig(trace_id=f"trace_{agent_id.hex}")
    gate.clear()
    result = Runner.run_streamed(agent(say("done")), "go", run_config=config)
    gate.set()
    async for _ in result.stream_events():
        pass
    await runs_done()
    activity = only(database)
    assert (activity.agent_id, activity.agent_type) == (agent_id, "Agent" if how == "is new" else "import")
    assert (activity.status, activity.requests) == ("COMPLETE", 1)
    assert not any(line.late for line in activity.logs)
    assert len(spans.get_finished_spans()) == 1


async def test_a_trace_id_that_is_used_again_is_another_activity(database: Database) -> None:
    """A conversation of several runs under one trace id keeps an activity for each, and finds them by it."""
    config = RunConfig(trace_id=f"trace_{uuid4().hex}")
    for _ in range(2):
        await Runner.run(agent(say("done")), "go", run_config=config)
    second, first = activities(database)
    assert (first.status, second.status) == ("COMPLETE", "COMPLETE")
    assert second.metadata == {"trace_id": config.trace_id}


async def test_runs_in_a_trace_are_one_activity(database: Database, spans: InMemorySpanExporter) -> None:
    """The application's `trace(...)` is what is tracked, with the tokens of all runs in it."""
    with agents.trace("Two steps", group_id="g", metadata={"tenant": "t1"}) as sdk_trace:
        await Runner.run(agent(say("done")), "go")
        await asyncio.gather(*(Runner.run(agent(say("done")), "go") for _ in range(2)))
        stream = Runner.run_streamed(agent(say("done")), "go")
        async for _ in stream.stream_events():
            pass
    activity = only(database)
    assert f"trace_{activity.agent_id.hex}" == sdk_trace.trace_id
    assert (activity.agent_type, activity.status) == ("Two steps", "COMPLETE")
    assert activity.metadata == {"group_id": "g", "tenant": "t1"}
    assert (activity.input_tokens, activity.requests) == (4 * INPUT_TOKENS, 4)
    assert len(spans.get_finished_spans()) == 1


@pytest.mark.parametrize("status", ["COMPLETE", "ERROR"])
async def test_a_stream_that_is_read_behind_its_trace_decides(
    database: Database, spans: InMemorySpanExporter, status: str
) -> None:
    """The activity of a trace does not end before the runs that were begun in it, and has their tokens."""
    answer: Any = say("done") if status == "COMPLETE" else ConnectionError("no route")
    with agents.trace("Chat"):
        streams = [Runner.run_streamed(agent(*look_ups(2), each, seconds=0.01), "go") for each in (answer, say("done"))]
    assert ax.activity.current() is None
    for stream in streams:
        await asyncio.wait([cast("asyncio.Task[Any]", stream.run_loop_task)])
    await runs_done()
    activity = only(database)
    assert (activity.agent_type, activity.status) == ("Chat", status)
    assert (activity.requests, activity.input_tokens) == ((6, 60) if status == "COMPLETE" else (5, 50))
    (span,) = spans.get_finished_spans()
    assert (span.attributes or {})["agentexec.status"] == status


async def test_what_a_stream_behind_its_trace_gets_over_is_no_error(database: Database) -> None:
    """An agent that fails as a tool fails that tool; the run around it decides."""
    inner = agent(ConnectionError("no route"), name="Inner")
    outer = agent(call("ask", input="go"), say("done anyway"), tools=[inner.as_tool("ask", "Ask.")], seconds=0.02)
    with agents.trace("Chat"):
        stream = Runner.run_streamed(outer, "go")
    async for _ in stream.stream_events():
        pass
    await runs_done()
    assert stream.final_output == "done anyway"
    assert (only(database).status, only(database).requests) == ("COMPLETE", 2)


async def test_traces_of_one_id_at_the_same_time_are_one_activity(database: Database) -> None:
    """It has the tokens of the runs in both, and ends with the one that began it, not with the one that ends first."""
    trace_id = agents.gen_trace_id()
    opened, over = asyncio.Event(), asyncio.Event()

    async def long() -> None:
        with agents.trace("Chat", trace_id=trace_id):
            await Runner.run(agent(say("done")), "go")
            opened.set()
            await over.wait()
            assert (await asyncio.to_thread(only, database)).status == "RUNNING"
            await Runner.run(agent(say("done")), "go")

    async def short() -> None:
        await opened.wait()
        with agents.trace("Chat", trace_id=trace_id):
            await Runner.run(agent(say("done")), "go")
        over.set()

    await asyncio.wait_for(asyncio.gather(long(), short()), 10)
    assert (only(database).status, only(database).requests) == ("COMPLETE", 3)


async def test_a_trace_that_is_left_by_an_exception_is_an_error(database: Database) -> None:
    """Its own exception, whatever happened in it."""
    with pytest.raises(LookupError), agents.trace("Two steps"):  # noqa: PT012  # the block is what is tested
        await Runner.run(agent(say("done")), "go")
        raise LookupError("no such page")
    assert (only(database).status, only(database).error_type) == ("ERROR", "LookupError")


async def test_runs_in_a_block_belong_to_its_activity(database: Database) -> None:
    """`ax.activity.run` owns the end; the runs in it report and count."""
    async with ax.activity.run("report") as run:
        await Runner.run(agent(*look_ups(1), say("done")), "go")
        run.update("Halfway", 50)
        await Runner.run(agent(say("done")), "go")
    activity = only(database)
    assert (activity.agent_type, activity.status, activity.requests) == ("report", "COMPLETE", 3)


@pytest.mark.parametrize("how", ["ends", "is ended inside"])
@pytest.mark.parametrize("streamed", [False, True], ids=["run", "streamed"])
async def test_a_block_does_not_wait_for_a_run_that_outlives_it(
    database: Database, spans: InMemorySpanExporter, streamed: bool, how: str
) -> None:
    """Its row and its span end with it; the run's later lines are late, and it has no activity of its own."""
    busy = agent(*look_ups(2), say("done"), seconds=0.05)
    async with ax.activity.run("block") as run:
        if streamed:
            outliving = Runner.run_streamed(busy, "go").run_loop_task
        else:
            outliving = asyncio.create_task(Runner.run(busy, "go"))
            await asyncio.sleep(0.02)
        if how == "is ended inside":
            await ax.activity.aio.complete(run.agent_id, "Enough.")
    assert outliving is not None
    await asyncio.wait([outliving])
    await runs_done()
    assert (only(database).agent_type, only(database).status) == ("block", "COMPLETE")
    assert [span.name for span in spans.get_finished_spans()] == ["block"]


async def test_an_agent_as_a_tool_belongs_to_the_run_around_it(database: Database) -> None:
    """One activity, with the tokens of both, counted once."""
    inner = agent(say("42"), name="Inner")
    await Runner.run(agent(call("ask", input="go"), say("done"), tools=[inner.as_tool("ask", "Ask.")]), "go")
    assert (only(database).requests, only(database).input_tokens) == (3, 3 * INPUT_TOKENS)


@pytest.mark.parametrize("streamed", [False, True], ids=["run", "streamed"])
@pytest.mark.parametrize("around", ["run", "resumed run", "trace"])
async def test_a_run_that_begins_behind_the_one_it_came_from_is_one_of_its_own(
    database: Database, spans: InMemorySpanExporter, around: str, streamed: bool
) -> None:
    """A task that a tool or a trace has started, and that outlives it, has an activity which ends as its run ends."""
    over = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def behind() -> None:
        await over.wait()
        later = agent(*look_ups(1), say("done"), name="Later")
        if not streamed:
            await Runner.run(later, "go")
            return
        async for _ in Runner.run_streamed(later, "go").stream_events():
            pass

    @function_tool(needs_approval=around == "resumed run")
    async def start() -> str:
        """Leave something to be done later."""
        tasks.append(asyncio.create_task(behind()))
        return "started"

    if around == "trace":
        with agents.trace("First"):
            tasks.append(asyncio.create_task(behind()))
    else:
        first = agent(call("start"), say("done"), name="First", tools=[start])
        result = await Runner.run(first, "go")
        if result.interruptions:
            state = result.to_state()
            state.approve(result.interruptions[0])
            await Runner.run(first, state)
    over.set()
    await asyncio.wait_for(asyncio.gather(*tasks), 10)
    await runs_done()
    later, first_of_all = activities(database)
    assert (later.agent_type, later.status, later.requests) == ("Later", "COMPLETE", 2)
    assert (first_of_all.agent_type, first_of_all.status) == ("First", "COMPLETE")
    assert sorted(span.name for span in spans.get_finished_spans()) == ["First", "Later"]


@pytest.mark.parametrize("around", ["run", "trace"])
def test_a_run_in_a_forked_process_is_one_of_its_own(database: Database, around: str) -> None:
    """The trace around the fork is the parent's to end, and its activity's id is taken."""

    def work() -> None:
        if pid := os.fork():
            assert os.waitpid(pid, 0)[1] == 0
            return
        with suppress(BaseException):
            Runner.run_sync(agent(*look_ups(1), say("done"), name="Child"), "go")
            os._exit(0 if ax.flush(5) else 1)
        os._exit(2)

    @function_tool
    def fork() -> str:
        """Work in another process."""
        work()
        return "done"

    async def run() -> None:
        if around == "run":
            await Runner.run(agent(call("fork"), say("done"), name="Parent", tools=[fork]), "go")
        else:
            with agents.trace("Parent"):
                await asyncio.to_thread(work)

    asyncio.run(run())
    found = {activity.agent_type: (activity.status.value, activity.requests) for activity in activities(database)}
    assert found == {"Parent": ("COMPLETE", 2 if around == "run" else 0), "Child": ("COMPLETE", 2)}


@pytest.mark.usefixtures("default_loop")
def test_a_forked_process_that_leaves_a_trace_does_not_end_it(database: Database) -> None:
    """What is the parent's stays open in the parent, which ends it itself."""
    try:
        with agents.trace("Parent"):
            Runner.run_sync(agent(say("done")), "go")
            assert ax.flush(5)
            child = os.fork()
            if not child:
                sys.exit(3)
            assert os.waitpid(child, 0)[1] == 0
            assert only(database).status == "RUNNING"
            Runner.run_sync(agent(say("done")), "go")
    except SystemExit:  # in the child
        os._exit(0 if ax.flush(5) else 1)
    assert (only(database).status, only(database).requests) == ("COMPLETE", 2)


async def test_runs_at_the_same_time_do_not_mix(database: Database) -> None:
    """Each has its own id, lines and tokens."""
    await asyncio.gather(*(Runner.run(agent(*look_ups(n), say("done"), name=f"A{n}"), "go") for n in range(5)))
    assert {activity.agent_type: activity.requests for activity in activities(database)} == {
        f"A{n}": n + 1 for n in range(5)
    }


async def test_the_openai_runner_keeps_its_activity(database: Database) -> None:
    """An instrumented `OpenAIRunner` opens no second activity, and gets the lines of its steps."""
    agent_id = await ax.activity.aio.create("research")
    await ax.OpenAIRunner(agent_id).run(agent(*look_ups(1), say("done")), "go")
    activity = only(database)
    assert (activity.agent_id, activity.requests) == (agent_id, 2)
    assert lines(activity) == ["Turn 1: Agent", "Calling look_up", "Turn 2: Agent"]


@function_tool(needs_approval=True)
async def pay() -> str:
    """Pay."""
    return "paid"


@pytest.mark.parametrize("streamed", [False, True], ids=["run", "streamed"])
@pytest.mark.parametrize("how", ["tracing disabled", "trace id of mine", "trace id used before", "within a trace"])
async def test_a_run_that_waits_is_resumed_whatever_its_trace_id(database: Database, how: str, streamed: bool) -> None:
    """Its state names the activity where the SDK's trace id does not; nothing stays RUNNING for ever."""
    trace_id = {"trace id of mine": "trace_of_mine", "trace id used before": f"trace_{uuid4().hex}"}.get(how)
    config = RunConfig(tracing_disabled=how == "tracing disabled", trace_id=trace_id)
    what = agent(call("pay"), say("done"), tools=[pay])

    async def run(given: Any) -> Any:
        if not streamed:
            return await Runner.run(what, given, run_config=config)
        result = Runner.run_streamed(what, given, run_config=config)
        async for _ in result.stream_events():
            pass
        return result

    if how == "trace id used before":
        await Runner.run(agent(say("done"), name="Before"), "go", run_config=config)
    result = await run("go")
    state = result.to_state()
    state.approve(result.interruptions[0])
    if how == "within a trace":
        with agents.trace("Request"):
            await run(state)
    else:
        await run(state)
    found = {activity.agent_type: (activity.status.value, activity.requests) for activity in activities(database)}
    others = {"trace id used before": {"Before": ("COMPLETE", 1)}, "within a trace": {"Request": ("COMPLETE", 0)}}
    assert found == {"Agent": ("COMPLETE", 2), **others.get(how, {})}


async def test_a_state_that_is_resumed_twice_is_two_activities(database: Database) -> None:
    """The first has ended with the first; each has the tokens of its own model calls."""
    what = agent(call("pay"), say("done"), say("done again"), tools=[pay])
    result = await Runner.run(what, "go")
    state = result.to_state()
    state.approve(result.interruptions[0])
    again: Any = await RunState.from_string(what, state.to_string())
    await Runner.run(what, state)
    await Runner.run(what, again)
    second, first = activities(database)
    assert (first.status, first.requests, second.status, second.requests) == ("COMPLETE", 2, "COMPLETE", 1)


@pytest.mark.parametrize("runner", ["Runner", "Runner streamed, slowly", "OpenAIRunner"])
async def test_a_run_that_is_resumed_by_another_process_keeps_its_tokens(database: Database, runner: str) -> None:
    """Those that were spent before it waited are in the totals, too; a database may take its time to say so."""
    what = agent(*look_ups(2), call("pay"), say("done"), tools=[pay])

    def runs() -> Any:
        return ax.OpenAIRunner(agent_id) if runner == "OpenAIRunner" else Runner

    agent_id = await ax.activity.aio.create("research")
    result = await runs().run(what, "go")
    written = result.to_state().to_string()
    waiting = activities(database)[0].agent_id
    reset_runtime()
    engine, gate = gated_engine(database)
    ax.configure(engine)
    state: Any = await RunState.from_string(what, written)
    state.approve(state.get_interruptions()[0])
    if "streamed" in runner:
        gate.clear()
        stream = Runner.run_streamed(what, state)
        gate.set()
        async for _ in stream.stream_events():
            pass
        await runs_done()
    else:
        await runs().run(what, state)
    (activity,) = (each for each in activities(database) if each.agent_id == waiting)
    assert (activity.status, activity.requests, activity.input_tokens) == ("COMPLETE", 4, 4 * INPUT_TOKENS)


RESUMED_ELSEWHERE = """
import asyncio, sys
import agents
from agents import Runner, RunState
import agentexec_otel as ax
from tests.e2e.scripted import agent, call
from tests.e2e.test_instrumentor import pay

async def main():
    what = agent(call("pay"), tools=[pay])
    state = await RunState.from_string(what, sys.stdin.read())
    state.approve(state.get_interruptions()[0])
    return (await Runner.run(what, state)).to_state().to_string()

agents.set_trace_processors([])
ax.AgentExecInstrumentor().instrument()
print(asyncio.run(main()))
ax.shutdown()
"""


async def test_a_run_that_comes_back_from_another_process_counts_all_tokens_once(database: Database) -> None:
    """Those that were spent here, those that were spent there, and those after that."""
    what = agent(*look_ups(1), call("pay"), say("done"), tools=[pay])
    result = await Runner.run(what, "go")
    waiting = only(database).agent_id
    environment = {**os.environ, "AGENTEXEC_DATABASE_URL": str(database.url), "AGENTEXEC_SPOOL_DIR": "off"}
    elsewhere = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", RESUMED_ELSEWHERE],
        input=result.to_state().to_string(),
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert elsewhere.returncode == 0, elsewhere.stderr[-2_000:]
    state: Any = await RunState.from_string(what, elsewhere.stdout)
    state.approve(state.get_interruptions()[0])
    await Runner.run(what, state)
    activity = only(database)
    assert (activity.agent_id, activity.status) == (waiting, "COMPLETE")
    assert (activity.requests, activity.input_tokens) == (4, 4 * INPUT_TOKENS)


async def test_a_run_that_waited_in_another_database_is_a_new_activity(database: Database, tmp_path: Path) -> None:
    """Its own is not there to go on with; nothing of it is refused."""
    ax.configure(f"sqlite:///{tmp_path / 'another.db'}", create_tables=True)
    what = agent(call("pay"), say("done"), tools=[pay])
    written = (await Runner.run(what, "go")).to_state().to_string()
    assert ax.flush(5)
    ax.configure(database.url)
    state: Any = await RunState.from_string(what, written)
    state.approve(state.get_interruptions()[0])
    assert (await Runner.run(what, state)).final_output == "done"
    assert (only(database).status, only(database).requests) == ("COMPLETE", 1)


async def test_a_run_waits_for_no_thread(database: Database) -> None:
    """The application may keep all threads of its event loop busy, even with what waits for this very run."""
    busy = threading.Event()
    threads = ThreadPoolExecutor(1)
    loop = asyncio.get_running_loop()
    loop.set_default_executor(threads)
    waiting = loop.run_in_executor(None, busy.wait, 20)
    agent_id = uuid4()
    config = RunConfig(trace_id=f"trace_{agent_id.hex}")
    try:
        await asyncio.wait_for(Runner.run(agent(say("done")), "go", run_config=config), 5)
    finally:
        busy.set()
        await waiting
    assert (only(database).agent_id, only(database).status) == (agent_id, "COMPLETE")


# -- what it leaves alone ---------------------------------------------------------------------------------------


class Quiet(TracingProcessor):
    """A processor of somebody else."""

    def on_trace_start(self, trace: Any) -> None: ...
    def on_trace_end(self, trace: Any) -> None: ...
    def on_span_start(self, span: Any) -> None: ...
    def on_span_end(self, span: Any) -> None: ...
    def shutdown(self) -> None: ...
    def force_flush(self) -> None: ...


def test_instrumenting_twice_is_instrumenting_once(caplog: pytest.LogCaptureFixture) -> None:
    """Also after uninstrumenting, which restores the SDK and leaves the processors of others."""
    instrumentor = ax.AgentExecInstrumentor()
    others = Quiet()
    agents.add_trace_processor(others)
    wrapped = AgentRunner.run
    instrumentor.instrument()
    assert AgentRunner.run is wrapped
    caplog.clear()
    instrumentor.uninstrument()
    assert processors() == (others,)
    assert AgentRunner.run is wrapped.__wrapped__  # type: ignore[attr-defined]
    instrumentor.instrument()


async def test_uninstrumented_runs_are_not_tracked(database: Database) -> None:
    """Also through a wrapper that somebody has put over ours and that cannot be taken off."""
    wrapped = AgentRunner.run

    async def other(*args: Any, **kwargs: Any) -> Any:
        return await wrapped(*args, **kwargs)

    AgentRunner.run = other  # type: ignore[method-assign]
    instrumentor = ax.AgentExecInstrumentor()
    try:
        instrumentor.uninstrument()
        assert cast(Any, AgentRunner.run) is other
        await Runner.run(agent(say("done")), "go")
        assert activities(database) == []
        instrumentor.instrument()
        await Runner.run(agent(say("done")), "go")
        assert only(database).status == "COMPLETE"
    finally:
        instrumentor.uninstrument()
        AgentRunner.run = wrapped.__wrapped__  # type: ignore[method-assign, attr-defined]
        instrumentor.instrument()


async def test_a_library_that_replaces_all_processors_takes_nothing(database: Database) -> None:
    """Runs are wrapped, and the next run puts the processor back for the traces of the application."""
    agents.set_trace_processors([Quiet()])
    with agents.trace("Two steps"):
        await Runner.run(agent(say("done")), "go")
        await Runner.run(agent(say("done")), "go")
    assert (only(database).agent_type, only(database).status, only(database).requests) == ("Two steps", "COMPLETE", 2)


async def test_hooks_of_the_application_are_called(database: Database) -> None:
    """All of them, and what is no hooks is refused by the SDK as before."""
    heard: list[str] = []

    class Mine(RunHooks[Any]):
        async def on_tool_start(self, context: RunContextWrapper[Any], agent: Agent[Any], tool: Tool) -> None:
            heard.append(tool.name)

        async def on_agent_end(self, context: Any, agent: Any, output: Any) -> None:
            heard.append(str(output))

        async def on_handoff(self, context: Any, from_agent: Any, to_agent: Any) -> None:
            heard.append(to_agent.name)

    second = agent(*look_ups(1), say("done"), name="Second")
    first = agent(call("transfer_to_second"), handoffs=[second])
    await Runner.run(first, "go", hooks=Mine())
    assert heard == ["Second", "look_up", "done"]
    with pytest.raises(TypeError):
        await Runner.run(agent(say("done")), "go", hooks=cast(Any, "none"))


async def test_a_runner_of_the_application_is_tracked(database: Database) -> None:
    """One that inherits `AgentRunner` and calls it, and one that does everything by itself, by its trace."""

    class Own(AgentRunner):
        async def run(self, starting_agent: Any, input: Any, **kwargs: Any) -> Any:  # noqa: A002
            return await super().run(starting_agent, input, **kwargs)

    try:
        set_default_agent_runner(Own())
        await Runner.run(agent(say("done"), name="Own"), "go")
    finally:
        set_default_agent_runner(None)
    assert (only(database).agent_type, only(database).requests) == ("Own", 1)


@pytest.mark.usefixtures("default_loop")
def test_the_model_provider_that_the_sdk_makes_is_still_its_own(database: Database) -> None:
    """A trace id is given to a run without making a configuration whose provider the SDK would not close."""
    closed: list[bool] = []

    class Watched(AgentRunner):
        async def _run_impl(self, *args: Any, **kwargs: Any) -> Any:
            provider = kwargs["run_config"].model_provider
            original = provider.aclose

            async def aclose() -> None:
                closed.append(True)
                await original()

            provider.aclose = aclose
            return await super()._run_impl(*args, **kwargs)

    try:
        set_default_agent_runner(Watched())
        Runner.run_sync(agent(say("done")), "go")
    finally:
        set_default_agent_runner(None)
    assert closed == [True]


# -- spans of the official instrumentation ----------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False], ids=["instrumented before", "instrumented after"])
async def test_genai_spans_nest_under_the_activity(
    database: Database, spans: InMemorySpanExporter, tracer_provider: TracerProvider, first: bool
) -> None:
    """Of a run, of a stream and of the application's trace, in whichever order both were instrumented."""
    genai = pytest.importorskip("opentelemetry.instrumentation.genai.openai_agents").OpenAIAgentsInstrumentor()
    ours = ax.AgentExecInstrumentor()
    if first:
        ours.uninstrument()
    genai.instrument(tracer_provider=tracer_provider)
    if first:
        ours.instrument()
    try:
        await Runner.run(agent(*look_ups(1), say("done"), name="Plain"), "go")
        stream = Runner.run_streamed(agent(say("done"), name="Streamed"), "go")
        async for _ in stream.stream_events():
            pass
        with agents.trace("Traced"):
            await Runner.run(agent(say("done")), "go")
        assert ax.flush(5)
    finally:
        genai.uninstrument()
    ended = {span.context.span_id: span for span in spans.get_finished_spans() if span.context is not None}
    roots = [span.name for span in ended.values() if span.parent is None]
    parents = {span.name: ended[span.parent.span_id].name for span in ended.values() if span.parent is not None}
    assert roots == ["Plain", "Streamed", "Traced"]
    assert parents["execute_tool look_up"] == "invoke_agent Plain"
    assert parents["invoke_agent Plain"] == "invoke_workflow Agent workflow"
    assert parents["invoke_workflow Traced"] == "Traced"
    assert {
        span.name
        for span in ended.values()
        if str(span.instrumentation_scope and span.instrumentation_scope.name) == "agentexec_otel"
    } == set(roots)


# -- tracing disabled, nothing configured, no database ----------------------------------------------------------


async def test_runs_are_tracked_where_tracing_is_disabled(database: Database) -> None:
    """By one run, with lines and tokens, though the SDK makes no spans."""
    await Runner.run(agent(*look_ups(1), say("done")), "go", run_config=RunConfig(tracing_disabled=True))
    activity = only(database)
    assert (activity.status, activity.requests) == ("COMPLETE", 2)
    assert lines(activity) == ["Turn 1: Agent", "Calling look_up", "Turn 2: Agent"]


@pytest.mark.usefixtures("default_loop")
def test_run_sync_is_one_activity(database: Database) -> None:
    """Though it calls `run`, and works inside of no event loop."""
    Runner.run_sync(agent(*look_ups(1), say("done")), "go")
    assert (only(database).status, only(database).requests) == ("COMPLETE", 2)
    assert lines(only(database)) == ["Turn 1: Agent", "Calling look_up", "Turn 2: Agent"]
