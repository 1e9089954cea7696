"""Queries: SELECTs in the caller's session, independent of delivery."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeAlias, cast
from uuid import UUID

from sqlalchemy import ColumnElement, Result, RowMapping, Select, Table, bindparam, func, select
from sqlalchemy.orm import Session

from agentexec_otel._model.event import ACTIVE, Status, parse_status
from agentexec_otel._model.ids import parse_agent_id
from agentexec_otel._model.text import describe, is_a, plain_int, read_foreign
from agentexec_otel.activity._filters import metadata_criteria, moment, named
from agentexec_otel.activity._sessions import synchronous
from agentexec_otel.activity.models import Activity, ActivityLog
from agentexec_otel.activity.schemas import (
    ActivityDetailSchema,
    ActivityListItemSchema,
    ActivityListSchema,
    ActivityLogSchema,
)

# A Select of many columns, whose exact type is not needed.
_Select: TypeAlias = "Select[*tuple[Any, ...]]"

_MOST_PER_PAGE = 1_000
_MOST_ROWS = (1 << 63) - 1  # the largest offset that a database accepts
_LAST_SEQ = (1 << 31) - 1

# Statements on the plain tables, made once. Building one and finding it in SQLAlchemy's cache takes longer than most of
# these queries.
_ACTIVITY: Final = cast(Table, Activity.__table__)
_LOG: Final = cast(Table, ActivityLog.__table__)
_IN_OUR_TABLES: Final = {"mapper": Activity}

_SUMMARY: Final = tuple(
    _ACTIVITY.c[name]
    for name in (
        "agent_id", "agent_type", "created_at", "updated_at", "status", "latest_percentage", "started_at", "ended_at",
        "attempt", "trace_id", "span_id", "worker_id", "error_type", "reason", "metadata",
        "input_tokens", "output_tokens", "requests", "cached_input_tokens", "reasoning_tokens",
    )
)  # fmt: skip
_LOG_COLUMNS: Final = tuple(
    _LOG.c[name] for name in ("id", "message", "status", "percentage", "created_at", "seq", "attempt", "late")
)
_DETAIL: Final = select(_ACTIVITY.c.id, *_SUMMARY).where(_ACTIVITY.c.agent_id == bindparam("of_agent"))
_LOGS: Final = select(*_LOG_COLUMNS).where(_LOG.c.activity_id == bindparam("of_activity")).order_by(_LOG.c.seq)
_TAIL: Final = (
    select(*_LOG_COLUMNS)
    .join(_ACTIVITY, _ACTIVITY.c.id == _LOG.c.activity_id)
    .where(_ACTIVITY.c.agent_id == bindparam("of_agent"), _LOG.c.seq > bindparam("after_seq"))
    .order_by(_LOG.c.seq)
)
_EARLIER: Final = _LOG.alias()
# Late logs are left out: they change nothing of an activity that has ended.
_LATEST_SEQ: Final = (
    select(_EARLIER.c.seq)
    .where(_EARLIER.c.activity_id == _ACTIVITY.c.id, _EARLIER.c.late.is_(False))
    .order_by(_EARLIER.c.seq.desc())
    .limit(1)
    .correlate(_ACTIVITY)
    .scalar_subquery()
)
_COUNT: Final = select(func.count()).select_from(_ACTIVITY)
_COUNT_ACTIVE: Final = _COUNT.where(_ACTIVITY.c.status.in_(ACTIVE))


def detail(
    session: Session, agent_id: UUID | str, metadata_filter: Mapping[str, Any] | None = None
) -> ActivityDetailSchema | None:
    """Return an activity with all its logs, oldest first. None if it does not exist or its metadata does not match.

    Raises:
        ValueError: A malformed ``agent_id`` or filter.
    """
    parsed, criteria = parse_agent_id(agent_id), metadata_criteria(metadata_filter)
    statement = _DETAIL.where(*criteria) if criteria else _DETAIL
    row = _execute(session, statement, of_agent=parsed).mappings().one_or_none()
    if row is None:
        return None
    return ActivityDetailSchema(**_fields(row), logs=_logs(session, _LOGS, of_activity=row["id"]))


def list(
    session: Session,
    page: int = 1,
    page_size: int = 50,
    *,
    status: Status | str | Iterable[Status | str] | None = None,
    agent_type: str | None = None,
    metadata_filter: Mapping[str, Any] | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
    total: int | None = None,
) -> ActivityListSchema:
    """Return one page of activities, newest first, each with its most recent log.

    Args:
        page: 1, 2, …. A page after the last one is empty.
        page_size: 1 to 1,000.
        status: One status, or several.
        created_after: Only activities created then or later. A naive datetime means UTC.
        created_before: Only activities created earlier.
        total: The total of an earlier page. Saves the exact count, which is the most expensive part of a page.

    Raises:
        ValueError: An argument is malformed or out of range.
    """
    whole_page, whole_size = plain_int(page), plain_int(page_size)
    if whole_page is None or whole_page < 1:
        raise ValueError(f"page is {describe(page)}: pages are numbered from 1")
    if whole_size is None or not 1 <= whole_size <= _MOST_PER_PAGE:
        raise ValueError(f"page_size is {describe(page_size)}: ask for 1 to {_MOST_PER_PAGE:,}")
    criteria = metadata_criteria(metadata_filter)
    if status is not None:
        criteria.append(Activity.status.in_(_statuses(status)))
    if agent_type is not None:
        criteria.append(named("agent_type", Activity.agent_type, agent_type))
    if created_after is not None:
        criteria.append(Activity.created_at >= moment("created_after", created_after))
    if created_before is not None:
        criteria.append(Activity.created_at < moment("created_before", created_before))
    cut = {"row_offset": min((whole_page - 1) * whole_size, _MOST_ROWS), "row_count": whole_size}
    rows = _execute(session, _page(criteria) if criteria else _PAGE, **cut).mappings().all()
    if total is None:
        total = int(_execute(session, _COUNT.where(*criteria) if criteria else _COUNT).scalar_one())
    items = [ActivityListItemSchema(**_fields(row)) for row in rows]
    return ActivityListSchema(items=items, total=total, page=whole_page, page_size=whole_size)


def logs(
    session: Session, agent_id: UUID | str, after_seq: int = 0, limit: int | None = None
) -> builtins.list[ActivityLogSchema]:
    """Return the logs of an activity after a cursor, oldest first. Poll it with the last ``seq`` to follow a run.

    Logs become visible in the order of ``seq``, so a reader that continues after the last one misses none.

    Args:
        after_seq: The last ``seq`` seen. 0 for all.
        limit: Maximum number of logs.

    Raises:
        ValueError: A malformed ``agent_id``, a negative limit, or another type than an integer.
    """
    most, cursor = plain_int(limit), plain_int(after_seq)
    if limit is not None and (most is None or most < 0):
        raise ValueError(f"limit is {describe(limit)}: ask for 0 logs or more, or leave it out for all")
    if cursor is None:
        raise ValueError(f"after_seq is {describe(after_seq)}: pass the last seq that you have seen, or 0 for all")
    statement = _TAIL if most is None else _TAIL.limit(min(most, _LAST_SEQ))
    return _logs(session, statement, of_agent=parse_agent_id(agent_id), after_seq=max(0, min(cursor, _LAST_SEQ)))


def count_active(session: Session) -> int:
    """Count the activities that are QUEUED or RUNNING."""
    return int(_execute(session, _COUNT_ACTIVE).scalar_one())


def _page(criteria: Sequence[ColumnElement[bool]]) -> _Select:
    # The page is first read from the index, so that only its own rows and their last logs are fetched.
    newest_first = (_ACTIVITY.c.created_at.desc(), _ACTIVITY.c.id.desc())
    keys = (
        select(_ACTIVITY.c.id)
        .where(*criteria)
        .order_by(*newest_first)
        .offset(bindparam("row_offset"))
        .limit(bindparam("row_count"))
        .subquery()
    )
    return (
        select(*_SUMMARY, _LOG.c.message.label("latest_log"), _LOG.c.created_at.label("latest_log_timestamp"))
        .join(keys, keys.c.id == _ACTIVITY.c.id)
        .outerjoin(_LOG, (_LOG.c.activity_id == _ACTIVITY.c.id) & (_LOG.c.seq == _LATEST_SEQ))
        .order_by(*newest_first)
    )


_PAGE: Final = _page(())


def _execute(session: Session, statement: _Select, **parameters: object) -> Result[*tuple[Any, ...]]:
    return synchronous(session).execute(statement, parameters, bind_arguments=_IN_OUR_TABLES)


def _statuses(status: Status | str | Iterable[Status | str]) -> builtins.list[Status]:
    if is_a(status, str) or not is_a(status, Iterable):
        return [parse_status(status)]
    return [parse_status(value) for value in read_foreign("status", lambda: builtins.list(status))]


def _fields(row: RowMapping) -> dict[str, Any]:
    return {str(name): value for name, value in row.items() if name != "id"}


def _logs(session: Session, statement: _Select, **parameters: object) -> builtins.list[ActivityLogSchema]:
    return [ActivityLogSchema(**log) for log in _execute(session, statement, **parameters).mappings()]
