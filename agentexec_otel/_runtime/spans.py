"""One OpenTelemetry span per activity, whoever touches it.

A span is opened tentatively, offered to the activity's row with the next event, and ended only when the row took it
and the activity ended there. A span that lost the offer is dropped: one that never ends is never exported. So the span
and the row cannot disagree about how a run ended.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from uuid import UUID

from opentelemetry import propagate, trace
from opentelemetry.context import Context, get_current

from agentexec_otel._errors import ExportError, guarded
from agentexec_otel._model import attributes as semconv
from agentexec_otel._model.event import ActivityEvent, Opening, Outcome, SpanRef, Status
from agentexec_otel._model.ids import uuid7
from agentexec_otel._model.mapping import log_attributes, opening_attributes, outcome_attributes, span_ref_of
from agentexec_otel._runtime.live import (
    LiveActivity,
    fill,
    more_to_come,
    names_another,
    of_our_attempt,
    opens_span,
    progress,
    with_usage,
)
from agentexec_otel._runtime.log_records import LogSink
from agentexec_otel.export import Ack, ActivityStore, Ending, ExportResult, Reject, StoredActivity

_MOST_KNOWN = 10_000
_MOST_HISTORY = 100
_MOST_WAITING = 10_000
_MOST_AT_ONCE = 500


class ActivitySpans:
    """The activities this process has seen, and the span of each that runs here."""

    def __init__(
        self,
        tracer: trace.Tracer,
        store: ActivityStore | None,
        *,
        span_events: bool = True,
        log_sink: LogSink | None = None,
        canceled_is_error: bool = False,
    ) -> None:
        self._tracer = tracer
        self._store = store
        self._span_events = span_events
        self._log_sink = log_sink
        self._canceled_is_error = canceled_is_error
        self._live: dict[UUID, LiveActivity] = {}
        self._needed = 0
        self._waiting: deque[tuple[LiveActivity, ActivityEvent]] = deque()
        self._lock = threading.RLock()

    # -- what is known --------------------------------------------------------------------------------------

    def known(self, agent_id: UUID) -> LiveActivity | None:
        """The activity, if this process has seen it."""
        return self._live.get(agent_id)

    def opened(self, event: ActivityEvent) -> LiveActivity:
        """An activity that this process has just created with `event`."""
        self._record(event)
        return self.handed_over(event)

    def handed_over(self, event: ActivityEvent) -> LiveActivity:
        """An activity that some process has created with `event`, which has come here with a message."""
        return self._remember(LiveActivity(event.agent_id, event.opening, 1, event.occurred_at_ns, history=[event]))

    def reopened(self, event: ActivityEvent, attempt: int) -> None:
        """This process has asked for another attempt, and this one is the current: its row is read at the next call.

        Not where that attempt is here already: somebody else had asked before, and it may run.
        """
        self._record(event)
        live = self._live.get(event.agent_id)
        if live is not None and (live.attempt or 0) < attempt:
            self.forget(event.agent_id)

    def adopt(self, stored: StoredActivity) -> LiveActivity:
        """An activity as its row has it now: seen for the first time, or again after a retry."""
        with self._lock:
            live = self._live.get(stored.agent_id)
            if live is None or (live.attempt or 0) < stored.attempt:
                live = self._remember(LiveActivity(stored.agent_id, attempt=stored.attempt))
            fill(live, stored)
            return live

    def unresolved(self, agent_id: UUID) -> LiveActivity:
        """An activity whose row could not be read yet; it will be, once the writer reaches it."""
        return self._remember(LiveActivity(agent_id))

    def forget(self, agent_id: UUID) -> None:
        """Read the row again at the next call."""
        self._live.pop(agent_id, None)

    def _remember(self, live: LiveActivity) -> LiveActivity:
        with self._lock:
            known = self._live.setdefault(live.agent_id, live)
            if known is not live and (known.attempt or 0) < (live.attempt or 0):
                live.queued = known.queued
                known = self._live[live.agent_id] = live
            if len(self._live) > max(_MOST_KNOWN, self._needed):
                idle = (key for key, one in self._live.items() if one.idle and one is not known)
                for agent_id in list(itertools.islice(idle, _MOST_KNOWN // 10)):
                    del self._live[agent_id]
                # Where most are needed, they are not all looked through again for each new one.
                self._needed = len(self._live) + _MOST_KNOWN // 20
            return known

    # -- producers ------------------------------------------------------------------------------------------

    def observe(self, live: LiveActivity, event: ActivityEvent) -> ActivityEvent:
        """Mirror a line on the activity's span, opening it where this is the line that starts it.

        Returns the event as it is to be stored: with the span that was opened for it.
        """
        live.started_here = live.started_here or event.worker_id is not None
        live.queued = event.event_id
        if live.opening is None or live.status.terminal:
            self._keep(live, event)
            return event
        if live.span is None and live.ref is None and opens_span(live, event):
            with guarded("opening an activity's span"):
                event = self._open(live, event)
        self._mirror(live, event)
        if event.status is not live.status:
            live.status = max(live.status, event.status, key=progress)
        if event.percentage is not None:
            live.percentage = event.percentage
        if event.status.terminal:
            live.ending = event
        return event

    def _keep(self, live: LiveActivity, event: ActivityEvent) -> None:
        if live.opening is None and len(live.history) < _MOST_HISTORY:
            live.history.append(event)

    def _open(self, live: LiveActivity, event: ActivityEvent) -> ActivityEvent:
        with self._lock:
            if live.span is None and live.ref is None:
                live.untraced = True  # also where a span processor fails: not every line is to try again
                live.span, live.ref = self._start(live)
                if live.span is None:
                    return event
                live.untraced = False
                started = next((line for line in (*live.history, event) if line.status is Status.RUNNING), None)
                if started is not None:
                    waited = max(0, started.occurred_at_ns - live.created_at_ns) / 1e9
                    live.span.set_attribute(semconv.QUEUE_DURATION, waited)
                history, live.history = live.history, []
                for line in history:
                    self._add_event(live.span, line)
        return event if live.ref is None or live.span is None else event._replace(span=live.ref)

    def _start(self, live: LiveActivity) -> tuple[trace.Span | None, SpanRef | None]:
        opening = live.opening or Opening("")
        carrier = dict(opening.trace_context or {})
        previous = span_ref_of(carrier.pop(semconv.PREVIOUS_SPAN, ""))
        parent = propagate.extract(carrier, context=Context())
        here = trace.get_current_span().get_span_context()
        links = [] if previous is None else [trace.Link(_span_context(previous))]
        creator = trace.get_current_span(parent).get_span_context()
        if not creator.is_valid:
            parent, creator = get_current(), here
        elif here.is_valid and here.span_id != creator.span_id:
            links.append(trace.Link(here))
        span = self._tracer.start_span(
            opening.agent_type,
            context=parent,
            attributes=opening_attributes(live.agent_id, opening, live.attempt),
            links=links,
            start_time=live.created_at_ns,
        )
        context = span.get_span_context()
        if not context.is_valid or context.span_id == creator.span_id:
            return None, None  # No provider: the API hands the parent back.
        ref = SpanRef(f"{context.trace_id:032x}", f"{context.span_id:016x}", context.trace_flags.sampled)
        return span, ref

    def _mirror(self, live: LiveActivity, event: ActivityEvent) -> None:
        if live.span is not None:
            # `span.add_event` is the dearest part of a call, and nobody sees it before the span ends: the writer does
            # it, once the line is stored. Only where it is far behind does the caller lend a hand.
            self._waiting.append((live, event))
            if len(self._waiting) > _MOST_WAITING:
                self._catch_up(1)
        elif live.ref is None and len(live.history) < _MOST_HISTORY:
            live.history.append(event)
        self._record(event, live)

    def _record(self, event: ActivityEvent, live: LiveActivity | None = None) -> None:
        if self._log_sink is not None:
            with guarded("emitting an activity's log record"):
                self._log_sink(event, get_current() if live is None else self._context(live))

    def _catch_up(self, most: int = _MOST_WAITING) -> None:
        """Put lines that wait on their spans, the oldest first; nowhere, where this process has given the span up."""
        with self._lock:
            for _ in range(min(most, len(self._waiting))):
                live, event = self._waiting.popleft()
                self._add_event(live.span, event)

    def _add_event(self, span: trace.Span | None, event: ActivityEvent) -> None:
        if self._span_events and span is not None and span.is_recording():
            span.add_event(semconv.LOG_EVENT, log_attributes(event), event.occurred_at_ns)

    def _context(self, live: LiveActivity) -> Context:
        if live.span is not None:
            return trace.set_span_in_context(live.span)
        if live.ref is not None:
            return trace.set_span_in_context(trace.NonRecordingSpan(_span_context(live.ref)))
        return get_current()

    # -- the writer's thread --------------------------------------------------------------------------------

    def settled(self, event: ActivityEvent, result: ExportResult) -> None:
        """Follow what became of an event: resolve, give a lost span up, end a span that is done."""
        live = self._live.get(event.agent_id)
        if live is None:
            return
        live.settled(event, result)
        if isinstance(result, Reject):
            self._rejected(live, event)
        elif isinstance(result, Ack):
            if live.opening is None and not self._resolve(live):
                return
            self._catch_up()
            if result.status.terminal and result.span_id is None:
                self.name_on_row(live)  # The line that offered our span came late: is it the one?
            lost = names_another(live, result)
            with self._lock:
                if event.attempt in (None, live.attempt):
                    self._follow(live, event, result)
            if lost:
                self._learn_span(live)
            if event.worker_id is not None and event.attempt is None and result.attempt > (live.attempt or 1):
                self._go_on(live.agent_id)

    def _go_on(self, agent_id: UUID) -> None:
        """A line of ours has started an attempt that this process had not read of."""
        stored = self._store.lookup(agent_id) if self._store is not None else None
        if stored is not None:
            live = self.adopt(stored)
            live.started_here = True
            if live.status is Status.RUNNING and live.ref is None:
                self.offer(live)

    def _rejected(self, live: LiveActivity, event: ActivityEvent) -> None:
        if event.opening is not None and live.attempt is None:
            self._resolve(live)  # It was there already, as had been expected.
        if not event.claims:
            live.unknown = event.expects_row
        elif event.status is Status.RUNNING:
            # Somebody else has started it, or it has ended: what was opened for it here is given up.
            with self._lock:
                live.span = live.owner = None
                self.forget(live.agent_id)

    def _resolve(self, live: LiveActivity) -> bool:
        stored = self._store.lookup(live.agent_id) if self._store is not None else None
        if stored is None:
            return False
        with self._lock:
            fill(live, stored)
        if live.ref is None and live.status is not Status.QUEUED:
            self.offer(live)
        return True

    def offer(self, *lives: LiveActivity) -> None:
        """Open the spans of activities whose lines are stored already, and name them on the rows.

        The database is asked without the lock: producers must never wait for it.
        """
        with self._lock:
            opened = [live for live in lives if live.span is None and live.ref is None]
            for live in opened:
                live.span, live.ref = self._start(live)
        self.name_on_row(*opened)
        for live in opened:
            history, live.history = live.history, []
            for line in history:
                self._add_event(live.span, line)

    def name_on_row(self, *lives: LiveActivity) -> None:
        """Offer open spans to their rows; one whose row names another span is given up."""
        open_here = [live for live in lives if live.span is not None]
        offers = [(live.agent_id, live.attempt or 1, live.ref) for live in open_here if live.ref is not None]
        if not offers or self._store is None:
            return
        named = self._store.attach_spans(offers)
        for live in open_here:
            if live.agent_id not in named:
                live.span = None
                self._learn_span(live)

    def _learn_span(self, live: LiveActivity) -> None:
        """Another process has the activity's span: lines go beneath that one."""
        stored = self._store.lookup(live.agent_id) if self._store is not None else None
        if stored is not None and stored.span is not None:
            live.ref = stored.span

    def ended(self, activities: Sequence[tuple[UUID, int]], ending: Ending, occurred_at_ns: int) -> None:
        """Follow a bulk ending of these attempts: end the spans that are open here, and open one where there is none.

        Rows are read only now, since whoever ended them does not wait for spans.
        """
        for start in range(0, len(activities), _MOST_AT_ONCE):
            lives = self._read_again(activities[start : start + _MOST_AT_ONCE])
            self.offer(*(live for live in lives if live.ref is None))
            for live in lives:
                live.status = ending.status
                if ending.status is Status.CANCELED:
                    live.canceled = True
                    live.cancel()
                event = ActivityEvent(uuid7(), live.agent_id, ending.status, ending.message, None, occurred_at_ns)
                self._catch_up()
                self._add_event(live.span, event)
                self._record(event, live)
                if not more_to_come(live, event):
                    self.end(live, ending.status, ending.outcome, event, ending.message)

    def _read_again(self, activities: Sequence[tuple[UUID, int]]) -> list[LiveActivity]:
        """Attempts that have ended, with what was said before that where they are on no span yet.

        Where the row cannot be read, or has another attempt by now: those that have a span.
        """
        found: Mapping[UUID, StoredActivity] = {}
        with suppress(ExportError):
            if self._store is not None:
                found = self._store.lookup_many([agent_id for agent_id, _ in activities])
        lives: list[LiveActivity] = []
        with self._lock:
            for agent_id, attempt in activities:
                stored, live = found.get(agent_id), self._live.get(agent_id)
                if stored is not None and stored.attempt == attempt:
                    live = self.adopt(stored)
                    live.history = [line for line in live.history if not line.status.terminal]
                elif live is None or live.attempt != attempt or live.ref is None:
                    continue
                lives.append(live)
        return lives

    def running(self) -> list[UUID]:
        """The activities that run in this process."""
        with self._lock:
            return [live.agent_id for live in self._live.values() if live.runs_here]

    def owned(self) -> set[UUID]:
        """The activities that a block of this process will end."""
        with self._lock:
            return {live.agent_id for live in self._live.values() if live.owner is not None}

    def unowned(self) -> dict[UUID, str | None]:
        """The activities that run in this process without a block that will end them, and the spans open for them."""
        with self._lock:
            return {
                live.agent_id: live.ref.span_id if live.ref is not None and live.span is not None else None
                for live in self._live.values()
                if live.runs_here and live.owner is None
            }

    def seen(self, acks: Mapping[UUID, Ack]) -> None:
        """Follow what a heartbeat found: an activity that somebody else has ended is over here, too."""
        now_ns = time.time_ns()
        for agent_id, ack in acks.items():
            live = self._live.get(agent_id)
            if live is not None and ack.status.terminal:
                with self._lock:
                    event = ActivityEvent(
                        uuid7(), agent_id, ack.status, f"Ended elsewhere: {ack.status}.", None, now_ns
                    )
                    self._follow(live, event, ack)

    def _follow(self, live: LiveActivity, event: ActivityEvent, ack: Ack) -> None:
        if names_another(live, ack):
            live.span = None
        answer, ack = ack, of_our_attempt(live, ack)
        if not ack.status.terminal:
            return
        live.status = ack.status
        if ack.status is Status.CANCELED and live.ending is None:
            live.canceled = True
            live.cancel()
        ours = live.ending is not None and live.ending.event_id == event.event_id and not ack.late
        live.why = event.message if ours else live.why
        if live.span is not None and (ack is not answer or not more_to_come(live, event)):
            outcome = event.outcome if ours else with_usage(ack.outcome, event.outcome)
            self.end(live, ack.status, outcome, event, live.why)

    def end(
        self, live: LiveActivity, status: Status, outcome: Outcome | None, event: ActivityEvent, why: str | None
    ) -> None:
        """End the activity's span, at the time of `event`, with the status of its row; `why` describes an error."""
        self._catch_up()
        span, live.span = live.span, None
        if span is None:
            return
        with guarded("ending an activity's span"):
            span.set_attributes(outcome_attributes(status, outcome, live.percentage))
            if status is Status.ERROR or (status is Status.CANCELED and self._canceled_is_error):
                span.set_status(trace.Status(trace.StatusCode.ERROR, why))
            span.end(max(event.occurred_at_ns, live.created_at_ns))

    def take_over(self, previous: ActivitySpans) -> None:
        """Go on with the activities that run while the set-up is replaced.

        Both know them from here on: what the previous writer has still to store may be their end.
        """
        with previous._lock:
            for agent_id, live in list(previous._live.items()):
                if live.span is None and live.owner is None:
                    del previous._live[agent_id]
            self._live, self._waiting, self._lock = previous._live, previous._waiting, previous._lock

    def close(self) -> None:
        """At shutdown: end the spans whose terminal line is on its way with what that line says."""
        with self._lock:
            for live in list(self._live.values()):
                if live.ending is not None:
                    self.end(live, live.ending.status, live.ending.outcome, live.ending, live.ending.message)

    def reset_after_fork(self) -> None:
        """In a forked child: the spans belong to the parent."""
        self._lock = threading.RLock()
        self._live = {}
        self._needed = 0
        self._waiting = deque()


def _span_context(ref: SpanRef) -> trace.SpanContext:
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if ref.sampled else trace.TraceFlags.DEFAULT)
    return trace.SpanContext(int(ref.trace_id, 16), int(ref.span_id, 16), is_remote=True, trace_flags=flags)
