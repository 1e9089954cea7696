"""Activity events as OTLP log records: each event is one record, sent as soon as it is reported."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any, Final
from uuid import UUID

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource

from agentexec_otel._config import CONF
from agentexec_otel._errors import ExportError, MisconfiguredExportError, TransientExportError
from agentexec_otel._model import attributes as semconv
from agentexec_otel._model.fold import ActivityState
from agentexec_otel._model.mapping import event_name_of, record_attributes, severity_of, state_attributes
from agentexec_otel.export import Ack, ActivityEvent, ExportResult, Reject, Retry
from agentexec_otel_exporters.otlp._answers import Accepted, clean, error_of
from agentexec_otel_exporters.otlp._endpoint import endpoint_of
from agentexec_otel_exporters.otlp._sdk import Sender, check_installed, sender_for

_logger = logging.getLogger("agentexec_otel.export")

_MOST_SEEN: Final = 10_000
_MOST_RECORDS: Final = 500
_MOST_BYTES: Final = 1 << 20
"""Estimated size of a request. Receivers accept 4 MiB by gRPC by default."""


class OTLPActivityExporter:
    """Sends each log of an activity as an OpenTelemetry log record to an OTLP receiver.

    The official OTLP exporters encode and transport, with the settings of ``OTEL_EXPORTER_OTLP_*``. A record carries
    the id of its event as ``log.record.uid``: a receiver may get it twice, but never with another id.

    Args:
        endpoint: URL of the receiver, with the path for HTTP, such as ``http://localhost:4318/v1/logs``. Default:
            ``OTEL_EXPORTER_OTLP_LOGS_ENDPOINT``, else from ``OTEL_EXPORTER_OTLP_ENDPOINT``.
        protocol: ``http/protobuf`` or ``grpc``. Default: ``OTEL_EXPORTER_OTLP_LOGS_PROTOCOL``, else
            ``OTEL_EXPORTER_OTLP_PROTOCOL``, else ``http/protobuf``.
        headers: In place of those with the same name in ``OTEL_EXPORTER_OTLP_HEADERS``; by gRPC, in place of all.
        resource: Default: that of the global LoggerProvider or TracerProvider, else from the environment.

    Raises:
        ConfigurationError: The endpoint or the protocol cannot be used.
        MissingExtraError: The official exporter for the protocol is not installed.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        protocol: str | None = None,
        headers: Mapping[str, str] | None = None,
        resource: Resource | None = None,
    ) -> None:
        self._endpoint = endpoint_of(endpoint, protocol)
        check_installed(self._endpoint)
        self._headers = headers
        self._resource = resource
        # Made now, because it takes a thread pool, which there is none of at exit.
        self._default_resource = Resource.create() if resource is None else resource
        self._warned: set[str] = set()
        self._seen = SeenActivities()
        self._reset()

    def _reset(self) -> None:
        self._sender: Sender | None = None
        self._to_record: Callable[[ActivityEvent, bool], Any] | None = None
        self._wait_until = 0.0  # The receiver has asked for that.
        self._is_sending = self._is_closed = False

    @property
    def identity(self) -> str:
        """Names the receiver, without user and password."""
        return f"otlp {self._endpoint.place}"

    def export(self, events: Sequence[ActivityEvent], *, replay: bool = False) -> Sequence[ExportResult]:
        """Send a batch, in several requests if it is large; see `ActivityExporter.export`."""
        results: list[ExportResult] = []
        for chunk in _chunks(events):
            try:
                results += self._send(chunk)
            except ExportError:
                if not results:
                    raise
                return [*results, *[Retry()] * (len(events) - len(results))]  # The next try reports the failure.
        return results

    def _check_may_send(self) -> None:
        left = self._wait_until - time.monotonic()
        if left > 0 or self._is_closed:
            why = "the exporter is closed" if self._is_closed else f"{self._endpoint.place} has asked to wait"
            error = TransientExportError(why, after=max(0.0, left))
            error.sent = False
            raise error

    def _send(self, events: Sequence[ActivityEvent]) -> list[ExportResult]:
        wanted = [event for event in events if not event.withdraws]
        acks, states = self._seen.answers(wanted)
        typed = [_with_type(event, states[event.agent_id].agent_type) for event in wanted]
        rejection = self._request(typed, acks) if typed else None
        if rejection is None:
            self._seen.keep(states)
        answers = iter(acks)
        results: list[ExportResult] = []
        for event in events:
            if event.withdraws:  # A record cannot be taken back.
                self._seen.forget(event.agent_id)
                results.append(Ack(event.status))
            else:
                answer = next(answers)
                results.append(answer if rejection is None else rejection)
        return results

    def _request(self, events: Sequence[ActivityEvent], acks: Sequence[Ack]) -> Reject | None:
        """Send one request. Return the rejection if the receiver has rejected records, and raise if it refuses all."""
        sender = self._connected()
        if self._to_record is None:
            self._to_record = record_mapping(self._resource or _provided_resource() or self._default_resource)
        records = [self._to_record(event, ack.late) for event, ack in zip(events, acks, strict=True)]
        self._is_sending = True  # Before it is checked: from here on, `shutdown` leaves the sender to this thread.
        try:
            self._check_may_send()
            answer = sender.send(records)
        finally:
            self._is_sending = False
            if self._is_closed:
                sender.close()
        if not isinstance(answer, Accepted):
            error = error_of(answer, self._endpoint.place)
            if isinstance(error, TransientExportError) and error.after:
                self._wait_until = time.monotonic() + error.after
            raise error
        return self._partial(answer, len(records))

    def _partial(self, answer: Accepted, sent: int) -> Reject | None:
        said = clean(answer.message)
        if answer.rejected > 0:
            # OTLP does not say which ones, and forbids to send the request again.
            return Reject(
                f"{self._endpoint.place} has rejected {answer.rejected} of the {sent} log records of a request"
                f"{': ' if said else ''}{said}"
            )
        if said:
            self._warn(f"{self._endpoint.place} has accepted log records with a warning: {said}")
        return None

    def _connected(self) -> Sender:
        """The sender, made on the writer's thread: a gRPC channel does not survive a fork."""
        if self._sender is None:
            if CONF.event_mode != "span_event":
                self._warn(
                    f"AGENTEXEC_EVENT_MODE={CONF.event_mode} sends each log as a log record of the LoggerProvider, and"
                    " the exporter otlp sends it again: leave one of them out"
                )
            try:
                self._sender = sender_for(self._endpoint, self._headers)
            except Exception as exc:
                raise MisconfiguredExportError(
                    f"the OTLP exporter for {self._endpoint.place} cannot be made ({type(exc).__name__}):"
                    " check OTEL_EXPORTER_OTLP_*"
                ) from exc
        return self._sender

    def _warn(self, text: str) -> None:
        if text not in self._warned and len(self._warned) < 100:
            self._warned.add(text)
            _logger.warning(text)

    def force_flush(self, timeout: float) -> bool:
        """Do nothing: no event is buffered."""
        return True

    def after_fork_in_child(self) -> None:
        """Leave the parent's connections alone."""
        self._seen = SeenActivities()
        self._reset()

    def shutdown(self, timeout: float) -> None:
        """Close the connections, after the request that is under way. Returns at once."""
        self._is_closed = True
        if self._sender is not None and not self._is_sending:
            self._sender.close()


class SeenActivities:
    """The last activities that events were about, each with its state: a receiver of OTLP cannot be asked."""

    def __init__(self) -> None:
        self._states: OrderedDict[UUID, ActivityState] = OrderedDict()

    def answers(self, events: Sequence[ActivityEvent]) -> tuple[list[Ack], dict[UUID, ActivityState]]:
        """The answers for events that are about to be sent, and the states to `keep` once they are.

        An event is never refused: that is for a store to decide, which sees all processes.
        """
        states: dict[UUID, ActivityState] = {}
        acks: list[Ack] = []
        for event in events:
            state = states.get(event.agent_id)
            if state is None:
                state = states[event.agent_id] = self._state_before(event)
            verdict = state.apply(event._replace(claims=False))
            acks.append(state.acknowledge(verdict.late, ends=verdict.ends))
        return acks, states

    def _state_before(self, event: ActivityEvent) -> ActivityState:
        known = self._states.get(event.agent_id)
        return ActivityState.unopened(event.agent_id, event.occurred_at_ns) if known is None else copy(known)

    def keep(self, states: dict[UUID, ActivityState]) -> None:
        """The events were sent."""
        for agent_id, state in states.items():
            self._states[agent_id] = state
            self._states.move_to_end(agent_id)
        while len(self._states) > _MOST_SEEN:
            self._states.popitem(last=False)

    def forget(self, agent_id: UUID) -> None:
        """The activity was withdrawn."""
        self._states.pop(agent_id, None)


def _with_type(event: ActivityEvent, agent_type: str) -> ActivityEvent:
    return event if event.agent_type is not None or not agent_type else event._replace(agent_type=agent_type)


def record_mapping(resource: Resource) -> Callable[[ActivityEvent, bool], Any]:
    """A function that maps an event to a log record of the SDK. Its second argument: the event is known to be late."""
    from opentelemetry._logs import LogRecord, SeverityNumber
    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    scope = InstrumentationScope(semconv.SCOPE)

    def to_record(event: ActivityEvent, late: bool) -> ReadableLogRecord:
        severity = severity_of(event.status)
        attributes = {**record_attributes(event), **state_attributes(event)}
        if late:
            attributes[semconv.LOG_LATE] = True
        record = LogRecord(
            timestamp=event.occurred_at_ns,
            observed_timestamp=event.occurred_at_ns,
            context=_context_of(event),
            severity_number=SeverityNumber[severity],
            severity_text=severity,
            body=event.message,
            attributes=attributes,
            event_name=event_name_of(event),
        )
        return ReadableLogRecord(record, resource, scope)

    return to_record


def _context_of(event: ActivityEvent) -> Context:
    """The context of the activity's span. Before there is one: that of the activity's creator."""
    if event.span is not None:
        flags = trace.TraceFlags.SAMPLED if event.span.sampled else trace.TraceFlags.DEFAULT
        context = trace.SpanContext(
            int(event.span.trace_id, 16),
            int(event.span.span_id, 16),
            is_remote=True,
            trace_flags=trace.TraceFlags(flags),
        )
        return trace.set_span_in_context(trace.NonRecordingSpan(context), Context())
    carrier = event.opening.trace_context if event.opening is not None else None
    return propagate.extract(carrier, Context()) if carrier else Context()


def _provided_resource() -> Resource | None:
    """The resource of the application's providers. None if it has set none up."""
    from opentelemetry._logs import get_logger_provider

    for provider in (get_logger_provider(), trace.get_tracer_provider()):
        resource = getattr(provider, "resource", None)
        if isinstance(resource, Resource):
            return resource
    return None


def _chunks(events: Sequence[ActivityEvent]) -> Iterator[Sequence[ActivityEvent]]:
    """Cut a batch into requests of limited size."""
    first = size = 0
    for number, event in enumerate(events):
        size += 1024 + 8 * len(event.message)  # The message is in the body and an attribute, in UTF-8.
        if number > first and (size > _MOST_BYTES or number - first >= _MOST_RECORDS):
            yield events[first:number]
            first, size = number, 1024 + 8 * len(event.message)
    if first < len(events):
        yield events[first:]
