"""The database's own clock: leases must not depend on the clocks of the workers."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from agentexec_otel.activity.models import UtcDateTime


class _Now(FunctionElement[datetime]):
    """Now plus a number of seconds, as the tables keep times."""

    inherit_cache = True
    type = UtcDateTime()


def database_now(plus_seconds: ColumnElement[float]) -> ColumnElement[datetime]:
    """The database's present time, `plus_seconds` later."""
    return _Now(plus_seconds)


_FORMS: Final = {
    "postgresql": "(clock_timestamp() + make_interval(secs => {}))",
    "mysql": "(UTC_TIMESTAMP(6) + INTERVAL {} SECOND)",
    "mariadb": "(UTC_TIMESTAMP(6) + INTERVAL {} SECOND)",
    # SQLite knows milliseconds only; the text has to sort with the six digits of the other rows.
    "sqlite": "(strftime('%Y-%m-%d %H:%M:%f', 'now', ({} || ' seconds')) || '000')",
}


@compiles(_Now)
def _compile_now(element: _Now, compiler: SQLCompiler, **kwargs: Any) -> str:
    return _FORMS[compiler.dialect.name].format(compiler.process(element.clauses, **kwargs))
