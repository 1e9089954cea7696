"""Tasks on the in-process broker: each is an activity that ends as the task does."""

import asyncio
import gc
import json
import logging
import sys
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from agents import Agent
from agents.testing import ScriptedModel, assistant_message
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import AliasGenerator, BaseModel, ConfigDict, Field, Json, ValidationError, computed_field
from pydantic.alias_generators import to_camel
from sqlalchemy import select
from sqlalchemy.orm import Session
from taskiq import (
    AckableMessage,
    BrokerMessage,
    InMemoryBroker,
    ScheduledTask,
    ScheduleSource,
    SendTaskError,
    SimpleRetryMiddleware,
    SmartRetryMiddleware,
    TaskiqMessage,
    TaskiqMiddleware,
)
from taskiq.kicker import AsyncKicker
from taskiq.middlewares.opentelemetry_middleware import OpenTelemetryMiddleware
from taskiq.utils import maybe_awaitable

import agentexec_otel as ax
from agentexec_otel.activity.models import Activity, Status
from agentexec_otel.export import ActivityProcessor, Outcome
from agentexec_otel.tasks import ActivityMiddleware
from agentexec_otel.tasks._definition import Definition
from agentexec_otel.tasks.taskiq.middleware import return_messages
from agentexec_otel.tasks.taskiq.receiver import ActivityReceiver
from tests.brokers import REDIS, need
from tests.chaos.proxy import Proxy
from tests.conftest import reset_runtime
from tests.databases import Database
from tests.e2e import poison
from tests.sql.rows import count_rows, event, gap_free, lines, row, store

pytestmark = pytest.mark.one_python

on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
on_postgres = pytest.mark.parametrize("database", ["postgres"], indirect=True)


class Order(BaseModel):
    """What the tasks of these tests are given."""

    company: str
    seconds: float = 0.0


class Report(BaseModel):
    """What they return."""

    text: str


class Works:
    """A pool with some tasks, and what they did."""

    def __init__(self, pool: ax.Pool) -> None:
        self.pool = pool
        self.ran: list[str] = []
        self.begun = asyncio.Event()
        self.current: ax.activity.ActivityRun | None = None
        pool.task("research")(self.research)
        pool.task("fail")(self.fail)
        pool.task("in a thread")(self.in_a_thread)

    async def research(self, agent_id: UUID, context: Order) -> Report:
        self.ran.append(context.company)
        current = ax.activity.current()
        assert current is not None
        assert current.agent_id == agent_id
        self.current = current
        ax.activity.update(agent_id, f"Reading about {context.company}", 50)
        self.begun.set()
        await asyncio.sleep(context.seconds)
        return Report(text=context.company.upper())

    async def fail(self, agent_id: UUID, context: Order) -> None:
        self.ran.append(context.company)
        raise ValueError(f"nothing about {context.company} {{0}}")

    def in_a_thread(self, agent_id: UUID, context: Order) -> Report:
        self.ran.append(context.company)
        current = ax.activity.current()
        assert current is not None
        current.update("In a thread", 50)
        return Report(text=context.company.upper())


@pytest.fixture
async def works(database: Database, spans: InMemorySpanExporter) -> AsyncIterator[Works]:
    async with ax.Pool() as pool:
        yield Works(pool)


def told(database: Database, agent_id: UUID) -> list[tuple[str, str]]:
    assert ax.flush()
    return [(str(log.status), log.message) for log in lines(database.engine, agent_id) if not log.late]


def the_spans(spans: InMemorySpanExporter, name: str) -> list[Any]:
    assert ax.flush()
    return [span for span in spans.get_finished_spans() if span.name == name]


# -- a life -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["research", "in a thread"])
async def test_a_task_is_an_activity(works: Works, database: Database, spans: InMemorySpanExporter, name: str) -> None:
    """Enqueued, run and returned: QUEUED, RUNNING, its lines, COMPLETE; one span; the result as its own model."""
    task = await ax.enqueue(name, Order(company="Acme"), metadata={"tenant": "one"})
    assert await task.result(timeout=10) == Report(text="ACME")
    activity = row(database.engine, task.agent_id)
    assert (activity.agent_type, activity.status, activity.latest_percentage) == (name, Status.COMPLETE, 100)
    assert activity.metadata_ == {"tenant": "one"}
    history = told(database, task.agent_id)
    assert history[:2] == [("QUEUED", "Waiting to start."), ("RUNNING", "Task started.")]
    assert history[3:] == [("COMPLETE", "Task completed successfully.")]
    (span,) = the_spans(spans, name)
    assert span.attributes["agentexec.status"] == "COMPLETE"
    assert [one.attributes["agentexec.log.message"] for one in span.events] == [text for _, text in history]
    assert 0 <= span.attributes["agentexec.queue.duration"] < 10


@on_sqlite
async def test_queued_is_committed_before_it_is_sent(works: Works, database: Database) -> None:
    """When the broker gets the message, everybody can see the row."""
    seen: list[Status] = []
    kick = works.pool.broker.kick

    async def looking(message: Any) -> None:
        seen.append(row(database.engine, UUID(message.labels["agentexec_agent_id"])).status)
        await kick(message)

    works.pool.broker.kick = looking  # type: ignore[method-assign]
    await (await ax.enqueue("research", Order(company="Acme"))).result(10)
    assert seen == [Status.QUEUED]


@on_sqlite
async def test_a_failure_is_told(works: Works, database: Database, spans: InMemorySpanExporter) -> None:
    """ERROR with the exception's type, the configured text, and one error for the one who waits."""
    ax.CONF.activity_message_error = "Sorry: {error}"
    task = await works.pool.enqueue("fail", Order(company="Acme"))
    with pytest.raises(ax.TaskFailedError, match=r"'fail' has failed \(ValueError, other\)") as failure:
        await task.result(10)
    assert (failure.value.error_type, failure.value.reason) == ("ValueError", "other")
    activity = row(database.engine, task.agent_id)
    assert (activity.status, activity.error_type) == (Status.ERROR, "ValueError")
    assert told(database, task.agent_id)[-1] == ("ERROR", "Sorry: nothing about Acme {0}")
    (span,) = the_spans(spans, "fail")
    assert span.attributes["error.type"] == "ValueError"


@on_sqlite
async def test_runner_inside_leaves_the_end_to_the_task(works: Works, database: Database, no_uploads: None) -> None:
    """Agents that a task runs report to its activity; what the task does after them still counts."""

    @works.pool.task("agents")
    async def agents(agent_id: UUID, context: Order) -> str:
        runner = ax.OpenAIRunner(agent_id)
        agent = Agent(name="A", model=ScriptedModel([[assistant_message("Done.")]]))
        result = await runner.run(agent, input=context.company)
        assert row(database.engine, agent_id).status is Status.RUNNING
        return str(result.final_output)

    task = await ax.enqueue("agents", Order(company="Acme"))
    assert await task.result(10) == "Done."
    assert [status for status, _ in told(database, task.agent_id)] == ["QUEUED", "RUNNING", "COMPLETE"]


@on_sqlite
async def test_a_task_that_waits_is_ended_by_whoever_continues(works: Works, database: Database) -> None:
    """Its function has returned, and its activity stays open until the run is continued; then its result is there."""

    @works.pool.task("refund")
    async def refund(agent_id: UUID, context: Order) -> str:
        run = ax.activity.current()
        assert run is not None
        run.waiting(items=[{"tool": "refund", "call_id": "call_1"}])
        return context.company

    task = await ax.enqueue("refund", Order(company="Acme"))
    with pytest.raises(TimeoutError):
        await task.result(1)
    activity = row(database.engine, task.agent_id)
    assert (activity.status, activity.lease_expires_at) == (Status.RUNNING, None)
    async with ax.activity.run(task.agent_id, "Approved."):
        pass
    assert await task.result(10) == "Acme"


# -- canceling --------------------------------------------------------------------------------------------------


async def test_canceled_before_it_starts(works: Works, database: Database) -> None:
    """A task whose activity was canceled while it waited never runs."""
    kick, held = works.pool.broker.kick, list[Any]()

    async def hold(message: Any) -> None:
        held.append(message)

    works.pool.broker.kick = hold  # type: ignore[method-assign]
    task = await ax.enqueue("research", Order(company="Acme"))
    assert await ax.activity.aio.cancel(task.agent_id)
    await kick(held[0])
    with pytest.raises(ax.ActivityCanceledError):
        await task.result(10)
    await works.pool.shutdown()
    assert works.ran == []
    assert told(database, task.agent_id) == [("QUEUED", "Waiting to start."), ("CANCELED", "Task canceled.")]


@pytest.mark.parametrize("elsewhere", [True, False], ids=["elsewhere", "here"])
@on_sqlite
async def test_canceled_while_it_runs(
    works: Works, database: Database, spans: InMemorySpanExporter, elsewhere: bool
) -> None:
    """Canceled by this process or by another one, the task is stopped within seconds and ends CANCELED, once."""
    task = await ax.enqueue("research", Order(company="Acme", seconds=60))
    await works.begun.wait()
    assert ax.flush()  # else what it says first may come second
    if elsewhere:
        canceled = event(task.agent_id, Status.CANCELED, "By another.", outcome=Outcome(reason="canceled"))
        store(database.url, [canceled])
    else:
        await ax.activity.aio.cancel(task.agent_id)
    with pytest.raises(ax.ActivityCanceledError):
        await task.result(10)
    await asyncio.wait_for(works.pool.shutdown(20), 10)
    activity = row(database.engine, task.agent_id)
    assert (activity.status, activity.reason) == (Status.CANCELED, "canceled")
    (span,) = the_spans(spans, "research")
    assert span.attributes["agentexec.status"] == "CANCELED"
    assert [log.late for log in lines(database.engine, task.agent_id)] == [False] * 4


@on_sqlite
async def test_who_cancels_is_first(works: Works, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one who cancels, on a thread of its own, is told so, however quickly the task goes and has a last word."""
    submit = ActivityProcessor.submit

    def slowly(processor: ActivityProcessor, event: Any) -> Any:
        time.sleep(0.2 if event.message == "By the user." else 0)
        return submit(processor, event)

    monkeypatch.setattr(ActivityProcessor, "submit", slowly)
    task = await ax.enqueue("research", Order(company="Acme", seconds=60))
    await works.begun.wait()
    assert works.current is not None
    works.current.record_usage(1, 1, 1)
    assert await asyncio.to_thread(ax.activity.cancel, task.agent_id, "By the user.")
    await asyncio.wait_for(works.pool.shutdown(20), 10)
    assert told(database, task.agent_id)[-1] == ("CANCELED", "By the user.")


@on_sqlite
async def test_error_in_going_is_no_reason_to_try_again(works: Works, database: Database) -> None:
    """A canceled task that raises while it cleans up stays CANCELED, and is not retried."""
    works.pool.broker.add_middlewares(SimpleRetryMiddleware(default_retry_count=3))
    begun = asyncio.Event()

    @works.pool.task("careless", retry_on_error=True)
    async def careless(agent_id: UUID, context: Order) -> None:
        works.ran.append(context.company)
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            raise RuntimeError("while cleaning up")

    task = await ax.enqueue("careless", Order(company="Acme"))
    await begun.wait()
    await ax.activity.aio.cancel(task.agent_id)
    await asyncio.wait_for(works.pool.shutdown(20), 10)
    assert works.ran == ["Acme"]
    activity = row(database.engine, task.agent_id)
    assert (activity.status, activity.attempt) == (Status.CANCELED, 1)


@on_sqlite
async def test_shutdown_cancels_what_does_not_end(works: Works, database: Database) -> None:
    """A pool that is shut down waits for its tasks, and cancels those that take too long."""
    quick = await ax.enqueue("research", Order(company="Quick", seconds=0.05))
    slow = await ax.enqueue("research", Order(company="Slow", seconds=60))
    await works.pool.shutdown(0.5)
    assert ax.flush()
    assert row(database.engine, quick.agent_id).status is Status.COMPLETE
    assert row(database.engine, slow.agent_id).status is Status.CANCELED


@on_sqlite
async def test_shutdown_waits_for_what_tasks_enqueue(works: Works, database: Database) -> None:
    """A task that enqueues another one while its pool is shut down: both are let end."""

    @works.pool.task("outer")
    async def outer(agent_id: UUID, context: Order) -> None:
        works.begun.set()
        await asyncio.sleep(0.1)
        await ax.enqueue("research", Order(company="Inner", seconds=0.1))

    await ax.enqueue("outer", Order(company="Acme"))
    await works.begun.wait()
    await works.pool.shutdown()
    assert works.ran == ["Inner"]
    assert ax.flush()
    with Session(database.engine) as session:
        assert set(session.scalars(select(Activity.status))) == {Status.COMPLETE}


# -- once, and again --------------------------------------------------------------------------------------------


async def test_delivered_twice_runs_once(works: Works, database: Database) -> None:
    """A broker that delivers a message twice, at once or later, starts the task once."""
    kick = works.pool.broker.kick

    async def twice(message: Any) -> None:
        await asyncio.gather(kick(message), kick(message))
        works.begun.clear()
        await kick(message)

    works.pool.broker.kick = twice  # type: ignore[method-assign]
    task = await ax.enqueue("research", Order(company="Acme", seconds=0.1))
    assert await task.result(10) == Report(text="ACME")
    await works.pool.broker.kick(works_message(task))  # and once more, behind its end
    await works.pool.shutdown()
    assert works.ran == ["Acme"]
    assert [status for status, _ in told(database, task.agent_id)] == ["QUEUED", "RUNNING", "RUNNING", "COMPLETE"]


def works_message(task: ax.Task) -> Any:
    """The message of a task, as a broker might deliver it again."""
    message = TaskiqMessage(
        task_id=str(task.agent_id),
        task_name=task.name,
        labels={"agentexec_agent_id": str(task.agent_id), "agentexec_attempt": "1"},
        args=[],
        kwargs={"agent_id": str(task.agent_id), "context": task.context.model_dump(mode="json")},
    )
    return task._broker.formatter.dumps(message)  # pyright: ignore[reportPrivateUsage]


async def test_retries_are_attempts(works: Works, database: Database, spans: InMemorySpanExporter) -> None:
    """Failed and tried again by taskiq: the next attempt of the same activity, with a span that follows the last."""
    works.pool.broker.add_middlewares(SimpleRetryMiddleware())

    @works.pool.task("flaky", retry_on_error=True, max_retries=3)
    async def flaky(agent_id: UUID, context: Order) -> str:
        works.ran.append(context.company)
        if len(works.ran) < 3:
            raise ConnectionError(f"try {len(works.ran)}")
        return "at last"

    task = await ax.enqueue("flaky", Order(company="Acme"))
    assert await task.result(10) == "at last"
    activity = row(database.engine, task.agent_id)
    assert (activity.status, activity.attempt, activity.error_type) == (Status.COMPLETE, 3, None)
    retried = "Task failed and will be tried again: try"
    assert told(database, task.agent_id) == [
        ("QUEUED", "Waiting to start."),
        ("RUNNING", "Task started."),
        ("RUNNING", f"{retried} 1"),
        ("QUEUED", "Waiting to start."),
        ("RUNNING", "Task started."),
        ("RUNNING", f"{retried} 2"),
        ("QUEUED", "Waiting to start."),
        ("RUNNING", "Task started."),
        ("COMPLETE", "Task completed successfully."),
    ]
    assert gap_free(lines(database.engine, task.agent_id))
    first, second, third = the_spans(spans, "flaky")
    assert [one.attributes["agentexec.attempt"] for one in (first, second, third)] == [1, 2, 3]
    assert [one.attributes["agentexec.status"] for one in (first, second, third)] == ["ERROR", "ERROR", "COMPLETE"]
    assert (first.attributes["error.type"], first.status.description) == ("ConnectionError", f"{retried} 1")
    assert [link.context.span_id for link in third.links] == [second.context.span_id]


@on_sqlite
@pytest.mark.parametrize("first", ["error", "timeout", "timeout in a thread"])
async def test_retry_of_what_has_said_or_met_its_end(works: Works, database: Database, first: str) -> None:
    """Tried again: a task that called `error()` before it raised, and one that took too long, which is said so."""
    works.pool.broker.add_middlewares(SimpleRetryMiddleware())

    @works.pool.task("error", retry_on_error=True)
    async def error(agent_id: UUID, context: Order) -> int:
        works.ran.append(context.company)
        if len(works.ran) == 1:
            ax.activity.error(agent_id, "The archive is away.")
            raise ConnectionError
        return len(works.ran)

    @works.pool.task("timeout", retry_on_error=True, timeout=0.3)
    async def timeout(agent_id: UUID, context: Order) -> int:
        works.ran.append(context.company)
        await asyncio.sleep(60 if len(works.ran) == 1 else 0)
        return len(works.ran)

    @works.pool.task("timeout in a thread", retry_on_error=True, timeout=0.3)
    def in_a_thread(agent_id: UUID, context: Order) -> int:
        works.ran.append(context.company)
        time.sleep(1 if len(works.ran) == 1 else 0)
        return len(works.ran)

    task = await ax.enqueue(first, Order(company="Acme"))
    await works.pool.shutdown()  # Who waits for the result is told by the first end.
    assert ax.flush()
    activity = row(database.engine, task.agent_id)
    assert (activity.status, activity.attempt) == (Status.COMPLETE, 2)
    said = ("ERROR", "The archive is away.")
    again = ("RUNNING", "Task failed and will be tried again: TimeoutError")
    assert told(database, task.agent_id)[2] == (said if first == "error" else again)


@on_sqlite
async def test_last_failure_is_the_end(works: Works, database: Database) -> None:
    """Retries that are used up end the activity as ERROR, with what the last attempt met."""
    works.pool.broker.add_middlewares(SimpleRetryMiddleware())
    works.pool.task("hopeless", retry_on_error=True, max_retries=2)(works.fail)
    task = await ax.enqueue("hopeless", Order(company="Acme"))
    with pytest.raises(ax.TaskFailedError):
        await task.result(10)
    activity = row(database.engine, task.agent_id)
    assert (activity.status, activity.attempt, activity.error_type) == (Status.ERROR, 2, "ValueError")
    assert [status for status, _ in told(database, task.agent_id)].count("ERROR") == 1


@on_sqlite
async def test_retry_that_a_scheduler_sends(works: Works, database: Database) -> None:
    """A retry with a delay, sent later by taskiq's scheduler: QUEUED meanwhile, and not ERROR."""

    class Later(ScheduleSource):
        def __init__(self) -> None:
            self.scheduled: list[ScheduledTask] = []

        async def get_schedules(self) -> list[ScheduledTask]:
            return self.scheduled

        async def add_schedule(self, schedule: ScheduledTask) -> None:
            self.scheduled.append(schedule)

    later = Later()
    works.pool.broker.add_middlewares(SmartRetryMiddleware(schedule_source=later, default_delay=0.1))

    @works.pool.task("flaky", retry_on_error=True)
    async def flaky(agent_id: UUID, context: Order) -> str:
        works.ran.append(context.company)
        if len(works.ran) == 1:
            raise ConnectionError("not yet")
        return "at last"

    task = await ax.enqueue("flaky", Order(company="Acme"))
    await works.pool.shutdown()
    assert ax.flush()
    activity = row(database.engine, task.agent_id)
    assert (activity.status, activity.attempt) == (Status.QUEUED, 2)
    (scheduled,) = later.scheduled
    kicker: AsyncKicker[Any, Any] = AsyncKicker(scheduled.task_name, works.pool.broker, scheduled.labels)
    await kicker.with_task_id(str(scheduled.task_id)).kiq(*scheduled.args, **scheduled.kwargs)
    assert await task.result(10) == "at last"
    assert row(database.engine, task.agent_id).attempt == 2


# -- execute ----------------------------------------------------------------------------------------------------


@on_sqlite
async def test_execute_runs_it_here(works: Works, database: Database) -> None:
    """`execute()` runs a task that nobody has started, with the same ends; a broker that delivers it later is late."""
    kick, held = works.pool.broker.kick, list[Any]()

    async def hold(message: Any) -> None:
        held.append(message)

    works.pool.broker.kick = hold  # type: ignore[method-assign]
    task = await ax.enqueue("research", Order(company="Acme"))
    assert await task.execute() == Report(text="ACME")
    await kick(held[0])
    await works.pool.shutdown()
    assert works.ran == ["Acme"]
    assert await task.result(1) == Report(text="ACME")
    failing = await ax.enqueue("fail", Order(company="Acme"))
    with pytest.raises(ValueError, match="nothing about Acme"):
        await failing.execute()
    assert row(database.engine, failing.agent_id).status is Status.ERROR


@on_sqlite
async def test_execute_of_what_runs_already(works: Works, database: Database) -> None:
    """Where a worker has it, `execute()` waits for that one: whichever is first runs it, and only that."""
    task = await ax.enqueue("research", Order(company="Acme", seconds=0.1))
    await works.begun.wait()
    assert await task.execute() == Report(text="ACME")
    assert works.ran == ["Acme"]


@on_sqlite
async def test_execute_is_canceled(works: Works, database: Database) -> None:
    """A cancel from elsewhere stops what `execute()` runs."""

    async def hold(message: Any) -> None:
        """Nobody gets it."""

    works.pool.broker.kick = hold  # type: ignore[method-assign]
    task = await ax.enqueue("research", Order(company="Acme", seconds=60))
    running = asyncio.create_task(task.execute())
    await works.begun.wait()
    await ax.activity.aio.cancel(task.agent_id)
    with pytest.raises(ax.ActivityCanceledError):
        await asyncio.wait_for(running, 10)
    assert row(database.engine, task.agent_id).status is Status.CANCELED


# -- what is handed over ----------------------------------------------------------------------------------------


class Aliased(BaseModel):
    """Names in JSON are not those in Python."""

    model_config = ConfigDict(alias_generator=AliasGenerator(validation_alias=to_camel, serialization_alias=str.upper))
    company_name: str = "Acme"
    other: str = Field("x", alias="another")


class Strict(BaseModel):
    """Nothing is converted."""

    model_config = ConfigDict(strict=True)
    at: datetime = datetime(2026, 1, 2, tzinfo=UTC)
    parts: tuple[int, ...] = (1, 2)


class Closed(BaseModel):
    """Nothing else is accepted, and something is computed."""

    model_config = ConfigDict(extra="forbid")
    words: Json[list[str]] = Field(default_factory=list[str])

    @computed_field  # type: ignore[prop-decorator]
    @property
    def count(self) -> int:
        return len(self.words)


class Outward(BaseModel):
    """Serialized by its aliases unless told otherwise, and read by them."""

    model_config = ConfigDict(serialize_by_alias=True)
    company_name: str = Field("Acme", alias="companyName")


@on_sqlite
@pytest.mark.parametrize(
    "value",
    [
        Aliased.model_validate({"companyName": "Ünï", "another": "y"}),
        Strict(),
        Closed.model_validate({"words": '["a"]'}),
        Outward.model_validate({"companyName": "Ünï"}),
    ],
    ids=lambda one: type(one).__name__,
)
async def test_models_come_as_they_were(works: Works, value: Any) -> None:
    """Aliases, strictness, computed fields and JSON in a model: context and result are what they were."""

    async def echo(agent_id: UUID, context: Any) -> Any:
        return context

    echo.__annotations__.update(context=type(value), **{"return": type(value)})
    works.pool.task("echo")(echo)
    task = await ax.enqueue("echo", value)
    assert task.context == value
    assert await task.result(10) == value


# -- what goes wrong --------------------------------------------------------------------------------------------


@on_sqlite
@pytest.mark.parametrize(
    "context",
    [{"seconds": 1}, {"company": 7}, {"company": "Acme", "seconds": float("inf")}, "Acme", None, Report(text="x")],
)
async def test_bad_context(works: Works, database: Database, context: object) -> None:
    """A context that is not what the task takes: pydantic's ValidationError, nothing stored, nothing sent."""
    with pytest.raises(ValidationError):
        await ax.enqueue("research", context)
    with pytest.raises(ValidationError):
        await ax.enqueue("research", Order.model_construct(company=7, seconds="soon"))
    await works.pool.shutdown()
    assert ax.flush()
    assert count_rows(database.engine) == (0, 0)
    assert works.ran == []


class Measured(BaseModel):
    """Numbers that need not be there."""

    score: float | None = None
    others: list[float | None] = Field(default_factory=list[float | None])


class Spelled(Measured):
    """The same, for JSON as text."""

    model_config = ConfigDict(ser_json_inf_nan="strings")


@on_sqlite
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
async def test_number_that_json_does_not_have(works: Works, database: Database, number: float) -> None:
    """NaN and infinity never arrive as None: they are refused, or carried where the model writes them as text."""

    async def echo(agent_id: UUID, context: Measured) -> None:
        works.ran.append(str(context.score))

    async def spelled(agent_id: UUID, context: Spelled) -> None:
        works.ran.append(str(context.score))

    works.pool.task("echo")(echo)
    works.pool.task("spelled")(spelled)
    for context, place in ((Measured(score=number), ("score",)), (Measured(others=[1.0, number]), ("others", 1))):
        with pytest.raises(ValidationError, match="should be a finite number") as refused:
            await ax.enqueue("echo", context)
        assert [error["loc"] for error in refused.value.errors()] == [place]
    assert ax.flush()
    assert count_rows(database.engine) == (0, 0)
    await (await ax.enqueue("spelled", Spelled(score=number))).result(10)
    assert works.ran == [str(number)]


@on_sqlite
async def test_context_of_another_version(works: Works, database: Database) -> None:
    """What arrives is checked again: a message that does not fit fails its activity, and says why."""
    task = await works.pool.enqueue("research", Order(company="Acme", seconds=0))
    await task.result(10)
    other = await ax.activity.aio.create("research")
    message = works_message(task)
    changed = message.message.replace(str(task.agent_id).encode(), str(other).encode()).replace(b"company", b"firm")
    await works.pool.broker.kick(message.model_copy(update={"message": changed}))
    await works.pool.shutdown()
    assert ax.flush()
    activity = row(database.engine, other)
    assert (activity.status, activity.error_type) == (Status.ERROR, "pydantic_core._pydantic_core.ValidationError")


@on_sqlite
async def test_unknown_task(works: Works, database: Database) -> None:
    """A name that nobody has registered: one sentence that names it and those there are; nothing stored."""
    for enqueue in (ax.enqueue, works.pool.enqueue):
        with pytest.raises(ax.UnknownTaskError, match=r"no task is named 'resaerch' \(registered here: .*'research'"):
            await enqueue("resaerch", Order(company="Acme"))
    assert count_rows(database.engine) == (0, 0)


@on_sqlite
async def test_unknown_task_in_a_worker(works: Works, database: Database) -> None:
    """A message for a task that this version of a worker does not have fails its activity, which says so."""
    other = await ax.activity.aio.create("new task")
    unknown = ax.Task(other, "new task", Order(company="Acme"), Definition.of("x", nobody), works.pool.broker)
    message = works_message(unknown)
    await works.pool.broker.kick(message)
    await works.pool.shutdown()
    assert ax.flush()
    activity = row(database.engine, other)
    assert (activity.status, activity.error_type) == (Status.ERROR, "agentexec_otel._errors.UnknownTaskError")
    assert "no task is named 'new task'" in told(database, other)[-1][1]


def _sent(data: bytes, task_name: str = "research") -> BrokerMessage:
    return BrokerMessage(task_id="1", task_name=task_name, message=data, labels={})


def _dead_letters(folder: Path) -> str:
    (letters,) = folder.rglob("dead-letters.jsonl")
    return letters.read_text()


def _refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if "a message of a task was refused" in one.getMessage()]


@on_sqlite
@pytest.mark.parametrize("kind", [*poison.RAW, *poison.REFUSED, *poison.FAILED])
async def test_message_that_no_task_can_run(
    works: Works, database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """Refused: one log without its content, one dead letter, and only the activity that it has started fails."""
    ax.CONF.lookup_timeout = 0.1
    works.pool.task("job")(works.research)
    agent_id = await ax.activity.aio.create("job")
    make = {**poison.REFUSED, **poison.FAILED}.get(kind)
    await works.pool.broker.kick(_sent(poison.RAW[kind] if make is None else json.dumps(make(agent_id)).encode()))
    await works.pool.shutdown()
    assert len(_refusals(caplog)) == 1
    assert [one.levelname for one in caplog.records] == ["ERROR"]
    assert "Traceback" not in caplog.text
    (letter,) = map(json.loads, _dead_letters(tmp_path).splitlines())
    assert set(letter) == {"reason", "target", "message"}
    assert _refusals(caplog)[0].endswith(letter["reason"])
    assert len(letter["message"].encode()) <= 8_192
    expected = (Status.ERROR, 3) if kind in poison.FAILED else (Status.QUEUED, 1)
    assert ax.flush()
    assert (row(database.engine, agent_id).status, len(lines(database.engine, agent_id))) == expected
    assert row(database.engine, agent_id).attempt == 1
    assert works.ran == []


@on_sqlite
async def test_dead_letter_of_a_message_has_no_secret(works: Works, tmp_path: Path) -> None:
    """A message is redacted before it is kept."""
    secret = f"sk-proj-{uuid4().hex}{uuid4().hex}"
    sent: dict[str, Any] = poison.message(uuid4()) | {"args": [secret, {"password": "correct horse"}], "labels": {}}
    await works.pool.broker.kick(_sent(json.dumps(sent).encode()))
    await works.pool.broker.kick(_sent(f"password=hunter2 {secret}".encode()))
    await works.pool.shutdown()
    kept = _dead_letters(tmp_path)
    assert kept.count("[redacted]") == 4
    assert not any(word in kept for word in (secret, "horse", "hunter2"))


@on_sqlite
async def test_message_is_delivered_again_while_it_waits(works: Works) -> None:
    """A second delivery to a worker waits for the first: neither acknowledges a message that has not been started."""
    held = list[Any]()

    async def hold(message: Any) -> None:
        held.append(message)

    works.pool.broker.kick = hold  # type: ignore[method-assign]
    await ax.enqueue("research", Order(company="Acme"))
    acknowledged: list[str] = []
    receiver = ActivityReceiver(works.pool.broker, max_async_tasks=1)
    ax.configure("postgresql+psycopg://nobody@127.0.0.1:1/none")

    def deliver(name: str) -> asyncio.Task[None]:
        message = AckableMessage(data=held[0].message, ack=lambda: acknowledged.append(name))
        return asyncio.create_task(receiver.callback(message))

    deliveries = [deliver("first"), deliver("second")]
    await asyncio.wait(deliveries, timeout=0.5)
    return_messages()
    await asyncio.wait(deliveries, timeout=10)
    assert all(one.cancelled() for one in deliveries)
    assert (acknowledged, works.ran) == ([], [])


# -- a database that does not answer ----------------------------------------------------------------------------


@pytest.fixture
def frozen(database: Database) -> Iterator[Proxy]:
    """A way to the database that can stop answering."""
    with Proxy(database.url) as proxy:
        ax.configure(proxy.url)
        yield proxy
        ax.shutdown(0.1)


@on_postgres
async def test_result_is_bounded(works: Works, frozen: Proxy) -> None:
    """`result(timeout)` returns in time, whether the status or the result does not come."""
    task = await ax.enqueue("research", Order(company="Acme", seconds=60))
    await works.begun.wait()
    assert ax.flush()
    frozen.blackhole()
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="has not ended in time"):
        await task.result(timeout=0.4)
    assert time.monotonic() - began < 2.0
    frozen.let_pass()


@on_sqlite
async def test_result_that_is_not_kept_is_bounded(works: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    """A complete task whose result does not come: the wait ends at the timeout, also where the backend hangs."""
    task = await ax.enqueue("research", Order(company="Acme"))
    await works.pool.shutdown()

    async def hang(task_id: str) -> bool:
        await asyncio.sleep(60)
        return True

    monkeypatch.setattr(works.pool.broker.result_backend, "is_result_ready", hang)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="has not arrived in time"):
        await task.result(timeout=0.4)
    assert time.monotonic() - began < 2.0


@on_postgres
async def test_sending_a_retry_is_bounded(works: Works, frozen: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that sends a retry does not wait for the database for longer than the patience of a hook."""
    monkeypatch.setattr("agentexec_otel.tasks.taskiq.middleware.PATIENCE", 0.4)
    task = await ax.enqueue("fail", Order(company="Acme"))
    await works.pool.shutdown()
    assert ax.flush()
    frozen.blackhole()
    began = time.monotonic()
    message = TaskiqMessage(
        task_id=str(task.agent_id),
        task_name="fail",
        labels={"agentexec_agent_id": str(task.agent_id), "_retries": 1},
        args=[],
        kwargs={},
    )
    for middleware in works.pool.broker.middlewares:
        await maybe_awaitable(middleware.pre_send(message))
    assert time.monotonic() - began < 2.0
    frozen.let_pass()


@on_sqlite
async def test_retry_that_was_sent_without_a_database(works: Works, database: Database) -> None:
    """The worker reopens an activity that the scheduler could not: the retry runs, as the next attempt."""
    ax.CONF.lookup_timeout = 0.1
    task = await ax.enqueue("fail", Order(company="Acme"))
    await works.pool.shutdown()
    message = works_message(task)
    labels = {"agentexec_agent_id": str(task.agent_id), "agentexec_attempt": "1", "_retries": "1"}
    changed = works.pool.broker.formatter.loads(message.message).model_copy(update={"labels": labels})
    await works.pool.broker.kick(works.pool.broker.formatter.dumps(changed))
    await works.pool.shutdown()
    assert ax.flush()
    activity = row(database.engine, task.agent_id)
    assert (activity.status, activity.attempt) == (Status.ERROR, 2)
    assert works.ran == ["Acme", "Acme"]


@on_sqlite
async def test_send_that_fails(works: Works, database: Database) -> None:
    """The broker does not take it: one error for the caller, and the activity has ended as ERROR, reason `enqueue`."""
    broker = InMemoryBroker()

    async def refuse(message: Any) -> None:
        raise ConnectionRefusedError("no broker at redis://user:secret@host")

    broker.kick = refuse  # type: ignore[method-assign]
    pool = ax.Pool(broker=broker)
    pool.task("research")(works.research)
    with pytest.raises(ax.TaskNotSentError, match=r"could not be sent \(ConnectionRefusedError\)") as refused:
        await pool.enqueue("research", Order(company="Acme"))
    activity = row(database.engine, refused.value.agent_id)
    assert (activity.status, activity.reason) == (Status.ERROR, "enqueue")
    assert activity.error_type == "ConnectionRefusedError"
    assert "secret" not in str(told(database, activity.agent_id))


@on_sqlite
async def test_broker_that_is_down(works: Works, database: Database) -> None:
    """A broker that cannot be connected to, of each kind."""
    for url in ("redis://127.0.0.1:1", "amqp://127.0.0.1:1", "nats://127.0.0.1:1"):
        ax.CONF.create_timeout = 2.0
        pool = ax.Pool(broker=url)
        pool.task("research")(works.research)
        with pytest.raises(ax.TaskNotSentError, match="check that the broker runs") as refused:
            await pool.enqueue("research", Order(company="Acme"))
        assert row(database.engine, refused.value.agent_id).reason == "enqueue"


@on_sqlite
async def test_database_that_is_down(works: Works, database: Database) -> None:
    """No database: nothing is sent, and the caller is told by the same error as `create` raises."""
    ax.CONF.create_timeout = 0.3
    ax.configure("postgresql+psycopg://nobody@127.0.0.1:1/none")
    with pytest.raises(ax.ActivityNotStoredError):
        await ax.enqueue("research", Order(company="Acme"))
    await works.pool.shutdown()
    assert works.ran == []


@pytest.mark.parametrize("database", ["postgres", "mariadb"], indirect=True)
async def test_worker_waits_for_the_database(works: Works, database: Database) -> None:
    """A message that comes while the database is away is kept, and its task starts once, when the database is back."""
    kick, held = works.pool.broker.kick, list[Any]()

    async def hold(message: Any) -> None:
        held.append(message)

    works.pool.broker.kick = hold  # type: ignore[method-assign]
    with Proxy(database.url) as proxy:
        ax.configure(proxy.url)
        task = await ax.enqueue("research", Order(company="Acme"))
        proxy.refuse()
        await kick(held[0])
        await asyncio.sleep(0.5)
        assert works.ran == []
        proxy.let_pass()
        assert await task.result(timeout=30) == Report(text="ACME")
        assert works.ran == ["Acme"]
        ax.shutdown()


@on_sqlite
@pytest.mark.parametrize(
    ("returned", "said"),
    [("x" * 5_000, "has 5,002 bytes, and AGENTEXEC_RESULT_LIMIT is 2,048"), (object(), "cannot be expressed in JSON")],
)
async def test_result_that_does_not_fit(works: Works, database: Database, returned: object, said: str) -> None:
    """A result that is too large, or no JSON: ERROR, and the line says what to do."""
    ax.CONF.result_limit = 2_048

    @works.pool.task("large")
    async def large(agent_id: UUID, context: Order) -> Any:
        return returned

    task = await ax.enqueue("large", Order(company="Acme"))
    with pytest.raises(ax.TaskFailedError):
        await task.result(10)
    activity = row(database.engine, task.agent_id)
    assert (activity.status, activity.reason) == (Status.ERROR, "other")
    assert said in told(database, task.agent_id)[-1][1]


@on_sqlite
@pytest.mark.parametrize("by", ["worker", "execute"])
async def test_result_that_cannot_be_kept(
    works: Works, database: Database, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """No activity is COMPLETE without its result: it ends as ERROR, and the log says why."""
    monkeypatch.setattr("agentexec_otel.tasks.taskiq.brokers._KEEP_SECONDS", 0.2)

    async def refuse(task_id: str, result: Any) -> None:
        raise ConnectionError("no results at redis://user:secret@host")

    monkeypatch.setattr(works.pool.broker.result_backend, "set_result", refuse)
    kick = works.pool.broker.kick

    async def hold(message: Any) -> None:
        if by == "worker":
            await kick(message)

    works.pool.broker.kick = hold  # type: ignore[method-assign]
    task = await ax.enqueue("research", Order(company="Acme"))
    if by == "execute":
        assert await task.execute() == Report(text="ACME")
    with pytest.raises(ax.TaskFailedError, match=r"'research' has failed \(.*TaskResultError, connection\)"):
        await task.result(10)
    kept_not = "Task failed: the result could not be kept (ConnectionError): check where results are kept"
    assert told(database, task.agent_id)[-1] == ("ERROR", kept_not)


@on_sqlite
async def test_result_is_kept_before_the_end(works: Works, database: Database) -> None:
    """While the result is being kept the activity is RUNNING, and COMPLETE after that."""
    backend = works.pool.broker.result_backend
    keep, seen = backend.set_result, list[Status]()

    async def looking(task_id: str, result: Any) -> None:
        await keep(task_id, result)
        await asyncio.sleep(0.1)
        assert ax.flush()
        seen.append(row(database.engine, UUID(task_id)).status)

    backend.set_result = looking  # type: ignore[method-assign]
    for name in ("research", "in a thread"):
        await (await ax.enqueue(name, Order(company="Acme"))).result(10)
    assert seen == [Status.RUNNING] * 2


@on_sqlite
async def test_stop_iteration_in_a_thread(works: Works, database: Database) -> None:
    """`next()` of nothing, in a task that is not asynchronous: it fails, and does not hang."""

    @works.pool.task("first")
    def first(agent_id: UUID, context: Order) -> str:
        return next(iter(list[str]()))

    task = await ax.enqueue("first", Order(company="Acme"))
    with pytest.raises(ax.TaskFailedError, match=r"'first' has failed \(RuntimeError, other\)"):
        await task.result(10)
    assert told(database, task.agent_id)[-1] == ("ERROR", "Task failed: the task has raised StopIteration")
    here = Definition.of("first", first).call(task.agent_id, Order(company="Acme"))
    with pytest.raises(RuntimeError, match="StopIteration"):
        await asyncio.wait_for(here, 10)


@on_sqlite
async def test_failure_without_a_reason(works: Works) -> None:
    """A task that is failed by `error()`, with nothing raised, is told in a whole sentence."""

    @works.pool.task("told")
    async def tell(agent_id: UUID, context: Order) -> None:
        ax.activity.error(agent_id, "Nothing found.")

    task = await ax.enqueue("told", Order(company="Acme"))
    with pytest.raises(ax.TaskFailedError, match="the task 'told' has failed: see the lines"):
        await task.result(10)


@on_sqlite
async def test_exit_of_one_task(works: Works, database: Database) -> None:
    """`sys.exit()` in a task, such as an agent's tool may call, ends that task and no other one."""

    @works.pool.task("exit")
    async def leave(agent_id: UUID, context: Order) -> None:
        sys.exit(3)

    other = await ax.enqueue("research", Order(company="Acme", seconds=0.2))
    leaving = await ax.enqueue("exit", Order(company="Acme"))
    with pytest.raises(ax.TaskFailedError):
        await leaving.result(10)
    assert row(database.engine, leaving.agent_id).error_type == "SystemExit"
    assert await other.result(10) == Report(text="ACME")


class _Away(ScheduleSource):
    async def get_schedules(self) -> list[ScheduledTask]:
        return []

    async def add_schedule(self, schedule: ScheduledTask) -> None:
        raise ConnectionError("away")


class _Before(TaskiqMiddleware):
    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        raise ConnectionError("before")


class _Sending(TaskiqMiddleware):
    def __init__(self, error: type[Exception]) -> None:
        super().__init__()
        self.error = error

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        raise self.error("unsent")


class _Behind(TaskiqMiddleware):
    def post_execute(self, message: TaskiqMessage, result: Any) -> None:
        raise ConnectionError("behind")


@on_sqlite
@pytest.mark.parametrize(
    "other", [SmartRetryMiddleware(schedule_source=_Away()), _Before(), _Behind()], ids=lambda one: type(one).__name__
)
async def test_other_middleware_that_fails(works: Works, database: Database, other: TaskiqMiddleware) -> None:
    """taskiq drops a message whose middleware raises, without a word: the activity ends as ERROR all the same."""
    works.pool.broker.add_middlewares(other)
    works.pool.task("dropped", retry_on_error=True)(works.fail)
    task = await ax.enqueue("dropped", Order(company="Acme"))
    with pytest.raises(ax.TaskFailedError):
        await task.result(10)
    assert row(database.engine, task.agent_id).status is Status.ERROR


@on_sqlite
@pytest.mark.parametrize("error", [ConnectionError, TimeoutError])
async def test_other_middleware_that_sends_nothing(works: Works, database: Database, error: type[Exception]) -> None:
    """A middleware that raises before the message is sent is told as a broker that does not take it."""
    works.pool.broker.add_middlewares(_Sending(error))
    with pytest.raises(ax.TaskNotSentError, match=error.__name__) as caught:
        await ax.enqueue("research", Order(company="Acme"))
    stored = row(database.engine, caught.value.agent_id)
    assert (stored.status, stored.reason) == (Status.ERROR, "enqueue")
    assert [log.status for log in lines(database.engine, stored.agent_id)] == [Status.QUEUED, Status.ERROR]


class _Canceling(TaskiqMiddleware):
    async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        await ax.activity.aio.cancel(message.task_id)
        return message


@on_sqlite
async def test_canceled_before_its_first_step(works: Works, database: Database) -> None:
    """An activity that is canceled just as its task begins leaves nothing that Python warns of."""
    works.pool.broker.add_middlewares(_Canceling())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task = await ax.enqueue("research", Order(company="Acme"))
        with pytest.raises(ax.ActivityCanceledError):
            await task.result(10)
        gc.collect()
    assert [str(one.message) for one in caught if "never awaited" in str(one.message)] == []
    assert works.ran == []
    assert row(database.engine, task.agent_id).status is Status.CANCELED


@on_sqlite
async def test_result_that_does_not_come(works: Works) -> None:
    """Waiting is bounded, and says for what."""
    task = await ax.enqueue("research", Order(company="Acme", seconds=60))
    with pytest.raises(TimeoutError, match=r"'research' .* has not ended in time"):
        await task.result(timeout=0.1)
    await ax.activity.aio.cancel(task.agent_id)


def nobody(agent_id: UUID, context: Order) -> None: ...
def nothing(agent_id: UUID) -> None: ...
def more(agent_id: UUID, context: Order, priority: int) -> None: ...
def untyped(agent_id: UUID, context) -> None: ...  # type: ignore[no-untyped-def]  # noqa: ANN001


WRONG: list[Any] = [nothing, more, untyped]


@on_sqlite
@pytest.mark.parametrize("function", WRONG)
async def test_signature(works: Works, function: Callable[..., Any]) -> None:
    """A function that is no task is refused where it is registered, with the signature it should have."""
    with pytest.raises(TypeError, match=r"\(agent_id(: UUID)?, context: YourModel\)"):
        works.pool.task("wrong")(function)


@on_sqlite
async def test_name_that_is_none(works: Works) -> None:
    """A decorator without its parentheses, or with an empty name, is a mistake that is told at once."""
    wrong: Any = works.research
    with pytest.raises(TypeError, match=r'write @pool\.task\("research"\)'):
        works.pool.task(wrong)
    with pytest.raises(ValueError, match="' ' is no name for a task"):
        works.pool.task(" ")(works.research)


@on_sqlite
async def test_name_that_is_taken(works: Works) -> None:
    """Two functions of one name are a mistake; the same one, registered again, is a reload."""
    works.pool.task("research")(works.research)
    with pytest.raises(ValueError, match="has a task 'research' already"):
        works.pool.task("research")(works.fail)


@on_sqlite
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"broker": "kafka://x"}, "broker='kafka://…' is not supported: use one of amqp://"),
        ({"broker": "localhost"}, "broker='localhost' is not supported"),
        ({"broker": "user:secret@localhost"}, "broker='…@localhost' is not supported"),
        ({"results": "amqp://x"}, "results='amqp://…' is not supported: use one of nats://"),
        ({"concurrency": 0}, "at least one task at once"),
        ({"broker": "nats://x", "queue": "a b"}, "queue='a b' is no name for NATS: use 1 to 243 of a-z"),
        ({"broker": "nats://x", "queue": "app.jobs"}, "queue='app.jobs' is no name for NATS"),
        ({"results": "nats://x", "queue": "app.jobs"}, "queue='app.jobs' is no name for NATS"),
        ({"broker": "nats://x", "queue": ""}, "queue='' is no name for NATS"),
        ({"broker": "amqp://x", "queue": "jobs*"}, r"queue='jobs\*' is no name for RabbitMQ: use 1 to 127 of a-z"),
        ({"broker": "amqp://x", "queue": "amq.jobs"}, "queue='amq.jobs' is no name for RabbitMQ"),
    ],
)
async def test_bad_pool(works: Works, arguments: dict[str, Any], said: str) -> None:
    """A pool that cannot be: one sentence with the value and what would do."""
    with pytest.raises((ax.ConfigurationError, ValueError), match=said):
        ax.Pool(**arguments)


@on_sqlite
def test_pool_and_event_loops(database: Database) -> None:
    """The in-process broker works on any loop, and again after a shutdown; a connected pool says what to do."""
    ax.configure(database.url)
    here = ax.Pool()
    redis = ax.Pool(broker=REDIS, queue="test_loops")

    def in_a_thread(agent_id: UUID, context: Order) -> str:
        return context.company

    for pool in (here, redis):
        pool.task("in a thread")(in_a_thread)

    async def run() -> object:
        return await (await here.enqueue("in a thread", Order(company="Acme"))).result(10)

    async def run_and_stop() -> object:
        async with here:
            return await run()

    assert [asyncio.run(run()), asyncio.run(run_and_stop()), asyncio.run(run_and_stop())] == ["Acme"] * 3

    async def connect() -> None:
        await redis.startup()

    async def connect_and_stop() -> None:
        async with redis:
            await redis.broker.result_backend.is_result_ready("none")

    need("redis")
    asyncio.run(connect_and_stop())
    asyncio.run(connect_and_stop())
    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(connect())
        with pytest.raises(ax.ConfigurationError, match="connected on another event loop"):
            second.run(redis.enqueue("in a thread", Order(company="Acme")))
        first.run(redis.shutdown())


@on_sqlite
async def test_workers_need_a_broker(works: Works) -> None:
    """The in-process broker has no worker processes, and says what to give the pool."""
    with pytest.raises(ax.ConfigurationError, match="give it a broker"):
        works.pool.run()


# -- one trace --------------------------------------------------------------------------------------------------


@on_sqlite
async def test_one_trace(
    works: Works, spans: InMemorySpanExporter, tracer_provider: TracerProvider, no_uploads: None
) -> None:
    """Request, task and what it does are one trace, also with taskiq's own OpenTelemetry middleware."""
    works.pool.broker.add_middlewares(OpenTelemetryMiddleware(tracer_provider=tracer_provider))
    tracer = tracer_provider.get_tracer("app")

    @works.pool.task("traced")
    async def traced(agent_id: UUID, context: Order) -> None:
        with tracer.start_as_current_span("step"):
            await asyncio.sleep(0)

    with tracer.start_as_current_span("request") as request:
        task = await ax.enqueue("traced", Order(company="Acme"))
    await task.result(10)
    await works.pool.shutdown()
    (activity,), (step,) = the_spans(spans, "traced"), the_spans(spans, "step")
    (send,), (execute,) = the_spans(spans, "send/traced"), the_spans(spans, "execute/traced")
    of_request = request.get_span_context()
    assert {one.context.trace_id for one in (activity, step, send, execute)} == {of_request.trace_id}
    assert activity.parent.span_id == of_request.span_id
    assert step.parent.span_id == activity.context.span_id
    assert trace.get_current_span() is trace.INVALID_SPAN


# -- tasks that are there already -------------------------------------------------------------------------------


@pytest.fixture
async def watched(database: Database, spans: InMemorySpanExporter) -> AsyncIterator[InMemoryBroker]:
    """An application's own broker, with one line of ours."""
    broker = InMemoryBroker()
    broker.add_middlewares(ActivityMiddleware())
    await broker.startup()
    yield broker
    await broker.wait_all()
    await broker.shutdown()


async def test_existing_tasks_are_tracked(watched: InMemoryBroker, database: Database) -> None:
    """Tasks of any signature are activities whose id is the task's; `current()` is there, in threads too."""

    @watched.task("app:add")
    async def add(one: int, other: int) -> int:
        if current := ax.activity.current():
            current.update("Adding", 50)
        return one + other

    @watched.task("app:divide")
    def divide(one: int, other: int) -> Any:
        return one / other

    added, divided = await add.kiq(1, other=2), await divide.kiq(1, 0)
    assert (await added.wait_result(timeout=10)).return_value == 3
    assert (await divided.wait_result(timeout=10)).is_err
    await watched.wait_all()
    assert told(database, UUID(added.task_id))[1:] == [
        ("RUNNING", "Task started."),
        ("RUNNING", "Adding"),
        ("COMPLETE", "Task completed successfully."),
    ]
    failed = row(database.engine, UUID(divided.task_id))
    assert (failed.agent_type, failed.status, failed.error_type) == ("app:divide", Status.ERROR, "ZeroDivisionError")
    assert await add(3, 4) == 7, "called directly, it is a function"


@on_sqlite
async def test_watched_task_that_is_not_sent(watched: InMemoryBroker, database: Database) -> None:
    """A message that its broker does not take ends its activity."""
    task = watched.register_task(nothing, "gone")
    watched.local_task_registry.clear()
    with pytest.raises(SendTaskError):
        await task.kicker().with_task_id("1" * 32).kiq(UUID(int=1))
    activity = row(database.engine, UUID("1" * 32))
    assert (activity.status, activity.reason) == (Status.ERROR, "enqueue")


@on_sqlite
async def test_in_place_broker_keeps_nothing(database: Database) -> None:
    """Of tasks that run inside of the caller's own, which may live for long, nothing is kept when they are done."""
    ax.configure(database.url)
    broker = InMemoryBroker(await_inplace=True)
    broker.add_middlewares(ActivityMiddleware())
    add = broker.task(task_name="in place")(lambda: None)
    await broker.startup()
    for _ in range(5):
        await add.kiq()
    gc.collect()
    kept = [one for one in gc.get_objects() if type(one) is TaskiqMessage and one.task_name == "in place"]
    assert len(kept) <= 1, "the last one is current"
    await broker.shutdown()


@on_sqlite
async def test_watching_holds_nothing_up(
    watched: InMemoryBroker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a database, or any set-up, a task that is only watched runs all the same."""
    monkeypatch.setattr("agentexec_otel.tasks.taskiq.middleware.PATIENCE", 0.1)

    @watched.task("app:add")
    async def add(one: int, other: int) -> int:
        return one + other

    ax.configure("postgresql+psycopg://nobody@127.0.0.1:1/none")
    caplog.set_level(logging.CRITICAL, "agentexec_otel")
    assert (await (await add.kiq(1, 2)).wait_result(timeout=10)).return_value == 3
    reset_runtime()
    assert (await (await add.kiq(1, 2)).wait_result(timeout=10)).return_value == 3


@on_sqlite
@pytest.mark.parametrize("labels", [{"agentexec_agent_id": "x"}, {"agentexec_attempt": "x"}, {"_retries": 10**9}])
async def test_watched_message_with_a_forged_label(
    watched: InMemoryBroker, database: Database, labels: dict[str, Any]
) -> None:
    """A task of the application's own broker runs all the same, and no label moves its activity to a far attempt."""
    ax.CONF.lookup_timeout = 0.1
    ran: list[int] = []

    @watched.task("app:note")
    def note(number: int) -> None:
        ran.append(number)

    agent_id = await ax.activity.aio.create("app:note")
    sent: dict[str, Any] = poison.message(agent_id, **labels) | {"task_name": "app:note", "args": [1], "kwargs": {}}
    await watched.kick(_sent(json.dumps(sent).encode(), "app:note"))
    await watched.wait_all()
    assert ran == [1]
    assert ax.flush()
    expected = Status.COMPLETE if "_retries" in labels else Status.QUEUED
    assert (row(database.engine, agent_id).status, row(database.engine, agent_id).attempt) == (expected, 1)
