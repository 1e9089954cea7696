"""The statements of the transaction: for one row, for many rows at once, and as texts for the drivers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Final, Literal, cast

from sqlalchemy import (
    ARRAY,
    JSON,
    Boolean,
    ColumnElement,
    Dialect,
    Float,
    Integer,
    Select,
    Table,
    Text,
    Uuid,
    bindparam,
    column,
    func,
    literal,
    null,
    select,
    update,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.dialects.postgresql import psycopg
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine

from agentexec_otel._model.fold import Lease
from agentexec_otel.activity.models import Activity, ActivityLog, UtcDateTime
from agentexec_otel_exporters.sql.write.batch import LogRow


class _Now(FunctionElement[datetime]):
    """Now plus a number of seconds, as the tables keep times."""

    inherit_cache = True
    type = UtcDateTime()


def database_now(plus_seconds: ColumnElement[float]) -> ColumnElement[datetime]:
    """The database's own clock, plus some seconds: leases must not depend on the clocks of the workers."""
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


ACTIVITY: Final = cast(Table, Activity.__table__)
LOG: Final = cast(Table, ActivityLog.__table__)

ROW_COLUMNS: Final = tuple(
    ACTIVITY.c[name]
    for name in (
        "agent_id", "agent_type", "created_at", "status", "latest_percentage", "last_seq", "attempt", "started_at",
        "ended_at", "metadata", "trace_context", "trace_id", "span_id", "sampled", "worker_id", "error_type", "reason",
        "input_tokens", "output_tokens", "requests", "cached_input_tokens", "reasoning_tokens", "model", "waiting",
        "id", "updated_at",
    )
)  # fmt: skip
"""The fields of `Row`, in its order."""

_STUB: Final = ("id", "agent_id", "agent_type", "created_at", "updated_at", "status", "last_seq", "attempt")
_PROGRESS: Final = ("id", "updated_at", "latest_percentage", "last_seq")
_SUMMARY: Final = (
    *_PROGRESS, "status", "attempt", "started_at", "ended_at", "trace_context", "trace_id", "span_id", "sampled",
    "worker_id", "error_type", "reason", "input_tokens", "output_tokens", "requests",
    "cached_input_tokens", "reasoning_tokens", "model", "waiting",
)  # fmt: skip
_UPDATED: Final = {
    "progress": _PROGRESS,
    "summary": _SUMMARY,
    "opening": (*_SUMMARY, "agent_type", "created_at", "metadata"),
}
_LEASES: Final[dict[Lease, dict[str, ColumnElement[Any]]]] = {
    "keep": {},
    "extend": {
        "heartbeat_at": database_now(literal(0)),
        "lease_expires_at": database_now(bindparam("lease_seconds", type_=Float)),
    },
    # An attempt ends, or the next one is opened: its span was not exported yet.
    "clear": {"heartbeat_at": null(), "lease_expires_at": null(), "span_exported_at": null()},
}


@dataclass(frozen=True, slots=True)
class Write:
    """What to do with rows of which these columns are given.

    Attributes:
        how: Insert them, or only those whose ``agent_id`` is not there, or update what has their ``id``.
        lease: What happens to an activity's lease.
    """

    table: Table
    names: tuple[str, ...]
    how: Literal["insert", "insert absent", "update"] = "insert"
    lease: Lease = "keep"

    @cache  # noqa: B019  # of a few constants
    def row_by_row(self, dialect: str) -> UpdateBase:
        """The statement for one row, its values bound as ``new_…``."""
        values = {name: bindparam(f"new_{name}", type_=self.table.c[name].type) for name in self.names}
        if self.how == "update":
            return self._update(values)
        return self._unless_there(_INSERTS[dialect](self.table).values(values | _LEASES[self.lease]))

    def at_once(self) -> UpdateBase:
        """PostgreSQL's statement for all rows, with an array per column bound as ``new_…``."""
        arrays = (bindparam(f"new_{name}", type_=ARRAY(_element(self.table.c[name].type))) for name in self.names)
        rows = func.unnest(*arrays).table_valued(*map(column, self.names), name="new").render_derived()
        if self.how == "update":
            return self._update(dict(rows.c))
        values = dict(rows.c) | _LEASES[self.lease]
        inserted = postgresql.insert(self.table).from_select(
            list(values), select(*values.values()), include_defaults=False
        )
        return self._unless_there(inserted)

    def _update(self, values: Mapping[str, Any]) -> UpdateBase:
        rest = {name: value for name, value in values.items() if name != "id"}
        return update(self.table).where(self.table.c.id == values["id"]).values(rest | _LEASES[self.lease])

    def _unless_there(self, inserted: postgresql.Insert | sqlite.Insert | mysql.Insert) -> UpdateBase:
        if self.how == "insert":
            return inserted
        if isinstance(inserted, mysql.Insert):
            # INSERT IGNORE would also hide truncation; this ignores the one conflict that is meant.
            return inserted.on_duplicate_key_update(agent_id=self.table.c.agent_id)
        return inserted.on_conflict_do_nothing(index_elements=["agent_id"])


_INSERTS: Final[dict[str, Callable[[Table], postgresql.Insert | sqlite.Insert | mysql.Insert]]] = {
    "postgresql": postgresql.insert,
    "sqlite": sqlite.insert,
    "mysql": mysql.insert,
    "mariadb": mysql.insert,
}


def _element(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    # A cast to VARCHAR(n) would cut in silence what the column refuses.
    return kind if isinstance(kind, Uuid | Integer | Boolean | UtcDateTime | JSON) else Text()


INSERT_LOGS: Final = Write(LOG, LogRow._fields)
INSERT_STUBS: Final = Write(ACTIVITY, _STUB, "insert absent")
INSERT_ROWS: Final = {
    lease: Write(ACTIVITY, tuple(one.name for one in ROW_COLUMNS), "insert", lease) for lease in _LEASES
}
UPDATE_ROWS: Final = {
    (what, lease): Write(ACTIVITY, names, "update", lease) for what, names in _UPDATED.items() for lease in _LEASES
}
"""By what has changed, which is most often only the progress, and by lease."""


def _lock(wanted: ColumnElement[bool]) -> Select[*tuple[Any, ...]]:
    return select(*ROW_COLUMNS).where(wanted).order_by(ACTIVITY.c.agent_id).with_for_update()


LOCK: Final = _lock(ACTIVITY.c.agent_id.in_(bindparam("agent_ids", expanding=True)))
"""Rows are locked in the order of ``agent_id``, so that two batches never wait for each other."""
READ: Final = select(*ROW_COLUMNS).where(ACTIVITY.c.agent_id.in_(bindparam("agent_ids", expanding=True)))


@dataclass(frozen=True, slots=True)
class Bind:
    """A parameter of a statement's text: the type of its column, or its value if that is constant."""

    name: str
    kind: type[TypeEngine[Any]] | None
    value: Any


@cache
def sqlite_text(write: Write) -> tuple[str, list[Bind]]:
    """The text for one row, and its parameters in order."""
    compiled = write.row_by_row("sqlite").compile(dialect=_SQLITE)
    return str(compiled), [_bind(write, name, compiled.params) for name in compiled.positiontup or ()]


@cache
def postgresql_text(write: Write) -> tuple[str, list[Bind]]:
    """The text for all rows, and its parameters by name."""
    compiled = write.at_once().compile(dialect=_POSTGRESQL)
    return str(compiled), [_bind(write, name, compiled.params) for name in compiled.params]


def _bind(write: Write, name: str, values: Mapping[str, Any]) -> Bind:
    of_column = name.removeprefix("new_")
    return Bind(name, type(write.table.c[of_column].type) if of_column in write.names else None, values[name])


_SQLITE: Final[Dialect] = sqlite.dialect()
_POSTGRESQL: Final[Dialect] = psycopg.dialect()  # type: ignore[no-untyped-call]

# The ids are one parameter: a JSON array of texts for SQLite, an array for PostgreSQL.
_IDS: Final = bindparam("agent_ids", type_=Text)
LOCK_SQLITE: Final = str(
    _lock(ACTIVITY.c.agent_id.in_(select(func.json_each(_IDS).table_valued("value").c.value))).compile(dialect=_SQLITE)
)
LOCK_POSTGRESQL: Final = str(
    _lock(ACTIVITY.c.agent_id == func.any(bindparam("agent_ids", type_=ARRAY(Uuid)))).compile(dialect=_POSTGRESQL)
)
