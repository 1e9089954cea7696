"""What the brokers have in common."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

from taskiq.utils import maybe_awaitable

_logger = logging.getLogger("agentexec_otel.tasks")


def check_queue(queue: str, server: str, allowed: re.Pattern[str], said: str) -> None:
    """Raise ValueError for a name that the server refuses; workers would take it for away, and try for ever."""
    if not allowed.fullmatch(queue):
        raise ValueError(f"queue={queue!r} is no name for {server}: use {said}")


def heed_cancellation() -> None:
    """The clients of Redis and NATS may swallow a cancellation that comes together with an empty answer."""
    waiter = asyncio.current_task()
    if waiter is not None and waiter.cancelling():
        raise asyncio.CancelledError


def forgiving(ack: Callable[[], Any]) -> Callable[[], Awaitable[None]]:
    """An acknowledgement that may fail: the task has started, and where its message comes again it is refused."""

    async def done() -> None:
        try:
            await maybe_awaitable(ack())
        except Exception as exc:  # noqa: BLE001  # each broker has its own exceptions
            _logger.warning("a message could not be acknowledged, and may come again: %s", type(exc).__name__)

    return done
