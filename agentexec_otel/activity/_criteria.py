"""The filters that `list`, `cancel_pending` and others share, as SQL criteria. A value of None does not filter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, TypeAlias, TypedDict, cast
from uuid import UUID

from sqlalchemy import Boolean, ColumnElement, ScalarSelect, Table, and_, false, literal, not_, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from agentexec_otel._model.event import Status, parse_status
from agentexec_otel._model.ids import parse_agent_id
from agentexec_otel._model.text import NAME_LIMIT, clean_message, describe, is_a, plain_str, read_foreign
from agentexec_otel.activity._filters import metadata_criteria
from agentexec_otel.activity.models import Activity, ActivityLog

ACTIVITY: Final = cast(Table, Activity.__table__)
LOG: Final = cast(Table, ActivityLog.__table__)
_EARLIER: Final = LOG.alias()

_Criterion: TypeAlias = ColumnElement[bool]


class ActivityFilters(TypedDict, total=False):
    """The filters as keyword arguments. An activity has to meet all of them.

    Attributes:
        agent_id: One activity, or several.
        status: One status, or several.
        agent_type: One task name, or several; so with `reason`, `error_type`, `trace_id` and `worker_id`.
        metadata_filter: Keys and the values that they must equal.
        created_after: Created then or later. A naive datetime means UTC.
        created_before: Created earlier.
        updated_after: With a log then or later.
        updated_before: Without a log since then.
        ended_after: Its current attempt ended then or later.
        ended_before: Its current attempt ended earlier.
        text: Part of the message of the latest log, in any case.
        waiting: Whether it is RUNNING and waits, such as for an approval.
    """

    agent_id: UUID | str | Iterable[UUID | str] | None
    status: Status | str | Iterable[Status | str] | None
    agent_type: str | Iterable[str] | None
    metadata_filter: Mapping[str, Any] | None
    created_after: datetime | None
    created_before: datetime | None
    updated_after: datetime | None
    updated_before: datetime | None
    ended_after: datetime | None
    ended_before: datetime | None
    reason: str | Iterable[str] | None
    error_type: str | Iterable[str] | None
    text: str | None
    trace_id: str | Iterable[str] | None
    waiting: bool | None
    worker_id: str | Iterable[str] | None


def criteria_of(filters: ActivityFilters) -> list[_Criterion]:
    """Return the criteria, with checked and bound values.

    Raises:
        TypeError: There is no filter of this name.
        ValueError: A value is malformed.
    """
    unknown = sorted(filters.keys() - _CRITERIA.keys())
    if unknown:
        raise TypeError(f"there is no filter {unknown[0]!r}: use {', '.join(_CRITERIA)}")
    given = [(name, value) for name, value in filters.items() if value is not None]
    return [criterion for name, value in given for criterion in _CRITERIA[name](name, value)]


def of_latest_log(column: str) -> ScalarSelect[Any]:
    """A column of each activity's latest log. Late logs are left out: they change nothing of the activity."""
    return (
        select(_EARLIER.c[column])
        .where(_EARLIER.c.activity_id == ACTIVITY.c.id, _EARLIER.c.late.is_(False))
        .order_by(_EARLIER.c.seq.desc())
        .limit(1)
        .correlate(ACTIVITY)
        .scalar_subquery()
    )


def without_news_since(older_than: timedelta | datetime) -> datetime:
    """Convert `older_than` to a datetime.

    Raises:
        ValueError: Another type, or a negative timedelta, which would mean everything.
    """
    given: Any = older_than
    if is_a(given, timedelta):
        seconds = timedelta.total_seconds(given)
        if seconds < 0:
            raise ValueError(f"older_than is {seconds:g} seconds: pass a timedelta that is not negative")
        return datetime.now(UTC) - timedelta(seconds=seconds)
    if not is_a(given, datetime):
        raise ValueError(f"older_than is {describe(given)}: pass a timedelta or a datetime")
    return _moment("older_than", given)


# -- one criterion each -------------------------------------------------------------------------------------------


class _OneOf(FunctionElement[bool]):
    """Whether a column, its first clause, has exactly one of the values that follow."""

    inherit_cache = True
    type = Boolean()

    def self_group(self, against: object = None) -> _OneOf:
        """Stay as it is. SQLAlchemy would write ``… = 1``, for which SQLite and MariaDB use no index."""
        return self


@compiles(_OneOf)
def _compile_one_of(element: _OneOf, compiler: SQLCompiler, **kwargs: Any) -> str:
    column, *values = (compiler.process(clause, **kwargs) for clause in element.clauses)
    among = f"{column} IN ({', '.join(values)})"
    if compiler.dialect.name not in ("mysql", "mariadb"):
        return among
    # The collation takes 'A ' for 'a': the first comparison can use an index, the second one is exact.
    exact = ", ".join(f"CAST({value} AS BINARY)" for value in values)
    return f"({among} AND CAST({column} AS BINARY) IN ({exact}))"


def _several(argument: str, value: Any) -> list[Any]:
    """The values of a filter that takes one, or several."""
    if is_a(value, str) or not is_a(value, Iterable):
        return [value]
    return read_foreign(argument, lambda: list(value))


def _has_id(argument: str, value: Any) -> list[_Criterion]:
    return [ACTIVITY.c.agent_id.in_([parse_agent_id(one) for one in _several(argument, value)])]


def _has_status(argument: str, value: Any) -> list[_Criterion]:
    return [_one_of(ACTIVITY.c.status, [parse_status(one) for one in _several(argument, value)])]


def _has_name(argument: str, value: Any) -> list[_Criterion]:
    names = _several(argument, value)
    if not all(is_a(name, str) for name in names):
        raise ValueError(f"{argument} is {describe(value)}: pass one name, or several, as strings")
    return [_one_of(ACTIVITY.c[argument], [clean_message(name, NAME_LIMIT) for name in names])]


def _one_of(column: ColumnElement[Any], values: Sequence[Any]) -> _Criterion:
    # SQLAlchemy's `in_()` rewrites the statement for each execution, which takes longer than reading a page.
    return _OneOf(column, *(literal(value, column.type) for value in values)) if values else false()


def _has_text(argument: str, value: Any) -> list[_Criterion]:
    if not plain_str(value):
        raise ValueError(f"{argument} is {describe(value)}: pass part of a message")
    # A subquery, not a join: a planner that is free to join reads the whole log table.
    return [of_latest_log("message").icontains(clean_message(value), autoescape=True)]


def _waits(argument: str, value: Any) -> list[_Criterion]:
    if value is not True and value is not False:
        raise ValueError(f"{argument} is {describe(value)}: pass True or False, or leave it out for both")
    waits = and_(ACTIVITY.c.status == Status.RUNNING, ACTIVITY.c.waiting.is_not(None))
    return [waits if value else not_(waits)]


def _since(column: str, argument: str, value: Any) -> list[_Criterion]:
    return [ACTIVITY.c[column] >= _moment(argument, value)]


def _until(column: str, argument: str, value: Any) -> list[_Criterion]:
    return [ACTIVITY.c[column] < _moment(argument, value)]


def _moment(argument: str, value: Any) -> datetime:
    """The datetime. A driver would report anything else with an SQL statement."""
    if not is_a(value, datetime):
        raise ValueError(f"{argument} is {describe(value)}: pass a datetime")
    return read_foreign(argument, lambda: datetime.fromisoformat(datetime.isoformat(value)))


_CRITERIA: Final[Mapping[str, Callable[[str, Any], list[_Criterion]]]] = {
    "agent_id": _has_id,
    "status": _has_status,
    "agent_type": _has_name,
    "metadata_filter": lambda _, value: metadata_criteria(value),
    "created_after": partial(_since, "created_at"),
    "created_before": partial(_until, "created_at"),
    "updated_after": partial(_since, "updated_at"),
    "updated_before": partial(_until, "updated_at"),
    "ended_after": partial(_since, "ended_at"),
    "ended_before": partial(_until, "ended_at"),
    "reason": _has_name,
    "error_type": _has_name,
    "text": _has_text,
    "trace_id": _has_name,
    "waiting": _waits,
    "worker_id": _has_name,
}
