"""Many rows of one statement at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import repeat
from operator import attrgetter, itemgetter
from typing import Any, Final
from uuid import UUID

from sqlalchemy import JSON, Boolean, Connection, String, Text, Uuid

from agentexec_otel._config import CONF
from agentexec_otel._model.event import Status
from agentexec_otel._model.fold import Lease, moment
from agentexec_otel.activity.models import StatusText, UtcDateTime
from agentexec_otel_exporters.sql.write.batch import LogRow, Row
from agentexec_otel_exporters.sql.write.driver import driver_cursor
from agentexec_otel_exporters.sql.write.statements import (
    INSERT_LOGS,
    INSERT_ROWS,
    INSERT_STUBS,
    LOCK,
    LOCK_POSTGRESQL,
    LOCK_SQLITE,
    ROW_COLUMNS,
    UPDATE_ROWS,
    Bind,
    Write,
    postgresql_text,
    sqlite_text,
)

_BILLION: Final = 1_000_000_000

_Values = Mapping[str, Sequence[Any]]
"""Values by parameter; times as datetimes or as nanoseconds since the epoch."""


def insert_stubs(connection: Connection, stubs: Sequence[Row]) -> None:
    """Insert activity rows, except those whose ``agent_id`` exists already."""
    _write(connection, INSERT_STUBS, _attributes(INSERT_STUBS, stubs))


def insert_logs(connection: Connection, logs: Sequence[LogRow]) -> None:
    """Insert log rows."""
    values = {f"new_{name}": list(map(itemgetter(at), logs)) for at, name in enumerate(INSERT_LOGS.names)}
    _write(connection, INSERT_LOGS, values)


def insert_rows(connection: Connection, new: Sequence[Row]) -> None:
    """Insert activity rows with their events applied. Raises SQLAlchemy's IntegrityError if one exists already."""
    for lease, rows in _grouped(new, attrgetter("lease")).items():
        _write(connection, INSERT_ROWS[lease], _attributes(INSERT_ROWS[lease], rows))


def update_rows(connection: Connection, changed: Sequence[Row]) -> None:
    """Write activity rows back."""
    for key, rows in _grouped(changed, _change).items():
        _write(connection, UPDATE_ROWS[key], _attributes(UPDATE_ROWS[key], rows))


def _change(row: Row) -> tuple[str, Lease]:
    if row.opened:
        return "opening", row.lease
    return "progress" if row.shape == row.before else "summary", row.lease


def lock_rows(connection: Connection, agent_ids: Sequence[UUID]) -> dict[UUID, Row]:
    """The rows of those activities that exist, locked in the order of ``agent_id``."""
    rows = _READERS.get(_driver(connection), _lock_any)(connection, agent_ids)
    for row in rows:
        row.before = row.shape
    return {row.agent_id: row for row in rows}


def _attributes(write: Write, rows: Sequence[Row]) -> _Values:
    return {f"new_{name}": list(map(attrgetter(name), rows)) for name in write.names}


def _grouped(rows: Sequence[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


# -- by driver ----------------------------------------------------------------------------------------------------


def _write(connection: Connection, write: Write, values: _Values) -> None:
    _WRITERS.get(_driver(connection), _write_any)(connection, write, values)


def _driver(connection: Connection) -> tuple[str, str]:
    return connection.dialect.name, connection.dialect.driver


def _write_any(connection: Connection, write: Write, values: _Values) -> None:
    common = {"lease_seconds": CONF.lease_seconds} if write.lease == "extend" else {}
    columns = [_each(given, _moment) if name.endswith("_at") else given for name, given in values.items()]
    rows = [dict(zip(values, row, strict=True)) | common for row in zip(*columns, strict=True)]
    connection.execute(write.row_by_row(connection.dialect.name), rows)


# SQLAlchemy's work on each parameter and result is most of the cost of a batch, so two drivers get and give values as
# they store them. With both paths of a driver, writing and reading, an `export()` is quicker than with neither:
# SQLite 1.5x to 1.9x for 1 to 50 events and 1.8x for 1,000; PostgreSQL 1.2x to 2.0x and 2.2x (alternating medians;
# to repeat it, empty `_WRITERS` and `_READERS`).


def _write_sqlite(connection: Connection, write: Write, values: _Values) -> None:
    """One tuple per row."""
    text, binds = sqlite_text(write)
    columns = [
        repeat(_fixed(bind)) if bind.name not in values else _each(values[bind.name], _TO_SQLITE.get(bind.kind))
        for bind in binds
    ]
    with driver_cursor(connection, text) as cursor:
        cursor.executemany(text, list(zip(*columns, strict=False)))


def _write_postgresql(connection: Connection, write: Write, values: _Values) -> None:
    """One array per column."""
    text, binds = postgresql_text(write)
    parameters = {
        bind.name: _fixed(bind) if bind.name not in values else _array(values[bind.name], _TO_ARRAY.get(bind.kind, str))
        for bind in binds
    }
    with driver_cursor(connection, text) as cursor:
        cursor.execute(text, parameters)


_WRITERS: Final[dict[tuple[str, str], Callable[[Connection, Write, _Values], None]]] = {
    ("sqlite", "pysqlite"): _write_sqlite,
    ("postgresql", "psycopg"): _write_postgresql,
}


# -- reading, by driver -------------------------------------------------------------------------------------------


def _lock_any(connection: Connection, agent_ids: Sequence[UUID]) -> list[Row]:
    return [Row(*values) for values in connection.execute(LOCK, {"agent_ids": agent_ids}).all()]


def _lock_sqlite(connection: Connection, agent_ids: Sequence[UUID]) -> list[Row]:
    wanted = json.dumps([agent_id.hex for agent_id in agent_ids])
    return _fetched(connection, LOCK_SQLITE, (wanted,), _FROM_SQLITE)


def _lock_postgresql(connection: Connection, agent_ids: Sequence[UUID]) -> list[Row]:
    wanted = f"{{{','.join(agent_id.hex for agent_id in agent_ids)}}}"
    return _fetched(connection, LOCK_POSTGRESQL, {"agent_ids": wanted}, _FROM_POSTGRESQL)


_READERS: Final[dict[tuple[str, str], Callable[[Connection, Sequence[UUID]], list[Row]]]] = {
    ("sqlite", "pysqlite"): _lock_sqlite,
    ("postgresql", "psycopg"): _lock_postgresql,
}


def _fetched(
    connection: Connection, text: str, parameters: Any, converters: Mapping[Any, Callable[[Any], Any]]
) -> list[Row]:
    """The driver's rows, with the types of the columns."""
    convert = [converters.get(type(column.type)) for column in ROW_COLUMNS]

    def typed(values: Sequence[Any]) -> Iterator[Any]:
        for value, to in zip(values, convert, strict=True):
            yield value if to is None or value is None else to(value)

    with driver_cursor(connection, text) as cursor:
        cursor.execute(text, parameters)
        return [Row(*typed(values)) for values in cursor.fetchall()]


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
        # Neighbours often share a value: the activity, its status, its attempt.
        if value is not last:
            last, now = value, nothing if value is None else convert(value)
        converted.append(now)
    return converted


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


_TO_SQLITE: Final[dict[Any, Callable[[Any], Any]]] = {
    Uuid: attrgetter("hex"),
    UtcDateTime: _time_text,
    StatusText: str.__str__,
    JSON: json.dumps,
    Boolean: int,
}
_TO_ARRAY: Final[dict[Any, Callable[[Any], str]]] = {
    Uuid: attrgetter("hex"),
    UtcDateTime: lambda value: f'"{_time_text(value)}+00"',
    StatusText: str.__str__,
    JSON: lambda value: _quoted(json.dumps(value)),
    String: _quoted,
    Text: _quoted,
}
_FROM_SQLITE: Final[dict[Any, Callable[[Any], Any]]] = {
    Uuid: UUID,
    UtcDateTime: lambda text: datetime.fromisoformat(text).replace(tzinfo=UTC),
    StatusText: Status,
    JSON: json.loads,
    Boolean: bool,
}
_FROM_POSTGRESQL: Final[dict[Any, Callable[[Any], Any]]] = {
    UtcDateTime: lambda value: value.astimezone(UTC),
    StatusText: Status,
}
