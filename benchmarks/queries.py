"""The query functions against the best SQL written by hand for the same answer, in the same session."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, TextClause, event, text
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity import ActivityFilters
from agentexec_otel.activity._metadata_indexes import metadata_indexes
from benchmarks._activities import History
from benchmarks._context import Context, Scale
from benchmarks._databases import ACTIVITY, LOG, Database
from benchmarks._measure import Listing, Row, Section, Table, Target, best_of, interleaved, seconds
from benchmarks._stats_by_hand import stats_by_hand

_SIZES: Final = {
    Scale.SMOKE: (300,),
    Scale.QUICK: (10_000,),
    Scale.FULL: (10_000, 100_000),
    Scale.MILLION: (10_000, 100_000, 1_000_000),
}
_LOGS: Final = 10
_PAGE_SIZE: Final = 20
_MOST: Final = 3.0
_MOST_GROWTH: Final = 1.5
_JUDGED_FROM: Final = 10_000
_TRIES: Final = {Scale.SMOKE: 1, Scale.QUICK: 10, Scale.FULL: 20}
_LONGEST: Final = 1.0
"""Seconds that the tries of one round may take, unless one try takes longer."""
_INDEXED: Final = ("tenant", "user")

_SUMMARY: Final = (
    "a.agent_id, a.agent_type, a.created_at, a.updated_at, a.status, a.latest_percentage, a.started_at, a.ended_at,"
    " a.attempt, a.trace_id, a.span_id, a.worker_id, a.error_type, a.reason, a.metadata, a.input_tokens,"
    " a.output_tokens, a.requests, a.cached_input_tokens, a.reasoning_tokens, a.model, a.waiting"
)
_ITEM: Final = f"{_SUMMARY}, l.message AS latest_log, l.created_at AS latest_log_timestamp"
_LINE: Final = "l.id, l.message, l.status, l.percentage, l.created_at, l.seq, l.attempt, l.late"
# The page is cut first, in the index alone, so that a late page does not read what it skips.
_LIST: Final = f"""
SELECT {_ITEM}
FROM (SELECT a.id FROM {ACTIVITY} a {{where}} ORDER BY a.created_at DESC, a.id DESC LIMIT {_PAGE_SIZE}) AS k
JOIN {ACTIVITY} a ON a.id = k.id
LEFT JOIN {LOG} l ON l.activity_id = a.id AND l.seq = a.last_seq
ORDER BY a.created_at DESC, a.id DESC
"""
_PAGE: Final = _LIST.format(where="").replace(f"LIMIT {_PAGE_SIZE}", f"LIMIT {_PAGE_SIZE} OFFSET :skipped")
_GET: Final = f"""
SELECT {_ITEM}
FROM {ACTIVITY} a LEFT JOIN {LOG} l ON l.activity_id = a.id AND l.seq = a.last_seq
WHERE a.agent_id = :agent_id
"""
_PLACE: Final = f"SELECT created_at, id FROM {ACTIVITY} ORDER BY created_at DESC, id DESC LIMIT 1 OFFSET :skipped"
_COUNT: Final = f"SELECT count(*) FROM {ACTIVITY}"
_COUNT_ACTIVE: Final = f"SELECT count(*) FROM {ACTIVITY} WHERE status IN ('QUEUED', 'RUNNING')"
_DETAIL: Final = f"SELECT a.id AS row_id, {_SUMMARY} FROM {ACTIVITY} a WHERE a.agent_id = :agent_id"
_LINES: Final = f"SELECT {_LINE} FROM {LOG} l WHERE l.activity_id = :row_id AND NOT l.late ORDER BY l.seq"
_AFTER: Final = f"""
SELECT {_LINE} FROM {LOG} l JOIN {ACTIVITY} a ON a.id = l.activity_id
WHERE a.agent_id = :agent_id AND l.seq > 7 ORDER BY l.seq
"""
_BEHIND: Final = "(a.created_at, a.id) < (:created_at, :id)"
_LATEST: Final = (
    f"SELECT lower(l.message) FROM {LOG} l WHERE l.activity_id = a.id AND NOT l.late ORDER BY l.seq DESC LIMIT 1"
)
_EARLY: Final = datetime(2026, 1, 1, 0, 2, tzinfo=UTC)
# What each is asked for, and the same by hand. The index of a metadata key has an expression of ours.
_FILTERS: Final[tuple[tuple[str, ActivityFilters, str], ...]] = (
    ("status", {"status": "ERROR"}, "a.status = 'ERROR'"),
    ("type", {"agent_type": "task-3"}, "a.agent_type = 'task-3'"),
    ("tenant", {"metadata_filter": {"tenant": "tenant-7"}}, "{tenant} = 'stenant-7'"),
    ("user, a number", {"metadata_filter": {"user": 77}}, "{user} = 'n77'"),
    (
        "tenant and status",
        {"metadata_filter": {"tenant": "tenant-7"}, "status": "ERROR"},
        "{tenant} = 'stenant-7' AND a.status = 'ERROR'",
    ),
    ("reason", {"reason": "timeout"}, "a.reason = 'timeout'"),
    ("error_type", {"error_type": "TimeoutError"}, "a.error_type = 'TimeoutError'"),
    ("worker_id", {"worker_id": "host:7:1"}, "a.worker_id = 'host:7:1'"),
    ("trace_id", {"trace_id": f"{7:032x}"}, f"a.trace_id = '{7:032x}'"),
    (
        "text",
        {"text": "COMPETITORS"},
        f"({_LATEST}) LIKE '%competitors%'",
    ),
    ("created_before", {"created_before": _EARLY}, "a.created_at < '2026-01-01 00:02{utc}'"),
    ("updated_before", {"updated_before": _EARLY}, "a.updated_at < '2026-01-01 00:02{utc}'"),
    ("ended_before", {"ended_before": _EARLY}, "a.ended_at < '2026-01-01 00:02{utc}'"),
)  # fmt: skip
_FLAT: Final = (
    "cursor in the middle",
    "first by status",
    "first by type",
    "first by tenant",
    "first by user, a number",
    "middle by tenant",
    "middle by type",
    "get",
    "feed, middle",
)
"""What takes no longer with more activities."""


class PlanError(AssertionError):
    """A query reads the log table from end to end."""


@dataclass(frozen=True, slots=True)
class _Query:
    name: str
    ours: Callable[[Session], object]
    by_hand: Callable[[Session], object]


class _ByHand:
    """Statements by hand: their rows as dictionaries, with times, UUIDs and JSON as Python has them."""

    def __init__(self, kind: str) -> None:
        self._parse: Mapping[str, Callable[[Any], object]] = _OF_SQLITE if kind == "sqlite" else {}

    def rows(self, session: Session, statement: TextClause, **values: object) -> list[dict[str, Any]]:
        result = session.execute(statement, values)
        names = list(result.keys())
        parse = [(name, self._parse[name]) for name in names if name in self._parse]
        rows = [dict(zip(names, row, strict=True)) for row in result.all()]
        for row in rows:
            for name, convert in parse:
                if row[name] is not None:
                    row[name] = convert(row[name])
        return rows


def _moment(value: str) -> datetime:
    return datetime.fromisoformat(value).replace(tzinfo=UTC)


_OF_SQLITE: Final[dict[str, Callable[[Any], object]]] = {
    **dict.fromkeys(("created_at", "updated_at", "started_at", "ended_at", "latest_log_timestamp"), _moment),
    "agent_id": UUID,
    "metadata": json.loads,
}


def run(context: Context) -> Section:
    """Measure every size on every database.

    Raises:
        PlanError: a query plan scans the log table.
    """
    before = ax.CONF.indexed_metadata
    ax.CONF.indexed_metadata = _INDEXED
    try:
        blocks = [block for database in context.databases for block in _sizes(context, database)]
    finally:
        ax.CONF.indexed_metadata = before
    return Section("queries", "Queries", blocks)


def _sizes(context: Context, database: Database) -> Iterator[Table | Listing]:
    found: list[dict[str, list[float]]] = []
    sizes = context.pick(_SIZES)
    for size in sizes:
        load = context.track(f"loading {size:,} activities, {database.kind}", 2)
        load("")
        history = History(size, _LOGS)
        database.reset()
        history.load(database)
        load("")
        rows, plans = _measured(context, database, history)
        found.append({row.label: list(row.values) for row in rows})
        title = f"{database.title}, {size:,} activities x {_LOGS} logs"
        yield Table(title, "SQL by hand in the same session, its values parsed", rows, [_NOTE])
        if size == sizes[-1]:
            yield Listing(f"Query plans, {title}", plans)
    if len(sizes) > 1:
        yield _growth(f"{database.title}, {sizes[-1]:,} activities beside {sizes[0]:,}", found[0], found[-1])


_NOTE: Final = (
    "`list page` counts exactly (`total`), and so does the SQL beside it. The others are pages behind a cursor."
)


def _growth(title: str, small: dict[str, list[float]], large: dict[str, list[float]]) -> Table:
    rows = [Row(name, "ms", large[name], small[name], Target(_MOST_GROWTH)) for name in _FLAT]
    return Table(title, "the same with fewer activities", rows)


def _measured(context: Context, database: Database, history: History) -> tuple[list[Row], str]:
    engine = database.engine()
    try:
        with Session(engine) as session:
            queries = list(_queries(database, session, history))
            judged = history.activities >= _JUDGED_FROM
            rows = [row for query in queries for row in _rows(context, database, query, session, judged=judged)]
            return rows, "\n\n".join(_plan(database, session, query) for query in queries)
    finally:
        engine.dispose()


def _rows(context: Context, database: Database, query: _Query, session: Session, *, judged: bool) -> Iterator[Row]:

    def whole(work: Callable[[Session], object]) -> None:
        work(session)
        session.rollback()

    works = {"by hand": partial(whole, query.by_hand), "ours": partial(whole, query.ours)}
    slowest = max(seconds(work) for work in works.values())  # both prepare and plan their statements once
    tries = max(1, min(context.pick(_TRIES), int(_LONGEST / slowest)))
    cases = {name: partial(_milliseconds, work, tries) for name, work in works.items()}
    found = interleaved(cases, context.runs, context.track(f"{query.name}, {database.kind}", context.runs * 2))
    yield Row(f"{query.name}: SQL by hand", "ms", found["by hand"])
    yield Row(query.name, "ms", found["ours"], found["by hand"], Target(_MOST) if judged else None)


def _milliseconds(work: Callable[[], object], tries: int) -> float:
    return best_of(work, tries) * 1e3


def _queries(database: Database, session: Session, history: History) -> Iterator[_Query]:
    hand = _ByHand(database.kind)
    agent_id = history.agent_id(history.activities // 2)
    raw_id = database.value(agent_id)
    page_sql, count, active, get, detail, lines, after = map(
        text, (_PAGE, _COUNT, _COUNT_ACTIVE, _GET, _DETAIL, _LINES, _AFTER)
    )

    def page_by_hand(number: int, session: Session) -> object:
        rows = hand.rows(session, page_sql, skipped=(number - 1) * _PAGE_SIZE)
        return rows, session.execute(count).scalar_one()

    def detail_by_hand(session: Session) -> object:
        (row,) = hand.rows(session, detail, agent_id=raw_id)
        return row, hand.rows(session, lines, row_id=row["row_id"])

    def page(number: int, session: Session) -> object:
        return ax.activity.list(session, page=number, page_size=_PAGE_SIZE)

    for number in (1, min(100, history.activities // _PAGE_SIZE)):
        yield _Query(f"list page {number}", partial(page, number), partial(page_by_hand, number))
    yield from _cursor_queries(database, session, history)
    yield _Query("get", lambda s: ax.activity.get(s, agent_id), lambda s: hand.rows(s, get, agent_id=raw_id))
    yield _Query("count_active", ax.activity.count_active, lambda s: s.execute(active).scalar_one())
    yield _Query("detail", lambda s: ax.activity.detail(s, agent_id), detail_by_hand)
    yield _Query(
        "logs after the 7th",
        lambda s: ax.activity.logs(s, agent_id, after_seq=7),
        lambda s: hand.rows(s, after, agent_id=raw_id),
    )
    yield from _stats_queries(database, history)
    yield from _feed_queries(session, history)


def _cursor_queries(database: Database, session: Session, history: History) -> Iterator[_Query]:
    """Pages behind a cursor, by filter as well. Nothing is counted."""
    hand, depth = _ByHand(database.kind), history.activities // 2
    cursor = ax.activity.list(session, depth, 1, total=0).next_cursor or ""
    ((created_at, row_id),) = session.execute(text(_PLACE), {"skipped": depth - 1}).all()
    place = {"created_at": created_at, "id": row_id}
    names = _expressions(database)

    def page(session: Session, cursor: str, filters: ActivityFilters) -> object:
        return ax.activity.list(session, page_size=_PAGE_SIZE, cursor=cursor, **filters)

    def query(name: str, filters: ActivityFilters, where: str, **values: object) -> _Query:
        statement = text(_LIST.format(where=f"WHERE {where}"))
        ours = partial(page, cursor=cursor if values else "", filters=filters)
        return _Query(name, ours, lambda s: hand.rows(s, statement, **values))

    yield query("cursor in the middle", {}, _BEHIND, **place)
    for name, filters, where in _FILTERS:
        yield query(f"first by {name}", filters, where.format(**names))
        if name in ("type", "tenant"):
            yield query(f"middle by {name}", filters, f"{where.format(**names)} AND {_BEHIND}", **place)


def _expressions(database: Database) -> dict[str, str]:
    dialect = "sqlite" if database.kind == "sqlite" else "postgresql"
    texts = {index.key: f"({index.text(dialect, 'a.metadata')})" for index in metadata_indexes()}
    return texts | {"utc": "" if dialect == "sqlite" else "+00"}


# -- plans --------------------------------------------------------------------------------------------------------


def _plan(database: Database, session: Session, query: _Query) -> str:
    """The plans of the statements that a query function sends.

    Raises:
        PlanError: one of them scans the log table.
    """
    statements: list[tuple[str, Any]] = []

    def note(connection: Connection, cursor: object, statement: str, parameters: Any, *_: object) -> None:
        statements.append((statement, parameters))

    engine = session.get_bind()
    event.listen(engine, "before_cursor_execute", note)
    query.ours(session)
    event.remove(engine, "before_cursor_execute", note)
    explain = "EXPLAIN QUERY PLAN" if database.kind == "sqlite" else "EXPLAIN (COSTS OFF)"
    plans: list[str] = []
    for statement, parameters in statements:
        rows = session.connection().exec_driver_sql(f"{explain} {statement}", parameters).all()
        plans.append("\n".join(f"  {row[-1]}" for row in rows))
    session.rollback()
    found = f"{query.name}\n" + "\n  --\n".join(plans)
    if scans_the_log(found):
        raise PlanError(f"the log table is scanned:\n{found}")
    return found


def scans_the_log(plan: str) -> bool:
    """Whether a plan reads the log table from end to end, in PostgreSQL's words or in SQLite's."""
    return re.search(rf"Seq Scan on {LOG}\b|\bSCAN {LOG}\b|\bSCAN TABLE {LOG}\b|\bSCAN l\b", plan) is not None


# -- stats --------------------------------------------------------------------------------------------------------


def _stats_queries(database: Database, history: History) -> Iterator[_Query]:
    """All activities, and those of the last hour."""

    def by_hand(where: str) -> Callable[[Any], object]:
        statements = [text(statement) for statement in stats_by_hand(database.kind, where)]
        return lambda session: [session.execute(statement).all() for statement in statements]

    hour = history.created_at(max(0, history.activities - 3_600))
    literal = hour.isoformat(" ") if database.kind == "postgres" else hour.strftime("%Y-%m-%d %H:%M:%S.%f")
    yield _Query("stats", ax.activity.stats, by_hand(""))
    recent = partial(ax.activity.stats, created_after=hour)
    yield _Query("stats, last hour", recent, by_hand(f"WHERE created_at >= '{literal}'"))


# -- feed ---------------------------------------------------------------------------------------------------------

_FEED: Final = f"""
SELECT {_LINE}, a.agent_id, a.agent_type FROM {LOG} l JOIN {ACTIVITY} a ON a.id = l.activity_id
WHERE l.id > :after ORDER BY l.id LIMIT 100
"""


def _feed_queries(session: Session, history: History) -> Iterator[_Query]:
    """A hundred logs at the beginning and in the middle, and a page without news. By hand logs may be missed."""
    hand = _ByHand(session.get_bind().dialect.name)
    middle = history.activities * history.logs // 2
    newest = ax.activity.feed(session, "now").next_cursor
    last = session.execute(text(f"SELECT max(id) FROM {LOG}")).scalar_one()
    for name, cursor, after in (("first", "", 0), ("middle", f"{middle:x}", middle), ("no news", newest, last)):
        yield _Query(
            f"feed, {name}",
            partial(ax.activity.feed, after=cursor, limit=100),
            partial(hand.rows, statement=text(_FEED), after=after),
        )
