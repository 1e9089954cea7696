"""What this process knows of an activity that it has seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from uuid import UUID

from opentelemetry import trace

from agentexec_otel._errors import guarded
from agentexec_otel._model.event import ActivityEvent, Opening, Outcome, SpanRef, Status
from agentexec_otel.export import Ack, ExportResult, StoredActivity

Usage = tuple[int | None, int | None, int | None]


@dataclass(slots=True)
class LiveActivity:
    """What this process knows of an activity.

    Attributes:
        opening: None until the row has been read.
        history: Lines that are on no span yet.
        span: The span this process has open for it.
        ref: The activity's span, wherever it is open.
        untraced: There was no provider to open a span when it started.
        status: The last one seen; a terminal one is the row's once `settled`.
        owner: The block that will end it.
        ending: Our own terminal event, until it is settled.
        canceled: Somebody else canceled it while it ran here.
        opening_pending: Its row may not be there yet, since nobody has waited for it.
        queued: The last line that was said of it here, until it is settled.
        usage: Input tokens, output tokens and requests by the block that counted them.
        reported: The application or the agent has added a line of its own.
        why: What our own terminal event has said, where that is how the row has ended.
        counts: The last line of its block says what was spent, also where the activity was ended or canceled before.
        on_cancel: Called, on whichever thread learns of it, when the activity is canceled; perhaps more than once.
    """

    agent_id: UUID
    opening: Opening | None = None
    attempt: int | None = None
    created_at_ns: int = 0
    status: Status = Status.QUEUED
    history: list[ActivityEvent] = field(default_factory=list[ActivityEvent])
    span: trace.Span | None = None
    ref: SpanRef | None = None
    untraced: bool = False
    owner: object | None = None
    ending: ActivityEvent | None = None
    percentage: int | None = None
    canceled: bool = False
    unknown: bool = False
    opening_pending: bool = False
    queued: UUID | None = None
    reported: bool = False
    started_here: bool = False
    usage: dict[object, Usage] = field(default_factory=dict[object, Usage])
    why: str | None = None
    counts: bool = False
    on_cancel: Callable[[], object] | None = None

    def settled(self, event: ActivityEvent, result: ExportResult) -> None:
        """A line of it waits no longer."""
        if self.queued == event.event_id:
            self.queued = None
        if event.opening is not None:
            self.opening_pending = False
            self.attempt = self.attempt or (result.attempt if isinstance(result, Ack) else None)

    @property
    def waits(self) -> bool:
        """Whether something that was said of it here may not be settled yet; while its row is unread, who knows."""
        return self.queued is not None or self.opening_pending or self.opening is None

    def cancel(self) -> None:
        """It was canceled: tell the block that runs it."""
        if self.on_cancel is not None:
            with guarded("stopping a canceled run"):
                self.on_cancel()

    @property
    def over(self) -> bool:
        """Whether nothing of this attempt is left to do here."""
        return self.status.terminal and self.span is None and self.owner is None

    @property
    def ended(self) -> bool:
        """Whether its end was said, so that its row knows better which attempt the next line belongs to."""
        return self.status.terminal and self.owner is None

    @property
    def idle(self) -> bool:
        """Whether it may be forgotten: its row tells the rest, and nobody has to show that it is alive."""
        return self.span is None and self.owner is None and not self.runs_here

    @property
    def runs_here(self) -> bool:
        """Whether this process is the one that has to show that it is alive."""
        return self.status is Status.RUNNING and (self.started_here or self.owner is not None)


def fill(live: LiveActivity, stored: StoredActivity) -> None:
    live.opening = stored.opening
    live.attempt = stored.attempt
    live.status = max(live.status, stored.status, key=progress)
    if live.span is None:
        live.ref = stored.span
        seen = {line.event_id for line in stored.history}
        live.history = [*stored.history, *(line for line in live.history if line.event_id not in seen)]
        retried = stored.attempt > 1 and stored.history
        live.created_at_ns = stored.history[0].occurred_at_ns if retried else stored.created_at_ns


def progress(status: Status) -> int:
    return 2 if status.terminal else int(status is Status.RUNNING)


def opens_span(live: LiveActivity, event: ActivityEvent) -> bool:
    """The first line that is not QUEUED; where there was no provider then, the last one tries again."""
    return event.status.terminal if live.untraced else event.status is not Status.QUEUED


def more_to_come(live: LiveActivity, event: ActivityEvent) -> bool:
    """Whether the span of an activity that was ended inside its block waits for the block's last line, with tokens."""
    counted = event.outcome is not None and event.outcome.requests is not None
    return live.counts and (live.status is Status.CANCELED or live.ending is not None) and not counted


def of_our_attempt(live: LiveActivity, ack: Ack) -> Ack:
    """What an answer says of the attempt that is known here: where the next one is open it has ended, or was lost."""
    if ack.attempt <= (live.attempt or 1):
        return ack
    if not live.status.terminal:
        return replace(ack, status=Status.ERROR, outcome=Outcome(reason="lost"))
    canceled = Outcome(reason="cancelled") if live.status is Status.CANCELED else None
    return replace(ack, status=live.status, outcome=canceled if live.ending is None else live.ending.outcome)


def with_usage(outcome: Outcome | None, late: Outcome | None) -> Outcome | None:
    """How the row says that it ended, with what a late line says was spent, which the row has taken, too."""
    if late is None:
        return outcome
    why = outcome or Outcome()
    return replace(late, error_type=why.error_type, reason=why.reason)


def names_another(live: LiveActivity, ack: Ack) -> bool:
    """Whether the activity's row names another span than the one that is open here."""
    return live.span is not None and live.ref is not None and ack.span_id not in (None, live.ref.span_id)
