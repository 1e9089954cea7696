"""Ending cleanly on SIGTERM, for processes that have no handler of their own."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from agentexec_otel._config import CONF
from agentexec_otel._runtime import process


def install_signal_handlers(signals: Iterable[signal.Signals] = (signal.SIGTERM,)) -> None:
    """On these signals, flush within ``AGENTEXEC_SHUTDOWN_TIMEOUT`` seconds, then do what the signal did before.

    Never installed automatically. An existing handler is called after the flush, and reporting continues until the
    process ends. Without one, the process ends as the signal would have ended it. Call it from the main thread; any
    other raises ValueError.
    """
    for number in signals:
        signal.signal(number, _chained(signal.getsignal(number)))


def _chained(previous: Any) -> Callable[[int, FrameType | None], None]:
    def handle(number: int, frame: FrameType | None) -> None:
        if callable(previous) or previous is signal.SIG_IGN:
            # The process may continue, such as a server that drains its requests: what it runs still reports.
            process.flush(CONF.shutdown_timeout)
            if callable(previous):
                previous(number, frame)
            return
        process.shutdown()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    return handle
