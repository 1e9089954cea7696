"""Private attributes of the database drivers: a release that renames one fails here, by its name."""

import pytest
from sqlalchemy import create_engine

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
