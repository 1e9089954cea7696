"""The public API as an application writes it, with the types that it gets: checked by mypy and pyright, and run."""

# pyright: reportUnnecessaryIsInstance=false

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, assert_type
from uuid import UUID, uuid4

from fastapi import APIRouter
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import BaseModel
from sqlalchemy import URL, Engine, MetaData, RowMapping
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker
from taskiq import InMemoryBroker

import agentexec_otel as ax
from agentexec_otel.activity.models import Activity, ActivityLog, Status
from agentexec_otel.activity.schemas import (
    ActivityCursorPageSchema,
    ActivityDetailSchema,
    ActivityFeedLogSchema,
    ActivityFeedSchema,
    ActivityListItemSchema,
    ActivityListSchema,
    ActivityLogSchema,
    ActivityStatsBucketSchema,
    ActivityStatsSchema,
    ActivityTypeStatsSchema,
    PercentilesSchema,
)
from agentexec_otel.export import (
    Ack,
    ActiveCount,
    ActivityEvent,
    ActivityExporter,
    ActivityProcessor,
    ActivityStore,
    AttemptEnd,
    EndedActivity,
    Ending,
    ExportError,
    ExportResult,
    MisconfiguredExportError,
    Opening,
    Outcome,
    PoisonExportError,
    Refusal,
    Reject,
    Retry,
    SessionStore,
    SpanOfAttempt,
    SpanRef,
    SpanStore,
    StoredActivity,
    StoredSpan,
    TransientExportError,
)
from agentexec_otel.tasks import ActivityMiddleware
from agentexec_otel.testing import InMemoryActivityExporter
from agentexec_otel_exporters.sql import SQLExporter, SQLSpanExporter


def set_up(url: str, engine: Engine) -> None:
    """All that `configure` takes, and the calls of the process."""
    ax.configure(url)
    ax.configure(engine, exporters=[InMemoryActivityExporter()], redact=str.upper, create_tables=True)
    assert_type(ax.flush(), bool)
    assert_type(ax.flush(timeout=1.0), bool)
    assert_type(ax.shutdown(1.0), bool)
    assert_type(ax.health(), dict[str, Any])
    assert_type(ax.Base.metadata, MetaData)
    ax.configure(engine.url, span_exporter=ax.tracked(InMemorySpanExporter()))
    ax.reasons.register(PermissionError, "auth")
    assert_type(ax.reasons.REASONS, tuple[ax.reasons.Reason, ...])
    assert_type(ax.recover(timeout=1.0), int)
    assert_type(ax.recover(dead_letters=True), int)
    assert_type(ax.replay(batch_size=100, progress=lambda done, total: None, agent_type="task"), int)
    assert_type(ax.replay(dry_run=True), int)
    assert_type(ax.Settings.unknown_variables(), dict[str, str | None])
    assert_type(ax.spool.directory(), Path | None)
    ax.spool.check()
    assert_type(ax.spool.contents(), list[ax.spool.SpoolFolder])
    assert_type(ax.spool.dead_letters(), list[ax.spool.DeadLetter])


def other_set_ups(url: URL, async_engine: AsyncEngine) -> None:
    """What is only type-checked here: it would change the process or needs another driver."""
    ax.configure()
    ax.configure(url, tracer_provider=None, logger_provider=None, otlp_endpoint="http://localhost:4318")
    ax.configure(async_engine)
    assert_type(ax.configured_database(), str | URL | Engine | AsyncEngine)
    assert_type(ax.web.router(authorize=ax.web.public, database=async_engine, prefix="/api"), APIRouter)
    ax.web.router(authorize=lambda request: ax.web.Scope({"tenant": "acme"}), on_retry=print)
    ax.web.router(authorize=ax.web.public, pool=ax.Pool(keep_contexts=True))
    ax.install_signal_handlers()


def migrations(engine: Engine) -> None:
    """The migrations, from tables that are there."""
    assert_type(ax.db.current(engine), str | None)
    ax.db.stamp(engine, "0001")
    ax.db.upgrade(engine, pre_deploy=True)
    ax.db.upgrade(engine.url)
    assert_type(ax.db.check(engine), list[str])
    assert_type(ax.db.engine(engine.url), Engine)
    assert_type(ax.db.server(engine), str)
    assert_type(ax.db.rights(engine), dict[str, ExportError | None])
    assert_type(ax.db.sql(engine, start="0001"), str)
    ax.db.downgrade(engine)
    ax.db.upgrade(engine)
    assert_type(ax.db.include_object(None, None, "table", False, None), bool)
    assert_type(ax.db.include_declared(None, None, "index", True, None), bool)


def settings() -> None:
    """Settings are typed attributes."""
    assert_type(ax.CONF, ax.Settings)
    assert_type(ax.CONF.table_prefix, str)
    assert_type(ax.CONF.database_url, str | None)
    assert_type(ax.CONF.event_mode, Literal["span_event", "log", "both"])
    assert_type(ax.CONF.event_name, Literal["log", "message"])
    assert_type(ax.CONF.span_levels, tuple[Literal["langfuse", "logfire"], ...])
    assert_type(ax.CONF.trace_url_template, str | None)
    assert_type(ax.CONF.message_limit, int)
    assert_type(ax.CONF.terminal_timeout, float)


def write() -> UUID:
    """The life-cycle calls outside of a session."""
    agent_id = assert_type(ax.activity.create("task", "In line.", metadata={"tenant": "acme"}), UUID)
    assert_type(ax.activity.update(agent_id, "Working.", percentage=10 / 3), bool)
    assert_type(ax.activity.update(str(agent_id), "Working.", status=Status.RUNNING), bool)
    assert_type(ax.activity.complete(agent_id, percentage=None), bool)
    assert_type(ax.activity.retry(agent_id, "Once more."), int)
    assert_type(ax.activity.error(agent_id, message="Failed."), bool)
    assert_type(ax.activity.cancel(agent_id, metadata_filter={"tenant": "acme"}), bool)
    assert_type(ax.activity.retry(agent_id, metadata_filter={"tenant": "acme"}), int)
    assert_type(ax.activity.retry_many(reason="rate_limit", agent_type=["task", "job"]), dict[UUID, int])
    assert_type(ax.activity.cancel_pending(agent_type="task", older_than=timedelta(hours=1)), int)
    assert_type(ax.activity.reap(), int)
    return agent_id


def write_in(session: Session, agent_id: UUID) -> None:
    """The life-cycle calls in a session of the caller."""
    created = ax.activity.create(task_name="task", message=None, agent_id=None, session=session)
    assert_type(created, UUID)
    assert_type(ax.activity.update(created, "Working.", 10, None, session), bool)
    assert_type(ax.activity.complete(created, session=session), bool)
    assert_type(ax.activity.cancel_pending(session, metadata_filter={"tenant": "acme"}), int)
    assert_type(ax.activity.retry_many(session, message="Once more."), dict[UUID, int])
    assert_type(ax.activity.reap(session), int)


def read(session: Session, agent_id: UUID) -> None:
    """The queries and what they return."""
    found = assert_type(ax.activity.detail(session, agent_id), ActivityDetailSchema | None)
    if found is not None:
        assert_type(found.agent_id, UUID)
        assert_type(found.status, Status)
        assert_type(found.latest_percentage, int | None)
        assert_type(found.percentage, int | None)
        assert_type(found.created_at, datetime)
        assert_type(found.logs, list[ActivityLogSchema])
        assert_type(found.logs[0].id, int)
        assert_type(found.trace_id, str | None)
        assert_type(found.trace_url, str | None)
        assert_type(found.metadata, dict[str, Any] | None)
    assert_type(ax.activity.detail(session, agent_id, include_late=True), ActivityDetailSchema | None)
    page = assert_type(ax.activity.list(session, 1, 20, status=[Status.ERROR], agent_type="task"), ActivityListSchema)
    assert_type(ax.activity.list(session, status=("ERROR", Status.CANCELED)), ActivityListSchema)
    assert_type(page.items, list[ActivityListItemSchema])
    assert_type((page.total, page.pages, page.total_pages), tuple[int, int, int])
    assert_type(page.next_cursor, str | None)
    behind = assert_type(ax.activity.list(session, cursor="", order="oldest"), ActivityCursorPageSchema)
    assert_type((behind.total, behind.next_cursor), tuple[int | None, str | None])
    filters: ax.activity.ActivityFilters = {"reason": ["tool", "timeout"], "text": "report"}
    assert_type(ax.activity.list(session, page_size=5, **filters), ActivityListSchema)
    assert_type(ax.activity.get(session, agent_id, {"tenant": "acme"}), ActivityListItemSchema | None)
    for item in page.items:
        assert_type(item.latest_log, str | None)
        assert_type(item.latest_log_timestamp, datetime | None)
        assert_type(item.elapsed_time_seconds, int)
    assert_type(ax.activity.count_active(session), int)
    found_stats = assert_type(ax.activity.stats(session, bucket=timedelta(hours=1), **filters), ActivityStatsSchema)
    assert_type(found_stats.by_status[Status.ERROR], int)
    assert_type(found_stats.by_type, list[ActivityTypeStatsSchema])
    assert_type(found_stats.by_reason, dict[str, int])
    assert_type(found_stats.duration_seconds, PercentilesSchema)
    assert_type(found_stats.duration_seconds.p95, int | float | None)
    assert_type(found_stats.series, list[ActivityStatsBucketSchema])
    assert_type(ax.activity.logs(session, agent_id, after_seq=1, limit=5), list[ActivityLogSchema])
    assert_type(ax.activity.logs(session, agent_id, metadata_filter=None), list[ActivityLogSchema])
    feed = assert_type(ax.activity.feed(session, "", limit=5), ActivityFeedSchema)
    assert_type((feed.logs, feed.next_cursor, feed.has_more), tuple[list[ActivityFeedLogSchema], str, bool])
    of_feed: ax.activity.ActivityFeedFilters = {"agent_type": ["task"], "metadata_filter": {"tenant": "acme"}}
    assert_type(ax.activity.feed(session, feed.next_cursor, **of_feed), ActivityFeedSchema)
    rows = session.query(Activity).filter(Activity.logs.any(status=Status.QUEUED)).all()
    assert_type(rows, list[Activity])
    for row in rows:
        assert_type(row.logs, list[ActivityLog])
        assert_type(row.status, Status)
        assert_type(row.updated_at, datetime)


def model(session: Session) -> None:
    """The methods of agentexec's model, in a session, and its fields in our schemas."""
    created = assert_type(Activity.create(session, uuid4(), "task", "In line.", {"tenant": "acme"}), Activity)
    assert_type(Activity.append_log(session=session, agent_id=created.agent_id, message="", status=Status.ERROR), bool)
    assert_type(Activity.get_by_agent_id(session, created.agent_id, {"tenant": "acme"}), Activity | None)
    assert_type(Activity.get_list(session, page=1, page_size=5), list[RowMapping])
    assert_type(Activity.get_pending_ids(session), list[UUID])
    assert_type(Activity.get_active_count(session), int)
    log = ActivityLogSchema(id=1, message="", status=Status("running"), created_at=created.created_at)
    item = ActivityListItemSchema(agent_id=created.agent_id, agent_type="task", status=log.status)
    assert_type(ActivityListSchema(items=[item], total=1, page=1, page_size=1).total_pages, int)


async def model_asynchronously(session: AsyncSession) -> None:
    """The same in an AsyncSession."""
    agent_id = uuid4()
    assert_type(await Activity.create(session, agent_id, "task", "In line."), Activity)
    assert_type(await Activity.append_log(session, agent_id, "", Status.RUNNING, 5), bool)
    assert_type(await Activity.get_by_agent_id(session, agent_id), Activity | None)
    assert_type(await Activity.get_list(session), list[RowMapping])
    assert_type(await Activity.get_pending_ids(session), list[UUID])
    assert_type(await Activity.get_active_count(session), int)


def run() -> UUID:
    """The block, its attributes, and what is current."""
    with ax.activity.run("task", "Here we go.", metadata={"n": 1}) as block:
        assert_type(block, ax.activity.ActivityRun)
        assert_type(block.agent_id, UUID)
        assert_type(block.update("Working.", 50), bool)
        assert_type(block.canceled, bool)
        assert_type(block.owner, bool)
        assert_type(ax.activity.current(), ax.activity.ActivityRun | None)
        block.record_usage(input_tokens=1, output_tokens=2, cached_input_tokens=1, reasoning_tokens=1, model="large")
        assert_type(block.waiting(), bool)
        block.waiting("approval", items=[{"tool": "refund", "call_id": "call_1"}], message="Refund?")
    return block.agent_id


def following(engine: Engine, sessions: sessionmaker[Session], agent_id: UUID) -> None:
    """Logs as they come, from an engine or a sessionmaker."""
    with closing(ax.activity.follow(engine, agent_id, after_seq=1, metadata_filter=None, timeout=5)) as logs:
        assert_type(next(logs), ActivityLogSchema)
    assert_type(ax.activity.follow(sessions, str(agent_id)), Generator[ActivityLogSchema])
    with closing(ax.activity.follow_feed(engine, timeout=5, agent_type="task")) as feed:
        assert_type(next(feed), ActivityFeedLogSchema)
    assert_type(ax.activity.follow_feed(sessions, "now"), Generator[ActivityFeedLogSchema])


async def following_asynchronously(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession], agent_id: UUID
) -> None:
    """The same for asyncio."""
    async with aclosing(ax.activity.aio.follow(engine, agent_id, after_seq=1, timeout=5)) as logs:
        async for log in logs:
            assert_type(log, ActivityLogSchema)
    assert_type(ax.activity.aio.follow(sessions, str(agent_id)), AsyncGenerator[ActivityLogSchema])
    async with aclosing(ax.activity.aio.follow_feed(engine, timeout=5)) as feed:
        assert_type(await anext(feed), ActivityFeedLogSchema)
    assert_type(ax.activity.aio.follow_feed(sessions, "now"), AsyncGenerator[ActivityFeedLogSchema])


def retention(engine: Engine, folder: Path) -> None:
    """To a file and back, with a progress bar."""

    def progress(done: int, total: int) -> None:
        assert done <= total

    older_than, to = timedelta(0), folder / "archive.jsonl"
    archived = ax.activity.archive(engine, older_than, to=to, batch_size=5, progress=progress, status=Status.COMPLETE)
    assert_type(archived, int)
    with Session(engine) as session:
        assert_type(ax.activity.archive(session, datetime(2020, 1, 1, tzinfo=UTC)), int)
        assert_type(ax.activity.restore(session, str(to), batch_size=5, progress=progress), int)


async def retention_asynchronously(engine: AsyncEngine, folder: Path) -> None:
    """The same for asyncio."""
    assert_type(await ax.activity.aio.archive(engine, timedelta(0), to=folder / "aio.jsonl", agent_type="task"), int)
    assert_type(await ax.activity.aio.restore(engine, folder / "aio.jsonl"), int)


async def asynchronous(session: AsyncSession, agent_id: UUID) -> None:
    """The twins for asyncio, and the synchronous queries on an AsyncSession."""
    assert_type(await ax.activity.aio.create("task", session=session), UUID)
    assert_type(await ax.activity.aio.update(agent_id, "Working.", percentage=5), bool)
    assert_type(await ax.activity.aio.complete(agent_id), bool)
    assert_type(await ax.activity.aio.error(agent_id), bool)
    assert_type(await ax.activity.aio.cancel(agent_id), bool)
    assert_type(await ax.activity.aio.retry(agent_id), int)
    assert_type(await ax.activity.aio.retry_many(session=session, status="CANCELED"), dict[UUID, int])
    assert_type(await ax.activity.aio.cancel_pending(session=session), int)
    assert_type(await ax.activity.aio.reap(session=session), int)
    assert_type(await ax.activity.aio.detail(session, agent_id), ActivityDetailSchema | None)
    assert_type(await ax.activity.aio.get(session, agent_id), ActivityListItemSchema | None)
    assert_type(await ax.activity.aio.list(session, page_size=5), ActivityListSchema)
    assert_type(await ax.activity.aio.list(session, cursor=""), ActivityCursorPageSchema)
    assert_type(await ax.activity.aio.feed(session, limit=5), ActivityFeedSchema)
    assert_type(await ax.activity.aio.logs(session, agent_id), list[ActivityLogSchema])
    assert_type(await ax.activity.aio.count_active(session), int)
    assert_type(await ax.activity.aio.stats(session, agent_type="task"), ActivityStatsSchema)
    assert_type(await session.run_sync(ax.activity.detail, agent_id), ActivityDetailSchema | None)
    async with ax.activity.run(agent_id) as block:
        assert_type(block, ax.activity.ActivityRun)


class Collecting:
    """An exporter that an application writes."""

    def __init__(self) -> None:
        self.events: list[ActivityEvent] = []

    def export(self, events: Sequence[ActivityEvent], *, replay: bool = False) -> Sequence[ExportResult]:
        """Keep them."""
        for event in events:
            assert_type((event.event_id, event.agent_id), tuple[UUID, UUID])
            assert_type(event.status, Status)
            assert_type(event.opening, Opening | None)
            assert_type(event.span, SpanRef | None)
            assert_type(event.outcome, Outcome | None)
            self.events.append(event)
        return [Ack(event.status) if event.message else Reject("empty") for event in events] or [Retry(0.5)][:0]

    def force_flush(self, timeout: float) -> bool:
        """Nothing is held back."""
        return True

    def shutdown(self, timeout: float) -> None:
        """Nothing to release."""


def plug_in(url: str) -> None:
    """Exporters are found by their methods alone."""
    exporters: list[ActivityExporter] = [Collecting(), SQLExporter(url), InMemoryActivityExporter()]
    assert isinstance(SQLExporter(url), ActivityStore)
    assert isinstance(SQLExporter(url), SessionStore)
    stores = SQLExporter(url)
    store: SpanStore = stores
    assert_type(store.count_spans([]), int)
    claimed: Sequence[StoredSpan] = store.claim_spans([], 10, 60.0)
    handed_over = [SpanOfAttempt(one.start.agent_id, one.start.attempt, one.ref.span_id) for one in claimed]
    store.hand_over_spans(handed_over, None)
    assert not isinstance(Collecting(), ActivityStore)
    processor = ActivityProcessor(exporters[0], max_batch_size=10)
    assert_type(processor.shutdown(1.0), bool)
    assert_type(Ending(Status.CANCELED, "text", Outcome()).status, Status)
    assert_type(stores.count_active(), Sequence[ActiveCount])
    stores.shutdown(1.0)
    assert_type(Ack(Status.COMPLETE).end, AttemptEnd | None)
    assert_type(EndedActivity(UUID(int=1), 1, UUID(int=2), 0).attempt, int)
    assert_type(Reject("no", Refusal.EXISTS).refusal, Refusal | None)
    assert_type(
        StoredActivity(UUID(int=1), Opening("task"), Status.QUEUED, 1, 0, None).history, tuple[ActivityEvent, ...]
    )
    ax.configure(url, exporters=exporters[:1])
    assert SQLSpanExporter(url).force_flush()


def errors(agent_id: UUID) -> None:
    """The exception tree, as `except` clauses use it."""
    try:
        ax.activity.update(agent_id, "text")
    except ax.ActivityNotFoundError as missing:
        assert_type(missing.agent_id, UUID)
    for broad, narrow in (
        (ax.AgentExecError, ax.ActivityNotFoundError),
        (ax.AgentExecError, ax.ActivityNotStoredError),
        (ax.AgentExecError, ax.ActivityStateError),
        (ax.AgentExecError, ax.ConfigurationError),
        (ax.ConfigurationError, ax.MissingExtraError),
        (ImportError, ax.MissingExtraError),
        (LookupError, ax.ActivityNotFoundError),
        (ValueError, ax.ActivityNotFoundError),
        (ax.AgentExecError, ax.TaskFailedError),
        (ax.AgentExecError, ax.TaskNotSentError),
        (ax.AgentExecError, ax.SpanNotExportedError),
        (ax.AgentExecError, ax.TaskResultError),
        (LookupError, ax.UnknownTaskError),
        (ExportError, TransientExportError),
        (ExportError, MisconfiguredExportError),
        (ExportError, PoisonExportError),
        (ax.AgentExecError, ExportError),
    ):
        assert issubclass(narrow, broad)
    assert issubclass(ax.ActivityCanceledError, ax.AgentExecError)


class Topic(BaseModel):
    """What a task is given."""

    company: str


async def tasks() -> None:
    """A pool, a task of it, and what becomes of one that is sent."""
    pool = ax.Pool(concurrency=10, keep_contexts=True)

    @pool.task("research", timeout=60)
    async def research(agent_id: UUID, context: Topic) -> str:
        return context.company

    pool.add_task("report", research, context_type=Topic, result_type=str, timeout=60)
    assert_type(await research(UUID(int=1), Topic(company="Acme")), str)
    async with pool:
        task = await ax.enqueue("research", Topic(company="Acme"), metadata={"tenant": "one"})
        assert_type(task, ax.Task)
        assert_type(task.agent_id, UUID)
        assert await task.result(timeout=10.0) == await task.execute() == "Acme"
        assert_type(await pool.enqueue("research", {"company": "Acme"}), ax.Task)
        assert_type((await pool.retry(task.agent_id, "Once more.")).attempt, int)
        assert_type(task.task_name, str)
        assert_type(await ax.gather(task, timeout=10), tuple[Any, ...])
        assert await ax.get_result(task, timeout=10) == "Acme"
    broker = InMemoryBroker()
    broker.add_middlewares(ActivityMiddleware(strict=True))


def agents(agent_id: UUID) -> None:
    """What needs the extra is imported when it is used, and typed all the same."""
    runner = ax.OpenAIRunner(agent_id, max_turns_recovery=True)
    assert_type(runner, ax.OpenAIRunner)
    assert_type(ax.AgentExecInstrumentor(), ax.AgentExecInstrumentor)
    ax.instrument()
    ax.instrument("openai_agents", spans=True)
    ax.uninstrument("openai_agents")
