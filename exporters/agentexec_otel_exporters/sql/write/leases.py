"""Leases: which process runs an activity, and which one exports its span, once it has ended. Commits nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Float, Row, bindparam, func, literal, null, or_, select, update
from sqlalchemy.sql.dml import Update

from agentexec_otel._config import CONF
from agentexec_otel._model.attributes import WORKER_SPAN
from agentexec_otel._model.event import ACTIVE, ActivityEvent, Opening, Outcome, SpanRef, Status
from agentexec_otel._model.fold import context_after_span, context_with_span, nanoseconds
from agentexec_otel._model.results import StoredActivity
from agentexec_otel._model.span import SpanEnd, SpanOfAttempt, SpanStart, StoredSpan
from agentexec_otel.activity.models import UtcDateTime
from agentexec_otel_exporters.sql.write.load import load_activities
from agentexec_otel_exporters.sql.write.statements import ACTIVITY, LOG, database_now

_MOST_LOGS: Final = 20_000
"""About how many logs a batch has that is claimed at once."""
_NOW: Final = database_now(literal(0))
_LEASE_END: Final = database_now(bindparam("lease_seconds", type_=Float))
_UNCHANGED: Final[dict[str, Any]] = {"updated_at": ACTIVITY.c.updated_at}
_IDS: Final = ACTIVITY.c.id.in_(bindparam("ids", expanding=True))
_UNCLAIMED: Final = or_(ACTIVITY.c.lease_expires_at.is_(None), ACTIVITY.c.lease_expires_at < _NOW)
_UNEXPORTED: Final[tuple[ColumnElement[bool], ...]] = (
    ACTIVITY.c.status.not_in(ACTIVE),
    ACTIVITY.c.span_id.is_not(None),
    ACTIVITY.c.sampled.is_(True),
    ACTIVITY.c.span_exported_at.is_(None),
    _UNCLAIMED,
)
_CLAIM: Final = update(ACTIVITY).where(_IDS).values(_UNCHANGED | {"lease_expires_at": _LEASE_END})
_EXPORTED: Final[dict[str, Any]] = _UNCHANGED | {"span_exported_at": _NOW, "lease_expires_at": null()}
_MARK: Final = update(ACTIVITY).where(_IDS).values(_EXPORTED)
_RELEASE: Final = update(ACTIVITY).where(_IDS).values(_UNCHANGED | {"lease_expires_at": null()})


# -- the process that runs an activity ---------------------------------------------------------------------------------

_SPAN: Final[dict[str, Any]] = {name: bindparam(f"new_{name}") for name in ("trace_id", "span_id", "sampled")}
_ATTACH: Final = (
    update(ACTIVITY)
    .where(
        ACTIVITY.c.agent_id == bindparam("of_agent"),
        ACTIVITY.c.attempt == bindparam("of_attempt"),
        ACTIVITY.c.span_id.is_(None),
    )
    .values(_SPAN | _UNCHANGED)
)
_ADD_CONTEXT: Final = (
    update(ACTIVITY)
    .where(ACTIVITY.c.id == bindparam("of_row"))
    .values(**_UNCHANGED, trace_context=bindparam("new_context"))
)
_DROP_SPAN: Final = (
    update(ACTIVITY)
    .where(ACTIVITY.c.id == bindparam("of_row"))
    .values(**_UNCHANGED, **dict.fromkeys(_SPAN), trace_context=bindparam("new_context"))
)


def attach_spans(connection: Connection, spans: Sequence[tuple[UUID, int, SpanRef]]) -> set[UUID]:
    """Name spans on the rows of these attempts; see `ActivityStore.attach_spans`."""
    offers = [
        {"of_agent": agent_id, "of_attempt": attempt, "new_trace_id": span.trace_id, "new_span_id": span.span_id,
         "new_sampled": span.sampled}
        for agent_id, attempt, span in sorted(spans, key=itemgetter(0))
    ]  # fmt: skip
    connection.execute(_ATTACH, offers)
    offered = {agent_id: span for agent_id, _, span in spans}
    columns = (ACTIVITY.c.id, ACTIVITY.c.agent_id, ACTIVITY.c.span_id, ACTIVITY.c.trace_context)
    rows = connection.execute(select(*columns).where(ACTIVITY.c.agent_id.in_(list(offered)))).all()
    named = {row.agent_id: row for row in rows if offered[row.agent_id].span_id == row.span_id}
    contexts = [
        {"of_row": row.id, "new_context": context_with_span(row.trace_context, offered[agent_id])}
        for agent_id, row in named.items()
        if offered[agent_id].started_in is not None
    ]
    if contexts:
        connection.execute(_ADD_CONTEXT, contexts)
    return set(named)


def extend_leases(
    connection: Connection, worker_id: str, attempts: Mapping[UUID, int], owned: Set[UUID] = frozenset()
) -> dict[UUID, StoredActivity]:
    """Extend the leases of what this worker runs; see `ActivityStore.extend_leases`."""
    agent_ids = list(attempts)
    mine = or_(ACTIVITY.c.worker_id == worker_id, ACTIVITY.c.agent_id.in_(sorted(owned)))
    running = select(ACTIVITY.c.agent_id, ACTIVITY.c.attempt).where(
        ACTIVITY.c.agent_id.in_(agent_ids), ACTIVITY.c.status == Status.RUNNING, ACTIVITY.c.waiting.is_(None), mine
    )
    # Locked in the order in which batches lock.
    locked = connection.execute(running.order_by(ACTIVITY.c.agent_id).with_for_update()).all()
    extended = [agent_id for agent_id, attempt in locked if attempt == attempts[agent_id]]
    if extended:
        connection.execute(
            update(ACTIVITY)
            .where(ACTIVITY.c.agent_id.in_(extended))
            .values(_UNCHANGED | {"worker_id": worker_id, "heartbeat_at": _NOW, "lease_expires_at": _LEASE_END}),
            {"lease_seconds": CONF.lease_seconds},
        )
    return load_activities(connection, agent_ids, history=False)


def release(connection: Connection, worker_id: str, agent_ids: Sequence[UUID], spans: Set[str]) -> None:
    """Give up the leases of this worker, and the spans that end with it; see `ActivityStore.release`."""
    left = (ACTIVITY.c.agent_id.in_(agent_ids), ACTIVITY.c.worker_id == worker_id)
    connection.execute(update(ACTIVITY).where(*left).values(_UNCHANGED | {"lease_expires_at": None}))
    if not spans:
        return
    named = (ACTIVITY.c.id, ACTIVITY.c.trace_context, ACTIVITY.c.trace_id, ACTIVITY.c.span_id, ACTIVITY.c.sampled)
    dropped = [
        {"of_row": row_id, "new_context": context_after_span(context, trace_id, span_id, sampled)}
        for row_id, context, trace_id, span_id, sampled in connection.execute(
            select(*named).where(*left, ACTIVITY.c.span_id.in_(spans)).with_for_update()
        )
    ]
    if dropped:
        connection.execute(_DROP_SPAN, dropped)


# -- the process that has the span -----------------------------------------------------------------------------------


def hand_over_spans(connection: Connection, spans: Sequence[SpanOfAttempt], lease_seconds: float | None) -> set[str]:
    """Claim spans that are about to be ended; see `SpanStore.hand_over_spans`."""
    given = set(spans)
    taken = ~_UNCLAIMED | ACTIVITY.c.span_exported_at.is_not(None)
    columns = (ACTIVITY.c.id, ACTIVITY.c.agent_id, ACTIVITY.c.attempt, ACTIVITY.c.span_id, taken.label("is_taken"))
    rows = connection.execute(
        select(*columns)
        .where(ACTIVITY.c.agent_id.in_({span.agent_id for span in spans}), ACTIVITY.c.status.not_in(ACTIVE))
        .order_by(ACTIVITY.c.agent_id)
        .with_for_update()
    ).all()
    named = [row for row in rows if SpanOfAttempt(row.agent_id, row.attempt, row.span_id) in given]
    _claim(connection, [row.id for row in named if not row.is_taken], lease_seconds)
    return {row.span_id for row in named if row.is_taken}


def _claim(connection: Connection, ids: Sequence[UUID], lease_seconds: float | None) -> None:
    if not ids:
        return
    if lease_seconds is None:
        connection.execute(_MARK, {"ids": ids})
    else:
        connection.execute(_CLAIM, {"ids": ids, "lease_seconds": lease_seconds})


def spans_exported(connection: Connection, spans: Sequence[tuple[UUID, str]]) -> None:
    """State that these were exported; see `SpanStore.spans_exported`."""
    _change(connection, spans, _MARK)


def release_spans(connection: Connection, spans: Sequence[tuple[UUID, str]]) -> None:
    """Give up the claims; see `SpanStore.release_spans`."""
    _change(connection, spans, _RELEASE)


def _change(connection: Connection, spans: Sequence[tuple[UUID, str]], change: Update) -> None:
    """Change the rows that name these spans, if the attempt has ended, and is not stated to be exported."""
    agent_ids, span_ids = zip(*spans, strict=True)
    named = (ACTIVITY.c.agent_id.in_(agent_ids), ACTIVITY.c.span_id.in_(span_ids))
    unexported = (ACTIVITY.c.status.not_in(ACTIVE), ACTIVITY.c.span_exported_at.is_(None))
    # Locked in the order in which batches lock.
    locked = select(ACTIVITY.c.id).where(*named, *unexported).order_by(ACTIVITY.c.agent_id).with_for_update()
    ids = connection.scalars(locked).all()
    if ids:
        connection.execute(change, {"ids": ids})


# -- the process that replays --------------------------------------------------------------------------------------


def count_spans(connection: Connection, criteria: Sequence[Any]) -> int:
    """How many there are to replay; see `SpanStore.count_spans`."""
    found = select(func.count()).select_from(ACTIVITY).where(*_UNEXPORTED, *criteria)
    return connection.execute(found).scalar_one()


_COLUMNS: Final = tuple(
    ACTIVITY.c[name]
    for name in (
        "id", "agent_id", "agent_type", "created_at", "status", "latest_percentage", "attempt", "started_at",
        "ended_at", "updated_at", "metadata", "trace_context", "trace_id", "span_id", "worker_id", "error_type",
        "reason", "input_tokens", "output_tokens", "requests", "cached_input_tokens", "reasoning_tokens", "model",
    )
)  # fmt: skip


def claim_spans(
    connection: Connection,
    criteria: Sequence[Any],
    most: int,
    lease_seconds: float,
    after: tuple[object, ...] | None,
    max_logs: int | None,
) -> list[StoredSpan]:
    """Claim the spans of ended attempts that no process has exported; see `SpanStore.claim_spans`."""
    candidates = _candidates(connection, criteria, most, after)
    rows = connection.execute(
        select(*_COLUMNS).where(_IDS, *_UNEXPORTED).order_by(ACTIVITY.c.agent_id).with_for_update(skip_locked=True),
        {"ids": candidates},
    ).all()
    if not rows:
        return []
    _claim(connection, [row.id for row in rows], lease_seconds)
    logs = _logs(connection, rows, max_logs)
    found = [_stored_span(row, logs.get(row.id, _NO_LOGS)) for row in rows]
    return sorted(found, key=attrgetter("cursor"))


def _candidates(
    connection: Connection, criteria: Sequence[Any], most: int, after: tuple[object, ...] | None
) -> list[UUID]:
    """The next ids in the order of ``created_at``. Not locked: a scan that locks would lock what it passes over."""
    statement = select(ACTIVITY.c.id, ACTIVITY.c.last_seq).where(*_UNEXPORTED, *criteria)
    if after is not None:
        created_at = literal(after[0], UtcDateTime)
        behind = or_(ACTIVITY.c.created_at > created_at, ACTIVITY.c.id > literal(after[1], ACTIVITY.c.id.type))
        statement = statement.where(ACTIVITY.c.created_at >= created_at, behind)
    rows = connection.execute(statement.order_by(ACTIVITY.c.created_at, ACTIVITY.c.id).limit(most)).all()
    ids: list[UUID] = []
    logs = 0
    for row_id, last_seq in rows:
        ids.append(row_id)
        logs += last_seq
        if logs >= _MOST_LOGS:
            break
    return ids


class _Logs(NamedTuple):
    """The last logs of an attempt, oldest first, how many there are, and when the first one happened."""

    last: Sequence[Row[*tuple[Any, ...]]]
    total: int
    first_ns: int | None


_NO_LOGS: Final = _Logs((), 0, None)
_ATTEMPT: Final = (
    select(
        LOG.c.activity_id,
        LOG.c.seq,
        LOG.c.event_id,
        LOG.c.status,
        LOG.c.message,
        LOG.c.percentage,
        LOG.c.created_at,
        func.row_number().over(partition_by=LOG.c.activity_id, order_by=LOG.c.seq.desc()).label("place"),
        func.count().over(partition_by=LOG.c.activity_id).label("total"),
        func.first_value(LOG.c.created_at, type_=UtcDateTime)
        .over(partition_by=LOG.c.activity_id, order_by=LOG.c.seq)
        .label("first_at"),
    )
    .join(ACTIVITY, ACTIVITY.c.id == LOG.c.activity_id)
    .where(_IDS, LOG.c.attempt == ACTIVITY.c.attempt, LOG.c.late.is_(False))
    .subquery()
)


def _logs(connection: Connection, rows: Sequence[Any], max_logs: int | None) -> Mapping[UUID, _Logs]:
    """The logs of each row's attempt. The database counts them, so that only those are read that a span keeps."""
    statement = select(_ATTEMPT).order_by(_ATTEMPT.c.activity_id, _ATTEMPT.c.seq)
    if max_logs is not None:
        statement = statement.where(_ATTEMPT.c.place <= max(max_logs, 1))
    found = connection.execute(statement, {"ids": [row.id for row in rows]}).all()
    logs: dict[UUID, _Logs] = {}
    for activity_id, group in groupby(found, attrgetter("activity_id")):
        last = list(group)
        logs[activity_id] = _Logs(last, last[0].total, nanoseconds(last[0].first_at))
    return logs


def _stored_span(row: Any, logs: _Logs) -> StoredSpan:
    created_ns = nanoseconds(row.created_at)
    start_ns = created_ns if row.attempt == 1 or logs.first_ns is None else logs.first_ns
    queued = None if row.started_at is None else max(0, nanoseconds(row.started_at) - start_ns) / 1e9
    context = dict(row.trace_context or {})
    ref = SpanRef(row.trace_id, row.span_id, True, context.get(WORKER_SPAN))
    opening = Opening(row.agent_type, row.metadata, context)
    start = SpanStart(row.agent_id, opening, row.attempt, start_ns, queued)
    ended_ns = nanoseconds(row.ended_at or row.updated_at)
    outcome = Outcome(
        row.error_type, row.reason, row.input_tokens, row.output_tokens, row.requests, row.cached_input_tokens,
        row.reasoning_tokens, row.model,
    )  # fmt: skip
    description = logs.last[-1].message if logs.last and row.status is not Status.COMPLETE else None
    end = SpanEnd(
        tuple(_event(row, log) for log in logs.last), logs.total, row.status, outcome, row.latest_percentage,
        description, max(ended_ns, start_ns),
    )  # fmt: skip
    return StoredSpan(ref, start, end, row.worker_id, (row.created_at, row.id))


def _event(row: Any, log: Any) -> ActivityEvent:
    at_ns = nanoseconds(log.created_at)
    return ActivityEvent(log.event_id, row.agent_id, log.status, log.message, log.percentage, at_ns, row.attempt)
