"""How runs can end, each for real, and what one tracing library says of them.

``python -m tests.e2e.outcome_scenarios LIBRARY...`` prints JSON: what was said at the root, by library and scenario. A
fork per library, since they patch the same places, and importing the SDK takes longer than playing. `processor` is ours
with its trace processor alone, `untraced` ours where the application has disabled the SDK's tracing, `together` ours
with all others at work in the same process.
"""

import asyncio
import gc
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import agents
from agents import (
    Agent,
    GuardrailFunctionOutput,
    RunContextWrapper,
    RunErrorHandlerInput,
    RunErrorHandlerResult,
    Runner,
    input_guardrail,
    output_guardrail,
)
from agents.testing import ModelCall, ModelStep, ScriptedModel
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.instrumentation.openai_agents._trace_processor import ActivityTraceProcessor
from tests.e2e.scripted import agent, call, look_ups, say

OURS = ("ours", "processor", "untraced", "together")
OTHERS = ("openinference", "logfire", "official")
LIBRARIES = {
    "ours": "agentexec-otel",
    "processor": "agentexec-otel",
    "untraced": "agentexec-otel",
    "together": "agentexec-otel",
    "openinference": "openinference-instrumentation-openai-agents",
    "logfire": "logfire",
    "official": "opentelemetry-instrumentation-genai-openai-agents",
}


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way to end.

    Attributes:
        status: What is true of it; with a reason, where it did not go well.
    """

    title: str
    play: Callable[[], Coroutine[Any, Any, object]] | Callable[[], object]
    status: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a library says at the root.

    Attributes:
        status: ``COMPLETE``, ``ERROR`` or ``CANCELED``, as far as the root span tells them apart; ``nothing``.
        code: The root span's status code.
        error_type: ``error.type``, or the type of the exception on the span.
        reason, row: Ours only; `row` is what the database says, in the same words.
    """

    status: str
    code: str = "no span"
    error_type: str | None = None
    reason: str | None = None
    row: tuple[str, str | None, str | None] | None = None
    roots: int = 1


# -- scenarios --------------------------------------------------------------------------------------------------


@input_guardrail
async def refuse_input(context: RunContextWrapper[Any], by: Agent[Any], given: object) -> GuardrailFunctionOutput:
    """Trip at once."""
    return GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)


@output_guardrail
async def refuse_output(context: RunContextWrapper[Any], by: Agent[Any], output: object) -> GuardrailFunctionOutput:
    """Trip at the final output."""
    return GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)


def good() -> Agent[Any]:
    """Calls a tool, then answers."""
    return agent(*look_ups(1), say("done"), seconds=0.01)


def endless() -> Agent[Any]:
    """Calls tools until somebody stops it."""
    return agent(*look_ups(9), say("done"), seconds=0.02)


async def _run(what: Agent[Any], **options: Any) -> object:
    try:
        return await Runner.run(what, "go", **options)
    except Exception as exc:  # noqa: BLE001  # whatever the run raises is how it ended
        return exc


async def _read(what: Agent[Any], **options: Any) -> object:
    result = Runner.run_streamed(what, "go", **options)
    try:
        return [event async for event in result.stream_events()]
    except Exception as exc:  # noqa: BLE001  # whatever the run raises is how it ended
        return exc


def _run_sync_to_the_limit() -> object:
    try:
        return Runner.run_sync(endless(), "go", max_turns=2)
    except agents.MaxTurnsExceeded as exc:
        return exc


async def _limit_handled() -> object:
    def handle(_: RunErrorHandlerInput[Any]) -> RunErrorHandlerResult:
        return RunErrorHandlerResult(final_output="this far")

    return await Runner.run(endless(), "go", max_turns=2, error_handlers={"max_turns": handle})


async def _wrapped_up() -> object:
    agent_id = await ax.activity.aio.create("research")
    runner = ax.OpenAIRunner(agent_id, max_turns_recovery=True)
    return await runner.run(agent(*look_ups(2), say("this far")), "go", max_turns=2)


async def _canceled_task() -> object:
    task = asyncio.create_task(Runner.run(endless(), "go"))
    await asyncio.sleep(0.1)
    task.cancel()
    return await asyncio.gather(task, return_exceptions=True)


async def _timeout() -> object:
    try:
        async with asyncio.timeout(0.1):
            return await Runner.run(endless(), "go")
    except TimeoutError as exc:
        return exc


def _canceled_stream(mode: Any) -> Callable[[], Coroutine[Any, Any, object]]:
    async def play() -> object:
        result = Runner.run_streamed(endless(), "go")
        events = 0
        async for _ in result.stream_events():
            events += 1
            if events == 5:
                result.cancel(mode=mode)
        return events

    return play


async def _break_out() -> object:
    result = Runner.run_streamed(good(), "go")
    async for event in result.stream_events():
        if event.type == "run_item_stream_event":
            break
    await _settled(result)
    return result.final_output


async def _canceled_consumer() -> object:
    result = Runner.run_streamed(endless(), "go")

    async def consume() -> None:
        async for _ in result.stream_events():
            pass

    task = asyncio.create_task(consume())
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await _settled(result)
    return result.final_output


async def _abandoned() -> object:
    result = Runner.run_streamed(good(), "go")
    await _settled(result)
    return result.final_output


async def _settled(result: Any) -> None:
    """Let the background task of a stream come to its end."""
    gc.collect()
    await asyncio.wait([result.run_loop_task], timeout=5)
    await asyncio.sleep(0.05)


async def _inner_failure() -> object:
    inner = agent(ConnectionError("no route"), name="Inner")
    outer = agent(call("ask", input="go"), say("without it, then"), tools=[inner.as_tool("ask", "Ask.")])
    return await Runner.run(outer, "go")


async def _two_runs_in_a_trace() -> object:
    with agents.trace("Two runs"):
        failed = await _run(agent(ConnectionError("no route")))
        return failed, await Runner.run(good(), "go")


async def _inside_except() -> object:
    try:
        raise LookupError("some earlier trouble")
    except LookupError:
        return await Runner.run(good(), "go")


async def _trace_inside_except() -> object:
    try:
        raise LookupError("some earlier trouble")
    except LookupError:
        with agents.trace("Second try"):
            return await Runner.run(good(), "go")


def _keyboard_interrupt() -> object:
    async def interrupt(_: ModelCall) -> Any:
        raise KeyboardInterrupt

    what = Agent(name="Agent", model=ScriptedModel([ModelStep.respond(interrupt)]))
    try:
        return Runner.run_sync(what, "go")
    except KeyboardInterrupt as exc:
        return exc


async def _handoffs() -> object:
    third = agent(say("done"), name="Third")
    second = agent(call("transfer_to_third"), name="Second", handoffs=[third])
    return await Runner.run(agent(call("transfer_to_second"), name="First", handoffs=[second]), "go")


SCENARIOS = [
    Scenario("a run that returns", lambda: _run(good()), "COMPLETE"),
    Scenario("a stream that is read", lambda: _read(good()), "COMPLETE"),
    Scenario("a tool fails, the model goes on", lambda: _run(agent(call("fails"), say("done"))), "COMPLETE"),
    Scenario("a tool raises into the run", lambda: _run(agent(call("broken"))), "ERROR", "tool"),
    Scenario("max turns in `run`", lambda: _run(endless(), max_turns=2), "ERROR", "max_turns"),
    Scenario("max turns in `run_sync`", _run_sync_to_the_limit, "ERROR", "max_turns"),
    Scenario("max turns in `run_streamed`", lambda: _read(endless(), max_turns=2), "ERROR", "max_turns"),
    Scenario("max turns, handled by an error handler", _limit_handled, "COMPLETE"),
    Scenario("max turns, wrapped up by `OpenAIRunner`", _wrapped_up, "COMPLETE"),
    Scenario("the model raises", lambda: _run(agent(ConnectionError("no route"))), "ERROR", "connection"),
    Scenario("the model calls an unknown tool", lambda: _run(agent(call("nowhere"))), "ERROR", "model_behavior"),
    Scenario(
        "an input guardrail trips in `run`",
        lambda: _run(agent(say("done"), input_guardrails=[refuse_input])),
        "ERROR",
        "guardrail_input",
    ),
    Scenario(
        "an input guardrail trips in `run_streamed`",
        lambda: _read(agent(say("done"), input_guardrails=[refuse_input])),
        "ERROR",
        "guardrail_input",
    ),
    Scenario(
        "an output guardrail trips in `run`",
        lambda: _run(agent(say("done"), output_guardrails=[refuse_output])),
        "ERROR",
        "guardrail_output",
    ),
    Scenario(
        "an output guardrail trips in `run_streamed`",
        lambda: _read(agent(say("done"), output_guardrails=[refuse_output])),
        "ERROR",
        "guardrail_output",
    ),
    Scenario("`task.cancel()`", _canceled_task, "CANCELED", "canceled"),
    Scenario("`asyncio.timeout` around the run", _timeout, "CANCELED", "canceled"),
    Scenario("`cancel()` on a stream", _canceled_stream("immediate"), "CANCELED", "canceled"),
    Scenario('`cancel(mode="after_turn")` on a stream', _canceled_stream("after_turn"), "CANCELED", "canceled"),
    Scenario("the consumer breaks out, the run goes on", _break_out, "COMPLETE"),
    Scenario("the consumer of a stream is canceled", _canceled_consumer, "CANCELED", "canceled"),
    Scenario("a stream that nobody reads", _abandoned, "COMPLETE"),
    Scenario("an agent as a tool fails, the outer one goes on", _inner_failure, "COMPLETE"),
    Scenario("`trace()` around a failing run, caught, and a good one", _two_runs_in_a_trace, "COMPLETE"),
    Scenario("a run inside an `except` block", _inside_except, "COMPLETE"),
    Scenario("`trace()` inside an `except` block", _trace_inside_except, "COMPLETE"),
    Scenario("KeyboardInterrupt", _keyboard_interrupt, "CANCELED", "canceled"),
    Scenario("a chain of three handoffs", _handoffs, "COMPLETE"),
]


# -- what a library says ----------------------------------------------------------------------------------------


def installed(library: str) -> str | None:
    """The library's version, or None where it is not installed."""
    try:
        return version(LIBRARIES[library])
    except PackageNotFoundError:
        return None


def _instrument(library: str, provider: TracerProvider, spans: InMemorySpanExporter) -> None:
    if library == "processor":
        ActivityTraceProcessor().register()
    elif library == "together":
        for other in filter(installed, OTHERS):
            _instrument(other, provider, spans)
        ax.AgentExecInstrumentor().instrument()
    elif library in OURS:
        agents.set_tracing_disabled(library == "untraced")
        ax.AgentExecInstrumentor().instrument()
    elif library == "openinference":
        from openinference.instrumentation.openai_agents import OpenAIAgentsInstrumentor as OpenInference

        OpenInference().instrument(tracer_provider=provider)
    elif library == "official":
        official: Any = import_module("opentelemetry.instrumentation.genai.openai_agents")
        official.OpenAIAgentsInstrumentor().instrument(tracer_provider=provider)
    else:
        import logfire

        logfire.configure(send_to_logfire=False, console=False, additional_span_processors=[SimpleSpanProcessor(spans)])
        logfire.instrument_openai_agents()


def _verdict(roots: Sequence[ReadableSpan]) -> Verdict:
    if not roots:
        return Verdict("nothing", roots=0)
    root = roots[-1]
    told = root.attributes or {}
    raised = [dict(event.attributes or {}) for event in root.events if event.name == "exception"]
    error_type = told.get("error.type") or (raised[-1].get("exception.type") if raised else None)
    canceled = told.get("agentexec.status") == "CANCELED" or str(error_type).endswith(("CancelledError", "Interrupt"))
    failed = root.status.status_code is StatusCode.ERROR
    status = "CANCELED" if canceled else "ERROR" if failed else "COMPLETE"
    reason = told.get("agentexec.reason")
    return Verdict(
        status,
        root.status.status_code.name,
        None if error_type is None else str(error_type),
        None if reason is None else str(reason),
        roots=len(roots),
    )


def _row(library: str, url: str, seen: set[Any]) -> tuple[str, str | None, str | None] | None:
    if library not in OURS:
        return None
    engine = create_engine(url)
    with Session(engine) as session:
        found = [item for item in ax.activity.list(session, page_size=100).items if item.agent_id not in seen]
        seen.update(item.agent_id for item in found)
        if len(found) != 1:
            return f"{len(found)} activities", None, None
        detail = ax.activity.detail(session, found[0].agent_id)
    engine.dispose()
    assert detail is not None
    return detail.status.value, detail.reason, detail.error_type


def play(library: str) -> dict[str, Any]:
    """Play every scenario with this library at work; its verdicts."""
    warnings.simplefilter("ignore")
    agents.set_trace_processors([])
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    verdicts: dict[str, Any] = {}
    seen: set[Any] = set()
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'activities.db'}"
        ax.CONF.spool_dir = "off"
        ax.configure(url, create_tables=True, tracer_provider=provider if library in OURS else TracerProvider())
        _instrument(library, provider, spans)
        for scenario in SCENARIOS:
            spans.clear()
            played = scenario.play()
            if asyncio.iscoroutine(played):
                asyncio.run(played)
            assert ax.flush(10)
            ended = [span for span in spans.get_finished_spans() if not _pending(span)]
            known = {span.context.span_id for span in ended if span.context is not None}
            roots = [span for span in ended if span.parent is None or span.parent.span_id not in known]
            if library == "together":  # where ours may be beneath the others' spans of a `trace()`
                roots = [span for span in ended if _scope(span) == ax.__name__]
            verdict = asdict(_verdict(roots))
            verdict["row"] = _row(library, url, seen)
            verdicts[scenario.title] = verdict
        ax.shutdown()
    return verdicts


def played_in_a_fork(library: str) -> dict[str, Any]:
    """Play in a process of its own; raises if it fails."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with os.fdopen(writing, "w") as answer:
            json.dump(play(library), answer)
        sys.exit()
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    assert os.waitpid(child, 0)[1] == 0, f"{library} failed"
    verdicts: dict[str, Any] = json.loads(text)
    return verdicts


def _scope(span: ReadableSpan) -> str | None:
    return span.instrumentation_scope.name if span.instrumentation_scope is not None else None


def _pending(span: ReadableSpan) -> bool:
    return (span.attributes or {}).get("logfire.span_type") == "pending_span"


if __name__ == "__main__":
    gc.freeze()  # What is imported here is not garbage in any fork.
    print(json.dumps({library: played_in_a_fork(library) for library in sys.argv[1:]}))
