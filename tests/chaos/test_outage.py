"""The database is away: nothing is lost, doubled or disordered, and nobody is shouted at."""

import sqlite3
import time
from pathlib import Path

import pytest
from sqlalchemy import func, make_url, select
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity.models import Activity, ActivityLog
from tests.chaos.conftest import SERVERS
from tests.chaos.journal import compare, promised
from tests.chaos.law import assert_conserved, settled
from tests.chaos.processes import await_that, journals, producer
from tests.chaos.proxy import Proxy
from tests.databases import Database

pytestmark = pytest.mark.one_python

SECONDS = pytest.mark.parametrize("seconds", [5, pytest.param(60, marks=pytest.mark.slow)])
LOCKED = pytest.mark.parametrize("seconds", [3, pytest.param(20, marks=pytest.mark.slow)])
DRAINED_WITHIN = 5.0


@SERVERS
@SECONDS
def test_an_outage_loses_nothing(database: Database, proxy: Proxy, tmp_path: Path, seconds: float) -> None:
    """200 events a second and no database: 0 lost, 0 doubled, order kept, no holes, drained within 5 s of its return.

    A producer that is killed in the middle is replayed by the next process.
    """
    with producer(tmp_path, proxy.url, "survivor") as survivor, producer(tmp_path, proxy.url, "victim") as victim:
        survivor.says("ready")
        victim.says("ready")
        time.sleep(0.5)
        proxy.refuse()
        time.sleep(seconds / 2)
        victim.kill()
        time.sleep(seconds / 2)
        proxy.let_pass()
        waiting = accepted(tmp_path / "survivor.journal")
        drained = await_that(lambda: stored(database, "survivor", tmp_path) >= waiting, 30, "the drain")
        survivor.stop()
        report = survivor.report()
        ax.configure(proxy.url)
        ax.recover()
        settled()
        assert report["flushed"]
        assert_conserved(report["health"], report["metrics"])
        verdict = compare(database.engine, journals(tmp_path))
        assert verdict.accepted > seconds * 50
        assert verdict.sound, verdict
        assert drained < DRAINED_WITHIN
        assert len(survivor.stderr.splitlines()) <= 5, survivor.stderr
        print(f"{verdict}, drained in {drained:.2f} s, slowest call {report['slowest_ms']:.1f} ms")


@LOCKED
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_locked_sqlite_file_loses_nothing(database: Database, tmp_path: Path, seconds: float) -> None:
    """Somebody holds an exclusive lock (a backup, a VACUUM): the same as an outage."""
    with producer(tmp_path, database.url, "one", rate=200) as one:
        one.says("ready")
        time.sleep(0.3)
        with sqlite3.connect(make_url(database.url).database or "", timeout=30) as locked:
            locked.isolation_level = None
            locked.execute("BEGIN EXCLUSIVE")
            time.sleep(seconds)
            locked.execute("COMMIT")
        locked.close()
        waiting = accepted(tmp_path / "one.journal")
        drained = await_that(lambda: stored(database, "one", tmp_path) >= waiting, 30, "the drain")
        one.stop()
        report = one.report()
        assert_conserved(report["health"], report["metrics"])
        verdict = compare(database.engine, journals(tmp_path))
        assert verdict.sound, verdict
        assert verdict.accepted > seconds * 50
        assert drained < DRAINED_WITHIN
        assert len(one.stderr.splitlines()) <= 5, one.stderr
        print(f"{verdict}, drained in {drained:.2f} s, slowest call {report['slowest_ms']:.1f} ms")


def accepted(journal: Path) -> int:
    return sum(map(len, promised([journal]).values()))


def stored(database: Database, name: str, folder: Path) -> int:
    """How many of this producer's lines the database has."""
    ids = list(promised([folder / f"{name}.journal"]))
    with Session(database.engine) as session:
        statement = select(func.count()).select_from(ActivityLog).join(Activity).where(Activity.agent_id.in_(ids))
        return session.scalar(statement) or 0
