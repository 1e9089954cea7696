"""Every call that may wait, with its documented bound: the settings of docs/reference/configuration.md, set small."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import Engine
from sqlalchemy.orm import Session
from taskiq import BrokerMessage, InMemoryBroker

import agentexec_otel as ax
from agentexec_otel.tasks import ActivityMiddleware

CREATE: Final = 2.5  # Well above what a look-up and an end may take together.
LOOKUP: Final = 0.2
TERMINAL: Final = 0.2
MIDDLEWARE: Final = 2.0
AT_ONCE: Final = 0.1
"""The bound of a call that does not wait: what a busy machine takes for a thread."""

Thunk: TypeAlias = Callable[[], object]


def set_bounds() -> None:
    """Set the settings that bound calls."""
    ax.CONF.create_timeout, ax.CONF.lookup_timeout, ax.CONF.terminal_timeout = CREATE, LOOKUP, TERMINAL


@dataclass
class Site:
    """Where calls are prepared while the database still answers.

    Attributes:
        engine: Reaches the database past the proxy.
        strangers: Activities that exist, and that this process has not seen since it was configured.
    """

    engine: Engine
    strangers: list[UUID]

    def unknown(self) -> UUID:
        """An activity that exists, and that this process has not seen."""
        return self.strangers.pop()

    def queued(self) -> UUID:
        """An activity that this process has created."""
        return ax.activity.create("task")

    def running(self) -> UUID:
        """An activity that runs in this process, without a block."""
        agent_id = ax.activity.create("task")
        ax.activity.update(agent_id, "Working.")
        return agent_id

    def ended(self) -> UUID:
        """An activity that has ended in this process."""
        agent_id = self.running()
        ax.activity.complete(agent_id)
        return agent_id


@dataclass(frozen=True)
class Call:
    """A call, its bound in seconds, and how it is prepared before the database goes away."""

    name: str
    bound: float
    prepare: Callable[[Site], Thunk]


def on_each(name: str, call: Callable[[UUID], object], known: float, unknown: float, ended: float) -> list[Call]:
    """The same call on an activity that runs here, on one that this process has not seen, and on one that has ended."""
    return [
        Call(f"{name}, running", known, lambda site: _bind(call, site.running())),
        Call(f"{name}, queued", known, lambda site: _bind(call, site.queued())),
        Call(f"{name}, unknown", unknown, lambda site: _bind(call, site.unknown())),
        Call(f"{name}, ended", ended, lambda site: _bind(call, site.ended())),
    ]


def _bind(call: Callable[[UUID], object], agent_id: UUID) -> Thunk:
    return lambda: call(agent_id)


def _update(status: str | None) -> Callable[[UUID], object]:
    return lambda agent_id: ax.activity.update(agent_id, "Line.", status=status)


def _on_loop(work: Callable[[UUID], Coroutine[Any, Any, object]]) -> Callable[[UUID], object]:
    return lambda agent_id: asyncio.run(work(agent_id))


async def _update_on_loop(agent_id: UUID) -> object:
    return ax.activity.update(agent_id, "Line.")


async def _complete_on_loop(agent_id: UUID) -> object:
    return ax.activity.complete(agent_id)


async def _run_on_loop(agent_id: UUID) -> object:
    async with ax.activity.run(agent_id) as run:
        return run.update("Line.")


def _enter(agent_id: UUID) -> object:
    return ax.activity.run(agent_id).__enter__()


def _leave(site: Site) -> Thunk:
    run = ax.activity.run("task").__enter__()
    return lambda: run.__exit__(None, None, None)


def _fail(site: Site) -> Thunk:
    run = ax.activity.run("task").__enter__()
    error = LookupError("nothing there")
    return lambda: run.__exit__(LookupError, error, None)


def _update_in_block(site: Site) -> Thunk:
    run = ax.activity.run("task").__enter__()
    return lambda: run.update("Line.")


def _update_in_session(site: Site) -> Thunk:
    agent_id = site.unknown()

    def call() -> None:
        with Session(site.engine) as session:
            ax.activity.update(agent_id, "In a session.", session=session)

    return call


# -- tasks ----------------------------------------------------------------------------------------------------------


class Order(BaseModel):
    """What the task is given."""


class _Holding(InMemoryBroker):
    """Takes messages, and delivers none."""

    async def kick(self, message: BrokerMessage) -> None:
        """Hold the message."""


def _result(timeout: float) -> Callable[[Site], Thunk]:
    def prepare(site: Site) -> Thunk:
        pool = ax.Pool(broker=_Holding())

        @pool.task("waits")
        async def waits(agent_id: UUID, context: Order) -> None:
            """Never starts."""

        task = asyncio.run(pool.enqueue("waits", Order()))
        return lambda: asyncio.run(task.result(timeout=timeout))

    return prepare


def _tracked() -> tuple[InMemoryBroker, Any]:
    broker = InMemoryBroker()
    broker.add_middlewares(ActivityMiddleware())

    @broker.task("tracked")
    async def tracked() -> None:
        """Returns at once."""

    return broker, tracked


def _send(site: Site) -> Thunk:
    """Send a task, which waits for nothing but the row of its activity."""
    _, tracked = _tracked()

    async def send() -> None:
        await tracked.kiq()

    return lambda: asyncio.run(send())


def _send_and_run(site: Site) -> Thunk:
    broker, tracked = _tracked()

    async def run() -> None:
        await tracked.kiq()
        await broker.wait_all()

    return lambda: asyncio.run(run())


# -- the table ------------------------------------------------------------------------------------------------------

ENDS: Final[dict[str, Callable[[UUID], object]]] = {
    "complete": ax.activity.complete,
    "error": ax.activity.error,
    "cancel": ax.activity.cancel,
    "update(COMPLETE)": _update("COMPLETE"),
    "update(ERROR)": _update("ERROR"),
    "update(CANCELED)": _update("CANCELED"),
    "aio.complete": _on_loop(ax.activity.aio.complete),
}

CALLS: Final[list[Call]] = [
    *on_each("update", _update(None), AT_ONCE, LOOKUP, AT_ONCE),
    *on_each("update(QUEUED)", _update("QUEUED"), LOOKUP + TERMINAL, LOOKUP + TERMINAL, LOOKUP + TERMINAL),
    *(
        call
        for name, end in ENDS.items()
        for call in on_each(name, end, TERMINAL, LOOKUP + TERMINAL, LOOKUP + TERMINAL)
    ),
    *on_each("update on a loop", _on_loop(_update_on_loop), AT_ONCE, AT_ONCE, AT_ONCE),
    *on_each("complete on a loop", _on_loop(_complete_on_loop), AT_ONCE, AT_ONCE, AT_ONCE),
    *on_each("retry", ax.activity.retry, CREATE, CREATE, CREATE),
    *on_each("run: enter", _enter, AT_ONCE, LOOKUP, LOOKUP),
    *on_each("async run: enter and leave", _on_loop(_run_on_loop), TERMINAL, LOOKUP + TERMINAL, LOOKUP + TERMINAL),
    Call("run: enter a new one", CREATE, lambda _: lambda: ax.activity.run("task").__enter__()),
    Call("run: leave", TERMINAL, _leave),
    Call("run: fail", TERMINAL, _fail),
    Call("run: update", AT_ONCE, _update_in_block),
    Call("update(session=)", LOOKUP, _update_in_session),
    Call("create", CREATE, lambda _: lambda: ax.activity.create("task")),
    Call("aio.create", CREATE, lambda _: lambda: asyncio.run(ax.activity.aio.create("task"))),
    Call("cancel_pending", CREATE, lambda _: lambda: ax.activity.cancel_pending(agent_type="nothing")),
    Call("reap", CREATE, lambda _: ax.activity.reap),
    Call("Task.result(timeout=0.2)", 0.2, _result(0.2)),
    Call("taskiq: send", MIDDLEWARE, _send),
    Call("taskiq: send and run", 2 * MIDDLEWARE, _send_and_run),
    Call("flush(0.2)", 0.2, lambda _: lambda: ax.flush(0.2)),
    Call("health", AT_ONCE, lambda _: ax.health),
]
