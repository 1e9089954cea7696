"""How the database executes the statements of a call."""

import re
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.orm import Session

from agentexec_otel.activity.models import Activity, ActivityLog

_EXPLAIN = {"sqlite": "EXPLAIN QUERY PLAN", "postgresql": "EXPLAIN", "mysql": "EXPLAIN"}
_SHOWN = {"mysql": ["type", "table", "key"]}
_LOG = ActivityLog.__tablename__
_SCAN = re.compile(rf"Seq Scan on {_LOG}\b|\bSCAN {_LOG}|\b(?:ALL|index) {_LOG}")
_RANGE = {
    "sqlite": r"SEARCH \w+ USING (?:COVERING )?INDEX \w+created_at \(created_at[<>]\?\)",
    "postgresql": r"Index (?:Only )?Scan.*created_at.*\n\s+Index Cond: \(created_at [<>]= ",
    "mysql": r"\brange \w+ \w+created_at\b",
}


def statements_of(session: Session, call: Callable[[Session], object]) -> list[tuple[str, Any]]:
    """The statements that a call sends, with their parameters."""
    found: list[tuple[str, Any]] = []

    def note(connection: Connection, cursor: object, statement: str, parameters: Any, *_: object) -> None:
        found.append((statement, parameters))

    engine = session.get_bind()
    event.listen(engine, "before_cursor_execute", note)
    try:
        call(session)
    finally:
        event.remove(engine, "before_cursor_execute", note)
    return found


def plan_of(session: Session, call: Callable[[Session], object]) -> str:
    """The plans of all that a call sends: in SQLite's and PostgreSQL's words, of MariaDB `type table key`."""
    dialect = session.get_bind().dialect.name
    dialect = "mysql" if dialect == "mariadb" else dialect
    plans: list[str] = []
    for statement, parameters in statements_of(session, call):
        rows = session.connection().exec_driver_sql(f"{_EXPLAIN[dialect]} {statement}", parameters).mappings()
        plans += [" ".join(str(row[name]) for name in _SHOWN.get(dialect, [*row][-1:])) for row in rows]
    return "\n".join(plans)


def scans_the_log(plan: str) -> bool:
    """Whether the plan reads the whole log table."""
    return _SCAN.search(plan) is not None


def is_range_of_created_at(session: Session, plan: str) -> bool:
    """Whether the plan reads a range of the index on `created_at`."""
    dialect = session.get_bind().dialect.name
    return re.search(_RANGE["mysql" if dialect == "mariadb" else dialect], plan) is not None


def analyze(session: Session) -> None:
    """Have the planner know the tables as they are now."""
    for table in (Activity.__tablename__, _LOG):
        verb = "ANALYZE TABLE" if session.get_bind().dialect.name in ("mysql", "mariadb") else "ANALYZE"
        session.connection().exec_driver_sql(f"{verb} {table}").close()
    session.commit()
