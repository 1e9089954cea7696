"""Withdrawing a creation whose caller was told that it is not stored."""

import threading
import time
from collections.abc import Iterator
from uuid import uuid4

import pytest

from agentexec_otel._model.event import Opening, Status
from agentexec_otel.export import Ack
from agentexec_otel_exporters.sql import SQLExporter
from tests.databases import Database
from tests.sql.rows import count_rows, event, lines, opening, row


@pytest.fixture
def exporter(database: Database) -> Iterator[SQLExporter]:
    made = SQLExporter(database.url)
    yield made
    made.shutdown(1.0)


def test_creation_is_removed(database: Database, exporter: SQLExporter) -> None:
    """The row and its log are deleted, nothing else is, and the same id can be created in the same batch."""
    first, second, absent = opening(), opening(), opening()
    exporter.export([first, second])
    again = event(first.agent_id, Status.QUEUED, "again", opening=Opening("again"))
    withdrawn = [one._replace(withdraws=True) for one in (absent, first)]
    results = exporter.export([*withdrawn, again, event(second.agent_id)])
    assert results == [Ack(Status.QUEUED)] * 3 + [Ack(Status.RUNNING)]
    assert [log.message for log in lines(database.engine, first.agent_id)] == ["again"]
    assert row(database.engine, first.agent_id).agent_type == "again"
    assert count_rows(database.engine) == (2, 3)


def test_what_was_reported_stays(database: Database, exporter: SQLExporter) -> None:
    """Nothing is removed if something else was reported, or if another caller has created the activity."""
    reported, theirs, mine = opening(), opening(), opening()
    exporter.export([reported, event(reported.agent_id), theirs])
    withdrawn = [reported._replace(withdraws=True), mine._replace(agent_id=theirs.agent_id, withdraws=True)]
    assert exporter.export(withdrawn, replay=True) == [Ack(Status.RUNNING), Ack(Status.QUEUED)]
    assert count_rows(database.engine) == (2, 3)


def test_in_a_transaction_of_the_caller(database: Database, exporter: SQLExporter) -> None:
    """A withdrawal that is rolled back has not happened."""
    created = opening()
    exporter.export([created])
    for commit, left in ((False, 1), (True, 0)):
        with database.engine.connect() as connection:
            exporter.write_in(connection, [created._replace(withdraws=True)])
            connection.commit() if commit else connection.rollback()
        assert count_rows(database.engine) == (left, left)


@pytest.mark.parametrize("database", ["postgres", "mariadb"], indirect=True)
def test_creation_that_is_not_committed_yet(database: Database, exporter: SQLExporter) -> None:
    """A withdrawal waits for the transaction in which the creation is still under way, and removes what it commits."""
    created = opening(uuid4())
    other = SQLExporter(database.url)
    answers: list[object] = []
    with database.engine.connect() as connection:
        exporter.write_in(connection, [created])
        thread = threading.Thread(target=lambda: answers.extend(other.export([created._replace(withdraws=True)])))
        thread.start()
        time.sleep(0.3)
        assert thread.is_alive(), "it did not wait"
        connection.commit()
        thread.join(10)
    other.shutdown(1.0)
    assert answers == [Ack(Status.QUEUED)]
    assert count_rows(database.engine) == (0, 0)
