"""Withdrawing a creation whose caller was told that it is not stored."""

import os
import threading
import time
from uuid import uuid4

import pytest
from sqlalchemy import make_url, text

from agentexec_otel.activity.models import Status
from agentexec_otel.export import Ack, Opening
from agentexec_otel_exporters.sql import SQLExporter
from tests.databases import Database
from tests.sql.rows import count_rows, event, lines, opening, row

pytestmark = pytest.mark.one_python


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


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_role_that_may_not_delete(database: Database) -> None:
    """Without the right to DELETE the activity is ended as CANCELED, and nothing waits for that right."""
    role = f"agentexec_no_delete_{os.getpid()}"
    tables = "agentexec_activity, agentexec_activity_log"
    with database.engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN"))
        connection.execute(text(f"GRANT SELECT, INSERT, UPDATE ON {tables} TO {role}"))
        connection.execute(text(f"GRANT USAGE ON SEQUENCE agentexec_activity_log_id_seq TO {role}"))
    exporter = SQLExporter(make_url(database.url).set(username=role))
    try:
        created, other = opening(), opening()
        exporter.export([created])
        results = exporter.export([created._replace(withdraws=True), other])
        assert [type(result) for result in results] == [Ack, Ack]
        assert [(log.status, log.message) for log in lines(database.engine, created.agent_id)] == [
            (Status.QUEUED, "queued"),
            (Status.CANCELED, "Given up: stored too late."),
        ]
        assert row(database.engine, other.agent_id).status is Status.QUEUED
    finally:
        exporter.shutdown(1.0)
        with database.engine.begin() as connection:
            connection.execute(text(f"DROP OWNED BY {role}"))
            connection.execute(text(f"DROP ROLE {role}"))
