"""Recognizes the errors of drivers that mean missing or outdated tables, for readers and writers alike."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy.exc import DBAPIError

from agentexec_otel._errors import ConfigurationError
from agentexec_otel.activity.models import Activity, ActivityLog

_TABLES: Final = f"{Activity.__tablename__} and {ActivityLog.__tablename__}"
_NO_TABLE: Final = (
    f"the tables {_TABLES} are not there: create them with agentexec-otel db upgrade, create_tables=True or"
    " ax.Base.metadata.create_all(engine), or check the database's name and AGENTEXEC_TABLE_PREFIX"
)
_NO_COLUMN: Final = (
    f"the tables {_TABLES} lack columns of this version: run agentexec-otel db upgrade, or"
    " ax.db.upgrade(engine); or, if another program has made them, set AGENTEXEC_TABLE_PREFIX to another prefix"
)


def schema_fault(orig: Any) -> str | None:
    """Return a sentence with the remedy if the driver's error says that a table or a column does not exist."""
    code, text = error_code(orig), str(orig)
    # SQLite has one code for both, and for much else.
    if code in ("42P01", "1146") or (code == "SQLITE_ERROR" and text.startswith("no such table")):
        return _NO_TABLE
    if code in ("42703", "1054") or (code == "SQLITE_ERROR" and _lacks_column(text)):
        return _NO_COLUMN
    return None


@contextmanager
def schema_faults_named() -> Generator[None]:
    """Raise `ConfigurationError` with the remedy for a driver's error about a missing table or column."""
    try:
        yield
    except DBAPIError as exc:
        if (fault := schema_fault(exc.orig)) is None:
            raise
        raise ConfigurationError(fault) from exc


def _lacks_column(text: str) -> bool:
    return text.startswith("no such column") or "has no column" in text


def error_code(orig: Any) -> str | None:
    """Return SQLite's result name, MySQL's or MariaDB's error number, or the SQLSTATE."""
    if name := getattr(orig, "sqlite_errorname", None):
        return str(name)
    # The number first: PyMySQL 1.2 has an SQLSTATE as well, but most of MySQL's errors share HY000.
    args = getattr(orig, "args", ())
    if args and isinstance(args[0], int):
        return str(args[0])
    sqlstate = getattr(orig, "sqlstate", None) or getattr(orig, "pgcode", None)  # pgcode: psycopg2
    return str(sqlstate) if sqlstate else None
