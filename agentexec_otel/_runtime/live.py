"""What this process knows of the activities it has seen: one view per attempt, with its span and its block."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple
from uuid import UUID

from opentelemetry import trace

from agentexec_otel._model.event import RUNNING, ActivityEvent, Opening, Outcome, SpanRef, Status
from agentexec_otel._model.fold import RANK, ActivityState
from agentexec_otel._model.results import Ack, Refusal, StoredActivity
from agentexec_otel._model.span import SpanEnd, SpanOfAttempt, SpanStart
from agentexec_otel._sdk import DEFAULT_SPAN_EVENTS

MAX_KNOWN: Final = 10_000
"""Activities that are remembered when nothing of them is left to do here."""


class Usage(NamedTuple):
    """Totals of a run: tokens and model requests; None is unknown."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    requests: int | None = None
    cached_input_tokens: int | None = None
    reasoning_tokens: int | None = None


class ClosingSpan(NamedTuple):
    """A span to be ended, and what is still to be put on it.

    Attributes:
        of: Which one it is. None if it is not sampled, and no exporter gets it.
    """

    span: trace.Span
    end: SpanEnd
    of: SpanOfAttempt | None


class LiveActivity:
    """This process's view of one attempt of an activity: where it stands, its span, and the block that will end it.

    What is reported through it concerns this attempt, also after another process has opened the next one. Others read
    its attributes, and change it by its methods alone.

    `LiveActivities.lock` guards every field. It is held for field accesses only: neither the database nor code of the
    application is called meanwhile.

    Attributes:
        attempt: None until the row was read: then whichever is current.
        opening: Its type, metadata and trace context; None until the row was read.
        older: The view of an earlier attempt that still has a span or a block here.
        span: The span that this process has open for it.
        ref: The activity's span, wherever it is open.
        owner: The block of this process that will end the attempt.
        model: The model that was called last, as far as blocks have named it.
        on_cancel: Stops that block.
        expects_usage: The block's final log reports token usage.
        ending: The event by which this process has ended it, also if another ending came first.
        has_reports: The application or the agent has added a log of its own.
        may_lack_row: Its row may not be there yet, because nothing has waited for its commit.
        is_unknown: The database has reported that no such activity exists.
    """

    def __init__(
        self, all_: LiveActivities, agent_id: UUID, attempt: int | None, *, may_lack_row: bool = False
    ) -> None:
        self.agent_id = agent_id
        self.older: LiveActivity | None = None
        self._all = all_
        self.attempt = attempt
        self._state = ActivityState.unopened(agent_id, 0)
        self._state.attempt = attempt or 1
        self.opening: Opening | None = None
        self._start_time_ns = 0
        self._running_at_ns: int | None = None
        self._lines: deque[ActivityEvent] = deque(maxlen=DEFAULT_SPAN_EVENTS)
        self._log_count = 0
        self.span: trace.Span | None = None
        self.ref: SpanRef | None = None
        self._starting = False
        self._missed_end: tuple[Status, Outcome | None, int] | None = None
        self._untraced = False
        self.owner: object | None = None
        self._usage: dict[object, Usage] = {}
        self.model: str | None = None
        self.expects_usage = False
        self.on_cancel: Callable[[], object] | None = None
        self._pending: UUID | None = None
        self.may_lack_row = may_lack_row
        self.ending: ActivityEvent | None = None
        self._description: str | None = None
        self._canceled = False
        self.has_reports = False
        self._started_here = False
        self.is_unknown = False

    # -- what it knows ------------------------------------------------------------------------------------------

    @property
    def status(self) -> Status:
        """The last status seen here."""
        return self._state.status

    @property
    def is_resolved(self) -> bool:
        """Whether its type, metadata and trace context are known, from its row or since it was created here."""
        return self.opening is not None

    @property
    def is_fresh(self) -> bool:
        """Whether neither its row was read nor anything was reported on it here."""
        return self.opening is None and not self._log_count

    @property
    def is_canceled(self) -> bool:
        """Whether it was canceled or retried elsewhere, or canceled here, as far as this process has heard."""
        return self._canceled or self._state.status is Status.CANCELED

    @property
    def is_over(self) -> bool:
        """Whether nothing of this attempt is left to do here."""
        return self._state.status.terminal and self.span is None and self.owner is None

    @property
    def is_pending(self) -> bool:
        """Whether an event reported here may not be stored yet."""
        return self._pending is not None or self.may_lack_row or self.opening is None

    @property
    def is_traced_elsewhere(self) -> bool:
        """Whether another process has its span, which is sampled."""
        return self.span is None and self.ref is not None and self.ref.sampled and not self._starting

    @property
    def is_waiting(self) -> bool:
        """Whether its run waits, such as for an approval."""
        return self._state.waiting is not None and self._state.status is RUNNING

    @property
    def runs_here(self) -> bool:
        """Whether this process has to extend its lease, unless it waits."""
        return self._state.status is RUNNING and (self._started_here or self.owner is not None)

    @property
    def is_idle(self) -> bool:
        """Whether it may be forgotten: its row has all that is needed to continue."""
        open_here = self.span is not None or self.owner is not None or self._starting or self.runs_here
        return not open_here and (self.older is None or self.older.is_idle)

    @property
    def opening_event(self) -> ActivityEvent | None:
        """The event that has created it, if this process created it and it has not started."""
        first = next(iter(self._lines), None)
        return first if first is not None and first.opening is not None else None

    def usage_total(self) -> Usage | None:
        """The usage of all blocks within one another; None if none was counted."""
        counted = list(self._usage.values())
        return Usage(*map(_sum, zip(*counted, strict=True))) if counted else None

    # -- the block that runs it ---------------------------------------------------------------------------------

    def own(self, block: object) -> bool:
        """Make `block` the one that ends it. False if there is one already."""
        with self._all.lock:
            if self.owner is None:
                self.owner = block
            return self.owner is block

    def disown(self, block: object) -> None:
        """The block is left: it no longer ends the attempt, and is no longer told of a cancellation."""
        with self._all.lock:
            if self.owner is block:
                self.owner = self.on_cancel = None

    def when_canceled(self, callback: Callable[[], object] | None) -> None:
        """Call this when it is canceled, or the next attempt is open, on any thread, perhaps more than once."""
        with self._all.lock:
            self.on_cancel = callback

    def count_usage(self, block: object, usage: Usage, model: str | None = None) -> None:
        """Replace what this block has counted so far, and name the model that was called last if it is known."""
        with self._all.lock:
            self._usage[block] = usage
            if model is not None:
                self.model = model

    def expect_usage(self, expected: bool) -> None:
        """Say whether the block's final log reports usage, even after the activity has ended: the span waits for it."""
        with self._all.lock:
            self.expects_usage = expected

    # -- events of this process ---------------------------------------------------------------------------------

    def record(self, event: ActivityEvent, *, reported: bool = False) -> SpanStart | None:
        """Fold an event of this process onto the view. If its span is to be started now, what with: see `span_started`.

        Args:
            reported: The application or the agent has said it, not the instrumentation.
        """
        with self._all.lock:
            self._pending = event.event_id
            if reported:
                self.has_reports = True
            if event.status is RUNNING and self.span is not None and self._state.status is RUNNING:
                # All that the fold would change of this view. Saves a tenth of a call (`benchmarks --only caller`).
                self._state.waiting = event.waiting
                if event.percentage is not None:
                    self._state.latest_percentage = event.percentage
                self._lines.append(event)
                self._log_count += 1
                return None
            return self._advance(event)

    def _advance(self, event: ActivityEvent) -> SpanStart | None:
        if event.worker_id is not None:
            self._started_here = True
        if event.status is RUNNING and self._running_at_ns is None:
            self._running_at_ns = event.occurred_at_ns
        if self._state.status.terminal:
            return None
        self._state.apply(event)
        if event.status.terminal:
            self.ending = event
        if self.span is None and self.ref is not None:
            return None  # Another process has its span.
        self._keep(event)
        if self.ref is not None or self.opening is None or self._starting or not self._starts_span(event):
            return None
        return self._begin_span()

    def _starts_span(self, event: ActivityEvent) -> bool:
        """The first RUNNING or terminal log; if there was no tracer provider then, the last one tries again."""
        return event.status.terminal if self._untraced else event.status is not Status.QUEUED

    def _keep(self, event: ActivityEvent) -> None:
        self._lines.append(event)
        self._log_count += 1

    def created(self, event: ActivityEvent, *, committed: bool) -> None:
        """It was created with this event."""
        with self._all.lock:
            self.may_lack_row = not committed
            self.opening = event.opening
            self._start_time_ns = event.occurred_at_ns
            self._state.apply(event)
            self._keep(event)

    # -- its span -----------------------------------------------------------------------------------------------

    def take_span_start(self) -> SpanStart | None:
        """What to start its span with, for a caller that is not `record`; None if there is one, or one is started."""
        with self._all.lock:
            if self.span is not None or self.ref is not None or self._starting or self.opening is None:
                return None
            return self._begin_span()

    def _begin_span(self) -> SpanStart:
        self._starting = True
        waited = None
        if self._running_at_ns is not None:
            waited = max(0, self._running_at_ns - self._start_time_ns) / 1e9
        return SpanStart(self.agent_id, self.opening or Opening(""), self.attempt or 1, self._start_time_ns, waited)

    def span_started(self, span: trace.Span | None, ref: SpanRef | None, max_logs: int | None) -> ClosingSpan | None:
        """Its span is open, or None could be: there is no tracer provider, or a span processor failed.

        Args:
            max_logs: How many logs the span keeps; None keeps all.

        Returns:
            The span, if the attempt has ended while it was being started.
        """
        with self._all.lock:
            self._starting = False
            self._untraced = span is None
            self.span, self.ref = span, ref
            if span is not None and max_logs != self._lines.maxlen:
                self._lines = deque(self._lines, max_logs)
            missed, self._missed_end = self._missed_end, None
            return None if missed is None else self._end_span(*missed)

    def give_span_up(self, ref: SpanRef | None = None) -> None:
        """Another process's span, `ref`, is the one on the row: the one here never ends, so it is never exported."""
        with self._all.lock:
            self.span = None
            self._lines.clear()
            self.ref = ref if ref is not None else self.ref

    # -- what the row says --------------------------------------------------------------------------------------

    def resolve(self, stored: StoredActivity) -> None:
        """Take over what the row says; if it is at another attempt, only what all attempts have in common."""
        with self._all.lock:
            self.opening = stored.opening
            if self.attempt not in (None, stored.attempt):
                return
            self.attempt = self._state.attempt = stored.attempt
            if RANK[stored.status] > RANK[self._state.status]:
                self._state.status = stored.status
            if self.span is not None or self._starting:
                return
            self.ref = stored.span
            known = {event.event_id for event in stored.history}
            own = [event for event in self._lines if event.event_id not in known]
            self._lines = deque([*stored.history, *own], self._lines.maxlen)
            self._log_count = len(stored.history) + len(own)
            retried = stored.attempt > 1 and stored.history
            self._start_time_ns = stored.history[0].occurred_at_ns if retried else stored.created_at_ns
            started = next((event for event in self._lines if event.status is RUNNING), None)
            self._running_at_ns = None if started is None else started.occurred_at_ns

    def resolve_ended(self, stored: StoredActivity) -> None:
        """As `resolve`, before a bulk ending is followed: without the log of that ending itself."""
        self.resolve(stored)
        with self._all.lock:
            if self.span is None:
                kept = [event for event in self._lines if not event.status.terminal]
                self._log_count -= len(self._lines) - len(kept)
                self._lines = deque(kept, self._lines.maxlen)

    def acknowledge(self, events: Sequence[ActivityEvent], ack: Ack) -> bool:
        """Events of this process are stored. True if that changes anything here: see `follow`."""
        with self._all.lock:
            self._settle(events)
            if self.attempt is None:
                self.attempt = self._state.attempt = ack.attempt
            return ack.status.terminal or ack.attempt != self.attempt or self._is_named_otherwise(ack.span_id)

    def refuse(self, event: ActivityEvent, refusal: Refusal | None) -> None:
        """An event was refused. Without a refusal, only the event was rejected: the activity continues."""
        with self._all.lock:
            self._settle([event])
            if refusal is None:
                return
            if not event.claims:
                self.is_unknown = event.expects_row
            elif event.status is RUNNING:
                # Another worker has started it, or it has ended: the span that was opened here is given up.
                self.span = self.owner = self.on_cancel = None

    def _settle(self, events: Sequence[ActivityEvent]) -> None:
        pending = None if self._pending is None else self._pending.int  # UUIDs are slow to compare.
        for event in events:
            if event.event_id.int == pending:
                self._pending = None
            if event.opening is not None:
                self.may_lack_row = False

    def _is_named_otherwise(self, span_id: str | None) -> bool:
        return self.span is not None and self.ref is not None and span_id not in (None, self.ref.span_id)

    def lost_span(self, span_id: str | None) -> bool:
        """Whether the row names another span than the one that is open here."""
        with self._all.lock:
            return self._is_named_otherwise(span_id)

    def follow(self, event: ActivityEvent, ack: Ack) -> tuple[ClosingSpan | None, Callable[[], object] | None]:
        """Follow the row: the span that is over, if any, and the callback that stops a run that is to end.

        A run is to end if its attempt was canceled, or if the next attempt is open.
        """
        with self._all.lock:
            ours = self._of_this_attempt(ack)
            if not ours.status.terminal:
                return None, None
            self._state.status = ours.status
            canceled = (ours.status is Status.CANCELED or ours is not ack) and self.ending is None
            self._canceled = self._canceled or canceled
            decided_here = self.ending is not None and self.ending.event_id == event.event_id and not ours.late
            if decided_here:
                self._description = event.message
            end = None
            if ours is not ack or not self._more_to_come(event):
                outcome = event.outcome if decided_here else _with_usage(ours.outcome, event.outcome)
                end = self._end_span(ours.status, outcome, event.occurred_at_ns)
            return end, self.on_cancel if canceled else None

    def hear_waiting(self, stored: StoredActivity) -> None:
        """Follow the row: another process may have continued the run that waits."""
        with self._all.lock:
            if self._pending is None and stored.attempt == self.attempt and not stored.is_waiting:
                self._state.waiting = None

    def end_together(
        self, event: ActivityEvent, outcome: Outcome
    ) -> tuple[ClosingSpan | None, Callable[[], object] | None]:
        """Follow a bulk ending of this attempt, whose log is `event`; answers as `follow`."""
        with self._all.lock:
            self._state.status = event.status
            canceled = event.status is Status.CANCELED
            self._canceled = self._canceled or canceled
            if self.ref is None or self.span is not None:
                self._keep(event)
            self._description = event.message
            end = None if self._more_to_come(event) else self._end_span(event.status, outcome, event.occurred_at_ns)
            return end, self.on_cancel if canceled else None

    def end_attempt(self, event: ActivityEvent, outcome: Outcome | None) -> ClosingSpan | None:
        """The attempt has failed with this log, and the engine tries again: the span is over, not the activity."""
        with self._all.lock:
            self._state.status = Status.ERROR
            self._description = event.message
            return self._end_span(Status.ERROR, outcome, event.occurred_at_ns)

    def end_as_reported(self) -> ClosingSpan | None:
        """At shutdown: end the span of an attempt whose terminal log is still on its way with what that log says."""
        with self._all.lock:
            ending = self.ending
            if ending is None:
                return None
            self._description = ending.message
            return self._end_span(ending.status, ending.outcome, ending.occurred_at_ns)

    def _more_to_come(self, event: ActivityEvent) -> bool:
        """Whether the span of an activity that was ended inside its block waits for the usage in the final log."""
        counted = event.outcome is not None and event.outcome.requests is not None
        ended_inside = self._state.status is Status.CANCELED or self.ending is not None
        return self.expects_usage and ended_inside and not counted

    def _of_this_attempt(self, ack: Ack) -> Ack:
        """What an answer says of this attempt: if the next one is open, this one has ended, or its worker was lost."""
        if self.attempt is None or ack.attempt <= self.attempt:
            return ack
        status = self._state.status
        if not status.terminal:
            return replace(ack, status=Status.ERROR, outcome=Outcome(reason="lost"))
        canceled = Outcome(reason="canceled") if status is Status.CANCELED else None
        return replace(ack, status=status, outcome=canceled if self.ending is None else self.ending.outcome)

    def _end_span(self, status: Status, outcome: Outcome | None, occurred_at_ns: int) -> ClosingSpan | None:
        span, self.span = self.span, None
        if span is None:
            self._missed_end = (status, outcome, occurred_at_ns) if self._starting else None
            return None
        logs = tuple(self._lines)
        self._lines.clear()
        end_time_ns = max(occurred_at_ns, self._start_time_ns)
        percentage = self._state.latest_percentage
        end = SpanEnd(logs, self._log_count, status, outcome, percentage, self._description, end_time_ns)
        of = None
        if self.ref is not None and self.ref.sampled:
            of = SpanOfAttempt(self.agent_id, self.attempt or 1, self.ref.span_id)
        return ClosingSpan(span, end, of)


class LiveActivities:
    """The activities that this process has seen, each at the attempt it has joined.

    `lock` guards the views and this collection; see `LiveActivity`. Reentrant, because a signal handler may report an
    activity while the same thread holds it.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything: in a forked child the activities, their spans and the lock's holder are the parent's."""
        self.lock = threading.RLock()
        self._live: dict[UUID, LiveActivity] = {}
        self._needed = 0

    def get(self, agent_id: UUID) -> LiveActivity | None:
        """The view of the attempt that this process has joined."""
        return self._live.get(agent_id)

    def attempts(self, agent_id: UUID) -> Iterator[LiveActivity]:
        """The views of an activity: the attempt that this process has joined, then the earlier ones still open here."""
        live = self._live.get(agent_id)
        while live is not None:
            yield live
            live = live.older

    def of(self, event: ActivityEvent) -> LiveActivity | None:
        """The view of the attempt that an event of this process is about."""
        views = self.attempts(event.agent_id)
        return next((live for live in views if event.attempt in (None, live.attempt)), None)

    def create(self, event: ActivityEvent, *, attempt: int | None = 1, committed: bool = True) -> LiveActivity:
        """The view of an activity that was created with `event`, here or by the process that has sent it.

        Args:
            attempt: None if the activity may exist already.
            committed: Whether its row is there.
        """
        with self.lock:
            known = self._live.get(event.agent_id)
            if known is not None and not known.status.terminal:
                return known  # Another thread has found its row already.
            live = LiveActivity(self, event.agent_id, attempt)
            live.created(event, committed=committed)
            return self._put(live)

    def join(self, agent_id: UUID, attempt: int | None = None) -> LiveActivity:
        """The view of this attempt; a new one if it is later than the one seen here. None: of whichever is current."""
        with self.lock:
            known = self._live.get(agent_id)
            if known is not None and (attempt is None or (known.attempt or attempt) >= attempt):
                return known
            return self._put(LiveActivity(self, agent_id, attempt))

    def adopt(self, stored: StoredActivity) -> LiveActivity:
        """The view of the attempt that the row is at."""
        live = self.join(stored.agent_id, stored.attempt)
        live.resolve(stored)
        return live

    def join_next(self, agent_id: UUID, *, may_lack_row: bool = False) -> LiveActivity:
        """A view of whichever attempt is current by the time its first event is stored, in place of an earlier one."""
        with self.lock:
            return self._put(LiveActivity(self, agent_id, None, may_lack_row=may_lack_row))

    def forget(self, agent_id: UUID) -> None:
        """Read the row again at the next call."""
        with self.lock:
            self._live.pop(agent_id, None)

    def _put(self, live: LiveActivity) -> LiveActivity:
        """For callers that hold the lock."""
        known = self._live.get(live.agent_id)
        live.older = None if known is None or known.is_idle else known
        self._live[live.agent_id] = live
        if len(self._live) > max(MAX_KNOWN, self._needed):
            self._evict(live)
        return live

    def _evict(self, new: LiveActivity) -> None:
        idle = (agent_id for agent_id, one in self._live.items() if one.is_idle and one is not new)
        for agent_id in list(itertools.islice(idle, MAX_KNOWN // 10)):
            del self._live[agent_id]
        # If most of them are needed, they are not all looked through again for each new one.
        self._needed = len(self._live) + MAX_KNOWN // 20

    def forget_idle(self) -> None:
        """Keep what is open here."""
        with self.lock:
            self._live = {agent_id: live for agent_id, live in self._live.items() if live.span or live.owner}

    # -- for liveness -------------------------------------------------------------------------------------------

    def running(self) -> list[LiveActivity]:
        """The activities that run in this process; the attempt of each is known once a log is stored."""
        with self.lock:
            return [live for live in self._live.values() if live.runs_here]

    def with_blocks(self) -> set[UUID]:
        """The activities of which a block of this process runs an attempt, the joined one or an earlier one."""
        with self.lock:
            return {key for key in self._live if any(live.owner is not None for live in self.attempts(key))}

    def views(self, attempts: Iterable[tuple[UUID, int]], stored: Mapping[UUID, StoredActivity]) -> list[LiveActivity]:
        """The views of attempts that have ended together; of those whose row is unread, the ones that have a span.

        Args:
            stored: What could be read of their rows.
        """
        views: list[LiveActivity] = []
        for agent_id, attempt in attempts:
            found, live = stored.get(agent_id), self._live.get(agent_id)
            if found is not None and found.attempt == attempt:
                live = self.join(agent_id, attempt)
                live.resolve_ended(found)
                views.append(live)
            elif live is not None and live.attempt == attempt and live.ref is not None:
                views.append(live)
        return views

    def closing_spans(self) -> list[ClosingSpan]:
        """At shutdown: the spans whose terminal log is still on its way."""
        with self.lock:
            closing = [live.end_as_reported() for live in self._live.values()]
        return [one for one in closing if one is not None]


def _sum(counts: Iterable[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _with_usage(outcome: Outcome | None, late: Outcome | None) -> Outcome | None:
    """The row's outcome, with the usage that a late log reports: the row has taken that, too."""
    if late is None:
        return outcome
    why = outcome or Outcome()
    return replace(late, error_type=why.error_type, reason=why.reason)
