"""The database's clock: leases must not depend on the clocks of the workers."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from agentexec_otel.activity.models import UtcDateTime


class _Now(FunctionElement[datetime]):
    """The present time plus a number of seconds, in the format of the tables."""

    inherit_cache = True
    type = UtcDateTime()


def database_now(plus_seconds: ColumnElement[float]) -> ColumnElement[datetime]:
    """Return the database's present time plus `plus_seconds`."""
    return _Now(plus_seconds)


_FORMS: Final = {
    "postgresql": "(clock_timestamp() + make_interval(secs => {}))",
    "mysql": "(UTC_TIMESTAMP(6) + INTERVAL {} SECOND)",
    "mariadb": "(UTC_TIMESTAMP(6) + INTERVAL {} SECOND)",
    # SQLite has milliseconds only. The text must sort with the six digits of other rows.
    "sqlite": "(strftime('%Y-%m-%d %H:%M:%f', 'now', ({} || ' seconds')) || '000')",
}


@compiles(_Now)
def _compile_now(element: _Now, compiler: SQLCompiler, **kwargs: Any) -> str:
    return _FORMS[compiler.dialect.name].format(compiler.process(element.clauses, **kwargs))
