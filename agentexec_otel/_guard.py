"""The one place where telemetry swallows its own failures."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager

from opentelemetry.context import (
    _SUPPRESS_INSTRUMENTATION_KEY,  # pyright: ignore[reportPrivateUsage]  # the SDK's exporters use the same key
    attach,
    detach,
    set_value,
)

from agentexec_otel._errors import ExportError

_logger = logging.getLogger("agentexec_otel")
_reported: set[str] = set()


@contextmanager
def guarded(what: str) -> Generator[None]:
    """Keep a failure of telemetry from reaching the run: log it, with its traceback the first time only.

    Not the traceback of an `ExportError`, whose causes may quote rows.
    """
    try:
        yield
    except Exception as exc:
        first = what not in _reported
        _reported.add(what)
        _logger.warning(
            "%s failed and was skipped: %s",
            what,
            type(exc).__name__,
            exc_info=first and not isinstance(exc, ExportError),
        )


@contextmanager
def suppressed_instrumentation() -> Generator[None]:
    """No instrumentation makes spans of what happens inside, as in the SDK's own exporters."""
    token = attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
    try:
        yield
    finally:
        detach(token)
