"""The one place where telemetry swallows its own failures."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType

from opentelemetry.context import (
    _SUPPRESS_INSTRUMENTATION_KEY,  # pyright: ignore[reportPrivateUsage]  # the SDK's exporters use the same key
    attach,
    detach,
    set_value,
)

from agentexec_otel._errors import ExportError

_logger = logging.getLogger("agentexec_otel")
_reported: set[str] = set()


class guarded:  # noqa: N801  # used as a function; a generator would cost four times as much
    """Keep a failure of telemetry from reaching the run: log it, with its traceback the first time only.

    Not the traceback of an `ExportError`, whose causes may quote rows.
    """

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        """Nothing to set up."""

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if not isinstance(exc, Exception):
            return False
        first = self._what not in _reported
        _reported.add(self._what)
        _logger.warning(
            "%s failed and was skipped: %s",
            self._what,
            type(exc).__name__,
            exc_info=exc if first and not isinstance(exc, ExportError) else None,
        )
        return True


@contextmanager
def suppressed_instrumentation() -> Generator[None]:
    """No instrumentation makes spans of what happens inside, as in the SDK's own exporters."""
    token = attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
    try:
        yield
    finally:
        detach(token)
