"""The query functions against the best SQL written by hand for the same answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Unpack

from sqlalchemy import Connection, event
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity import ActivityFilters
from benchmarks._activities import History
from benchmarks._context import Context, Scale
from benchmarks._databases import ACTIVITY, LOG, Database
from benchmarks._measure import Listing, Row, Section, Table, Target, best_of, interleaved
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
_PROMISED: Final = ("list", "count_active", "stats")
_PROMISED_FROM: Final = 100_000
_TRIES: Final = {Scale.SMOKE: 1, Scale.QUICK: 5, Scale.FULL: 10}

_SUMMARY: Final = (
    "a.agent_id, a.agent_type, a.created_at, a.updated_at, a.status, a.latest_percentage, a.started_at, a.attempt,"
    " a.trace_id, a.span_id, a.error_type, a.reason, a.metadata"
)
_LINE: Final = "l.id, l.message, l.status, l.percentage, l.created_at, l.seq, l.attempt, l.late"
# The page is cut first, in the index alone, so that a late page does not read what it skips.
_LIST: Final = f"""
SELECT {_SUMMARY}, l.message, l.created_at
FROM (SELECT id FROM {ACTIVITY} {{where}} ORDER BY created_at DESC, id DESC LIMIT ?) AS k
JOIN {ACTIVITY} a ON a.id = k.id
LEFT JOIN {LOG} l ON l.activity_id = a.id AND l.seq = a.last_seq
ORDER BY a.created_at DESC, a.id DESC
"""
_PAGE: Final = _LIST.format(where="").replace("LIMIT ?", "LIMIT ? OFFSET ?")
_BEHIND: Final = _LIST.format(where="WHERE (created_at, id) < (?, ?)")
_OF_STATUS: Final = _LIST.format(where="WHERE status = ?")
_OF_TYPE: Final = _LIST.format(where="WHERE agent_type = ?")
_GET: Final = f"""
SELECT {_SUMMARY}, l.message, l.created_at
FROM {ACTIVITY} a LEFT JOIN {LOG} l ON l.activity_id = a.id AND l.seq = a.last_seq
WHERE a.agent_id = ?
"""
_TYPE: Final = "task-3"
_PLACE: Final = f"SELECT created_at, id FROM {ACTIVITY} ORDER BY created_at DESC, id DESC LIMIT 1 OFFSET ?"
_COUNT: Final = f"SELECT count(*) FROM {ACTIVITY}"
_COUNT_ACTIVE: Final = f"SELECT count(*) FROM {ACTIVITY} WHERE status IN ('QUEUED', 'RUNNING')"
_DETAIL: Final = f"SELECT a.id, {_SUMMARY}, a.input_tokens, a.output_tokens FROM {ACTIVITY} a WHERE a.agent_id = ?"
_LINES: Final = f"SELECT {_LINE} FROM {LOG} l WHERE l.activity_id = ? ORDER BY l.seq"
_AFTER: Final = f"""
SELECT {_LINE} FROM {LOG} l JOIN {ACTIVITY} a ON a.id = l.activity_id
WHERE a.agent_id = ? AND l.seq > ? ORDER BY l.seq
"""


class PlanError(AssertionError):
    """A query reads the log table from end to end."""


@dataclass(frozen=True, slots=True)
class _Query:
    name: str
    ours: Callable[[Session], object]
    by_hand: Callable[[Any], object]


def run(context: Context) -> Section:
    """Measure every size on every database.

    Raises:
        PlanError: a query plan scans the log table.
    """
    blocks: list[Table | Listing] = []
    for database in context.databases:
        for size in context.pick(_SIZES):
            load = context.track(f"loading {size:,} activities, {database.kind}", 2)
            load("")
            history = History(size, _LOGS)
            database.reset()
            history.load(database)
            load("")
            blocks.extend(_measured(context, database, history, plans=size == context.pick(_SIZES)[-1]))
    return Section("queries", "Queries", blocks)


def _measured(context: Context, database: Database, history: History, *, plans: bool) -> Iterator[Table | Listing]:
    queries = list(_queries(database, history))
    engine = database.engine()
    try:
        with Session(engine) as session, closing(database.connect()) as raw:
            rows = [
                row
                for query in queries
                for row in _rows(
                    context,
                    database,
                    query,
                    session,
                    raw,
                    promised=history.activities >= _PROMISED_FROM and query.name.startswith(_PROMISED),
                )
            ]
            title = f"{database.title}, {history.activities:,} activities x {history.logs} logs"
            note = (
                "`list` counts exactly (`total`), and so does the SQL beside it. Schemas are compared with bare tuples."
            )
            yield Table(title, "hand-written SQL by the raw driver", rows, [note])
            if plans:
                yield Listing(
                    f"Query plans, {title}", "\n\n".join(_plan(database, session, query) for query in queries)
                )
    finally:
        engine.dispose()


def _rows(
    context: Context, database: Database, query: _Query, session: Session, raw: Any, *, promised: bool
) -> Iterator[Row]:
    tries = context.pick(_TRIES)

    def ours() -> float:
        return best_of(lambda: _whole(query, session), tries) * 1e3

    def by_hand() -> float:
        return best_of(lambda: _whole_by_hand(query, raw), tries) * 1e3

    for warm in (ours, by_hand):  # both prepare and plan their statements once
        warm()
    steps = context.track(f"{query.name}, {database.kind}", context.runs * 2)
    found = interleaved({"by hand": by_hand, "ours": ours}, context.runs, steps)
    yield Row(f"{query.name}: SQL by hand", "ms", found["by hand"])
    yield Row(query.name, "ms", found["ours"], found["by hand"], Target(_MOST) if promised else None)


def _whole(query: _Query, session: Session) -> None:
    query.ours(session)
    session.rollback()


def _whole_by_hand(query: _Query, raw: Any) -> None:
    query.by_hand(raw)
    raw.rollback()


def _queries(database: Database, history: History) -> Iterator[_Query]:
    agent_id = history.agent_id(history.activities // 2)
    raw_id = database.value(agent_id)
    sql = database.sql

    def rows(raw: Any, statement: str, *values: object) -> Any:
        return raw.execute(statement, values).fetchall()

    def page_by_hand(number: int, raw: Any) -> object:
        found = rows(raw, sql(_PAGE), _PAGE_SIZE, (number - 1) * _PAGE_SIZE)
        return found, rows(raw, _COUNT)

    def detail_by_hand(raw: Any) -> object:
        ((row_id, *summary),) = rows(raw, sql(_DETAIL), raw_id)
        return summary, rows(raw, sql(_LINES), row_id)

    def page(number: int, session: Session) -> object:
        return ax.activity.list(session, page=number, page_size=_PAGE_SIZE)

    for number in (1, min(100, history.activities // _PAGE_SIZE)):
        yield _Query(f"list page {number}", partial(page, number), partial(page_by_hand, number))
    yield from _cursor_queries(database, history)
    yield _Query("get", lambda session: ax.activity.get(session, agent_id), lambda raw: rows(raw, sql(_GET), raw_id))
    yield _Query("count_active", ax.activity.count_active, lambda raw: rows(raw, _COUNT_ACTIVE))
    yield _Query("detail", lambda session: ax.activity.detail(session, agent_id), detail_by_hand)
    yield _Query(
        "logs after the 7th",
        lambda session: ax.activity.logs(session, agent_id, after_seq=7),
        lambda raw: rows(raw, sql(_AFTER), raw_id, 7),
    )
    yield from _stats_queries(database, history)


def _cursor_queries(database: Database, history: History) -> Iterator[_Query]:
    """Pages behind a cursor, by filter as well. Nothing is counted."""
    depth = history.activities // 2
    cursor = _cursor_at(database, depth)
    with closing(database.connect()) as raw:
        (place,) = raw.execute(database.sql(_PLACE), (depth - 1,)).fetchall()

    def page(session: Session, cursor: str = "", **filters: Unpack[ActivityFilters]) -> object:
        return ax.activity.list(session, page_size=_PAGE_SIZE, cursor=cursor, **filters)

    def by_hand(statement: str, *values: object) -> Callable[[Any], object]:
        return lambda raw: raw.execute(database.sql(statement), (*values, _PAGE_SIZE)).fetchall()

    yield _Query("cursor in the middle", partial(page, cursor=cursor), by_hand(_BEHIND, *place))
    yield _Query("cursor, one status", partial(page, status="ERROR"), by_hand(_OF_STATUS, "ERROR"))
    yield _Query("cursor, one type", partial(page, agent_type=_TYPE), by_hand(_OF_TYPE, _TYPE))


def _cursor_at(database: Database, depth: int) -> str:
    engine = database.engine()
    with Session(engine) as session:
        cursor = ax.activity.list(session, depth, 1, total=0).next_cursor
    engine.dispose()
    if cursor is None:
        raise ValueError(f"there is nothing behind the first {depth:,} activities")
    return cursor


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
        found = session.connection().exec_driver_sql(f"{explain} {statement}", parameters).all()
        plans.append("\n".join(f"  {row[-1]}" for row in found))
    session.rollback()
    text = f"{query.name}\n" + "\n  --\n".join(plans)
    if scans_the_log(text):
        raise PlanError(f"the log table is scanned:\n{text}")
    return text


def scans_the_log(plan: str) -> bool:
    """Whether a plan reads the log table from end to end, in PostgreSQL's words or in SQLite's."""
    return re.search(rf"Seq Scan on {LOG}\b|\bSCAN {LOG}\b|\bSCAN TABLE {LOG}\b|\bSCAN l\b", plan) is not None


# -- stats --------------------------------------------------------------------------------------------------------


def _stats_queries(database: Database, history: History) -> Iterator[_Query]:
    """All activities, and those of the last hour."""

    def by_hand(where: str) -> Callable[[Any], object]:
        statements = stats_by_hand(database.kind, where)
        return lambda raw: [raw.execute(statement).fetchall() for statement in statements]

    hour = history.created_at(max(0, history.activities - 3_600))
    literal = hour.isoformat(" ") if database.kind == "postgres" else hour.strftime("%Y-%m-%d %H:%M:%S.%f")
    yield _Query("stats", ax.activity.stats, by_hand(""))
    recent = partial(ax.activity.stats, created_after=hour)
    yield _Query("stats, last hour", recent, by_hand(f"WHERE created_at >= '{literal}'"))
