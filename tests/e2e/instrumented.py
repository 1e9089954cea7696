"""What the tests of instrumented runs share: the SDK instrumented and silent, and a look at the activities."""

import asyncio
import threading
from typing import Any, cast

import agents
from agents.tracing import TracingProcessor
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity.schemas import ActivityDetailSchema
from tests.databases import Database


def processors() -> tuple[TracingProcessor, ...]:
    """The SDK's trace processors."""
    provider: Any = agents.tracing.get_trace_provider()
    return cast("tuple[TracingProcessor, ...]", provider._multi_processor._processors)


def gated_engine(database: Database) -> tuple[Engine, threading.Event]:
    """An engine that gives out no connection while the gate is not set, as with a database that is busy."""
    engine, gate = create_engine(database.url), threading.Event()
    gate.set()
    event.listen(engine, "checkout", lambda *_: gate.wait(10))
    return engine, gate


async def runs_done() -> None:
    """Wait until no task of this loop runs any more, such as the background task of a streamed run."""
    while len(asyncio.all_tasks()) > 1:  # noqa: ASYNC110  # nothing notifies
        await asyncio.sleep(0.01)
    await asyncio.sleep(0)  # for the callbacks of the last one


def activities(database: Database) -> list[ActivityDetailSchema]:
    """All activities, the newest first."""
    assert ax.flush(5)
    with Session(database.engine) as session:
        ids = [item.agent_id for item in ax.activity.list(session).items]
        return [detail for each in ids if (detail := ax.activity.detail(session, each, include_late=True)) is not None]


def only(database: Database) -> ActivityDetailSchema:
    """The one activity there is."""
    (found,) = activities(database)
    return found


def lines(activity: ActivityDetailSchema) -> list[str]:
    """Its lines between the first two and the last."""
    return [line.message for line in activity.logs][2:-1]
