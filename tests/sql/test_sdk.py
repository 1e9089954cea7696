"""Private attributes of SQLAlchemy and the database drivers: a release that renames one fails here, by its name."""

import pytest
from sqlalchemy import and_, create_engine

from agentexec_otel.activity import Activity
from agentexec_otel.activity._sdk import form_of
from agentexec_otel_exporters.sql.connect import _sdk
from tests.databases import Database

NEEDED = {
    "mariadb": ("_sock", "PyMySQL: the socket that is shut down if a connection hangs"),
    "postgres": ("pgconn", "psycopg: the number of the socket that is shut down if a connection hangs (public)"),
}


@pytest.mark.parametrize("database", NEEDED, indirect=True)
def test_driver_attributes(database: Database) -> None:
    """Each attribute that `_sdk` reads is there on a new connection, and leads to its socket."""
    attribute, reason = NEEDED[database.kind]
    engine = create_engine(database.url)
    with engine.connect() as connection:
        driver = connection.connection.dbapi_connection
        assert hasattr(driver, attribute), f"{attribute} is gone. {reason}"
        assert _sdk.file_descriptor(driver), reason
    engine.dispose()
    assert _sdk.file_descriptor(driver) is None


def test_form_of_criteria() -> None:
    """`ClauseElement._generate_cache_key` is there: equal for criteria that differ in values, which it lists."""
    first, second = (form_of(and_(Activity.agent_type == name, Activity.attempt > 1)) for name in ("a", "b"))
    assert first is not None
    assert second is not None
    assert first[0] == second[0]
    assert ([one.value for one in first[1]], [one.value for one in second[1]]) == (["a", 1], ["b", 1])
    other = form_of(and_(Activity.agent_type == "a", Activity.attempt < 1))
    assert other is not None
    assert other[0] != first[0]
