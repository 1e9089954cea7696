"""Indexes on the metadata keys that `AGENTEXEC_INDEXED_METADATA` names: their DDL, and the filter that uses them.

An index has one text per row, made by the same SQL expression in the index and in the filter: the type of the value, in
one letter, and the value. Equal values have equal texts: ``7`` and ``7.0`` are both ``n7``. PostgreSQL and SQLite index
the expression. MariaDB, and MySQL with it, index a virtual column.

The indexes are no part of the models, which know neither the database nor later changes of the setting. They are made
after the table, also if the application creates it with `create_all()`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final
from zlib import crc32

from sqlalchemy import DDL, ColumnElement, Connection, SQLColumnExpression, String, Table, event, literal_column
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from agentexec_otel._config import CONF
from agentexec_otel.activity.models import Activity, constraint_name

_TABLE: Final = Activity.__tablename__
MYSQL: Final = ("mysql", "mariadb")
MOST_CHARACTERS: Final = 200
"""Of a string, so that the text fits the index of each database. PostgreSQL refuses rows with more than 2,704 bytes."""

# Without LIKE and %, which drivers take for parameters. An exponent of two digits cannot overflow a double.
_WHOLE: Final = "^-?[0-9]{1,30}$"
_FLOAT: Final = "^-?[0-9]{1,30}([.][0-9]{1,30})?([eE][-+]?[0-9]{1,2})?$"
_LEAST: Final = -(1 << 63)
_ABOVE: Final = 1 << 63


def _postgresql(json: str, key: str) -> str:
    text = f"({json} ->> '{key}')"
    double = f"CAST({text} AS FLOAT8)"
    return f"""CASE json_typeof({json} -> '{key}')
 WHEN 'string' THEN 's' || left({text}, {MOST_CHARACTERS})
 WHEN 'boolean' THEN 'b' || {text}
 WHEN 'number' THEN 'n' || CASE
 WHEN {text} ~ '{_WHOLE}' THEN CAST(CAST({text} AS NUMERIC) AS TEXT)
 WHEN {text} ~ '{_FLOAT}' THEN CASE
 WHEN {double} = trunc({double}) AND {double} >= {_LEAST} AND {double} < {_ABOVE}
 THEN CAST(CAST({double} AS BIGINT) AS TEXT) END END END"""


def _sqlite(json: str, key: str) -> str:
    value = f"""json_extract({json}, '$."{key}"')"""
    return f"""CASE json_type({json}, '$."{key}"')
 WHEN 'text' THEN 's' || substr({value}, 1, {MOST_CHARACTERS})
 WHEN 'true' THEN 'btrue' WHEN 'false' THEN 'bfalse'
 WHEN 'integer' THEN 'n' || {value}
 WHEN 'real' THEN CASE WHEN {value} = CAST({value} AS INTEGER) THEN 'n' || CAST({value} AS INTEGER) END END"""


def _mariadb(json: str, key: str) -> str:
    value = f"""JSON_EXTRACT({json}, '$."{key}"')"""
    text = f"JSON_UNQUOTE({value})"
    double = f"CAST({text} AS DOUBLE)"
    return f"""CASE JSON_TYPE({value})
 WHEN 'STRING' THEN CONCAT('s', LEFT({text}, {MOST_CHARACTERS}))
 WHEN 'BOOLEAN' THEN CONCAT('b', {text})
 ELSE CONCAT('n', CASE
 WHEN {text} REGEXP '{_WHOLE}' THEN CAST({text} AS DECIMAL(30))
 WHEN {text} REGEXP '{_FLOAT}' THEN CASE
 WHEN {double} = FLOOR({double}) AND {double} >= {_LEAST} AND {double} < {_ABOVE}
 THEN CAST({double} AS SIGNED) END END) END"""


_TEXT: Final = {"postgresql": _postgresql, "sqlite": _sqlite, "mysql": _mariadb, "mariadb": _mariadb}


class _IndexedText(FunctionElement[str]):
    """What the index has for a row. Its clauses are the metadata and the key.

    The key is written into the statement: planners look for the expression of the index as it is.
    """

    inherit_cache = True
    type = String()


@compiles(_IndexedText)
def _compile_text(element: _IndexedText, compiler: SQLCompiler, **kwargs: Any) -> str:
    json, key = element.clauses
    index = MetadataIndex(compiler.process(key, **kwargs))
    if compiler.dialect.name in MYSQL:
        return f"{_TABLE}.{index.column}"
    return f"({index.text(compiler.dialect.name, compiler.process(json, **kwargs))})"


@dataclass(frozen=True, slots=True)
class MetadataIndex:
    """The index on a metadata key, in the order of pages: its text, `created_at`, `id`."""

    key: str

    @property
    def name(self) -> str:
        """Its name in the database."""
        return constraint_name(f"ix_{_TABLE}_{self.column}")

    @property
    def column(self) -> str:
        """The virtual column of MariaDB and MySQL."""
        plain = re.sub("[^a-z0-9]+", "_", self.key.lower())
        return constraint_name(f"metadata_{plain if plain == self.key else f'{plain}_{crc32(self.key.encode()):08x}'}")

    def text(self, dialect: str, json: str = "metadata") -> str:
        """The SQL expression of the text that is indexed."""
        return _TEXT[dialect](json, self.key)

    def add_column(self, dialect: str) -> list[str]:
        """The DDL of the virtual column, if the database needs one."""
        if dialect not in MYSQL:
            return []
        kind = f"VARBINARY({1 + 4 * MOST_CHARACTERS}) GENERATED ALWAYS AS ({self.text(dialect)}) VIRTUAL"
        return [f"ALTER TABLE {_TABLE} ADD COLUMN {self.column} {kind}"]

    def create(self, dialect: str, *, concurrently: bool = False) -> str:
        """The DDL of the index."""
        indexed = self.column if dialect in MYSQL else f"({self.text(dialect)})"
        how = "INDEX CONCURRENTLY" if concurrently and dialect == "postgresql" else "INDEX"
        return f"CREATE {how} {self.name} ON {_TABLE} ({indexed}, created_at, id)"


INDEX_PREFIX: Final = f"ix_{_TABLE}_metadata_"[:54]
"""What the names of these indexes start with, also shortened ones."""
COLUMN_PREFIX: Final = "metadata_"


def metadata_indexes() -> list[MetadataIndex]:
    """The indexes that `AGENTEXEC_INDEXED_METADATA` asks for."""
    return [MetadataIndex(key) for key in CONF.indexed_metadata]


def is_on_metadata(kind: str, name: str | None, table: str | None) -> bool:
    """Whether Alembic has found one of these indexes, or its virtual column."""
    prefix = {"index": INDEX_PREFIX, "column": COLUMN_PREFIX}.get(kind)
    return prefix is not None and table == _TABLE and name is not None and name.startswith(prefix)


def indexed_text(metadata: SQLColumnExpression[Any], key: str) -> ColumnElement[str]:
    """What the index has for a row."""
    return _IndexedText(metadata, literal_column(key, String))


def text_of(value: str | bool | int) -> str:
    """What the index has for a row with this value. Of a long string, only the beginning."""
    if isinstance(value, str):
        return f"s{value[:MOST_CHARACTERS]}"
    return f"b{value}".lower() if isinstance(value, bool) else f"n{value}"


def _create_indexes(_table: Table, connection: Connection, **_: Any) -> None:
    dialect = connection.dialect.name
    for index in metadata_indexes():
        for statement in (*index.add_column(dialect), index.create(dialect)):
            connection.execute(DDL(statement))  # type: ignore[no-untyped-call]


event.listen(Activity.__table__, "after_create", _create_indexes)
