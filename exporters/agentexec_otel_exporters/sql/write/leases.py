"""Leases and spans of activities. Opens and commits no transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from operator import itemgetter
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Float, bindparam, literal, or_, select, update

from agentexec_otel._config import CONF
from agentexec_otel._model.event import SpanRef, Status
from agentexec_otel._model.fold import context_after_span, context_with_span
from agentexec_otel._model.results import StoredActivity
from agentexec_otel_exporters.sql.write.load import load_activities
from agentexec_otel_exporters.sql.write.statements import ACTIVITY, database_now

_NOW: Final = database_now(literal(0))
_LEASE_END: Final = database_now(bindparam("lease_seconds", type_=Float))
_SPAN: Final[dict[str, Any]] = {name: bindparam(f"new_{name}") for name in ("trace_id", "span_id", "sampled")}
_UNCHANGED: Final[dict[str, Any]] = {"updated_at": ACTIVITY.c.updated_at}
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
