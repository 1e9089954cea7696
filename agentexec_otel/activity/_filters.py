"""Metadata filters as SQL, with bound values, checked keys and JSON types on every database."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Double,
    Numeric,
    SQLColumnExpression,
    String,
    and_,
    case,
    cast,
    false,
    literal,
)
from sqlalchemy.dialects.mysql import DECIMAL
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from agentexec_otel._model.text import clean_message, describe
from agentexec_otel.activity.models import Activity

_KEY: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/ -]{0,127}")
# Exact for 64-bit integers, unlike a double. MySQL needs a precision, with which PostgreSQL overflows.
_EXACT: Final = Numeric().with_variant(DECIMAL(65, 20), "mysql", "mariadb")
_SQLITE_TYPES: Final = {"text": "string", "integer": "number", "real": "number", "true": "boolean", "false": "boolean"}
_MYSQL_TYPES: Final = {
    "STRING": "string", "INTEGER": "number", "UNSIGNED INTEGER": "number", "DOUBLE": "number", "DECIMAL": "number",
    "BOOLEAN": "boolean",
}  # fmt: skip


class _JSONType(FunctionElement[str]):
    """The JSON type of the value under a key: ``string``, ``number``, ``boolean``, another one or NULL.

    Its clauses are the column, the key and the key as a path.
    """

    inherit_cache = True
    type = String()


class _Bytes(FunctionElement[str]):
    """Text that is compared byte by byte. For MySQL and MariaDB, ``'a '`` equals ``'a'``."""

    inherit_cache = True
    type = String()


@compiles(_JSONType)
def _compile_type(element: _JSONType, compiler: SQLCompiler, **kwargs: Any) -> str:
    column, key, path = element.clauses
    # Compiling an element binds it, and asyncpg refuses a parameter that the statement does not use.
    if compiler.dialect.name == "postgresql":
        return f"json_typeof({compiler.process(column, **kwargs)} -> {compiler.process(key, **kwargs)})"
    found = f"{compiler.process(column, **kwargs)}, {compiler.process(path, **kwargs)}"
    if compiler.dialect.name == "sqlite":
        return _renamed(f"json_type({found})", _SQLITE_TYPES)
    return _renamed(f"JSON_TYPE(JSON_EXTRACT({found}))", _MYSQL_TYPES)


def _renamed(expression: str, names: Mapping[str, str]) -> str:
    return f"CASE {expression} {' '.join(f'WHEN {name!r} THEN {ours!r}' for name, ours in names.items())} END"


@compiles(_Bytes)
def _compile_bytes(element: _Bytes, compiler: SQLCompiler, **kwargs: Any) -> str:
    text = compiler.process(element.clauses, **kwargs)
    return f"CAST({text} AS BINARY)" if compiler.dialect.name in ("mysql", "mariadb") else text


def metadata_criteria(metadata_filter: Mapping[str, Any] | None) -> list[ColumnElement[bool]]:
    """Return one criterion per key: the stored value equals the given string, number or boolean, in value and type.

    Raises:
        ValueError: Not a mapping or an empty one, a key with characters other than letters, digits, ``_ . : / -`` and
            space, or a value of another type.
    """
    if metadata_filter is None:
        return []
    if not is_a(metadata_filter, Mapping) or not metadata_filter:  # a missing tenant must not mean all tenants
        found = "empty" if is_a(metadata_filter, Mapping) else describe(metadata_filter)
        raise ValueError(f'metadata_filter is {found}: pass a dict such as {{"tenant": "a"}}')
    return [_criterion(key, value) for key, value in metadata_filter.items()]


def is_a(value: object, kind: type) -> bool:
    """`isinstance` for a value whose annotation the caller may have ignored."""
    return isinstance(value, kind)


def _criterion(key: str, value: Any) -> ColumnElement[bool]:
    if not (is_a(key, str) and _KEY.fullmatch(key)):
        raise ValueError(f"metadata_filter has the key {key!r:.80}: use letters, digits, _ . : / - and spaces only")
    stored = Activity.metadata_[key].as_string()
    for kind, name, equal in _KINDS:
        if isinstance(value, kind):
            json_type = _JSONType(Activity.metadata_, literal(key, String), literal(f'$."{key}"', String))
            if kind is str:
                return and_(json_type == name, equal(stored, value))
            # CASE, because AND may evaluate the value first, and a text must not be cast to a number.
            return case((json_type == name, equal(stored, value)), else_=false())
    raise ValueError(f"metadata_filter[{key!r}] is a {type(value).__name__}: filter by a string, a number or a boolean")


def same_text(stored: SQLColumnExpression[Any], value: str, limit: int = 16_384) -> ColumnElement[bool]:
    """Whether a column has this text, as `clean_message` stores it. Compares bytes, whatever the collation is."""
    return _Bytes(stored) == _Bytes(literal(clean_message(value, limit), String))


def _same_boolean(stored: ColumnElement[str], value: bool) -> ColumnElement[bool]:
    # SQLite extracts 1 and 0, the others the words.
    return stored.in_(["true", "1"] if value else ["false", "0"])


def _same_integer(stored: ColumnElement[str], value: int) -> ColumnElement[bool]:
    if not -(1 << 63) <= value < 1 << 63:
        return false()
    return cast(stored, _EXACT) == literal(value, BigInteger)  # bound as a Numeric, it would be a float to SQLite


def _same_float(stored: ColumnElement[str], value: float) -> ColumnElement[bool]:
    return cast(stored, Double) == literal(value, Double) if math.isfinite(value) else false()


# bool first, because it is a subclass of int.
_KINDS: Final[tuple[tuple[type, str, Callable[[ColumnElement[str], Any], ColumnElement[bool]]], ...]] = (
    (bool, "boolean", _same_boolean),
    (int, "number", _same_integer),
    (float, "number", _same_float),
    (str, "string", same_text),
)
