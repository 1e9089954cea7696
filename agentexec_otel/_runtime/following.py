"""Bringing views and spans in line with what the database has decided."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol
from uuid import UUID

from agentexec_otel._errors import ExportError, guarded
from agentexec_otel._model.event import RUNNING, ActivityEvent, SpanRef, Status
from agentexec_otel._model.fold import attempt_end, moment
from agentexec_otel._model.ids import uuid7
from agentexec_otel._model.results import (
    Ack,
    AttemptEnd,
    EndedActivity,
    Ending,
    ExportResult,
    Refusal,
    Reject,
    StoredActivity,
)
from agentexec_otel._model.span import SpanStart
from agentexec_otel._runtime.hand_over import HandOver, Soon
from agentexec_otel._runtime.limits import chunks
from agentexec_otel._runtime.live import ClosingSpan, LiveActivities, LiveActivity
from agentexec_otel._runtime.spans import ActivityTracer, Mirror, in_clean_context
from agentexec_otel.export import ActivityStore, SpanStore


class PassOn(Protocol):
    """Gives an event to the exporters behind the first, with the span that it belongs to."""

    def __call__(self, event: ActivityEvent, live: LiveActivity | None = None) -> None: ...


class Following:
    """Follows what the first exporter answers. On the writer's thread, unless a method says otherwise.

    Args:
        store: Reads rows and names spans on them; None if the first exporter cannot.
        on_ended: Called with each attempt that this process has ended.
        orphaned: Given attempts whose span another process has opened and may not live to end; and whether it is dead.
    """

    def __init__(
        self,
        store: ActivityStore | None,
        tracer: ActivityTracer,
        pass_on: PassOn,
        soon: Soon,
        on_ended: Callable[[AttemptEnd], None],
        orphaned: Callable[[Sequence[UUID], bool], object] = lambda agent_ids, lost: None,
    ) -> None:
        self._store = store
        self._tracer = tracer
        self._pass_on = pass_on
        self._soon = soon
        self._on_ended = on_ended
        self._orphaned = orphaned
        self._unresolved: list[tuple[LiveActivity, ActivityEvent, Ack]] = []
        self.live = LiveActivities()
        self.mirror = Mirror()
        self.hand_over = HandOver(store if isinstance(store, SpanStore) else None, self._end_span, soon)

    def take_over(self, previous: Following) -> None:
        """Continue with the activities that are open in this process while the set-up is replaced."""
        previous.live.forget_idle()
        self.live, self.mirror = previous.live, previous.mirror

    # -- what was answered --------------------------------------------------------------------------------------

    def acknowledged(self, events: Sequence[ActivityEvent], result: ExportResult) -> None:
        """Follow what became of events of one attempt: resolve the view, and end or give up its span."""
        if isinstance(result, Ack) and result.end is not None:
            self._on_ended(result.end)
        live = self.live.of(events[0])
        if live is not None and isinstance(result, Ack):
            changed = live.acknowledge(events, result)
            if changed or not live.is_resolved:
                for event in events:
                    if live.is_resolved:
                        self._follow(live, event, result)
                    else:
                        self._resolve_soon(live, event, result)
        elif live is not None and isinstance(result, Reject):
            for event in events:
                self._refused(live, event, result.refusal)
        if isinstance(result, Ack) and not result.late and any(event.reopens for event in events):
            self.live.join(events[0].agent_id, result.attempt)

    def _resolve_soon(self, live: LiveActivity, event: ActivityEvent, ack: Ack) -> None:
        """Read the row, together with those of other views that wait, and follow the answer then."""
        self._unresolved.append((live, event, ack))
        if len(self._unresolved) == 1:
            self._soon(self._resolve_all)

    def _resolve_all(self) -> None:
        waiting, self._unresolved = self._unresolved, []
        for chunk in chunks(waiting):
            self._resolve({live.agent_id: live for live, _, _ in chunk if not live.is_resolved})
            for live, event, ack in chunk:
                if live.is_resolved:
                    self._follow(live, event, ack)

    def _follow(self, live: LiveActivity, event: ActivityEvent, ack: Ack) -> None:
        if ack.status.terminal and ack.span_id is None:
            self.name_spans([live])  # The event that offered our span came late: is it the one?
        if live.lost_span(ack.span_id):
            self._learn_span(live)
        if live.is_traced_elsewhere and live.attempt == ack.attempt and event.status.terminal and not ack.late:
            self._orphaned([live.agent_id], False)
        self.follow_up(*live.follow(event, ack))

    def _refused(self, live: LiveActivity, event: ActivityEvent, refusal: Refusal | None) -> None:
        if event.opening is not None and live.attempt is None:
            self._resolve({live.agent_id: live})  # It exists already, as was expected.
        live.refuse(event, refusal)
        if refusal is not None and event.claims and event.status is RUNNING and self.live.get(live.agent_id) is live:
            self.live.forget(live.agent_id)

    def _resolve(self, lives: Mapping[UUID, LiveActivity]) -> None:
        if not lives or self._store is None:
            return
        for agent_id, stored in self._store.load(list(lives)).items():
            lives[agent_id].resolve(stored)
        self._offer_spans([live for live in lives.values() if live.ref is None and live.status is not Status.QUEUED])

    def _offer_spans(self, lives: Sequence[LiveActivity]) -> None:
        """Open the spans of activities whose logs are stored already, and name them on the rows."""
        for live in lives:
            start = live.take_span_start()
            if start is not None:
                in_clean_context(partial(self.start_span, live, start))
        self.name_spans(lives)

    def name_spans(self, lives: Sequence[LiveActivity]) -> None:
        """Offer open spans to their rows; one whose row names another span is given up."""
        offers = {
            live: (live.agent_id, live.attempt or 1, live.ref)
            for live in lives
            if live.span is not None and live.ref is not None
        }
        if not offers or self._store is None:
            return
        named = self._store.attach_spans(list(offers.values()))
        for live in offers:
            if live.agent_id not in named:
                self._learn_span(live)

    def _learn_span(self, live: LiveActivity) -> None:
        """Another process has the activity's span: logs go beneath that one."""
        live.give_span_up()
        if self._store is not None:
            stored = self._store.load([live.agent_id], history=False).get(live.agent_id)
            live.give_span_up(None if stored is None else stored.span)

    def heard(self, stored: StoredActivity) -> None:
        """Follow a row that another process may have changed: an attempt that has ended there is over here, too."""
        span_id = stored.span.span_id if stored.span is not None else None
        ack = Ack(stored.status, stored.attempt, late=True, span_id=span_id, outcome=stored.outcome)
        now_ns = time.time_ns()
        text = f"Ended elsewhere: {stored.status}."
        event = ActivityEvent(uuid7(now_ns), stored.agent_id, stored.status, text, None, now_ns)
        for live in self.live.attempts(stored.agent_id):
            live.hear_waiting(stored)
            self.follow_up(*live.follow(event, ack))

    # -- many at once -------------------------------------------------------------------------------------------

    def ended_together(self, ended: Sequence[EndedActivity], ending: Ending) -> None:
        """End the spans of these attempts that are open here, open one for those without, and tell other exporters.

        Rows are read only now: the caller that ended them does not wait for spans.
        """
        for chunk in chunks(ended):
            stored: dict[UUID, StoredActivity] = {}
            if self._store is not None:
                with suppress(ExportError):
                    stored.update(self._store.load([one.agent_id for one in chunk]))
            views = self.live.views([(one.agent_id, one.attempt) for one in chunk], stored)
            self._offer_spans(views)
            by_id = {live.agent_id: live for live in views}
            orphans = [live.agent_id for live in views if live.is_traced_elsewhere]
            for one in chunk:
                if one.agent_id in stored:
                    self._on_ended(_end_of(one, ending, stored[one.agent_id]))
                self._follow_one(one, ending, by_id.get(one.agent_id))
            if orphans:
                self._orphaned(orphans, ending.outcome.reason == "lost")

    def _follow_one(self, one: EndedActivity, ending: Ending, live: LiveActivity | None) -> None:
        event = ActivityEvent(
            one.event_id, one.agent_id, ending.status, ending.message, None, one.occurred_at_ns, one.attempt,
            outcome=ending.outcome,
        )  # fmt: skip
        self._pass_on(event, live)
        if live is not None:
            if self._tracer.log_sink is not None:
                self.mirror.do("emitting an activity's log record", partial(self.emit_record, event, live))
            self.follow_up(*live.end_together(event, ending.outcome))

    # -- the application's part, on any thread ------------------------------------------------------------------

    def start_span(self, live: LiveActivity, start: SpanStart) -> SpanRef | None:
        """Start the span of an activity; its identity, or None if there is no tracer provider. On any thread."""
        span = ref = max_logs = None
        with guarded("opening an activity's span"):
            span, ref, max_logs = self._tracer.start(start)
        self.follow_up(live.span_started(span, ref, max_logs), None)
        return ref

    def emit_record(self, event: ActivityEvent, live: LiveActivity | None = None) -> None:
        """Emit a log as a log record, if those are wanted. On any thread."""
        with guarded("emitting an activity's log record"):
            self._tracer.emit_record(event, *((None, None) if live is None else (live.span, live.ref)))

    def follow_up(self, closing: ClosingSpan | None, on_cancel: Callable[[], object] | None) -> None:
        """Do the application's part of what a view has decided."""
        if on_cancel is not None:
            with guarded("stopping a canceled run"):
                in_clean_context(on_cancel)
        if closing is not None:
            self.hand_over.add(closing)

    def _end_span(self, closing: ClosingSpan) -> None:
        self.mirror.do("ending an activity's span", partial(self._tracer.end, closing))

    def end_spans(self) -> None:
        """End the spans whose terminal log is still on its way: the row cannot answer any more."""
        self.hand_over.end_unclaimed()
        for closing in self.live.closing_spans():
            self._end_span(closing)

    def after_fork_in_child(self) -> None:
        """Activities and spans are the parent's."""
        self._unresolved = []
        self.hand_over.reset()
        self.live.reset()
        self.mirror.reset()


def _end_of(one: EndedActivity, ending: Ending, stored: StoredActivity) -> AttemptEnd:
    """The attempt as it has ended. If it was retried meanwhile, its start is unknown."""
    started_at_ns = stored.started_at_ns if stored.attempt == one.attempt else None
    outcome = stored.outcome if stored.attempt == one.attempt and stored.outcome is not None else ending.outcome
    return attempt_end(
        stored.opening.agent_type,
        ending.status,
        one.attempt,
        moment(stored.created_at_ns),
        None if started_at_ns is None else moment(started_at_ns),
        moment(one.occurred_at_ns),
        outcome,
    )


def in_context(event: ActivityEvent, live: LiveActivity) -> ActivityEvent:
    """The event with the type and the span of its activity, as far as they are known."""
    agent_type = None if live.opening is None else live.opening.agent_type
    return event._replace(span=event.span or live.ref, agent_type=agent_type)
