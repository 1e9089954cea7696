"""What OpenTelemetry keeps private and we need; `tests/unit/test_private_parts.py` checks that it is still there."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import (
    _SUPPRESS_INSTRUMENTATION_KEY,  # pyright: ignore[reportPrivateUsage]  # the SDK's exporters use the same key
    attach,
    detach,
    get_value,
    set_value,
)

DEFAULT_SPAN_EVENTS: Final = 128
"""Events that a span keeps by default, as ``SpanLimits`` has it."""


def max_span_events(span: trace.Span) -> int | None:
    """How many events the span keeps; None for all, the default if its implementation does not say."""
    limits: Any = getattr(span, "_limits", None)
    limit = getattr(limits, "max_events", DEFAULT_SPAN_EVENTS)
    return limit if isinstance(limit, int) or limit is None else DEFAULT_SPAN_EVENTS


@contextmanager
def suppressed_instrumentation() -> Generator[None]:
    """No instrumentation makes spans of what happens inside, as in the SDK's own exporters."""
    token = attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
    try:
        yield
    finally:
        detach(token)


def instrumentation_is_suppressed() -> bool:
    """Whether the current context suppresses instrumentation."""
    return bool(get_value(_SUPPRESS_INSTRUMENTATION_KEY))
