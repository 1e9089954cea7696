"""`agentexec-otel db`: the migrations from a terminal."""

import json
from pathlib import Path

import pytest
from sqlalchemy import create_engine

import agentexec_otel as ax
from tests.cli import terminal
from tests.sql.foreign import activities, agentexec

pytestmark = pytest.mark.one_python


def run(*arguments: str, url: str | None = None) -> tuple[int, str, str]:
    """The exit code and what is printed; `url` is the database of the settings."""
    ax.CONF.database_url = url
    done = terminal.run("db", *arguments)
    return done.code, done.out, done.err


def test_life_of_a_schema(tmp_path: Path) -> None:
    """Each command does what its function does, with the database of the option or of the settings."""
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
