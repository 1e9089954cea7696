"""The server itself dies, as on a power failure, and comes back after half a minute."""

import time
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

import agentexec_otel as ax
from tests.chaos.journal import compare
from tests.chaos.law import assert_conserved, settled
from tests.chaos.private import private_server
from tests.chaos.processes import journals, producer

pytestmark = pytest.mark.one_python

SECONDS = 30


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
def test_a_server_that_dies_loses_nothing(kind: str, tmp_path: Path) -> None:
    """`pg_ctl stop -m immediate` and kill -9, 200 events a second: what was accepted is stored once, in order."""
    with private_server(kind) as server:
        engine = create_engine(server.url, poolclass=NullPool)
        ax.Base.metadata.create_all(engine)
        with producer(tmp_path, server.url, "survivor") as survivor, producer(tmp_path, server.url, "victim") as victim:
            survivor.says("ready")
            victim.says("ready")
            time.sleep(2)
            server.crash()
            time.sleep(SECONDS / 2)
            victim.kill()
            time.sleep(SECONDS / 2)
            server.start()
            time.sleep(5)
            survivor.stop()
            report = survivor.report()
            assert report["flushed"]
            assert_conserved(report["health"], report["metrics"])
            assert len(survivor.stderr.splitlines()) <= 5, survivor.stderr
        ax.configure(server.url)
        ax.recover()
        settled()
        ax.shutdown()
        verdict = compare(engine, journals(tmp_path))
        engine.dispose()
        assert verdict.sound, verdict
        print(verdict)
