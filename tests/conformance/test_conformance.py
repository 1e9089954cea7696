"""Whatever decides about an activity gives the same answers: the bare fold, the testing kit, and every database."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any, Protocol
from uuid import UUID, uuid4

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from agentexec_otel._model.event import ActivityEvent
from agentexec_otel._model.fold import ActivityState, answer, fold
from agentexec_otel._model.ids import uuid7
from agentexec_otel.activity.models import Activity, ActivityLog
from agentexec_otel.export import Ack, ExportResult, Reject
from agentexec_otel.testing import InMemoryActivityExporter
from agentexec_otel_exporters.sql import SQLExporter
from tests.conformance.cases import CASES, Case, Step, occurred_at_ns
from tests.databases import Database

FIELDS = tuple(one.name for one in fields(ActivityState) if one.name not in ("_ack", "agent_id", "lease"))


class Exporter(Protocol):
    def export(self, events: Sequence[ActivityEvent], *, replay: bool = False) -> Sequence[ExportResult]: ...


def events_of(case: Case, agent_id: UUID) -> list[tuple[ActivityEvent, bool]]:
    """The events of a case, each with its `replay`."""
    made: list[tuple[ActivityEvent, bool]] = []
    for place, step in enumerate(case.steps):
        made.append((_event(step, place, agent_id, [event for event, _ in made]), step.replay))
    return made


def _event(step: Step, place: int, agent_id: UUID, earlier: Sequence[ActivityEvent]) -> ActivityEvent:
    if step.again is not None:
        return earlier[step.again]
    if step.withdrawn is not None:
        return earlier[step.withdrawn]._replace(withdraws=True)
    values: dict[str, Any] = {"percentage": None, **step.values}
    return ActivityEvent(
        uuid7(), agent_id, step.status, f"step {place}", occurred_at_ns=occurred_at_ns(place), **values
    )


class BareFold:
    """The fold, with what it leaves to its caller: one state per activity, and which events are stored."""

    def __init__(self) -> None:
        self.states: dict[UUID, ActivityState] = {}
        self.logs: dict[UUID, tuple[object, ...]] = {}

    def export(self, events: Sequence[ActivityEvent], *, replay: bool = False) -> list[ExportResult]:
        return [self._one(event, replay) for event in events]

    def _one(self, event: ActivityEvent, replay: bool) -> ExportResult:
        before = self.states.get(event.agent_id)
        log = self.logs.get(event.event_id)
        if before is not None and (event.withdraws and log is None):
            return before.acknowledge(late=False)
        if before is not None and log is not None and not event.withdraws:
            return before.acknowledge(bool(log[-1]), duplicate=True)
        state, verdict = fold(before, event, replay=replay)
        if state is None:
            self.states.pop(event.agent_id, None)
            self.logs.pop(event.event_id, None)
        elif verdict.refusal is None and not event.withdraws:
            self.states[event.agent_id] = state
            attempt = state.attempt if event.attempt is None else event.attempt
            self.logs[event.event_id] = (event.message, event.percentage, state.status, attempt, verdict.late)
        return answer(state, event, verdict)


@dataclass
class Outcome:
    """What one case has led to."""

    answers: list[ExportResult]
    state: dict[str, Any] | None
    lease: bool | None = None
    logs: list[tuple[object, ...]] | None = None


def expected(case: Case, agent_id: UUID, events: Sequence[tuple[ActivityEvent, bool]]) -> Outcome:
    """What the bare fold makes of it."""
    bare = BareFold()
    answers = [bare.export([event], replay=replay)[0] for event, replay in events]
    state = bare.states.get(agent_id)
    lease = None if state is None else state.lease == "extend"
    return Outcome(answers, snapshot(state), lease, list(bare.logs.values()))


def snapshot(state: object) -> dict[str, Any] | None:
    if state is None:
        return None
    name_of = {"metadata": "metadata_"} if isinstance(state, Activity) else {}
    return {name: getattr(state, name_of.get(name, name)) for name in FIELDS}


def summary(result: ExportResult) -> str:
    if isinstance(result, Reject):
        return str(result.refusal)
    assert isinstance(result, Ack)
    flags = [name for name in ("late", "duplicate") if getattr(result, name)]
    return " ".join([str(result.status), str(result.attempt), *flags])


def differences(case: Case, found: Outcome, agent_id: UUID, wanted: Outcome) -> Iterator[str]:
    """In which ways a case came out differently from the table and from the bare fold."""
    told = [summary(result) for result in found.answers]
    if told != case.answers:
        yield f"answers {told} instead of {case.answers}"
    if found.answers != wanted.answers:
        yield f"answers {found.answers}, by the fold {wanted.answers}"
    if not all(str(agent_id) in one.reason for one in found.answers if isinstance(one, Reject)):
        yield "a refusal does not name the activity"
    if found.state != wanted.state:
        yield f"state {found.state}, by the fold {wanted.state}"
    if found.lease is not None and found.lease != wanted.lease:
        yield f"lease {found.lease}, by the fold {wanted.lease}"
    if found.logs is not None and found.logs != wanted.logs:
        yield f"logs {found.logs}, by the fold {wanted.logs}"


def check(exporter: Exporter, look: Callable[[UUID, Outcome], None], *, in_one_batch: bool) -> None:
    """Run the whole table, and report every case that differs."""
    wrong: list[str] = []
    for case in CASES:
        agent_id = uuid4()
        events = events_of(case, agent_id)
        found = Outcome([], None)
        for replay, batch in batches(events, in_one_batch):
            found.answers += exporter.export(batch, replay=replay)
        look(agent_id, found)
        wrong += [f"{case.name}: {one}" for one in differences(case, found, agent_id, expected(case, agent_id, events))]
    assert not wrong, "\n".join(wrong)


def batches(
    events: Sequence[tuple[ActivityEvent, bool]], in_one_batch: bool
) -> Iterator[tuple[bool, list[ActivityEvent]]]:
    if not in_one_batch:
        yield from ((replay, [event]) for event, replay in events)
        return
    for replay, together in groupby(events, lambda one: one[1]):
        yield replay, [event for event, _ in together]


def test_table() -> None:
    """The bare fold answers, and leaves the state, as the table says."""
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)
    wrong: list[str] = []
    for case in CASES:
        agent_id = uuid4()
        bare = BareFold()
        told = [summary(bare.export([event], replay=replay)[0]) for event, replay in events_of(case, agent_id)]
        if told != case.answers:
            wrong.append(f"{case.name}: answers {told} instead of {case.answers}")
        state = bare.states.get(agent_id)
        if (state is None) != (case.state is None):
            wrong.append(f"{case.name}: state {state}")
        for name, value in (case.state or {}).items():
            if state is not None and getattr(state, name) != value:
                wrong.append(f"{case.name}: {name} is {getattr(state, name)!r} instead of {value!r}")
    assert not wrong, "\n".join(wrong)


class Kit:
    """The testing kit, and which of its events were replayed."""

    def __init__(self) -> None:
        self.memory = InMemoryActivityExporter()
        self.replayed = set[UUID]()

    def export(self, events: Sequence[ActivityEvent], *, replay: bool = False) -> Sequence[ExportResult]:
        self.replayed.update(event.event_id for event in events if replay)
        return self.memory.export(events, replay=replay)

    def look(self, agent_id: UUID, found: Outcome) -> None:
        """The state is what the events add up to that it has kept."""
        bare = BareFold()
        for event in self.memory.events:
            if event.agent_id == agent_id:
                bare.export([event], replay=event.event_id in self.replayed)
        state = bare.states.get(agent_id)
        found.state, found.logs = snapshot(state), list(bare.logs.values())
        assert self.memory.status(agent_id) == (None if state is None else state.status)


def test_testing_kit() -> None:
    """`InMemoryActivityExporter` gives the answers of the table, and keeps the events that make up the state."""
    for in_one_batch in (False, True):
        kit = Kit()
        check(kit, kit.look, in_one_batch=in_one_batch)


def test_databases(database: Database) -> None:
    """The SQL exporter gives the answers of the table, and leaves the rows and logs, event by event and in batches."""
    exporter = SQLExporter(database.url)
    with database.engine.connect() as connection, Session(connection, expire_on_commit=False) as session:

        def look(agent_id: UUID, found: Outcome) -> None:
            stored = session.scalars(select(Activity).where(Activity.agent_id == agent_id)).one_or_none()
            found.state, found.lease, found.logs = snapshot(stored), None, []
            if stored is not None:
                found.lease = stored.lease_expires_at is not None
                found.logs = [(log.message, log.percentage, log.status, log.attempt, log.late) for log in stored.logs]
                assert [log.seq for log in stored.logs] == [*range(1, len(stored.logs) + 1)]
            session.rollback()
            session.expunge_all()

        for in_one_batch in (False, True):
            check(exporter, look, in_one_batch=in_one_batch)
        assert nothing_is_orphaned(database.engine)
    exporter.shutdown(1.0)


def nothing_is_orphaned(engine: Engine) -> bool:
    """Whether every log has its activity, and every activity a log."""
    with Session(engine) as session:
        activities = set(session.scalars(select(Activity.id)))
        return activities == set(session.scalars(select(ActivityLog.activity_id)))
