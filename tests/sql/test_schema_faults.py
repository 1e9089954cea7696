"""What the queries say about tables that are missing or older than this version."""

from collections.abc import Callable
from functools import partial
from uuid import uuid4

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

import agentexec_otel as ax
from agentexec_otel.activity import aio
from tests.databases import KINDS, Database

pytestmark = pytest.mark.one_python

QUERIES: list[Callable[[Session], object]] = [
    partial(ax.activity.get, agent_id=uuid4()),
    partial(ax.activity.detail, agent_id=uuid4()),
    partial(ax.activity.logs, agent_id=uuid4()),
    ax.activity.list,
    ax.activity.count_active,
    ax.activity.stats,
]
MISSING = "agentexec_activity and agentexec_activity_log are not there: .*agentexec-otel db upgrade, create_tables"
OLD = "lack columns of this version: run agentexec-otel db upgrade"


def make_old_tables(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE agentexec_activity (id INTEGER PRIMARY KEY, agent_type CHAR(32))"))
        connection.execute(text("CREATE TABLE agentexec_activity_log (id INTEGER PRIMARY KEY, message VARCHAR(99))"))


@pytest.mark.parametrize("words", [MISSING, OLD], ids=["missing", "old"])
def test_queries_name_the_remedy(empty: Engine, words: str) -> None:
    """Each query raises one sentence with the command to make or upgrade them, caused by the driver's error."""
    if words == OLD:
        make_old_tables(empty)
    for query in QUERIES:
        with Session(empty) as session, pytest.raises(ax.ConfigurationError, match=words) as caught:
            query(session)
        assert isinstance(caught.value.__cause__, DBAPIError)


@pytest.mark.parametrize("empty_database", KINDS, indirect=True)
@pytest.mark.parametrize("words", [MISSING, OLD], ids=["missing", "old"])
async def test_queries_of_asyncio_name_the_remedy(empty_database: Database, words: str) -> None:
    """With an asynchronous driver the sentence is the same."""
    if words == OLD:
        make_old_tables(empty_database.engine)
    engine = create_async_engine(empty_database.async_url, poolclass=NullPool)
    async with AsyncSession(engine) as session:
        with pytest.raises(ax.ConfigurationError, match=words):
            await (aio.get(session, uuid4()) if words == OLD else aio.count_active(session))
    await engine.dispose()


@pytest.mark.parametrize("empty", ["sqlite"], indirect=True)
def test_other_errors_of_queries_pass_through(empty: Engine) -> None:
    """An error of another kind, such as an interrupted statement, stays SQLAlchemy's."""
    ax.Base.metadata.create_all(empty)
    with Session(empty) as session:
        driver = session.connection().connection.driver_connection
        assert driver is not None
        driver.set_progress_handler(lambda: 1, 1)
        with pytest.raises(DBAPIError, match="interrupted"):
            ax.activity.count_active(session)
        driver.set_progress_handler(None, 0)
