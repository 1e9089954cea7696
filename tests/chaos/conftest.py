"""A proxy before the database under test."""

from collections.abc import Iterator

import pytest

from tests.chaos.proxy import Proxy
from tests.databases import Database

POSTGRES_FIRST = pytest.mark.parametrize(
    "database", ["postgres", pytest.param("mariadb", marks=pytest.mark.slow)], indirect=True
)
MARIADB_FIRST = pytest.mark.parametrize(
    "database", ["mariadb", pytest.param("postgres", marks=pytest.mark.slow)], indirect=True
)
ONE_FIRST = pytest.mark.parametrize(
    "database",
    ["postgres", pytest.param("sqlite", marks=pytest.mark.slow), pytest.param("mariadb", marks=pytest.mark.slow)],
    indirect=True,
)
SERVERS = pytest.mark.parametrize("database", ["postgres", "mariadb"], indirect=True)


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    """Stands between the code under test and the server; the test itself looks past it."""
    with Proxy(database.url) as running:
        yield running
