"""Stores activity spans that have ended, also those of other processes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from sqlalchemy import URL, Engine

from agentexec_otel._config import CONF
from agentexec_otel._errors import ConfigurationError, ExportError, PoisonExportError
from agentexec_otel._model.event import ActivityEvent, SpanRef
from agentexec_otel._model.mapping import events_of_span
from agentexec_otel.export import Reject
from agentexec_otel_exporters.sql._exporter import SQLExporter

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

_logger = logging.getLogger("agentexec_otel.export")


class SQLSpanExporter(SpanExporter):
    """A standard span exporter (entry point ``agentexec_sql``) that stores activity spans and ignores other spans.

    Idempotent: a log that is stored already is not stored again. It receives a run after its span has ended, with only
    the logs that the span still holds (128 by default). The live path is complete; this one is for collectors and for
    spans of other processes.

    Args:
        database: As for `SQLExporter`. Default: ``AGENTEXEC_DATABASE_URL``, read at the first export.
    """

    def __init__(self, database: str | URL | Engine | AsyncEngine | None = None) -> None:
        self._database = database

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Store the activity spans among `spans`. FAILURE if the database is away or refuses one of them."""
        held = [events for span in spans if (events := _events(span))]
        try:
            stored = self._store(held)
        except (ExportError, ConfigurationError) as exc:
            _logger.warning("the logs of %d ended activity spans were not stored: %s", len(held), exc)
            stored = False
        return SpanExportResult.SUCCESS if stored else SpanExportResult.FAILURE

    def _store(self, held: Sequence[list[ActivityEvent]]) -> bool:
        """Store the events of these spans in one transaction. If one of them is poison, store each span alone."""
        if not held:
            return True
        try:
            results = self._exporter.export([event for events in held for event in events], replay=True)
        except PoisonExportError:
            if len(held) == 1:
                raise
            alone = [self._stored_alone(events) for events in held]
            return all(alone)
        rejected = sum(isinstance(result, Reject) for result in results)
        if rejected:
            _logger.warning("%d logs of ended activity spans were refused", rejected)
            return False
        last = [events[-1] for events in held]
        self._exporter.spans_exported([(one.agent_id, one.span.span_id) for one in last if one.span is not None])
        return True

    def _stored_alone(self, events: list[ActivityEvent]) -> bool:
        try:
            return self._store([events])
        except PoisonExportError as exc:
            _logger.warning("the logs of an ended activity span were not stored: %s", exc)
            return False

    @cached_property
    def _exporter(self) -> SQLExporter:
        database = self._database if self._database is not None else CONF.database_url
        if database is None:
            raise ConfigurationError("the exporter agentexec_sql needs a database: set AGENTEXEC_DATABASE_URL")
        exporter = SQLExporter(database)
        if CONF.create_tables:
            exporter.create_tables()
        return exporter

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Do nothing: no span is buffered."""
        return True

    def shutdown(self) -> None:
        """Close the connections."""
        if "_exporter" in vars(self):  # It has connected.
            self._exporter.shutdown(5.0)


def _events(span: ReadableSpan) -> list[ActivityEvent]:
    context = span.get_span_context()
    if context is None or span.start_time is None or span.end_time is None:
        return []
    ref = SpanRef(f"{context.trace_id:032x}", f"{context.span_id:016x}", context.trace_flags.sampled)
    return events_of_span(span.attributes or {}, ref, span.events)
