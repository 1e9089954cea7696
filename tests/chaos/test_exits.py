"""However a process ends: what it reported is stored, or in the spool for the next one."""

import json
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity.models import Activity
from tests.chaos import leaver
from tests.chaos.conftest import ONE_FIRST
from tests.chaos.journal import compare
from tests.chaos.law import settled
from tests.chaos.processes import Program
from tests.chaos.proxy import Proxy
from tests.databases import Database

IN_GOOD_ORDER = (
    "end",
    "sys.exit",
    "exception",
    "SIGTERM with handler",
    "SIGTERM installed",
    "SIGTERM chained",
    "SIGINT",
)
AT_ONCE = ("os._exit", "SIGTERM", "SIGKILL")
EXIT_CODES = {"exception": 1, "SIGTERM installed": -15, "SIGINT": -2, "SIGTERM": -15, "SIGKILL": -9}


def leave(folder: Path, url: str, how: str, **options: object) -> Program:
    journal = folder / f"{how.replace(' ', '-')}.journal"
    arguments = {"url": url, "journal": str(journal), "how": how, **options}
    return Program(folder / how, "leaver", json.dumps(arguments))


def journals(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.journal*"))


@ONE_FIRST
def test_every_way_to_end(database: Database, tmp_path: Path) -> None:
    """In good order everything is stored, without a word; at once, the next process finds it in the spool.

    A child of multiprocessing, however it was started, ends in good order. Who does gives its leases back: what it only
    reported on is RUNNING still, and nobody will call it lost.
    """
    orderly = [*IN_GOOD_ORDER, *leaver.METHODS]
    with ExitStack() as stack:
        programs = {how: stack.enter_context(leave(tmp_path, database.url, how)) for how in orderly}
        for how, program in programs.items():
            assert program.join(60) == EXIT_CODES.get(how, 0), (how, program.stderr)
            assert "agentexec" not in program.stderr.replace("agentexec_test", ""), (how, program.stderr)
        assert programs["SIGTERM chained"].stdout == "pending 0\n"
    verdict = compare(database.engine, journals(tmp_path))
    assert verdict.sound, verdict
    assert verdict.accepted == (len(orderly) + 1) * (leaver.LINES + 1)
    assert leases(database) == 0
    with ExitStack() as stack:
        programs = {how: stack.enter_context(leave(tmp_path, database.url, how)) for how in AT_ONCE}
        for how, program in programs.items():
            assert program.join(60) == EXIT_CODES.get(how, 0), (how, program.stderr)
    ax.configure(database.url)
    ax.recover()
    settled()
    verdict = compare(database.engine, journals(tmp_path))
    assert verdict.sound, verdict
    assert verdict.accepted == (len(orderly) + 1 + len(AT_ONCE)) * (leaver.LINES + 1)


TROUBLES = [(how, trouble) for how in ("end", "SIGTERM installed") for trouble in ("black hole", "slow", "refused")]


@pytest.mark.parametrize(
    ("database", "how", "trouble", "seconds"),
    [
        ("postgres", "end", "black hole", 1.5),
        ("mariadb", "end", "black hole", 1.5),
        ("postgres", "SIGTERM installed", "slow", 1.5),
        ("postgres", "end", "refused", 1.5),
        *(
            pytest.param(kind, *one, 5.0, marks=pytest.mark.slow)
            for kind in ("postgres", "mariadb")
            for one in TROUBLES
        ),
    ],
    indirect=["database"],
)
def test_an_exit_without_a_database(
    database: Database, proxy: Proxy, tmp_path: Path, how: str, trouble: str, seconds: float
) -> None:
    """The exit takes `AGENTEXEC_SHUTDOWN_TIMEOUT` (5 s; bound here: 4 s more), one line says what stays in the spool,
    and the next start stores it."""
    with leave(tmp_path, proxy.url, how, wait=True, shutdown=seconds) as program:
        program.says("ready")
        if trouble == "slow":
            proxy.delay = 20.0
        else:
            proxy.blackhole() if trouble == "black hole" else proxy.refuse()
        began = time.monotonic()
        program.tell("go")
        program.join(30)
        took = time.monotonic() - began
        (line,) = [line for line in program.stderr.splitlines() if "kept in" in line]
        assert f"{leaver.LINES} activity events" in line
        assert len(program.stderr.splitlines()) <= 3, program.stderr
    proxy.delay = 0.0
    proxy.let_pass()
    ax.configure(proxy.url)
    ax.recover()
    settled()
    verdict = compare(database.engine, journals(tmp_path))
    assert verdict.sound, verdict
    assert took < seconds + 4.0
    print(f"{trouble}, {how}: the exit took {took:.2f} s")


def leases(database: Database) -> int:
    with Session(database.engine) as session:
        statement = select(func.count()).select_from(Activity).where(Activity.lease_expires_at.is_not(None))
        return session.scalar(statement) or 0
