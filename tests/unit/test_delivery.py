"""Delivery of one batch: tried again, halved or given up, by class of failure."""

import logging
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentexec_otel.activity.models import Status
from agentexec_otel.export import (
    Ack,
    ActivityEvent,
    ExportError,
    ExportResult,
    MisconfiguredExportError,
    PoisonExportError,
    Reject,
    Retry,
    TransientExportError,
)
from agentexec_otel.export._delivery import (
    FIRST_BACKOFF,
    LONGEST_BACKOFF,
    MISCONFIGURED_BACKOFF,
    UNKNOWN_TRIES,
    ClosingError,
    Delivery,
    Entry,
)
from tests.sql.recorder import Recorder
from tests.sql.rows import event


class Desk:
    """A delivery with a stepped clock; remembers what was acknowledged and how long it paused."""

    def __init__(self, exporter: Recorder, *, stop_after: int | None = None) -> None:
        self.exporter = exporter
        self.acknowledged: list[tuple[ActivityEvent, ExportResult]] = []
        self.dropped: list[Entry] = []
        self.pauses: list[float] = []
        self.now = 0.0
        self._stop_after = stop_after
        self.delivery = Delivery(exporter, self._acknowledge, self.dropped.append, self._pause, lambda: self.now)

    def _acknowledge(self, answered: Sequence[tuple[Entry, ExportResult]]) -> None:
        self.acknowledged += [(entry.event, result) for entry, result in answered]

    def _pause(self, seconds: float) -> bool:
        self.pauses.append(seconds)
        self.now += seconds
        return self._stop_after is not None and len(self.pauses) >= self._stop_after

    def deliver(self, events: Sequence[ActivityEvent], *, replay: bool = False) -> None:
        self.delivery.deliver([Entry(one) for one in events], replay=replay)

    @property
    def results(self) -> list[ExportResult]:
        return [result for _, result in self.acknowledged]


def some(count: int) -> list[ActivityEvent]:
    return [event(uuid4(), message=str(number)) for number in range(count)]


def desk_with_slow_exporter(most: int) -> tuple[Desk, list[int]]:
    """One whose exporter does not make more than `most` events in time, and the sizes of the batches it was given."""

    def answer(batch: Sequence[ActivityEvent]) -> Sequence[ExportResult]:
        sizes.append(len(batch))
        if len(batch) > most:
            desk.now += 5.0
            raise TransientExportError("not in time")
        return [Ack(one.status) for one in batch]

    sizes: list[int] = []
    desk = Desk(Recorder(answer=answer))
    return desk, sizes


def test_batch_goes_out_once() -> None:
    """What is answered is acknowledged with that answer, in order, without a pause."""
    desk = Desk(Recorder())
    events = some(3)
    desk.deliver(events)
    assert desk.acknowledged == [(one, Ack(Status.RUNNING)) for one in events]
    assert (desk.pauses, desk.exporter.replays) == ([], [False])
    desk.deliver([])
    assert desk.exporter.replays == [False]


def test_transient_failures_are_retried_for_ever() -> None:
    """The same batch, marked as a replay, with pauses that grow up to a limit."""
    desk = Desk(Recorder(*(TransientExportError("away") for _ in range(40))))
    events = some(2)
    desk.deliver(events)
    assert desk.exporter.events == events
    assert desk.exporter.replays == [False] + [True] * 40
    assert len(desk.pauses) == desk.delivery.retries == 40
    for place, pause in enumerate(desk.pauses):
        most = min(FIRST_BACKOFF * 2**place, LONGEST_BACKOFF)
        assert most / 2 <= pause <= most


def test_batch_that_takes_too_long_goes_in_parts() -> None:
    """An exporter whose deadline is too short for a whole batch gets smaller ones, and larger ones while that works."""
    events = some(2_000)
    desk, sizes = desk_with_slow_exporter(100)
    desk.deliver(events[:1_000])
    assert sizes[:5] == [1_000, 500, 250, 125, 62]
    desk.deliver(events[1_000:])
    assert desk.acknowledged == [(one, Ack(Status.RUNNING)) for one in events]
    assert sum(size > 100 for size in sizes) < len(sizes) / 4
    desk.exporter.answer = None
    for _ in range(60):
        desk.deliver(some(1_000))
    assert len(desk.exporter.batches[-1]) == 1_000, "it is trusted with all of them again"


def test_small_batches_do_not_speak_for_large_ones() -> None:
    """What went in parts still does after many batches that are smaller than a part."""
    desk, sizes = desk_with_slow_exporter(600)
    desk.deliver(some(1_000))
    assert sizes[:2] == [1_000, 500]
    for _ in range(100):
        desk.deliver(some(1))
    sizes.clear()
    desk.deliver(some(1_000))
    assert max(sizes) <= 600


def test_nobody_waits_for_what_nobody_wants() -> None:
    """Where its producer gives up as soon as it hears of the trouble, nothing is tried again, and nothing waits."""
    desk = Desk(Recorder(MisconfiguredExportError("no table: create it")))
    entry = Entry(some(1)[0], on_failure=lambda exc: setattr(entry, "abandoned", True))
    desk.delivery.deliver([entry])
    assert (desk.dropped, desk.pauses, desk.acknowledged) == ([entry], [], [])


def test_quick_failure_divides_nothing() -> None:
    """A database that is not there says so at once, which says nothing about the size of the batch."""
    desk = Desk(Recorder(*(TransientExportError("away") for _ in range(5))))
    desk.deliver(some(1_000))
    assert [len(batch) for batch in desk.exporter.batches] == [1_000]


def test_outage_is_logged_twice(caplog: pytest.LogCaptureFixture) -> None:
    """One line when storing begins to fail, one when it works again; `last_error` in between."""
    desk = Desk(Recorder(*(TransientExportError("the database is away") for _ in range(10))), stop_after=5)
    with pytest.raises(ClosingError):
        desk.deliver(some(1))
    assert desk.delivery.last_error == "the database is away"
    assert desk.delivery.outage_seconds == pytest.approx(sum(desk.pauses))
    again = Desk(desk.exporter)
    again.delivery.failure = desk.delivery.failure
    again.now = 7.5
    again.deliver(some(1))
    assert again.delivery.last_error is None
    assert again.delivery.outage_seconds == 0
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 2
    assert "the database is away" in texts[0]
    assert "stored again" in texts[1]


def test_configuration_errors_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    """A destination that refuses us is asked slowly, for ever, and said loudly at most once a minute."""
    desk = Desk(Recorder(*(MisconfiguredExportError("no table: create it") for _ in range(10))))
    desk.deliver(some(1))
    assert desk.pauses == [MISCONFIGURED_BACKOFF] * 10
    assert desk.results == [Ack(Status.RUNNING)]
    loud = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert 3 <= len(loud) <= 5
    assert all("no table: create it" in record.getMessage() for record in loud)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 500])
def test_poison_is_halved_until_it_is_alone(size: int) -> None:
    """The poison events are rejected, each alone; all others are stored, in order, in few calls."""
    events = some(size)
    bad = {events[0].event_id, events[size // 2].event_id, events[-1].event_id}

    def answer(batch: Sequence[ActivityEvent]) -> Sequence[ExportResult]:
        if any(one.event_id in bad for one in batch):
            raise PoisonExportError("the database refuses a value")
        stored.extend(batch)
        return [Ack(one.status) for one in batch]

    stored: list[ActivityEvent] = []
    desk = Desk(Recorder(answer=answer))
    desk.deliver(events)
    assert stored == [one for one in events if one.event_id not in bad]
    assert [one for one, _ in desk.acknowledged] == events
    assert {one.event_id for one, result in desk.acknowledged if isinstance(result, Reject)} == bad
    assert {result for result in desk.results if isinstance(result, Reject)} == {Reject("the database refuses a value")}
    assert desk.pauses == []
    assert len(desk.exporter.replays) <= 2 * len(bad) * (size.bit_length() + 1)
    assert desk.exporter.replays[0] is False
    assert all(desk.exporter.replays[1:])


FOREIGN: list[Callable[[], BaseException]] = [
    lambda: RuntimeError("canary"),
    lambda: ExportError("unclassified"),
    KeyboardInterrupt,
    lambda: SystemExit(1),
    GeneratorExit,
    lambda: BaseExceptionGroup("canary", [KeyboardInterrupt()]),
]


@pytest.mark.parametrize("make", FOREIGN)
def test_unknown_failures_are_tried_again(make: Callable[[], BaseException], caplog: pytest.LogCaptureFixture) -> None:
    """Whatever else an exporter raises is tried again: nothing is lost by it, and nothing of its text is told."""
    desk = Desk(Recorder(*(make() for _ in range(UNKNOWN_TRIES - 1))))
    events = some(3)
    desk.deliver(events)
    assert desk.exporter.events == events
    assert desk.results == [Ack(Status.RUNNING)] * 3
    assert "canary" not in caplog.text


def test_lasting_unknown_failure_is_poison() -> None:
    """An event on which the exporter always fails is rejected in the end, with the failure's type."""
    events = some(4)

    def answer(batch: Sequence[ActivityEvent]) -> Sequence[ExportResult]:
        if events[2] in batch:
            raise ZeroDivisionError("canary")
        return [Ack(one.status) for one in batch]

    desk = Desk(Recorder(answer=answer))
    desk.deliver(events)
    assert [one for one, _ in desk.acknowledged] == events
    assert desk.results == [
        Ack(Status.RUNNING), Ack(Status.RUNNING), Reject("ZeroDivisionError"), Ack(Status.RUNNING),
    ]  # fmt: skip


ODD_ANSWERS: list[Any] = [None, [], [Ack(Status.RUNNING)], [True, True], ["ok", "ok"], 5, {}, [Ack(Status.RUNNING)] * 3]


@pytest.mark.parametrize("odd", ODD_ANSWERS, ids=repr)
def test_odd_answers_are_failures(odd: Any) -> None:
    """An exporter that answers with nothing, too little, too much or something else has failed: it is asked again."""
    calls: list[int] = []

    def answer(batch: Sequence[ActivityEvent]) -> Any:
        calls.append(len(batch))
        return odd if len(calls) == 1 else [Ack(one.status) for one in batch]

    desk = Desk(Recorder(answer=answer))
    desk.deliver(some(2))
    assert calls == [2, 2]
    assert desk.results == [Ack(Status.RUNNING)] * 2


def test_single_events_are_retried_and_rejected() -> None:
    """`Retry` brings only those events back, after the longest wait that was asked for; `Reject` is final."""
    events = some(4)
    rounds: list[list[ActivityEvent]] = []

    def answer(batch: Sequence[ActivityEvent]) -> Sequence[ExportResult]:
        rounds.append(list(batch))
        if len(rounds) == 1:
            return [Ack(Status.RUNNING), Retry(0.2), Reject("never"), Retry(0.7)]
        return [Ack(Status.COMPLETE) for _ in batch]

    desk = Desk(Recorder(answer=answer))
    desk.deliver(events)
    assert rounds == [events, [events[1], events[3]]]
    assert desk.pauses == [0.7]
    assert desk.acknowledged == [
        (events[0], Ack(Status.RUNNING)),
        (events[2], Reject("never")),
        (events[1], Ack(Status.COMPLETE)),
        (events[3], Ack(Status.COMPLETE)),
    ]


def test_closing_keeps_what_is_not_acknowledged() -> None:
    """When the processor stops in an outage, the batch is neither acknowledged nor dropped."""
    desk = Desk(Recorder(*(TransientExportError("away") for _ in range(9))), stop_after=3)
    with pytest.raises(ClosingError):
        desk.deliver(some(2))
    assert (desk.acknowledged, desk.dropped) == ([], [])


def test_untried_abandoned_entries_never_go_out() -> None:
    """What was abandoned before its first try is not offered at all, and counted; the others go out."""
    desk = Desk(Recorder())
    entries = [Entry(one) for one in some(3)]
    entries[1].abandoned = True
    desk.delivery.deliver(entries)
    assert desk.exporter.messages == ["0", "2"]
    assert desk.dropped == [entries[1]]


@given(st.lists(st.sampled_from(["ok", "retry", "reject", "away", "poison", "bug"]), max_size=40), st.integers(1, 9))
def test_every_event_is_acknowledged_once(script: list[str], size: int) -> None:
    """Whatever the exporter does, each event is acknowledged exactly once, and stored at most once."""
    stored: list[ActivityEvent] = []
    left = list(script)

    def answer(batch: Sequence[ActivityEvent]) -> Sequence[ExportResult]:
        match left.pop(0) if left else "ok":
            case "away":
                raise TransientExportError("away")
            case "poison":
                raise PoisonExportError("poison")
            case "bug":
                raise ValueError("bug")
            case "retry":
                stored.extend(batch[:1])
                return [Ack(Status.RUNNING), *(Retry() for _ in batch[1:])]
            case "reject":
                stored.extend(batch[1:])
                return [Reject("no"), *(Ack(Status.RUNNING) for _ in batch[1:])]
            case _:
                stored.extend(batch)
                return [Ack(Status.RUNNING) for _ in batch]

    desk = Desk(Recorder(answer=answer))
    events = some(size)
    desk.deliver(events)
    assert sorted(one.message for one, _ in desk.acknowledged) == sorted(one.message for one in events)
    acked = {one.event_id for one, result in desk.acknowledged if isinstance(result, Ack)}
    assert {one.event_id for one in stored} == acked
    assert len(stored) == len(acked)


def test_a_wait_that_is_asked_for_is_kept() -> None:
    """A destination that asks to wait is not tried before that."""
    desk = Desk(Recorder(TransientExportError("busy", after=7.0), TransientExportError("busy")))
    desk.deliver([event(uuid4())])
    assert desk.pauses[0] == 7.0
    assert desk.pauses[1] <= LONGEST_BACKOFF
