"""Rows in bulk: the driver is given values as it stores them, past SQLAlchemy's work on each parameter.

That work is most of the cost of a batch. SQLite takes prepared tuples; PostgreSQL takes an array per column, and COPY
where there are many lines. With other drivers SQLAlchemy does it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, lru_cache
from itertools import chain, repeat
from operator import attrgetter, itemgetter
from typing import Any, Final
from uuid import UUID
from weakref import WeakKeyDictionary

from sqlalchemy import JSON, Boolean, Connection, Dialect, String, Text, Uuid, func, select

from agentexec_otel._config import CONF
from agentexec_otel._model.event import Status
from agentexec_otel._model.fold import Lease, Line, Row, moment
from agentexec_otel.activity.models import StatusText, UtcDateTime
from agentexec_otel_exporters.sql._driver import copy, execute, execute_many, fetch
from agentexec_otel_exporters.sql._statements import (
    COPY,
    INSERT_LINES,
    INSERT_ROWS,
    INSERT_STUBS,
    LOCK,
    LOCK_POSTGRESQL,
    LOCK_SQLITE,
    ROW_COLUMNS,
    UPDATE_ROWS,
    Bind,
    Write,
    ids_given,
    postgresql_text,
    row_by_row,
    sqlite_text,
)

_MANY: Final = 50
_AGENT_ID: Final = [column.name for column in ROW_COLUMNS].index("agent_id")
_PIECE: Final = 200
_SIZES: Final = (64, 16, 4)
"""Rows that SQLite is given by one statement, which is quicker than one by one."""
_MOST_VALUES: Final = 999
_BILLION: Final = 1_000_000_000

_Given = Mapping[str, Sequence[Any]]
"""Values by parameter; moments as datetimes or as nanoseconds since the epoch."""


def insert_stubs(connection: Connection, stubs: Sequence[Row]) -> None:
    """Insert activity rows, except those whose ``agent_id`` is there already."""
    _write(connection, INSERT_STUBS, _attributes(INSERT_STUBS, stubs))


def insert_lines(connection: Connection, lines: Sequence[Line]) -> None:
    """Insert log rows."""
    if len(lines) >= _MANY and _driver(connection) == _PSYCOPG and _may_copy(connection):
        copy(connection, COPY, _copied(lines))
    else:
        given = {f"new_{name}": list(map(itemgetter(at), lines)) for at, name in enumerate(INSERT_LINES.names)}
        _write(connection, INSERT_LINES, given)


def insert_rows(connection: Connection, new: Sequence[Row]) -> None:
    """Insert folded rows. Raises SQLAlchemy's IntegrityError where one is there already."""
    for lease, rows in _grouped(new, attrgetter("lease")).items():
        _write(connection, INSERT_ROWS[lease], _attributes(INSERT_ROWS[lease], rows))


def update_rows(connection: Connection, changed: Sequence[Row]) -> None:
    """Write folded rows back."""
    for key, rows in _grouped(changed, _change).items():
        _write(connection, UPDATE_ROWS[key], _attributes(UPDATE_ROWS[key], rows))


def _change(row: Row) -> tuple[str, Lease]:
    if row.opened:
        return "opening", row.lease
    return "progress" if row.shape == row.before else "summary", row.lease


def lock_rows(connection: Connection, agent_ids: Sequence[UUID]) -> dict[UUID, Row]:
    """The rows of those activities that exist, locked in the order of ``agent_id``."""
    rows = _LOCKS.get(_driver(connection), _lock_any)(connection, agent_ids)
    for row in rows:
        row.before = row.shape
    return {row.agent_id: row for row in rows}


def _attributes(write: Write, rows: Sequence[Row]) -> _Given:
    return {f"new_{name}": list(map(attrgetter(name), rows)) for name in write.names}


def _grouped(rows: Sequence[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _driver(connection: Connection) -> tuple[str, str]:
    return connection.dialect.name, connection.dialect.driver


_PYSQLITE: Final = ("sqlite", "pysqlite")
_PSYCOPG: Final = ("postgresql", "psycopg")


# -- writing ------------------------------------------------------------------------------------------------------


def _write(connection: Connection, write: Write, given: _Given) -> None:
    _WRITES.get(_driver(connection), _write_any)(connection, write, given)


def _write_any(connection: Connection, write: Write, given: _Given) -> None:
    common = {"lease_seconds": CONF.lease_seconds} if write.lease == "extend" else {}
    columns = [_each(values, _moment) if name.endswith("_at") else values for name, values in given.items()]
    rows = [dict(zip(given, values, strict=True)) | common for values in zip(*columns, strict=True)]
    connection.execute(row_by_row(write, connection.dialect.name), rows)


def _write_sqlite(connection: Connection, write: Write, given: _Given) -> None:
    text, binds = sqlite_text(write)
    columns = [
        repeat(_fixed(bind)) if bind.name not in given else _each(given[bind.name], _TO_SQLITE.get(bind.kind))
        for bind in binds
    ]
    rows = list(zip(*columns, strict=False))
    done = 0
    for size in _SIZES if write.how == "insert" else ():
        end = done + (len(rows) - done) // size * size
        if done < end and size * len(binds) <= _MOST_VALUES:
            together = [tuple(chain.from_iterable(rows[at : at + size])) for at in range(done, end, size)]
            execute_many(connection, _several(text, size), together)
            done = end
    if done < len(rows):
        execute_many(connection, text, rows[done:])


@cache
def _several(text: str, rows: int) -> str:
    into, values, row = text.rpartition(" VALUES ")
    return f"{into}{values}{', '.join([row] * rows)}"


def _write_postgresql(connection: Connection, write: Write, given: _Given) -> None:
    text, binds = postgresql_text(write)
    parameters = {
        bind.name: _fixed(bind) if bind.name not in given else _array(given[bind.name], _TO_ARRAY.get(bind.kind, str))
        for bind in binds
    }
    execute(connection, text, parameters)


_WRITES: Final[dict[tuple[str, str], Callable[[Connection, Write, _Given], None]]] = {
    _PYSQLITE: _write_sqlite,
    _PSYCOPG: _write_postgresql,
}


def _fixed(bind: Bind) -> Any:
    return CONF.lease_seconds if bind.name == "lease_seconds" else bind.value


def _array(values: Sequence[Any], convert: Callable[[Any], str]) -> str:
    return f"{{{','.join(_each(values, convert, 'NULL'))}}}"


def _each(values: Sequence[Any], convert: Callable[[Any], Any] | None, nothing: Any = None) -> Sequence[Any]:
    if convert is None:
        return values
    converted: list[Any] = []
    last, now = None, nothing
    for value in values:
        # Lines often have what the line before them had: the same activity, status and attempt.
        if value is not last:
            last, now = value, nothing if value is None else convert(value)
        converted.append(now)
    return converted


_row_security: WeakKeyDictionary[Dialect, bool] = WeakKeyDictionary()


def _may_copy(connection: Connection) -> bool:
    """PostgreSQL refuses COPY where row-level security applies to us."""
    dialect = connection.dialect
    if dialect not in _row_security:
        _row_security[dialect] = bool(connection.scalar(select(func.row_security_active(INSERT_LINES.table.name))))
    return not _row_security[dialect]


def _copied(lines: Sequence[Line]) -> Iterator[str]:
    converters = [_TO_COPY.get(type(INSERT_LINES.table.c[name].type), str) for name in INSERT_LINES.names]
    for start in range(0, len(lines), _PIECE):
        columns = zip(*lines[start : start + _PIECE], strict=True)
        texts = [_each(values, convert, r"\N") for values, convert in zip(columns, converters, strict=True)]
        yield "".join(f"{line}\n" for line in map("\t".join, zip(*texts, strict=True)))


# -- reading ------------------------------------------------------------------------------------------------------


def _lock_any(connection: Connection, agent_ids: Sequence[UUID]) -> list[Row]:
    return [Row(*values) for values in connection.execute(LOCK, {"agent_ids": agent_ids}).all()]


def _lock_sqlite(connection: Connection, agent_ids: Sequence[UUID]) -> list[Row]:
    known = {agent_id.hex: agent_id for agent_id in agent_ids}
    return _rows(fetch(connection, LOCK_SQLITE, (ids_given("sqlite", agent_ids),)), _FROM_SQLITE, known)


def _lock_postgresql(connection: Connection, agent_ids: Sequence[UUID]) -> list[Row]:
    wanted = f"{{{','.join(agent_id.hex for agent_id in agent_ids)}}}"
    return _rows(fetch(connection, LOCK_POSTGRESQL, {"agent_ids": wanted}), _FROM_POSTGRESQL, {})


_LOCKS: Final[dict[tuple[str, str], Callable[[Connection, Sequence[UUID]], list[Row]]]] = {
    _PYSQLITE: _lock_sqlite,
    _PSYCOPG: _lock_postgresql,
}


def _rows(
    found: Iterable[Sequence[Any]], converters: Mapping[Any, Callable[[Any], Any]], known: Mapping[str, UUID]
) -> list[Row]:
    """The driver's rows as `Row`; ``agent_id`` is looked up in `known`, where that is not empty, instead of parsed."""
    by_position = [(at, converters.get(type(column.type))) for at, column in enumerate(ROW_COLUMNS)]
    if known:
        by_position[_AGENT_ID] = (_AGENT_ID, known.__getitem__)
    needed = [(at, convert) for at, convert in by_position if convert is not None]
    rows: list[Row] = []
    for values in found:
        given: list[Any] = [*values]
        for at, convert in needed:
            if given[at] is not None:
                given[at] = convert(given[at])
        rows.append(Row(*given))
    return rows


# -- values as the drivers know them ------------------------------------------------------------------------------


def _moment(value: datetime | int) -> datetime:
    return value if isinstance(value, datetime) else moment(value)


@lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    return str(moment(seconds * _BILLION).replace(tzinfo=None))


def _time_text(value: datetime | int) -> str:
    if isinstance(value, datetime):
        return value.replace(tzinfo=None).isoformat(" ", "microseconds")
    seconds, rest = divmod(value, _BILLION)
    return f"{_second(seconds)}.{rest // 1000:06}"


def _quoted(text: str) -> str:
    if "\\" in text or '"' in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _escaped(text: str) -> str:
    return text.translate(_ESCAPES) if "\\" in text or not text.isprintable() else text


_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", "\r": r"\r", "\t": r"\t"})

_TO_SQLITE: Final[dict[Any, Callable[[Any], Any]]] = {
    Uuid: attrgetter("hex"),
    UtcDateTime: _time_text,
    StatusText: str.__str__,
    JSON: json.dumps,
    Boolean: int,
}
_FROM_SQLITE: Final[dict[Any, Callable[[Any], Any]]] = {
    Uuid: UUID,
    UtcDateTime: lambda text: datetime.fromisoformat(text).replace(tzinfo=UTC),
    StatusText: Status,
    JSON: json.loads,
    Boolean: bool,
}
_TO_COPY: Final[dict[Any, Callable[[Any], str]]] = {
    Uuid: attrgetter("hex"),
    UtcDateTime: lambda value: f"{_time_text(value)}+00",
    StatusText: str.__str__,
    Text: _escaped,
}
_TO_ARRAY: Final[dict[Any, Callable[[Any], str]]] = {
    **_TO_COPY,
    UtcDateTime: lambda value: f'"{_time_text(value)}+00"',
    JSON: lambda value: _quoted(json.dumps(value)),
    String: _quoted,
    Text: _quoted,
}
_FROM_POSTGRESQL: Final[dict[Any, Callable[[Any], Any]]] = {
    UtcDateTime: lambda value: value.astimezone(UTC),
    StatusText: Status,
}
