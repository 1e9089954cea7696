"""Listening to PostgreSQL: a notification of the writer ends the pause of those that wait for logs.

Listening only shortens pauses, which end as well without it. So no log depends on a notification: not if a connection
pooler swallows it, and not if the connection is lost.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from typing import Any, Final, Protocol

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool, QueuePool

from agentexec_otel._errors import guarded
from agentexec_otel.activity.models import CHANNEL, Activity

_logger = logging.getLogger("agentexec_otel.activity")

_LISTEN: Final = f'LISTEN "{CHANNEL}"'
_CHECK_SECONDS: Final = 0.5
"""How often a listener checks that it is still needed, and that its connection is still there."""
_CLOSE_SECONDS: Final = 1.0
_LEAST_SECONDS: Final = 1.0
_MOST_SECONDS: Final = 60.0


class Followed(Protocol):
    """Those that wait for logs."""

    def is_followed(self) -> bool:
        """Whether to continue listening."""
        ...

    def notify(self) -> float:
        """Take a notification. Return how many seconds to rest before the next one."""
        ...


def listening_engine(session: Session) -> Engine | None:
    """The engine whose connections can listen for this session; None if there is none."""
    bind = session.get_bind(mapper=Activity)
    if not isinstance(bind, Engine) or bind.dialect.name != "postgresql":
        return None
    known = _ASYNC_DRIVERS if bind.dialect.is_async else ("psycopg",)
    # Other pools cannot do without the connection that is taken out of them.
    return bind if bind.dialect.driver in known and isinstance(bind.pool, QueuePool | NullPool) else None


def listen(engine: Engine, polls: Followed, retry: Retry) -> None:
    """Listen on a connection of its own for as long as there is need to, or until it fails."""
    with _reported(engine), _connected(engine) as hears:
        polls.notify()  # of what was committed before
        while polls.is_followed():
            if hears(_CHECK_SECONDS):
                time.sleep(polls.notify())
            retry.reset()


async def listen_async(engine: Engine, polls: Followed, retry: Retry) -> None:
    """Listen as `listen` does, in a task."""
    with _reported(engine):
        async with _connected_async(engine) as hears:
            polls.notify()
            while polls.is_followed():
                if await hears(_CHECK_SECONDS):
                    await asyncio.sleep(polls.notify())
                retry.reset()


class Retry:
    """When to listen again: a second after the last time, and twice as late after each failure."""

    def __init__(self) -> None:
        self._at = -math.inf
        self._seconds = _LEAST_SECONDS

    def begin(self) -> bool:
        """Begin to listen if it is time, and put the next time off. Return whether it is time."""
        now = time.monotonic()
        if now < self._at:
            return False
        self._at, self._seconds = now + self._seconds, min(2 * self._seconds, _MOST_SECONDS)
        return True

    def reset(self) -> None:
        """Note that it has worked."""
        self._seconds = _LEAST_SECONDS


@contextmanager
def _reported(engine: Engine) -> Generator[None]:
    """Log what ends the listening, in one line if it is a matter of the database."""
    expected = (SQLAlchemyError, OSError, engine.dialect.loaded_dbapi.Error)
    with guarded("listening for notifications"):
        try:
            yield
        except expected as exc:
            _logger.info("logs are polled, since listening for notifications failed: %s", exc)


# -- a connection of its own, which is not part of the engine's pool any more -------------------------------------


@contextmanager
def _connected(engine: Engine) -> Generator[Callable[[float], bool]]:
    """Listen. Yield what waits so many seconds for a notification, and raises if the connection is lost."""
    connection = engine.connect()
    try:
        connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql(_LISTEN)
        driver: Any = connection.connection.driver_connection
        connection.detach()
    except BaseException:
        connection.close()
        raise
    with closing(driver):
        yield lambda seconds: bool(list(driver.notifies(timeout=seconds, stop_after=1)))


@asynccontextmanager
async def _connected_async(engine: Engine) -> AsyncGenerator[_Hears]:
    """As `_connected`, for the engine of an AsyncEngine."""
    from sqlalchemy.ext.asyncio import AsyncEngine  # synchronous applications need not have greenlet

    connection = await AsyncEngine(engine).connect()
    try:
        connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.exec_driver_sql(_LISTEN)
        pooled = await connection.get_raw_connection()
        driver = pooled.driver_connection
        pooled.detach()
    except BaseException:
        await connection.close()
        raise
    async with _ASYNC_DRIVERS[engine.dialect.driver](driver) as hears:
        yield hears


_Hears = Callable[[float], Awaitable[bool]]


@asynccontextmanager
async def _psycopg(driver: Any) -> AsyncGenerator[_Hears]:
    async def hears(seconds: float) -> bool:
        return bool([one async for one in driver.notifies(timeout=seconds, stop_after=1)])

    try:
        yield hears
    finally:
        await driver.close()


@asynccontextmanager
async def _asyncpg(driver: Any) -> AsyncGenerator[_Hears]:
    heard = asyncio.Event()

    def hear(*_: object) -> None:
        heard.set()

    async def hears(seconds: float) -> bool:
        with suppress(TimeoutError):
            await asyncio.wait_for(heard.wait(), seconds)
        if driver.is_closed():
            raise ConnectionResetError("the connection is lost")
        was_heard = heard.is_set()
        heard.clear()
        return was_heard

    try:
        await driver.add_listener(CHANNEL, hear)
        yield hears
    finally:
        with suppress(TimeoutError):
            await driver.close(timeout=_CLOSE_SECONDS)


_ASYNC_DRIVERS: Final = {"psycopg": _psycopg, "asyncpg": _asyncpg}
