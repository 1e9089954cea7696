"""The activity page's schemas and tables are the ones that there are."""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast
from uuid import UUID

import pytest
from pydantic import BaseModel
from sqlalchemy import Engine, Table, TypeDecorator, func, inspect, select
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity import schemas
from agentexec_otel.activity.models import Activity, ActivityLog, Status
from tests.databases import Database
from tests.docs.blocks import Block
from tests.docs.page import on_sqlite, run_as_written, runs

SCHEMAS: dict[str, type[BaseModel]] = {
    name: getattr(schemas, name)
    for name in ("ActivityDetailSchema", "ActivityListItemSchema", "ActivityListSchema", "ActivityLogSchema")
}
PYTHON_TYPES = {"UUID": UUID, "VARCHAR": str, "TEXT": str, "TIMESTAMP": datetime, "INTEGER": int, "SERIAL": int}

_TABLE = re.compile(r"CREATE TABLE (\w+) \((.*?)\n\);", re.DOTALL)
_COLUMN = re.compile(r"^\s+(?P<name>\w+) (?P<type>[A-Z]+)(?P<rules>[^,\n]*)", re.MULTILINE)
_REFERENCE = re.compile(r"REFERENCES (\w+)\((\w+)\)")
_INDEX = re.compile(r"CREATE INDEX (\w+) ON (\w+)\((\w+)\);")


@dataclass(frozen=True, slots=True)
class Column:
    """A column as the page's SQL defines it."""

    name: str
    type: str
    rules: str


@dataclass(frozen=True, slots=True)
class Documented:
    """A table as the page's SQL defines it."""

    table: Table
    columns: tuple[Column, ...]
    index: tuple[str, str]


def documented_class(block: Block) -> type[BaseModel]:
    """The class of the block, its nested schemas being our real ones."""
    given = {**SCHEMAS, "BaseModel": BaseModel, "UUID": UUID, "datetime": datetime, "Status": Status}
    return cast("type[BaseModel]", run_as_written(block, given)[block.heading])


def read(block: Block) -> Documented:
    ((table, body),) = _TABLE.findall(block.code)
    ((index, indexed_table, indexed_column),) = _INDEX.findall(block.code)
    assert indexed_table == table
    columns = tuple(Column(m["name"], m["type"], m["rules"]) for m in _COLUMN.finditer(body))
    assert len(columns) == len(body.strip().splitlines())
    return Documented(ax.Base.metadata.tables[table], columns, (index, indexed_column))


def assert_fields_are_as_documented(block: Block) -> None:
    documented, real = documented_class(block), SCHEMAS[block.heading]
    ours = {name: field.annotation for name, field in real.model_fields.items()}
    ours |= {name: field.return_type for name, field in real.model_computed_fields.items()}
    theirs = {name: field.annotation for name, field in documented.model_fields.items()}
    assert {name: ours[name] for name in theirs} == theirs
    assert len(theirs) >= 5


@runs("ActivityDetailSchema")
@on_sqlite
def test_detail_schema(block: Block, names: dict[str, Any]) -> None:
    """`activity.detail()` returns every documented field, of the documented type, to Python and as JSON."""
    assert_fields_are_as_documented(block)
    agent_id = ax.activity.create("research")
    ax.activity.update(agent_id, "Half way", percentage=50)
    assert ax.flush()
    with Session(names["engine"]) as session:
        detail = ax.activity.detail(session, agent_id)
    assert type(detail) is schemas.ActivityDetailSchema
    as_documented = documented_class(block).model_validate_json(detail.model_dump_json())
    assert as_documented.model_dump(exclude={"logs"}) == detail.model_dump(
        include=set(type(as_documented).model_fields) - {"logs"}
    )


@runs("ActivityListSchema")
@on_sqlite
def test_list_schema(block: Block, names: dict[str, Any]) -> None:
    """`activity.list()` returns every documented field, of the documented type, to Python and as JSON."""
    assert_fields_are_as_documented(block)
    ax.activity.create("research")
    with Session(names["engine"]) as session:
        page = ax.activity.list(session, page=1, page_size=20)
    assert type(page) is schemas.ActivityListSchema
    as_documented = documented_class(block).model_validate_json(page.model_dump_json())
    assert as_documented.model_dump(exclude={"items"}) == {"total": 1, "page": 1, "page_size": 20, "pages": 1}


@runs("ActivityListItemSchema")
@on_sqlite
def test_list_item_schema(block: Block, names: dict[str, Any]) -> None:
    """An item of the list has every documented field, of the documented type, and its latest line."""
    assert_fields_are_as_documented(block)
    agent_id = ax.activity.create("research")
    with Session(names["engine"]) as session:
        (item,) = ax.activity.list(session).items
    assert (item.agent_id, item.agent_type, item.status) == (agent_id, "research", Status.QUEUED)
    assert (item.latest_log, item.latest_percentage) == ("Waiting to start.", None)
    documented_class(block).model_validate_json(item.model_dump_json())


@runs("ActivityLogSchema")
@on_sqlite
def test_log_schema(block: Block, names: dict[str, Any]) -> None:
    """A log entry has every documented field, of the documented type; its id is an integer."""
    assert_fields_are_as_documented(block)
    agent_id = ax.activity.create("research", "Go")
    with Session(names["engine"]) as session:
        detail = ax.activity.detail(session, agent_id)
        assert detail is not None
        (log,) = detail.logs
        assert session.scalar(select(ActivityLog.id)) == log.id
    assert (log.message, log.status, log.percentage) == ("Go", Status.QUEUED, None)
    documented_class(block).model_validate_json(log.model_dump_json())


@runs("Activity Table")
def test_activity_table(block: Block, database: Database) -> None:
    """The documented columns, key and index of the activity table exist in the database, as documented."""
    assert_is_in_database(read(block), database.engine)


@runs("ActivityLog Table")
def test_activity_log_table(block: Block, database: Database) -> None:
    """The documented columns, keys and index of the log table exist in the database, as documented."""
    assert_is_in_database(read(block), database.engine)
    statuses = re.search(r"-- ([A-Z, ]+)$", block.code, re.MULTILINE)
    assert statuses is not None
    assert statuses[1].split(", ") == [status.value for status in Status]


def test_documented_defaults(database: Database) -> None:
    """A row of which only the columns without a documented default are given gets its id and its times."""
    with Session(database.engine) as session:
        activity = Activity(agent_id=UUID(int=1), agent_type="research")
        activity.logs.append(ActivityLog(message="Go", status=Status.QUEUED, seq=1))
        session.add(activity)
        before = session.scalar(select(func.count()).select_from(Activity))
        session.commit()
        assert (before, isinstance(activity.id, UUID), activity.logs[0].percentage) == (1, True, None)
        assert (activity.created_at.utcoffset(), activity.updated_at.utcoffset()) == (
            activity.logs[0].created_at.utcoffset(),
        ) * 2


def assert_is_in_database(documented: Documented, engine: Engine) -> None:
    table = documented.table.name
    real = inspect(engine)
    columns = {column["name"]: column for column in real.get_columns(table)}
    for column in documented.columns:
        kind = documented.table.columns[column.name].type
        stored_as = kind.impl_instance if isinstance(kind, TypeDecorator) else kind
        assert stored_as.python_type is PYTHON_TYPES[column.type], column
        if "NOT NULL" in column.rules or "PRIMARY KEY" in column.rules:
            assert columns[column.name]["nullable"] is False, column
    assert_keys_are_in_database(documented, engine)


def assert_keys_are_in_database(documented: Documented, engine: Engine) -> None:
    table = documented.table.name
    real = inspect(engine)
    indexes = {index["name"]: index for index in real.get_indexes(table)}
    unique = [tuple(index["column_names"]) for index in indexes.values() if index["unique"]]
    unique += [tuple(constraint["column_names"]) for constraint in real.get_unique_constraints(table)]
    name, indexed = documented.index
    assert indexes[name]["column_names"][0] == indexed
    for column in documented.columns:
        if "PRIMARY KEY" in column.rules:
            assert real.get_pk_constraint(table)["constrained_columns"] == [column.name]
        if "UNIQUE" in column.rules:
            assert (column.name,) in unique
        if reference := _REFERENCE.search(column.rules):
            (key,) = real.get_foreign_keys(table)
            found = (key["constrained_columns"], key["referred_table"], key["referred_columns"])
            assert found == ([column.name], reference[1], [reference[2]])


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_metadata_is_never_serialised(name: str) -> None:
    """No schema has a field called metadata: it is shown only where it is asked for."""
    assert "metadata" not in SCHEMAS[name].model_json_schema(mode="serialization")["properties"]
