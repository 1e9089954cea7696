"""`stats`: counts, percentiles and a time series, which the database computes in three statements or four."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final, NamedTuple, TypeAlias, Unpack

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Double,
    RowMapping,
    String,
    Subquery,
    and_,
    case,
    cast,
    column,
    desc,
    func,
    literal,
    literal_column,
    select,
    table,
    true,
    union_all,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from agentexec_otel._model.event import ACTIVE, TERMINAL, Status
from agentexec_otel._model.text import describe, is_a
from agentexec_otel.activity._criteria import ACTIVITY, ActivityFilters, criteria_of
from agentexec_otel.activity._sessions import AnySelect, execute, synchronous
from agentexec_otel.activity.models import Activity, UtcDateTime
from agentexec_otel.activity.schemas import (
    ActivityStatsBucketSchema,
    ActivityStatsSchema,
    ActivityTypeStatsSchema,
    PercentilesSchema,
)

_Criteria: TypeAlias = Sequence[ColumnElement[bool]]

_MOST_TYPES: Final = 100
_MOST_BUCKETS: Final = 1_000
_LONGEST_BUCKET: Final = timedelta(days=366)
_POINTS: Final = (50, 90, 95, 99)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_MYSQL: Final = ("mysql", "mariadb")
_ZERO: Final = literal_column("0", BigInteger)
_ONE: Final = literal_column("1", BigInteger)


def stats(
    session: Session, *, bucket: timedelta | None = None, **filters: Unpack[ActivityFilters]
) -> ActivityStatsSchema:
    """Count and measure the activities that meet the filters: statuses, types, durations, tokens, a time series.

    Args:
        bucket: Width of the buckets of ``series``, at most 366 days. They begin at multiples of it since 1970, in UTC.
            None for no series.
        filters: See `ActivityFilters`.

    Raises:
        ValueError: A filter or ``bucket`` is malformed, or there would be more than 1,000 buckets.
    """
    criteria, width = criteria_of(filters), None if bucket is None else _checked_width(bucket)
    dialect = synchronous(session).get_bind(Activity).dialect.name
    counts = execute(session, _select_counts(criteria, with_times=width is not None)).mappings().all()
    buckets = None if width is None else _buckets_of(counts, width)
    measures = execute(session, _select_measures(dialect, criteria)).mappings()
    percentiles = {row["measure"]: _percentiles_of(row, row["measure"]) for row in measures}
    types = execute(session, _select_types(dialect, criteria)).mappings()
    return ActivityStatsSchema(
        total=sum(row["count"] for row in counts),
        by_status={status: sum(row["count"] for row in counts if row["status"] == status) for status in Status},
        by_type=sorted(map(_type_of, types), key=lambda entry: (-entry.total, entry.agent_type)),
        by_reason=_count_reasons(counts),
        series=[] if buckets is None else list(_read_series(session, dialect, criteria, buckets)),
        **percentiles,
    )


# -- expressions --------------------------------------------------------------------------------------------------


class _Microseconds(FunctionElement[int]):
    """Microseconds from one time to a later one, exactly."""

    inherit_cache = True
    type = BigInteger()


@compiles(_Microseconds)
def _compile_microseconds(element: _Microseconds, compiler: SQLCompiler, **kwargs: Any) -> str:
    since, until = (compiler.process(clause, **kwargs) for clause in element.clauses)
    if compiler.dialect.name == "postgresql":
        return f"CAST(EXTRACT(EPOCH FROM {until} - {since}) * 1000000 AS BIGINT)"
    if compiler.dialect.name in _MYSQL:
        return f"TIMESTAMPDIFF(MICROSECOND, {since}, {until})"
    return f"({_sqlite_microseconds(until)} - {_sqlite_microseconds(since)})"


def _sqlite_microseconds(time: str) -> str:
    # SQLite's own functions round to milliseconds.
    seconds = f"CAST(strftime('%s', substr({time}, 1, 19)) AS INTEGER)"
    return f"({seconds} * 1000000 + CAST(substr(substr({time}, 21) || '000000', 1, 6) AS INTEGER))"


def _elapsed(since: ColumnElement[Any], until: ColumnElement[Any]) -> ColumnElement[Any]:
    """At least 0: the two clocks may differ. NULL if one of the times is."""
    return case((until > since, _Microseconds(since, until)), (until <= since, _ZERO))


class _ExactText(FunctionElement[str]):
    """Text to group by and to sort by as bytes. For MySQL and MariaDB, ``'a '`` equals ``'A'``."""

    inherit_cache = True
    type = String()


@compiles(_ExactText)
def _compile_exact(element: _ExactText, compiler: SQLCompiler, **kwargs: Any) -> str:
    text, dialect = compiler.process(element.clauses, **kwargs), compiler.dialect
    if dialect.name == "postgresql":
        return f'{text} COLLATE "C"'
    if dialect.name not in _MYSQL:
        return f"+{text}"  # SQLite reads a whole index in the order of the groups, instead of a range of another one
    collation = "utf8mb4_nopad_bin" if getattr(dialect, "is_mariadb", False) else "utf8mb4_0900_bin"
    return f"CONVERT({text} USING utf8mb4) COLLATE {collation}"


_HAS_ENDED: Final = ACTIVITY.c.status.in_(sorted(TERMINAL))
# A producer of schema 1 ends activities without a moment.
_END: Final = func.coalesce(ACTIVITY.c.ended_at, ACTIVITY.c.updated_at)
_ENDED_AT: Final = case((_HAS_ENDED, _END))
_DURATION: Final = "duration_seconds"
_MEASURES: Final[dict[str, ColumnElement[Any]]] = {
    _DURATION: case((_HAS_ENDED, _elapsed(ACTIVITY.c.started_at, _END))),
    "queued_seconds": case(
        (
            ACTIVITY.c.attempt == 1,
            _elapsed(ACTIVITY.c.created_at, func.coalesce(ACTIVITY.c.started_at, _ENDED_AT)),
        )
    ),
    "input_tokens": ACTIVITY.c.input_tokens,
    "output_tokens": ACTIVITY.c.output_tokens,
}
_AGENT_TYPE: Final = _ExactText(ACTIVITY.c.agent_type).label("agent_type")
_TIMES: Final[dict[str, ColumnElement[Any]]] = {
    "first_start": func.min(ACTIVITY.c.started_at),
    "last_start": func.max(ACTIVITY.c.started_at),
    "first_end": func.min(_ENDED_AT),
    "last_end": func.max(_ENDED_AT),
}


# -- counts -------------------------------------------------------------------------------------------------------


def _select_counts(criteria: _Criteria, *, with_times: bool) -> AnySelect:
    """Number of activities by status and reason, and when they started and ended."""
    keys = (_ExactText(ACTIVITY.c.status).label("status"), _ExactText(ACTIVITY.c.reason).label("reason"))
    times = [time.label(name) for name, time in _TIMES.items()] if with_times else []
    return select(*keys, func.count().label("count"), *times).where(*criteria).group_by(*keys)


def _count_reasons(counts: Sequence[RowMapping]) -> dict[str, int]:
    """Number of activities by reason, the most frequent ones first."""
    found: Counter[str] = Counter()
    for row in counts:
        if row["reason"] is not None:
            found[row["reason"]] += row["count"]
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


# -- percentiles --------------------------------------------------------------------------------------------------

# What the criteria find. The statements on it are built once, which takes three times as long as the rest.
_FOUND: Final = table("found", column("agent_type", String), column("status", String), *map(column, _MEASURES))


def _select_measures(dialect: str, criteria: _Criteria) -> AnySelect:
    """A row for each measure."""
    found = select(*(value.label(name) for name, value in _MEASURES.items())).where(*criteria)
    return _measures_of_found(dialect == "postgresql").add_cte(found.cte(_FOUND.name))


def _select_types(dialect: str, criteria: _Criteria) -> AnySelect:
    """A row for each of the most frequent types, with the percentiles of its durations."""
    found = select(_AGENT_TYPE, ACTIVITY.c.status, _MEASURES[_DURATION].label(_DURATION)).where(*criteria)
    return _types_of_found(dialect == "postgresql").add_cte(found.cte(_FOUND.name))


@cache
def _measures_of_found(has_percentiles: bool) -> AnySelect:
    names = {name: literal_column(f"'{name}'", String).label("measure") for name in _MEASURES}
    measures = (_percentiles_of_found(has_percentiles, name, [label]) for name, label in names.items())
    return select(union_all(*measures).subquery())


@cache
def _types_of_found(has_percentiles: bool) -> AnySelect:
    counts = (
        func.count().label("total"),
        func.count(case((_FOUND.c.status.in_(ACTIVE), 1))).label("active"),
        func.count(case((_FOUND.c.status == Status.ERROR, 1))).label("failed"),
    )
    return _percentiles_of_found(has_percentiles, _DURATION, counts, by=["agent_type"])


def _percentiles_of_found(
    has_percentiles: bool, measure: str, more: Sequence[ColumnElement[Any]], by: Sequence[str] = ()
) -> AnySelect:
    """Count, sum, maximum and percentiles of a column, and `more` columns. By group: of the largest groups.

    Args:
        has_percentiles: The database has an aggregate for them. It takes a third of the time that ranks take.
    """
    value, keys = _FOUND.c[measure], [_FOUND.c[name] for name in by]
    totals = select(
        *keys,
        *more,
        func.count(value).label("count"),
        func.sum(cast(value, Double)).label("sum"),  # SQLite raises an error if a sum of integers overflows
        func.max(value).label("max"),
    )
    if by:
        totals = totals.group_by(*keys).order_by(desc("total"), *keys).limit(_MOST_TYPES)
    if has_percentiles:
        points = {point: func.percentile_disc(point / 100).within_group(value) for point in _POINTS}
        return totals.add_columns(*(at.label(f"p{point}") for point, at in points.items()))
    rank = func.row_number().over(partition_by=keys or None, order_by=value)
    ranks = select(*keys, value.label("value"), rank.label("rank")).where(value.is_not(None))
    return _join_ranks(totals.subquery(), ranks.subquery(), by)


def _join_ranks(totals: Subquery, ranks: Subquery, by: Sequence[str]) -> AnySelect:
    """Totals and percentiles. A percentile is the first value whose rank is high enough."""
    same = and_(true(), *(totals.c[name] == ranks.c[name] for name in by))
    points = {point: case((ranks.c.rank * 100 >= totals.c.count * point, ranks.c.value)) for point in _POINTS}
    return (
        select(
            *(func.max(column).label(column.name) for column in totals.c),
            *(func.min(reached).label(f"p{point}") for point, reached in points.items()),
        )
        .select_from(totals.outerjoin(ranks, same))
        .group_by(*(totals.c[name] for name in by))
    )


def _percentiles_of(row: RowMapping, measure: str) -> PercentilesSchema:
    def amount(name: str) -> float | None:
        value = row[name]
        if value is None:
            return None
        return int(value) / 1_000_000 if measure.endswith("_seconds") else int(value)

    points = {name: amount(name) for name in ("max", *(f"p{point}" for point in _POINTS))}
    return PercentilesSchema(count=row["count"], sum=amount("sum") or 0, **points)


def _type_of(row: RowMapping) -> ActivityTypeStatsSchema:
    counts = {name: row[name] for name in ("total", "active", "failed")}
    duration = _percentiles_of(row, _DURATION)
    return ActivityTypeStatsSchema(agent_type=row["agent_type"], **counts, duration_seconds=duration)


# -- series -------------------------------------------------------------------------------------------------------


class _Buckets(NamedTuple):
    """Buckets that begin at multiples of their width, and the first and the last moment in them."""

    start: datetime
    width: timedelta
    number: int
    first: datetime
    last: datetime


def _checked_width(bucket: timedelta) -> timedelta:
    given: Any = bucket
    if not is_a(given, timedelta):
        raise ValueError(f"bucket is {describe(given)}: pass a timedelta")
    width = timedelta(microseconds=timedelta.__floordiv__(given, _MICROSECOND))
    if not timedelta(0) < width <= _LONGEST_BUCKET:
        raise ValueError(f"bucket is {width}: pass a positive timedelta of at most {_LONGEST_BUCKET.days} days")
    return width


def _buckets_of(counts: Sequence[RowMapping], width: timedelta) -> _Buckets | None:
    """The buckets from the first start or end to the last one. None if nothing has started or ended.

    Raises:
        ValueError: There are too many.
    """
    moments = [row[name] for row in counts for name in _TIMES if row[name] is not None]
    if not moments:
        return None
    first, last = min(moments), max(moments)
    before = (first - _EPOCH) // width
    number = (last - _EPOCH) // width - before + 1
    if number > _MOST_BUCKETS:
        least = -((first - last) // timedelta(seconds=_MOST_BUCKETS - 2))
        raise ValueError(
            f"bucket is {width}: {first:%Y-%m-%d %H:%M:%S} to {last:%Y-%m-%d %H:%M:%S} is {number:,} buckets, more than"
            f" {_MOST_BUCKETS:,}: pass at least {timedelta(seconds=least)}, or filter by time"
        )
    return _Buckets(_EPOCH + before * width, width, number, first, last)


def _read_series(
    session: Session, dialect: str, criteria: _Criteria, buckets: _Buckets
) -> Iterator[ActivityStatsBucketSchema]:
    rows = execute(session, _select_events(dialect, criteria, buckets)).mappings()
    events = {row["number"]: (row["total"], int(row["ended"]), int(row["failed"])) for row in rows}
    for number in range(buckets.number):
        total, ended, failed = events.get(number, (0, 0, 0))
        start = buckets.start + number * buckets.width
        yield ActivityStatsBucketSchema(start=start, started=total - ended, ended=ended, failed=failed)


def _select_events(dialect: str, criteria: _Criteria, buckets: _Buckets) -> AnySelect:
    """Number of starts, ends and failures in each bucket, numbered from 0."""

    def at(time: ColumnElement[Any], ended: ColumnElement[int], failed: ColumnElement[int]) -> AnySelect:
        columns = (time.label("moment"), ended.label("ended"), failed.label("failed"))
        return select(*columns).where(*criteria, time.between(buckets.first, buckets.last))

    starts = at(ACTIVITY.c.started_at, _ZERO, _ZERO)
    ends = at(_ENDED_AT, _ONE, case((ACTIVITY.c.status == Status.ERROR, _ONE), else_=_ZERO))
    events = union_all(starts, ends).subquery()
    since_start = _Microseconds(literal(buckets.start, UtcDateTime), events.c.moment)
    divided_by = since_start.op("DIV" if dialect in _MYSQL else "/", return_type=BigInteger())
    number = divided_by(literal(buckets.width // _MICROSECOND, BigInteger)).label("number")
    # Grouped outside: PostgreSQL takes parameters of the same value for different ones.
    placed = select(number, events.c.ended, events.c.failed).subquery()
    sums = (func.sum(placed.c[name]).label(name) for name in ("ended", "failed"))
    return select(placed.c.number, func.count().label("total"), *sums).group_by(placed.c.number)
