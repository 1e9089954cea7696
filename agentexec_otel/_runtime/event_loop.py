"""Where the caller runs."""

from __future__ import annotations

import asyncio


def on_event_loop() -> bool:
    """Whether blocking here would stall a running asyncio event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
