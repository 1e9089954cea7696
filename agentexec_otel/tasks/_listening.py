"""What the brokers' listeners have in common."""

from __future__ import annotations

import asyncio


def heed_cancellation() -> None:
    """The clients of Redis and NATS may swallow a cancellation that comes together with an empty answer."""
    waiter = asyncio.current_task()
    if waiter is not None and waiter.cancelling():
        raise asyncio.CancelledError
