"""How much of a timeout is left."""

from __future__ import annotations

import time
from collections.abc import Callable


def countdown(timeout: float) -> Callable[[], float]:
    """Seconds that are left of `timeout`, 0 at least."""
    deadline = time.monotonic() + timeout
    return lambda: max(0.0, deadline - time.monotonic())
