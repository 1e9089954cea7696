"""`agentexec-otel db`: the migrations from a terminal."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine

import agentexec_otel as ax
from tests.sql.foreign import activities, agentexec

pytestmark = pytest.mark.one_python

COMMAND = Path(sys.executable).with_name("agentexec-otel")


def run(*arguments: str, url: str | None = None) -> tuple[int, str, str]:
    environment = {name: value for name, value in os.environ.items() if name != "AGENTEXEC_DATABASE_URL"}
    if url is not None:
        environment["AGENTEXEC_DATABASE_URL"] = url
    done = subprocess.run(
        [str(COMMAND), "db", *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


def test_life_of_a_schema(tmp_path: Path) -> None:
    """Each command does what its function does, with the database of the option or of the environment."""
    url = f"sqlite:///{tmp_path / 'app.db'}"
    engine = create_engine(url)
    agentexec(engine, activities(5))
    assert run("current", url=url) == (0, "none\n", "")
    assert run("upgrade", "--pre-deploy", "--database", url) == (0, "none → 0002\n", "")
    code, printed, _ = run("check", url=url)
    assert (code, "wants 0003" in printed) == (1, True)
    assert run("upgrade", "-d", url) == (0, "0002 → 0003\n", "")
    assert run("check", url=url) == (0, "the tables are up to date\n", "")
    assert run("downgrade", url=url) == (0, "0003 → 0001\n", "")
    assert run("stamp", "0002", url=url) == (0, "0001 → 0002\n", "")
    assert ax.db.current(engine) == "0002"
    assert run("sql", "--from", "0002", url=url) == (0, ax.db.sql(engine, start="0002"), "")
    code, printed, _ = run("sql", "--from", "0002", "--json", url=url)
    assert (code, json.loads(printed)) == (0, {"sql": ax.db.sql(engine, start="0002")})
    code, printed, _ = run("stamp", "0003", "--json", url=url)
    assert (code, json.loads(printed)) == (0, {"before": "0002", "after": "0003"})
    engine.dispose()


def test_errors_are_one_line(tmp_path: Path) -> None:
    """Without a database, with an unknown revision, or with one that is away: one line, and the exit code 1."""
    url = f"sqlite:///{tmp_path / 'app.db'}"
    for arguments, words in [
        (["current"], "give --database, or set AGENTEXEC_DATABASE_URL"),
        (["stamp", "x", "-d", url], "'x' is no revision"),
        (["upgrade", "-d", f"sqlite:///{tmp_path}/none/app.db"], "unable to open database file"),
        (["current", "-d", "postgresql+psycopg://u@127.0.0.1:1/x"], "away or busy"),
    ]:
        code, printed, complaint = run(*arguments)
        assert (code, printed) == (1, "")
        assert words in complaint
        assert len(complaint.splitlines()) == 1
