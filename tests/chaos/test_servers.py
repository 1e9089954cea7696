"""Pre-forking servers whose application was configured before the fork."""

import subprocess
import sys
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import agentexec_otel as ax
from tests.chaos.journal import compare, promised
from tests.chaos.law import settled
from tests.chaos.private import free_port
from tests.chaos.processes import ROOT, await_that, environment_with
from tests.databases import Database

pytestmark = pytest.mark.one_python

POSTGRES = pytest.mark.parametrize("database", ["postgres"], indirect=True)
LINES = 7


@POSTGRES
def test_gunicorn_prefork(database: Database, tmp_path: Path) -> None:
    """Two workers of a preloaded application: every line is stored once, and the server ends in good time."""
    pytest.importorskip("gunicorn", reason="gunicorn is not installed")
    port = free_port()
    journal = tmp_path / "journal"
    arguments = ["-m", "gunicorn", "--preload", "-w", "2", "-b", f"127.0.0.1:{port}", "tests.chaos.wsgi_app:app"]
    environment = {"CHAOS_URL": database.url, "CHAOS_JOURNAL": str(journal)}
    with command(tmp_path / "out", arguments, environment) as server:
        await_that(lambda: get(port), 60, "the server's start")
        answers = [get(port) for _ in range(20)]
        server.terminate()
        assert server.wait(20) == 0, said(tmp_path)
    assert None not in answers
    verdict = compare(database.engine, [journal])
    assert verdict.sound, (verdict, said(tmp_path))
    assert verdict.accepted == 21 * LINES


@POSTGRES
@pytest.mark.slow
def test_celery_prefork(database: Database, tmp_path: Path) -> None:
    """Children that are replaced after two tasks, without any clean-up: what they had not stored is replayed."""
    pytest.importorskip("celery", reason="celery is not installed")
    journal = tmp_path / "journal"
    environment = {"CHAOS_URL": database.url, "CHAOS_JOURNAL": str(journal), "CHAOS_FOLDER": str(tmp_path)}
    send = "from tests.chaos.celery_app import work; [work.delay(n) for n in range(6)]"
    with command(tmp_path / "out", ["-c", send], environment) as sender:
        assert sender.wait(60) == 0, said(tmp_path)
    arguments = ["-m", "celery", "-A", "tests.chaos.celery_app", "worker", "-P", "prefork", "-c", "2"]
    options = ["--max-tasks-per-child", "2", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    with command(tmp_path / "out", [*arguments, *options], environment) as server:
        await_that(lambda: accepted(journal) == 6 * LINES, 90, "the sixth task")
        server.terminate()
        assert server.wait(30) == 0, said(tmp_path)
    ax.configure(database.url)
    ax.recover()
    settled()
    verdict = compare(database.engine, [journal])
    assert verdict.sound, (verdict, said(tmp_path))


@contextmanager
def command(out: Path, arguments: list[str], environment: dict[str, str]) -> Generator[subprocess.Popen[bytes]]:
    """Somebody else's program, started as its users start it; all it says goes to one file."""
    with out.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=output, stderr=output, cwd=ROOT, env=environment_with(environment)
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def said(folder: Path) -> str:
    return (folder / "out").read_text()


def accepted(journal: Path) -> int:
    return sum(map(len, promised([journal]).values()))


def get(port: int) -> str | None:
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as answer:
        body: bytes = answer.read()
        return body.decode()
    return None
