"""Values of other programs as the columns of ours have them, in SQL."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import md5
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    String,
    Text,
    Uuid,
    cast,
    func,
    text,
    type_coerce,
)

from agentexec_otel.activity.models import UtcDateTime


@dataclass(frozen=True, slots=True)
class Conversions:
    """The expressions of one database. A time without a zone counts as UTC.

    Attributes:
        uuid: A UUID of a native column or of text, with or without dashes.
        moment: A time of a column, whose type is the second argument.
        digest: A UUID that is always the same for this number.
    """

    uuid: Callable[[ColumnElement[Any]], ColumnElement[UUID]]
    moment: Callable[[ColumnElement[Any], Any], ColumnElement[datetime]]
    digest: Callable[[ColumnElement[Any]], ColumnElement[UUID]]


def _as_uuid(digest: ColumnElement[str]) -> ColumnElement[str]:
    """With the version and the variant, which MariaDB looks at."""
    parts = func.substr(digest, 1, 12), "4", func.substr(digest, 14, 3), "8", func.substr(digest, 18, 15)
    return func.concat(*parts)


_POSTGRESQL: Final = Conversions(
    uuid=lambda value: cast(cast(value, Text), Uuid),
    moment=lambda value, kind: type_coerce(value if kind.timezone else func.timezone("UTC", value), UtcDateTime),
    digest=lambda value: cast(_as_uuid(func.md5(cast(value, Text))), Uuid),
)
_MYSQL: Final = Conversions(
    uuid=lambda value: type_coerce(func.lower(func.replace(cast(value, String(36)), "-", "")), Uuid),
    moment=lambda value, kind: type_coerce(value, UtcDateTime),
    digest=lambda value: type_coerce(_as_uuid(func.md5(value)), Uuid),
)
_SQLITE: Final = Conversions(
    uuid=lambda value: type_coerce(func.agentexec_uuid(value), Uuid),
    moment=lambda value, kind: type_coerce(func.agentexec_moment(value), UtcDateTime),
    digest=lambda value: type_coerce(func.agentexec_digest(value), Uuid),
)
_BY_DIALECT: Final = {"postgresql": _POSTGRESQL, "mysql": _MYSQL, "mariadb": _MYSQL, "sqlite": _SQLITE}


@contextmanager
def conversions(connection: Connection) -> Generator[Conversions]:
    """The conversions of this connection's database, ready to use."""
    dialect = connection.dialect.name
    if dialect == "sqlite":
        driver: Any = connection.connection.dbapi_connection
        for name, function in _SQLITE_FUNCTIONS.items():
            driver.create_function(name, 1, function, deterministic=True)
    if dialect in ("mysql", "mariadb"):
        # TIMESTAMP columns are shown in the zone of the session.
        zone = connection.scalar(text("SELECT @@session.time_zone"))
        connection.execute(text("SET time_zone = '+00:00'"))
        yield _BY_DIALECT[dialect]
        connection.execute(text("SET time_zone = :zone"), {"zone": zone})
    else:
        yield _BY_DIALECT[dialect]


def _uuid(value: str | bytes | None) -> str | None:
    if value is None:
        return None
    return UUID(bytes=value).hex if isinstance(value, bytes) else UUID(str(value)).hex


def _moment(value: str | None) -> str | None:
    if value is None:
        return None
    found = datetime.fromisoformat(value)
    utc = found if found.tzinfo is None else found.astimezone(UTC).replace(tzinfo=None)
    return utc.isoformat(" ", "microseconds")


def _digest(value: object) -> str:
    return UUID(bytes=md5(str(value).encode(), usedforsecurity=False).digest(), version=4).hex


_SQLITE_FUNCTIONS: Final[dict[str, Any]] = {
    "agentexec_uuid": _uuid,
    "agentexec_moment": _moment,
    "agentexec_digest": _digest,
}
