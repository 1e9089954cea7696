"""Metadata filters as SQL, with bound values, checked keys and JSON types on every database."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
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

from agentexec_otel._config import CONF
from agentexec_otel._model.text import METADATA_KEY, clean_message, describe, is_a, pairs, plain_str
from agentexec_otel.activity._metadata_indexes import MOST_CHARACTERS, indexed_text, text_of
from agentexec_otel.activity.models import Activity

# Exact for 64-bit integers, unlike a double. MySQL needs a precision, with which PostgreSQL overflows.
_EXACT: Final = Numeric().with_variant(DECIMAL(65, 20), "mysql", "mariadb")
# The column of the table: an attribute of the model would send every page through the ORM.
_METADATA: Final = Activity.__table__.c.metadata
_LONGEST: Final = 16_384
_SQLITE_TYPES: Final = {"string": ("text",), "integer": ("integer",), "float": ("real",), "boolean": ("true", "false")}
_POSTGRESQL_TYPES: Final = {"string": ("string",), "number": ("number",), "boolean": ("boolean",)}
_MYSQL_TYPES: Final = {
    "string": ("STRING",), "number": ("INTEGER", "UNSIGNED INTEGER", "DOUBLE", "DECIMAL"), "boolean": ("BOOLEAN",),
}  # fmt: skip


class _JSONType(FunctionElement[str]):
    """The JSON type of the value under a key: ``string``, ``integer``, ``float``, ``boolean``, another one or NULL.

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
        found = f"({compiler.process(column, **kwargs)} -> {compiler.process(key, **kwargs)})"
        return _renamed(f"json_typeof({found})", _POSTGRESQL_TYPES, f"CAST({found} AS TEXT) ~")
    found = f"{compiler.process(column, **kwargs)}, {compiler.process(path, **kwargs)}"
    if compiler.dialect.name == "sqlite":
        return _renamed(f"json_type({found})", _SQLITE_TYPES)
    # MariaDB calls 1e300 an integer.
    found = f"JSON_EXTRACT({found})"
    return _renamed(f"JSON_TYPE({found})", _MYSQL_TYPES, f"JSON_UNQUOTE({found}) REGEXP")


def _renamed(expression: str, names: Mapping[str, Sequence[str]], matches: str = "") -> str:
    """Our name of a JSON type. A number is a float if its text, which `matches` matches, has a point or an exponent."""
    number = f"CASE WHEN {matches} '[.eE]' THEN 'float' ELSE 'integer' END"
    cases = (
        f"WHEN '{name}' THEN {number if ours == 'number' else repr(ours)}" for ours in names for name in names[ours]
    )
    return f"CASE {expression} {' '.join(cases)} END"


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
    wanted = pairs("metadata_filter", metadata_filter) if is_a(metadata_filter, Mapping) else []
    if not wanted:  # a missing tenant must not mean all tenants
        found = "empty" if is_a(metadata_filter, Mapping) else describe(metadata_filter)
        raise ValueError(f'metadata_filter is {found}: pass a dict such as {{"tenant": "a"}}')
    return [_criterion(key, value) for key, value in wanted]


def _criterion(given_key: object, value: Any) -> ColumnElement[bool]:
    key = plain_str(given_key)
    if key is None or not METADATA_KEY.fullmatch(key):
        shown = describe(given_key)
        raise ValueError(f"metadata_filter has the key {shown}: use letters, digits, _ . : / - and spaces only")
    if key in CONF.indexed_metadata and (indexed := _indexed(key, value)) is not None:
        return indexed
    json_type = _JSONType(_METADATA, literal(key, String), literal(f'$."{key}"', String))
    stored = _METADATA[key]
    for kind, equal in _KINDS:
        if is_a(value, kind):
            return equal(json_type, stored, value)
    raise ValueError(f"metadata_filter[{key!r}] is {describe(value)}: filter by a string, a number or a boolean")


def _indexed(key: str, value: Any) -> ColumnElement[bool] | None:
    """The criterion as the index of the key answers it. None for a fraction and for other types."""
    text = indexed_text(_METADATA, key)
    if is_a(value, str):
        wanted = clean_message(value, _LONGEST)
        found = text == _Bytes(literal(text_of(wanted), String))
        # A second criterion has PostgreSQL guess that few rows are left, and sort them all instead of stopping early.
        return found if len(wanted) < MOST_CHARACTERS else and_(found, _same_text(_METADATA[key].as_string(), wanted))
    number = is_a(value, int) or is_a(value, float)
    whole = value if is_a(value, bool) else _as_integer(value) if number else None
    return None if whole is None else text == _Bytes(literal(text_of(whole), String))


def _same_text(stored: SQLColumnExpression[Any], value: str) -> ColumnElement[bool]:
    """Whether a column has this text, as `clean_message` stores it. Compares bytes, whatever the collation is."""
    return _Bytes(stored) == _Bytes(literal(clean_message(value, _LONGEST), String))


def _is_string(json_type: ColumnElement[str], stored: Any, value: str) -> ColumnElement[bool]:
    return and_(json_type == "string", _same_text(stored.as_string(), value))


def _is_boolean(json_type: ColumnElement[str], stored: Any, value: bool) -> ColumnElement[bool]:
    # SQLite extracts 1 and 0, the others the words.
    return and_(json_type == "boolean", stored.as_string().in_(["true", "1"] if value else ["false", "0"]))


def _is_number(json_type: ColumnElement[str], stored: Any, value: int | float) -> ColumnElement[bool]:
    """Whether a JSON number has this value: an integer exactly, and what is written as a float as a double.

    The text of a double may be another number: 2.0**60 is written 1.152921504606847e+18.
    """
    # CASE, because AND may evaluate the value first, and a text must not be cast to a number.
    cases: list[tuple[ColumnElement[bool], ColumnElement[bool]]] = []
    if (whole := _as_integer(value)) is not None:
        # Bound as a Numeric, the value would be a float to SQLite.
        cases.append((json_type == "integer", cast(stored.as_string(), _EXACT) == literal(whole, BigInteger)))
    if (double := _as_double(value)) is not None:
        cases.append((json_type == "float", stored.as_float() == literal(double, Double)))
    return case(*cases, else_=false()) if cases else false()


def _as_integer(value: int | float) -> int | None:
    """The same number as an integer of 64 bits; None if it is not one. Larger ones are stored as text."""
    if isinstance(value, float) and not float.is_integer(value):
        return None
    whole = float.__int__(value) if isinstance(value, float) else int.__int__(value)
    return whole if -(1 << 63) <= whole < 1 << 63 else None


def _as_double(value: int | float) -> float | None:
    """The same number as a finite double; None if there is none."""
    if isinstance(value, float):
        double = float.__float__(value)
        return double if math.isfinite(double) else None
    whole = int.__int__(value)
    with suppress(OverflowError):
        if int(float(whole)) == whole:
            return float(whole)
    return None


# bool first, because it is a subclass of int.
_KINDS: Final[tuple[tuple[type, Callable[[ColumnElement[str], Any, Any], ColumnElement[bool]]], ...]] = (
    (bool, _is_boolean),
    (int, _is_number),
    (float, _is_number),
    (str, _is_string),
)
