"""Databases that fall silent: connections are cut, and `shutdown` returns, both in time."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy import event as events

import agentexec_otel as ax
from agentexec_otel.export import ExportError
from agentexec_otel_exporters.sql import SQLExporter
from agentexec_otel_exporters.sql.connect import DEADLINE, INTERVAL
from tests.chaos.conftest import SERVERS
from tests.chaos.proxy import Proxy
from tests.databases import Database
from tests.sql.rows import event, opening

pytestmark = pytest.mark.one_python

SLACK = 1.0
IN_TIME = 0.1


def url(proxy: Proxy) -> str:
    return proxy.url


def engine(proxy: Proxy) -> Engine:
    """An engine of the application, which sets no timeout."""
    return create_engine(proxy.url)


GIVEN = pytest.mark.parametrize("given", [url, engine])


@pytest.fixture
def exporters() -> Iterator[list[SQLExporter]]:
    """Exporters that are shut down at the end, whatever happens."""
    made: list[SQLExporter] = []
    yield made
    for exporter in made:
        exporter.shutdown(0.0)


def seconds(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def failing(work: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        with pytest.raises(ExportError):
            work()

    return run


@SERVERS
def test_a_frozen_connection_is_cut(database: Database, proxy: Proxy, exporters: list[SQLExporter]) -> None:
    """A transaction whose answers stop fails `DEADLINE` seconds after it began, and at most `INTERVAL` later."""
    exporters.append(exporter := SQLExporter(engine(proxy)))  # PyMySQL would have a read timeout by URL.
    exporter.export([opening(uuid4())])
    proxy.blackhole()
    took = seconds(failing(lambda: exporter.export([opening(uuid4())])))
    assert DEADLINE - SLACK < took < DEADLINE + INTERVAL + SLACK


@SERVERS
@GIVEN
def test_a_swallowed_connect_is_cut(
    database: Database, proxy: Proxy, given: Callable[[Proxy], Any], exporters: list[SQLExporter]
) -> None:
    """An attempt to connect that is accepted and never answered fails after `DEADLINE` seconds; no thread is left."""
    exporters.append(exporter := SQLExporter(given(proxy)))
    proxy.blackhole()
    threads = set(threading.enumerate())
    took = seconds(failing(lambda: exporter.export([opening(uuid4())])))
    assert DEADLINE - SLACK < took < DEADLINE + INTERVAL + SLACK
    left = {thread.name for thread in set(threading.enumerate()) - threads}
    assert left <= {"agentexec-watchdog", "proxy-pump"}
    proxy.let_pass()
    exporter.export([opening(uuid4())])


@SERVERS
def test_the_applications_own_connections_have_no_timeout(database: Database, proxy: Proxy) -> None:
    """An engine that is lent to the writer connects for the application as before."""
    lender = create_engine(proxy.url)
    asked: list[dict[str, Any]] = []
    ax.configure(lender)
    ax.activity.create("task")

    def remember(dialect: object, record: object, cargs: object, cparams: dict[str, Any]) -> None:
        asked.append({**cparams})

    events.listen(lender, "do_connect", remember)
    lender.connect().close()
    lender.dispose()
    assert not any("timeout" in name for name in asked[0])


Stuck = threading.Thread | None


def away(proxy: Proxy, exporter: SQLExporter) -> Stuck:
    """The server is gone."""
    exporter.export([opening(uuid4())])
    proxy.refuse()
    return None


def frozen_while_idle(proxy: Proxy, exporter: SQLExporter) -> Stuck:
    """The pool has a connection that no longer answers."""
    exporter.export([opening(uuid4())])
    proxy.blackhole()
    return None


def frozen_in_transaction(proxy: Proxy, exporter: SQLExporter) -> Stuck:
    """Another thread waits for an answer within a transaction."""
    exporter.export([opening(agent_id := uuid4())])
    proxy.hang_before(b"COMMIT")
    stuck = in_thread(lambda: exporter.export([event(agent_id)]))
    assert proxy.commit_tried.wait(5)
    return stuck


def swallowed(proxy: Proxy, exporter: SQLExporter) -> Stuck:
    """Another thread connects, and is never greeted: its attempt ends after `DEADLINE` seconds by itself."""
    proxy.blackhole()
    in_thread(lambda: exporter.export([opening(uuid4())]))
    time.sleep(0.2)
    return None


def in_thread(work: Callable[[], object]) -> threading.Thread:
    def run() -> None:
        with suppress(ExportError):
            work()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@SERVERS
@pytest.mark.parametrize("timeout", [0.0, 0.5])
@pytest.mark.parametrize("silent", [away, frozen_while_idle, frozen_in_transaction, swallowed])
def test_shutdown_of_the_exporter(
    database: Database, proxy: Proxy, silent: Callable[[Proxy, SQLExporter], Stuck], timeout: float
) -> None:
    """`SQLExporter.shutdown(timeout)` returns in time; a thread that is stuck in a transaction is released by it."""
    exporter = SQLExporter(proxy.url)
    stuck = silent(proxy, exporter)
    assert seconds(lambda: exporter.shutdown(timeout)) < timeout + IN_TIME
    if stuck is not None:
        stuck.join(1.0)
        assert not stuck.is_alive()


@SERVERS
def test_shutdown_lets_a_transaction_finish(database: Database, proxy: Proxy) -> None:
    """A transaction under way that the database answers, slowly, is committed within the time that is given."""
    exporter = SQLExporter(proxy.url)
    exporter.export([opening(agent_id := uuid4())])
    proxy.delay = 0.1
    results: list[Any] = []
    worker = threading.Thread(target=lambda: results.extend(exporter.export([event(agent_id)])))
    worker.start()
    time.sleep(0.05)
    assert seconds(lambda: exporter.shutdown(5.0)) < 2.0
    worker.join(1.0)
    assert len(results) == 1


@SERVERS
def test_shutdown_of_the_sdk(database: Database, proxy: Proxy) -> None:
    """`ax.shutdown(1.0)` takes no longer while the writer is stuck in a transaction on a frozen connection."""
    ax.configure(proxy.url)
    agent_id = ax.activity.create("task")
    proxy.hang_before(b"COMMIT")
    ax.activity.update(agent_id, "hangs")
    assert proxy.commit_tried.wait(5)
    assert seconds(lambda: ax.shutdown(1.0)) < 1.0 + 5 * IN_TIME


@SERVERS
def test_no_writer_is_left_behind(database: Database, proxy: Proxy) -> None:
    """After a shutdown that cuts the writer's connection, the writer is gone, too: nothing of it races the exit."""
    ax.configure(proxy.url)
    agent_id = ax.activity.create("task")
    proxy.hang_before(b"COMMIT")
    ax.activity.update(agent_id, "hangs")
    assert proxy.commit_tried.wait(5)
    assert not ax.shutdown(0.2)
    assert "agentexec-writer" not in {thread.name for thread in threading.enumerate()}
