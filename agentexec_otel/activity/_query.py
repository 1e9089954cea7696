"""Queries: SELECTs in the caller's session, independent of delivery."""

from __future__ import annotations

import builtins
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, NamedTuple, TypeAlias, Unpack, get_args, overload
from uuid import UUID

from sqlalchemy import ColumnElement, Row, RowMapping, Uuid, and_, bindparam, case, func, select, type_coerce
from sqlalchemy.orm import Session, selectinload
from sqlalchemy.types import NullType

from agentexec_otel._config import CONF
from agentexec_otel._errors import ActivityNotFoundError
from agentexec_otel._model.event import ACTIVE, QUEUED, RUNNING
from agentexec_otel._model.ids import parse_agent_id
from agentexec_otel._model.text import describe, plain_int, plain_str
from agentexec_otel._model.trace_url import trace_url
from agentexec_otel.activity._criteria import ACTIVITY, LOG, ActivityFilters, criteria_of, of_latest_log
from agentexec_otel.activity._filters import metadata_criteria
from agentexec_otel.activity._sdk import form_of
from agentexec_otel.activity._sessions import AnySelect, execute
from agentexec_otel.activity.models import Activity, UtcDateTime
from agentexec_otel.activity.schemas import (
    ActivityCursorPageSchema,
    ActivityDetailSchema,
    ActivityListItemSchema,
    ActivityListSchema,
    ActivityLogSchema,
)

Order: TypeAlias = Literal["newest", "oldest"]
_Row: TypeAlias = "Row[*tuple[Any, ...]]"

_MOST_PER_PAGE = 1_000
_MOST_ROWS = (1 << 63) - 1  # the largest offset that a database accepts
LAST_SEQ = (1 << 31) - 1
_ORDERS: Final[tuple[Order, ...]] = get_args(Order)
_CURSOR: Final = re.compile(r"[A-Za-z0-9_-]{34}")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

# Statements on the plain tables, made once. Building one and finding it in SQLAlchemy's cache takes longer than most of
# these queries.
# UUIDs as the driver has them: pydantic makes one in half of SQLAlchemy's time, and of a page only one `id` is used.
_RAW_ID: Final = type_coerce(ACTIVITY.c.id, NullType).label("row_id")
_SUMMARY: Final = (
    type_coerce(ACTIVITY.c.agent_id, NullType).label("agent_id"),
    *(
        ACTIVITY.c[name]
        for name in (
            "agent_type", "created_at", "updated_at", "status", "latest_percentage", "started_at", "ended_at",
            "attempt", "trace_id", "span_id", "worker_id", "error_type", "reason", "metadata",
            "input_tokens", "output_tokens", "requests", "cached_input_tokens", "reasoning_tokens", "model",
            "waiting", "sampled",
        )
    ),
    # Of an activity that has ended, it is the lease of the process that exports its span.
    case((ACTIVITY.c.status == RUNNING, ACTIVITY.c.lease_expires_at)).label("lease_expires_at"),
)  # fmt: skip
LOG_COLUMNS: Final = tuple(
    LOG.c[name] for name in ("id", "message", "status", "percentage", "created_at", "seq", "attempt", "late")
)
_DETAIL: Final = select(*_SUMMARY, ACTIVITY.c.id).where(ACTIVITY.c.agent_id == bindparam("of_agent"))
_ALL_LOGS: Final = select(*LOG_COLUMNS).where(LOG.c.activity_id == bindparam("of_activity")).order_by(LOG.c.seq)
_LOGS: Final = _ALL_LOGS.where(LOG.c.late.is_(False))
_TAIL: Final = (
    select(*LOG_COLUMNS)
    .join(ACTIVITY, ACTIVITY.c.id == LOG.c.activity_id)
    .where(ACTIVITY.c.agent_id == bindparam("of_agent"), LOG.c.seq > bindparam("after_seq"))
    .order_by(LOG.c.seq)
)
_ITEM: Final = (
    select(
        *_SUMMARY,
        LOG.c.message.label("latest_log"),
        LOG.c.created_at.label("latest_log_timestamp"),
        _RAW_ID,
    )
    .select_from(ACTIVITY)
    .outerjoin(LOG, (LOG.c.activity_id == ACTIVITY.c.id) & (LOG.c.seq == of_latest_log("seq")))
)
_ITEM_FIELDS: Final = (*(column.name for column in _SUMMARY), "latest_log", "latest_log_timestamp")
_LOG_FIELDS: Final = tuple(column.name for column in LOG_COLUMNS)
_GET: Final = _ITEM.where(ACTIVITY.c.agent_id == bindparam("of_agent"))
_EXISTS: Final = select(ACTIVITY.c.id).where(ACTIVITY.c.agent_id == bindparam("of_agent"))
_COUNT: Final = select(func.count()).select_from(ACTIVITY)
_COUNT_ACTIVE: Final = _COUNT.where(ACTIVITY.c.status.in_(ACTIVE))
_ACTIVE_IDS: Final = select(ACTIVITY.c.agent_id).where(ACTIVITY.c.status.in_(ACTIVE)).order_by(ACTIVITY.c.created_at)
_ROW: Final = (
    select(Activity)
    .where(Activity.agent_id == bindparam("of_agent"))
    .options(selectinload(Activity.logs))
    .execution_options(populate_existing=True)
)
_ACTIVE_FIRST: Final = (
    _ITEM.with_only_columns(
        ACTIVITY.c.agent_id, ACTIVITY.c.agent_type, LOG.c.message.label("latest_log_message"), ACTIVITY.c.status,
        LOG.c.created_at.label("latest_log_timestamp"), ACTIVITY.c.latest_percentage.label("percentage"),
        ACTIVITY.c.started_at, ACTIVITY.c.metadata,
    )
    .order_by(
        case((ACTIVITY.c.status == RUNNING, 0), (ACTIVITY.c.status == QUEUED, 1), else_=2),
        ACTIVITY.c.created_at.desc(), ACTIVITY.c.id.desc(),
    )
    .limit(bindparam("row_count"))
    .offset(bindparam("row_offset"))
)  # fmt: skip


def detail(
    session: Session,
    agent_id: UUID | str,
    metadata_filter: Mapping[str, Any] | None = None,
    *,
    include_late: bool = False,
) -> ActivityDetailSchema | None:
    """Return an activity with its logs, oldest first. None if it does not exist or its metadata does not match.

    Args:
        include_late: Include the logs that were reported after their attempt had ended. They change nothing of the
            activity; without them the last log is the latest one of `list` and `get`.

    Raises:
        ValueError: A malformed ``agent_id`` or filter.
    """
    row = _row(session, _DETAIL, agent_id, metadata_filter)
    if row is None:
        return None
    logs = _logs(session, _ALL_LOGS if include_late else _LOGS, of_activity=row[-1])
    return ActivityDetailSchema(id=row[-1], **_fields(row), logs=logs)


def get(
    session: Session, agent_id: UUID | str, metadata_filter: Mapping[str, Any] | None = None
) -> ActivityListItemSchema | None:
    """Return an activity with its most recent log. None if it does not exist or its metadata does not match.

    Raises:
        ValueError: A malformed ``agent_id`` or filter.
    """
    row = _row(session, _GET, agent_id, metadata_filter)
    return None if row is None else ActivityListItemSchema(**_fields(row))


def _row(
    session: Session, statement: AnySelect, agent_id: UUID | str, metadata_filter: Mapping[str, Any] | None
) -> _Row | None:
    parsed, criteria = parse_agent_id(agent_id), metadata_criteria(metadata_filter)
    found = execute(session, statement.where(*criteria) if criteria else statement, of_agent=parsed)
    return next(iter(found.all()), None)


@overload
def list(
    session: Session,
    page: int = 1,
    page_size: int = 50,
    *,
    order: Order = "newest",
    cursor: None = None,
    total: int | None = None,
    **filters: Unpack[ActivityFilters],
) -> ActivityListSchema: ...


@overload
def list(
    session: Session,
    page: int = 1,
    page_size: int = 50,
    *,
    order: Order = "newest",
    cursor: str,
    total: int | None = None,
    **filters: Unpack[ActivityFilters],
) -> ActivityCursorPageSchema: ...


@overload
def list(
    session: Session,
    page: int = 1,
    page_size: int = 50,
    *,
    order: Order = "newest",
    cursor: str | None,
    total: int | None = None,
    **filters: Unpack[ActivityFilters],
) -> ActivityListSchema | ActivityCursorPageSchema: ...


def list(
    session: Session,
    page: int = 1,
    page_size: int = 50,
    *,
    order: Order = "newest",
    cursor: str | None = None,
    total: int | None = None,
    **filters: Unpack[ActivityFilters],
) -> ActivityListSchema | ActivityCursorPageSchema:
    """Return one page of activities, each with its most recent log.

    Args:
        page: 1, 2, …. A page after the last one is empty.
        page_size: 1 to 1,000.
        order: ``newest`` or ``oldest`` created first.
        cursor: ``next_cursor`` of the page before, instead of a page number. ``""`` starts at the first page. A page
            behind a cursor counts nothing, and activities that are created meanwhile do not move it.
        total: The total of an earlier page. Saves the exact count, which is the most expensive part of a page.
        filters: See `ActivityFilters`.

    Raises:
        ValueError: An argument is malformed or out of range.
    """
    page, page_size = _checked_page(page, page_size, cursor)
    criteria, order = criteria_of(filters), _checked_order(order)
    after = None if cursor is None else _Cursor.parse(cursor, order)
    statement, values = _page_of(criteria, order, after is not None)
    # One row more, if there is another page.
    rows = execute(session, statement, row_count=page_size + 1, **_place(after, page, page_size), **values).all()
    items = [ActivityListItemSchema(**_fields(row)) for row in rows[:page_size]]
    following = _next_cursor(rows, order, page_size)
    if cursor is not None:
        return ActivityCursorPageSchema(items=items, total=total, page_size=page_size, next_cursor=following)
    if total is None:
        total = int(execute(session, _COUNT.where(*criteria) if criteria else _COUNT).scalar_one())
    return ActivityListSchema(items=items, total=total, page=page, page_size=page_size, next_cursor=following)


def logs(
    session: Session,
    agent_id: UUID | str,
    after_seq: int = 0,
    limit: int | None = None,
    metadata_filter: Mapping[str, Any] | None = None,
) -> builtins.list[ActivityLogSchema]:
    """Return the logs of an activity after a cursor, oldest first. Poll it with the last ``seq`` to follow a run.

    Late logs are among them, with ``late=True``.

    Logs become visible in the order of ``seq``, so a reader that continues after the last one misses none.

    Args:
        after_seq: The last ``seq`` seen. 0 for all.
        limit: Maximum number of logs.

    Raises:
        ValueError: A malformed ``agent_id`` or filter, a negative limit, or another type than an integer.
        ActivityNotFoundError: With a filter: there is no such activity, or its metadata does not match.
    """
    most, cursor = plain_int(limit), checked_seq(after_seq)
    if limit is not None and (most is None or most < 0):
        raise ValueError(f"limit is {describe(limit)}: ask for 0 logs or more, or leave it out for all")
    parsed, criteria = parse_agent_id(agent_id), metadata_criteria(metadata_filter)
    statement = _TAIL.where(*criteria) if criteria else _TAIL
    if most is not None:
        statement = statement.limit(min(most, LAST_SEQ))
    found = _logs(session, statement, of_agent=parsed, after_seq=cursor)
    if criteria and not found and execute(session, _EXISTS.where(*criteria), of_agent=parsed).first() is None:
        raise ActivityNotFoundError(parsed)
    return found


def checked_seq(after_seq: object) -> int:
    """The cursor within the range of `seq`. Raises ValueError if it is no integer."""
    cursor = plain_int(after_seq)
    if cursor is None:
        raise ValueError(f"after_seq is {describe(after_seq)}: pass the last seq that you have seen, or 0 for all")
    return max(0, min(cursor, LAST_SEQ))


def count_active(session: Session) -> int:
    """Count the activities that are QUEUED or RUNNING."""
    return int(execute(session, _COUNT_ACTIVE).scalar_one())


# -- as agentexec has them on its model ---------------------------------------------------------------------------


def row_with_logs(
    session: Session, agent_id: UUID | str, metadata_filter: Mapping[str, Any] | None = None
) -> Activity | None:
    """See `Activity.get_by_agent_id`."""
    parsed, criteria = parse_agent_id(agent_id), metadata_criteria(metadata_filter)
    found = execute(session, _ROW.where(*criteria) if criteria else _ROW, of_agent=parsed)
    return found.scalars().one_or_none()


def list_active_first(
    session: Session, page: int, page_size: int, metadata_filter: Mapping[str, Any] | None
) -> builtins.list[RowMapping]:
    """See `Activity.get_list`."""
    page, page_size = _checked_page(page, page_size, None)
    criteria = metadata_criteria(metadata_filter)
    statement = _ACTIVE_FIRST.where(*criteria) if criteria else _ACTIVE_FIRST
    rows = execute(session, statement, row_count=page_size, row_offset=min((page - 1) * page_size, _MOST_ROWS))
    return builtins.list(rows.mappings())


def active_ids(session: Session) -> builtins.list[UUID]:
    """See `Activity.get_pending_ids`."""
    return builtins.list(execute(session, _ACTIVE_IDS).scalars())


# -- pages --------------------------------------------------------------------------------------------------------


class _Cursor(NamedTuple):
    """The last activity of a page, by what pages are ordered by."""

    order: Order
    created_at: datetime
    id: UUID

    def __str__(self) -> str:
        """Text that is safe in URLs."""
        microseconds = (self.created_at - _EPOCH) // timedelta(microseconds=1)
        place = microseconds.to_bytes(8, "big", signed=True)
        return urlsafe_b64encode(bytes([_ORDERS.index(self.order)]) + place + self.id.bytes).decode().rstrip("=")

    @classmethod
    def parse(cls, text: object, order: Order) -> _Cursor | None:
        """Return the cursor. None for an empty text, which is where the first page starts.

        Raises:
            ValueError: It is no cursor, or one of another order.
        """
        plain = plain_str(text)
        if plain == "":
            return None
        try:
            found = cls._decoded(plain)
        except (OverflowError, IndexError, ValueError):
            raise ValueError(f"cursor is {describe(text)}: pass the next_cursor of an earlier page") from None
        if found.order != order:
            raise ValueError(f"cursor is one of order={found.order!r}: pass the same order as for its page")
        return found

    @classmethod
    def _decoded(cls, text: str | None) -> _Cursor:
        if text is None or not _CURSOR.fullmatch(text):
            raise ValueError
        order, *rest = urlsafe_b64decode(f"{text}==")
        created_at = _EPOCH + timedelta(microseconds=int.from_bytes(rest[:8], "big", signed=True))
        return cls(_ORDERS[order], created_at, UUID(bytes=bytes(rest[8:])))


def _checked_order(order: object) -> Order:
    """Return the order. Raises `ValueError` for anything else."""
    for known in _ORDERS:
        if plain_str(order) == known:
            return known
    raise ValueError(f"order is {describe(order)}: use {' or '.join(_ORDERS)}")


def _checked_page(page: object, page_size: object, cursor: str | None) -> tuple[int, int]:
    whole_page, whole_size = plain_int(page), plain_int(page_size)
    if whole_page is None or whole_page < 1:
        raise ValueError(f"page is {describe(page)}: pages are numbered from 1")
    if whole_size is None or not 1 <= whole_size <= _MOST_PER_PAGE:
        raise ValueError(f"page_size is {describe(page_size)}: ask for 1 to {_MOST_PER_PAGE:,}")
    if cursor is not None and whole_page != 1:
        raise ValueError(f"page is {describe(page)}, and there is a cursor: pass one of them")
    return whole_page, whole_size


def _place(after: _Cursor | None, page: int, page_size: int) -> dict[str, Any]:
    """Where a page begins."""
    if after is None:
        return {"row_offset": min((page - 1) * page_size, _MOST_ROWS)}
    return {"after_time": after.created_at, "after_id": after.id}


def _next_cursor(rows: Sequence[_Row], order: Order, page_size: int) -> str | None:
    if len(rows) <= page_size:
        return None
    last = rows[page_size - 1]
    return str(_Cursor(order, last.created_at, UUID(str(last.row_id))))


def _page_of(
    criteria: Sequence[ColumnElement[bool]], order: Order, after_cursor: bool
) -> tuple[AnySelect, Mapping[str, Any]]:
    """The statement of a page, and the values of the criteria.

    A statement is built once for all criteria that differ in values only, as SQLAlchemy compiles it once. Otherwise a
    filtered page of 10,000 activities takes 1.5 times as long on SQLite (benchmarks/queries.py).
    """
    if not criteria:
        return _PAGES[order, after_cursor], {}
    form = form_of(and_(*criteria))
    if form is None:
        return _page(criteria, order, after_cursor), {}
    shape, parameters = form
    key = order, after_cursor, shape
    if (found := _BUILT.get(key)) is None:
        if len(_BUILT) >= _MOST_BUILT:
            _BUILT.clear()
        found = _BUILT[key] = _page(criteria, order, after_cursor), [one.key for one in parameters]
    statement, names = found
    return statement, {name: one.value for name, one in zip(names, parameters, strict=True)}


def _page(criteria: Sequence[ColumnElement[bool]], order: Order, after_cursor: bool) -> AnySelect:
    # The page is first read from the index, so that only its own rows and their last logs are fetched.
    page = _KEYS[order, after_cursor].where(*criteria).subquery()
    return _ITEM.join(page, page.c.id == ACTIVITY.c.id).order_by(*_ORDERED[order])


def _keys(order: Order, after_cursor: bool) -> AnySelect:
    keys = select(ACTIVITY.c.id).order_by(*_ORDERED[order]).limit(bindparam("row_count"))
    return keys.where(*_behind(order)) if after_cursor else keys.offset(bindparam("row_offset"))


def _behind(order: Order) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """What comes after the cursor. The first criterion alone is a range of the index, also for MariaDB."""
    time, row_id = bindparam("after_time", type_=UtcDateTime), bindparam("after_id", type_=Uuid)
    if order == "oldest":
        return ACTIVITY.c.created_at >= time, (ACTIVITY.c.created_at > time) | (ACTIVITY.c.id > row_id)
    return ACTIVITY.c.created_at <= time, (ACTIVITY.c.created_at < time) | (ACTIVITY.c.id < row_id)


_ORDERED: Final[dict[Order, tuple[ColumnElement[Any], ...]]] = {
    "newest": (ACTIVITY.c.created_at.desc(), ACTIVITY.c.id.desc()),
    "oldest": (ACTIVITY.c.created_at, ACTIVITY.c.id),
}
_KEYS: Final = {(order, after): _keys(order, after) for order in _ORDERS for after in (False, True)}
_BUILT: Final[dict[Any, tuple[AnySelect, builtins.list[str]]]] = {}
_MOST_BUILT: Final = 100
_PAGES: Final = {(order, after): _page((), order, after) for order in _ORDERS for after in (False, True)}


def _fields(row: _Row) -> dict[str, Any]:
    """The fields of an item or a detail. What follows them in the row is left out."""
    fields = dict(zip(_ITEM_FIELDS, row, strict=False))
    if CONF.trace_url_template is not None:
        fields["trace_url"] = _trace_url(CONF.trace_url_template, row)
    return fields


def _trace_url(template: str, row: _Row) -> str | None:
    """The link to the activity's span. None if it has none, or one that is not exported."""
    if row.trace_id is None or row.span_id is None or row.sampled is False:
        return None
    return trace_url(template, row.trace_id, row.span_id, row.created_at, row.ended_at or row.updated_at)


def _logs(session: Session, statement: AnySelect, **parameters: object) -> builtins.list[ActivityLogSchema]:
    rows = execute(session, statement, **parameters).all()
    return [ActivityLogSchema(**dict(zip(_LOG_FIELDS, row, strict=True))) for row in rows]
