"""Makes schema 1 of the tables of agentexec, and of those that the page "Activity tracking" prints.

Their tables are renamed, ours are created and filled, and theirs are dropped. On PostgreSQL and SQLite this is one
transaction. MariaDB commits each step: after a crash, the next upgrade starts with the renamed tables again.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Integer,
    String,
    TableClause,
    Text,
    case,
    cast,
    column,
    exists,
    false,
    func,
    insert,
    inspect,
    literal,
    null,
    select,
    table,
    text,
    type_coerce,
    update,
)
from sqlalchemy.engine.reflection import Inspector

from agentexec_otel._errors import ConfigurationError
from agentexec_otel.activity.models import UtcDateTime
from agentexec_otel_exporters.sql.migrations.convert import Conversions, conversions
from agentexec_otel_exporters.sql.migrations.schema_1 import ACTIVITY, LOG, METADATA

_OLD: Final = {ACTIVITY.name: f"{ACTIVITY.name}_adopted", LOG.name: f"{LOG.name}_adopted"}
_KNOWN: Final = {
    ACTIVITY.name: {"id", "agent_id", "agent_type", "created_at", "updated_at", "metadata"},
    LOG.name: {"id", "activity_id", "message", "status", "percentage", "created_at"},
}
_STATUSES: Final = ("QUEUED", "RUNNING", "COMPLETE", "ERROR", "CANCELED")
_RANKS: Final = {"QUEUED": 0, "RUNNING": 1}
_NAMELESS: Final = "unknown"


def adopt(connection: Connection) -> None:
    """Replace the tables of another program by ours, with all rows. Do nothing if there are none.

    Raises:
        ConfigurationError: The tables have something that ours cannot keep. Nothing was changed.
    """
    present = set(inspect(connection).get_table_names())
    if not present >= set(_OLD.values()):
        if _OLD[ACTIVITY.name] in present:  # Killed before the last step.
            connection.execute(text(f"DROP TABLE {_OLD[ACTIVITY.name]}"))
        if not present.intersection(_OLD) or _is_ours(inspect(connection)):
            return
        _refuse_what_would_be_lost(connection, present)
        _rename(connection)
    with conversions(connection) as convert:
        old = _old_tables(inspect(connection))
        _drop_partial_copy(connection, old, convert)
        METADATA.create_all(connection)
        _copy_activities(connection, old, convert)
        _copy_logs(connection, old, convert)
        _materialize(connection)
    for name in (_OLD[LOG.name], _OLD[ACTIVITY.name]):
        connection.execute(text(f"DROP TABLE {name}"))


def _is_ours(inspector: Inspector) -> bool:
    typical = {ACTIVITY.name: "last_seq", LOG.name: "seq"}
    return any(inspector.has_table(name) and one in _columns(inspector, name) for name, one in typical.items())


def _columns(inspector: Inspector, name: str) -> dict[str, Any]:
    return {found["name"]: found["type"] for found in inspector.get_columns(name)}


# -- what ours could not keep --------------------------------------------------------------------------------------


def _refuse_what_would_be_lost(connection: Connection, present: set[str]) -> None:
    inspector = inspect(connection)
    for name, known in _KNOWN.items():
        if name not in present:
            raise ConfigurationError(
                f"the table {name} is missing beside {', '.join(set(_KNOWN) - {name})}: restore it"
            )
        if unknown := sorted(set(_columns(inspector, name)) - known):
            raise ConfigurationError(
                f"the table {name} has columns of another program ({', '.join(unknown)}), which would be lost:"
                " move them to a table of your own, or set AGENTEXEC_TABLE_PREFIX to another prefix"
            )
    for (_, name), keys in inspector.get_multi_foreign_keys().items():
        if name not in _KNOWN and any(key["referred_table"] in _KNOWN for key in keys):
            raise ConfigurationError(
                f"the table {name} refers to ours: drop its foreign key, and add it again afterwards"
            )
    _refuse_logs(connection)


def _refuse_logs(connection: Connection) -> None:
    log, activity = table(LOG.name, column("status"), column("activity_id")), table(ACTIVITY.name, column("id"))
    status = func.upper(cast(log.c.status, String(255)))
    if others := sorted(connection.scalars(select(status).where(status.not_in(_STATUSES)).distinct())):
        raise ConfigurationError(f"{LOG.name} has the unknown status {', '.join(map(repr, others))}: correct it first")
    known = exists().where(activity.c.id == log.c.activity_id)
    if orphans := connection.scalar(select(func.count()).select_from(log).where(~known)):
        raise ConfigurationError(f"{orphans} rows of {LOG.name} belong to no activity: delete them first")


# -- rename ----------------------------------------------------------------------------------------------------------


def _rename(connection: Connection) -> None:
    dialect = connection.dialect.name
    if dialect in ("mysql", "mariadb"):  # both, or none
        pairs = ", ".join(f"{name} TO {old}" for name, old in _OLD.items())
        connection.execute(text(f"RENAME TABLE {pairs}"))
        return
    for name, old in _OLD.items():
        _free_names(connection, name)
        connection.execute(text(f"ALTER TABLE {name} RENAME TO {old}"))


def _free_names(connection: Connection, name: str) -> None:
    """Make room for our indexes: their names are those of a schema, not of a table."""
    if connection.dialect.name == "sqlite":
        for index in inspect(connection).get_indexes(name):
            connection.execute(text(f'DROP INDEX "{index["name"]}"'))
        return
    indexes = text(
        "SELECT c.oid, c.oid::regclass::text FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid"
        " WHERE i.indrelid = CAST(:name AS regclass)"
    )
    for oid, index in connection.execute(indexes, {"name": name}).all():
        connection.execute(text(f"ALTER INDEX {index} RENAME TO adopted_{oid}"))
    if sequence := connection.scalar(text("SELECT pg_get_serial_sequence(:name, 'id')"), {"name": name}):
        connection.execute(text(f"ALTER SEQUENCE {sequence} RENAME TO {name}_id_adopted"))


# -- copy ------------------------------------------------------------------------------------------------------------

_Old = Mapping[str, tuple[TableClause, Mapping[str, Any]]]
"""The renamed tables by the name of ours, each with the types of its columns."""


def _old_tables(inspector: Inspector) -> _Old:
    old: dict[str, tuple[TableClause, Mapping[str, Any]]] = {}
    for name, renamed in _OLD.items():
        types = _columns(inspector, renamed)
        columns: list[Any] = [column(one) for one in types]
        old[name] = (table(renamed, *columns), types)
    return old


def _drop_partial_copy(connection: Connection, old: _Old, convert: Conversions) -> None:
    """Drop what an upgrade that was killed has copied, but nothing that was stored since."""
    theirs, _ = old[ACTIVITY.name]
    stored_since = select(func.count()).where(ACTIVITY.c.id.not_in(select(convert.uuid(theirs.c.id))))
    if inspect(connection).has_table(ACTIVITY.name) and (count := connection.scalar(stored_since)):
        raise ConfigurationError(
            f"{count} activities were stored after an upgrade was killed: move them out of {ACTIVITY.name}, stop the"
            " programs that write to it, and upgrade again"
        )
    METADATA.drop_all(connection)


def _copy_activities(connection: Connection, old: _Old, convert: Conversions) -> None:
    theirs, types = old[ACTIVITY.name]
    created_at = func.coalesce(convert.moment(theirs.c.created_at, types["created_at"]), _now())
    agent_type = func.coalesce(func.substr(theirs.c.agent_type, 1, 255), _NAMELESS)
    values: dict[str, Any] = {
        "id": convert.uuid(theirs.c.id),
        "agent_id": convert.uuid(theirs.c.agent_id),
        "agent_type": agent_type,
        "created_at": created_at,
        "updated_at": func.coalesce(convert.moment(theirs.c.updated_at, types["updated_at"]), created_at),
    }
    if "metadata" in types:
        # They store None as the JSON value null.
        plain = cast(theirs.c.metadata, Text)
        values["metadata"] = case((plain == "null", null()), else_=type_coerce(theirs.c.metadata, JSON))
    _insert(connection, ACTIVITY, values, select(*values.values()))


def _copy_logs(connection: Connection, old: _Old, convert: Conversions) -> None:
    theirs, types = old[LOG.name]
    owner, owner_types = old[ACTIVITY.name]
    created_at = func.coalesce(
        convert.moment(theirs.c.created_at, types["created_at"]),
        convert.moment(owner.c.created_at, owner_types["created_at"]),
        _now(),
    )
    status = func.upper(cast(theirs.c.status, String(16)))
    counted = isinstance(types["id"], Integer)
    # Random ids order nothing, and MariaDB has kept whole seconds: then the progress says which came first.
    progress = [case(_RANKS, value=status, else_=2), func.coalesce(theirs.c.percentage, -1)]
    order = [created_at, *([] if counted else progress), theirs.c.id]
    values: dict[str, Any] = {
        "activity_id": convert.uuid(theirs.c.activity_id),
        "message": theirs.c.message,
        "status": status,
        "percentage": case((theirs.c.percentage < 0, 0), (theirs.c.percentage > 100, 100), else_=theirs.c.percentage),
        "created_at": created_at,
        "seq": func.row_number().over(partition_by=theirs.c.activity_id, order_by=order),
        "event_id": convert.digest(theirs.c.id) if counted else convert.uuid(theirs.c.id),
        "attempt": literal(1),
        "late": false(),
    }
    if counted:
        values["id"] = theirs.c.id
    rows = theirs.join(owner, owner.c.id == theirs.c.activity_id)
    _insert(connection, LOG, values, select(*values.values()).select_from(rows).order_by(*order))
    if counted and connection.dialect.name == "postgresql":
        following = "SELECT setval(pg_get_serial_sequence(:name, 'id'), (SELECT MAX(id) FROM {}))"
        connection.execute(text(following.format(LOG.name)), {"name": LOG.name})


def _insert(connection: Connection, into: Any, values: Mapping[str, Any], rows: Any) -> None:
    connection.execute(insert(into).from_select(list(values), rows, include_defaults=False))


def _now() -> ColumnElement[datetime]:
    return literal(datetime.now(UTC), UtcDateTime)


def _materialize(connection: Connection) -> None:
    """Put on each activity what its logs say: the last one has its status, as agentexec shows it."""
    own = LOG.c.activity_id == ACTIVITY.c.id
    last_seq = select(func.max(LOG.c.seq)).where(own).scalar_subquery()
    started_at = select(func.min(LOG.c.created_at)).where(own, LOG.c.status == "RUNNING").scalar_subquery()
    percentage = (
        select(LOG.c.percentage).where(own, LOG.c.percentage.is_not(None)).order_by(LOG.c.seq.desc()).limit(1)
    ).scalar_subquery()
    connection.execute(
        update(ACTIVITY).values(
            last_seq=func.coalesce(last_seq, 0), started_at=started_at, latest_percentage=percentage
        )
    )
    status = select(LOG.c.status).where(own, LOG.c.seq == ACTIVITY.c.last_seq).scalar_subquery()
    connection.execute(update(ACTIVITY).values(status=func.coalesce(status, "QUEUED")))
