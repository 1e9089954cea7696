"""What OpenTelemetry keeps private and we need; `tests/unit/test_private_parts.py` checks that it is still there."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.context import (
    _SUPPRESS_INSTRUMENTATION_KEY,  # pyright: ignore[reportPrivateUsage]  # the SDK's exporters use the same key
    attach,
    detach,
    get_value,
    set_value,
)

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanLimits
    from opentelemetry.sdk.trace.export import SpanExporter

DEFAULT_SPAN_EVENTS: Final = 128
"""Events that a span keeps by default, as ``SpanLimits`` has it."""


def max_span_events(span: trace.Span) -> int | None:
    """How many events the span keeps; None for all, the default if its implementation does not say."""
    limits: Any = getattr(span, "_limits", None)
    limit = getattr(limits, "max_events", DEFAULT_SPAN_EVENTS)
    return limit if isinstance(limit, int) or limit is None else DEFAULT_SPAN_EVENTS


def span_limits(provider: trace.TracerProvider) -> SpanLimits:
    """The limits of the provider's spans; those of the environment if its implementation does not say."""
    from opentelemetry.sdk.trace import SpanLimits

    found = getattr(provider, "_span_limits", None)
    return found if isinstance(found, SpanLimits) else SpanLimits()


_EXPORTER_GROUP: Final = "opentelemetry_traces_exporter"
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def span_exporter_names() -> list[str]:
    """The entry points of the span exporters that the environment names, as the SDK's own configuration finds them.

    ``otlp`` if only an endpoint is set. Raises RuntimeError for a protocol that the SDK does not know.
    """
    from opentelemetry.sdk import _configuration as configuration

    if os.environ.get("OTEL_TRACES_EXPORTER"):
        names = configuration._get_exporter_names("traces")  # pyright: ignore[reportPrivateUsage]
    elif any(os.environ.get(name) for name in _ENDPOINTS):
        names = [configuration._get_exporter_entry_point("otlp", "traces")]  # pyright: ignore[reportPrivateUsage]
    else:
        return []
    says_protocol = any(os.environ.get(name) for name in _PROTOCOLS)
    return [name if says_protocol or _is_installed(name) else name.replace("_grpc", "_http") for name in names]


def _is_installed(name: str) -> bool:
    return bool(entry_points(group=_EXPORTER_GROUP, name=name))


def load_span_exporters(names: list[str]) -> list[SpanExporter]:
    """New exporters of these names, which read their options from the environment. RuntimeError if one is missing."""
    from opentelemetry.sdk import _configuration as configuration

    classes, _, _ = configuration._import_exporters(names, [], [])  # pyright: ignore[reportPrivateUsage]
    return [found() for found in classes.values()]


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
