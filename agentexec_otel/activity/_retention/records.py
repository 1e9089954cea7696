"""An archived activity: its row and its logs, as the values of a kind of file and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple, TypeAlias
from uuid import UUID

from sqlalchemy import JSON, Column, Numeric, Table, Uuid
from sqlalchemy.types import TypeEngine

from agentexec_otel._model.event import Status
from agentexec_otel.activity._criteria import ACTIVITY, LOG
from agentexec_otel.activity.models import StatusText, UtcDateTime

FORMAT: Final = 1
"""Version of the records. Those of a later version are refused."""

_Converters: TypeAlias = Mapping[type[TypeEngine[Any]], Callable[[Any], Any]]


def _stored(table: Table, *but: str) -> tuple[Column[Any], ...]:
    return tuple(column for column in table.c if column.computed is None and column.name not in but)


ACTIVITY_COLUMNS: Final = _stored(ACTIVITY)
LOG_COLUMNS: Final = _stored(LOG, "activity_id")
"""What is archived: all columns of the tables, but for the one that names the activity of a log."""


class ArchivedActivity(NamedTuple):
    """An activity of an archive: its values by column."""

    activity: Mapping[str, Any]
    logs: Sequence[Mapping[str, Any]]


class NotArchivedError(ValueError):
    """Not a record of ours, or one of a later version. The message continues a sentence: "… has no activity"."""


class _Table:
    """The columns of a table, each with its converter. None leaves a value as it is."""

    def __init__(self, columns: Sequence[Column[Any]], to_file: _Converters, to_database: _Converters) -> None:
        self._to_file = {column.name: to_file.get(type(column.type)) for column in columns}
        self._to_database = {column.name: to_database.get(type(column.type)) for column in columns}

    def encode(self, values: Sequence[Any]) -> dict[str, Any]:
        return {
            name: value if convert is None or value is None else convert(value)
            for (name, convert), value in zip(self._to_file.items(), values, strict=True)
        }

    def decode(self, record: Mapping[str, Any]) -> dict[str, Any]:
        if unknown := sorted(record.keys() - self._to_database.keys()):
            raise NotArchivedError(f"has the field {unknown[0]!r} of a later version: upgrade agentexec-otel")
        # A column that is younger than the archive is empty.
        given = ((name, convert, record.get(name)) for name, convert in self._to_database.items())
        return {name: value if convert is None or value is None else convert(value) for name, convert, value in given}


class Codec:
    """Converts activities to the values that a kind of file has, and back."""

    def __init__(self, to_file: _Converters, to_database: _Converters) -> None:
        self._activity = _Table(ACTIVITY_COLUMNS, to_file, to_database)
        self._log = _Table(LOG_COLUMNS, to_file, to_database)

    def encode(self, activity: Sequence[Any], logs: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """The record of an activity: the values of `ACTIVITY_COLUMNS`, and those of `LOG_COLUMNS` for each log."""
        return self._activity.encode(activity) | {"logs": list(map(self._log.encode, logs))}

    def decode(self, record: Mapping[str, Any]) -> ArchivedActivity:
        """The inverse of `encode`. Raises `NotArchivedError` for anything else."""
        try:
            rest = dict(record)
            logs = list(map(self._log.decode, rest.pop("logs")))
            found = ArchivedActivity(self._activity.decode(rest), logs)
            has_ended = found.activity["status"].terminal
        except NotArchivedError:
            raise
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as exc:
            raise NotArchivedError("has something else than an archived activity") from exc
        if not has_ended:
            raise NotArchivedError("has an activity that has not ended")
        return found


def compact_json(value: Any) -> str:
    """JSON in one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _time_text(value: datetime) -> str:
    return value.isoformat(timespec="microseconds")


JSON_CODEC: Final = Codec(
    {Uuid: str, UtcDateTime: _time_text, StatusText: str.__str__, Numeric: str},
    {Uuid: UUID, UtcDateTime: datetime.fromisoformat, StatusText: Status, Numeric: Decimal},
)
ARROW_CODEC: Final = Codec(
    {Uuid: str, StatusText: str.__str__, JSON: compact_json},
    {Uuid: UUID, UtcDateTime: lambda value: value.astimezone(UTC), StatusText: Status, JSON: json.loads},
)
