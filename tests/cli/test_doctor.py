"""`agentexec-otel doctor`: each thing that can be wrong is found, with its fix, and nothing is changed."""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.cells import cell_len
from sqlalchemy import make_url, text

import agentexec_otel as ax
from tests.cli.terminal import Done, Terminal, run
from tests.databases import Database
from tests.sql.rows import count_rows

pytestmark = pytest.mark.one_python

TABLES = "agentexec_activity, agentexec_activity_log"


def doctor(url: str | None = None) -> tuple[int, dict[str, list[tuple[str, str, str | None]]]]:
    """The exit code, and by check what was found: level, text and fix."""
    done = run("doctor", "--json", url=url)
    assert done.err == ""
    found: dict[str, list[tuple[str, str, str | None]]] = {}
    for one in done.json["findings"]:
        found.setdefault(one["check"], []).append((one["level"], one["text"], one["fix"]))
    assert done.json["ok"] is (done.code == 0)
    return done.code, found


@contextmanager
def role(database: Database, *grants: str) -> Generator[str]:
    """The URL for a role of PostgreSQL that has these rights, and a password."""
    name = f"agentexec_doctor_{os.getpid()}"
    with database.engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD 'canary-secret'"))
        for grant in grants:
            connection.execute(text(f"GRANT {grant} TO {name}"))
    try:
        url = make_url(database.url).set(username=name, password="canary-secret")
        yield url.render_as_string(hide_password=False)
    finally:
        with database.engine.begin() as connection:
            connection.execute(text(f"DROP OWNED BY {name}"))
            connection.execute(text(f"DROP ROLE {name}"))


def contents(database: Database) -> object:
    """All that a check could leave: rows, tables, and the revision."""
    with database.engine.connect() as connection:
        tables = sorted(database.engine.dialect.get_table_names(connection))
    return count_rows(database.engine), tables, ax.db.current(database.engine)


def test_sound_installation(database: Database) -> None:
    """Nothing to mend: exit code 0, and the database is as before."""
    ax.db.stamp(database.engine)
    before = contents(database)
    code, found = doctor(database.url)
    assert code == 0
    assert {level for findings in found.values() for level, _, _ in findings} == {"ok"}
    assert [fix for findings in found.values() for _, _, fix in findings if fix] == []
    assert found["rights"] == [("ok", "SELECT, INSERT, UPDATE, DELETE work", None)]
    assert list(found) == ["database", "schema", "rights", "spool", "exporters", "tracing", "agents", "settings"]
    assert contents(database) == before


# -- database --------------------------------------------------------------------------------------------------------


def test_no_database(tmp_path: Path) -> None:
    """None is named, or one that is not supported, has no file or does not answer. No file is made."""
    for url, said, fix in (
        (None, "no database is named", "give --database, or set AGENTEXEC_DATABASE_URL"),
        ("oracle://db/x", "'oracle' is not supported", "use PostgreSQL, MySQL, MariaDB or SQLite"),
        (f"sqlite:///{tmp_path}/none.db", f"there is no file {tmp_path}/none.db", "create it with"),
        ("postgresql://u:canary@127.0.0.1:1/x", "Connection refused", "start the database, or correct the host"),
    ):
        code, found = doctor(url)
        ((level, told, remedy),) = found["database"]
        assert (code, level) == (1, "error")
        assert said in told
        assert fix in str(remedy)
        assert "canary" not in str(found)
        assert "schema" not in found
    assert list(tmp_path.glob("*.db")) == []


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_wrong_password(database: Database) -> None:
    """The server's words and the fix, without the password."""
    url = make_url(database.url).set(username="agentexec_no_such_user", password="canary-secret")
    code, found = doctor(url.render_as_string(hide_password=False))
    assert code == 1
    ((level, told, fix),) = found["database"]
    assert (level, fix) == ("error", "correct the user or the password in the URL, or let the server admit them")
    assert "Access denied for user 'agentexec_no_such_user'" in told
    assert "canary" not in str(found)


# -- schema ----------------------------------------------------------------------------------------------------------


def test_missing_tables(empty_database: Database) -> None:
    """Each table that is missing, with the command that makes it."""
    empty_database.engine.connect().close()
    Path(str(make_url(empty_database.url).database)).touch()
    code, found = doctor(empty_database.url)
    assert code == 1
    assert [told for _, told, _ in found["schema"]] == [
        "the table agentexec_activity is missing",
        "the table agentexec_activity_log is missing",
    ]
    assert {(level, fix) for level, _, fix in found["schema"]} == {
        ("error", "run agentexec-otel db upgrade, or ax.db.upgrade(engine)")
    }
    assert "rights" not in found


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_older_schema(database: Database) -> None:
    """Without a column that storing needs the check fails; if only the revision is old, it warns."""
    ax.db.stamp(database.engine, "0002")
    code, found = doctor(database.url)
    assert code == 0
    ((level, told, fix),) = found["schema"]
    assert (level, told) == ("warning", "the tables have the revision 0002, and this version wants 0003")
    assert str(fix).startswith("run agentexec-otel db upgrade")
    ax.db.stamp(database.engine)
    ax.db.downgrade(database.engine)
    code, found = doctor(database.url)
    assert code == 1
    assert {level for level, _, _ in found["schema"]} == {"error"}
    assert all(str(fix).startswith("run agentexec-otel db upgrade") for _, _, fix in found["schema"])


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_newer_schema(database: Database) -> None:
    """A later version has upgraded the tables: as long as they can be written, a warning that says what to install."""
    ax.db.stamp(database.engine)
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE agentexec_alembic_version SET version_num = '0999'"))
    code, found = doctor(database.url)
    assert code == 0
    assert found["schema"] == [
        ("warning", "the tables have the revision 0999, of a later version", "install that version of agentexec-otel")
    ]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_missing_index(database: Database) -> None:
    """An index that is missing is a warning."""
    ax.db.stamp(database.engine)
    with database.engine.begin() as connection:
        connection.execute(text("DROP INDEX ix_agentexec_activity_status_created_at"))
    code, found = doctor(database.url)
    assert code == 0
    ((level, told, fix),) = found["schema"]
    assert (level, fix) == ("warning", "run agentexec-otel db upgrade")
    assert "ix_agentexec_activity_status_created_at" in told


# -- rights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
@pytest.mark.parametrize(
    ("grants", "errors", "warnings"),
    [
        ([f"SELECT ON {TABLES}"], ["INSERT", "UPDATE"], ["DELETE"]),
        ([f"SELECT, INSERT, UPDATE ON {TABLES}"], ["INSERT"], ["DELETE"]),  # no right to the sequence of the ids
        ([f"SELECT, INSERT, UPDATE ON {TABLES}", "USAGE ON SEQUENCE agentexec_activity_log_id_seq"], [], ["DELETE"]),
        ([], ["SELECT", "INSERT", "UPDATE"], ["DELETE"]),
    ],
    ids=["read only", "no sequence", "no delete", "none"],
)
def test_missing_rights(database: Database, grants: list[str], errors: list[str], warnings: list[str]) -> None:
    """Each right that is missing. Without that to DELETE, activities are stored as well."""
    before = contents(database)
    with role(database, *grants) as url:
        code, found = doctor(url)
    assert code == bool(errors)
    for level, names in (("error", errors), ("warning", warnings)):
        denied = [(told, fix) for found_level, told, fix in found["rights"] if found_level == level]
        assert [told.partition(" fails: permission denied")[0] for told, _ in denied] == names
        assert {fix for _, fix in denied} <= {"grant the user SELECT, INSERT, UPDATE and DELETE on the tables"}
    assert "canary" not in str(found)
    assert contents(database) == before


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_server_that_only_reads(database: Database) -> None:
    """A standby, or a database that was set read-only."""
    with database.engine.begin() as connection:
        connection.execute(
            text(f"ALTER DATABASE {make_url(database.url).database} SET default_transaction_read_only = on")
        )
    code, found = doctor(database.url)
    assert code == 1
    assert [told.split()[0] for level, told, _ in found["rights"] if level == "error"] == ["INSERT", "UPDATE"]


# -- spool -----------------------------------------------------------------------------------------------------------


def test_spool_that_cannot_be_written(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Storing works without it, so that it is a warning."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(ax.CONF, "spool_dir", str(tmp_path / "file" / "spool"))
    code, found = doctor(url)
    ((level, told, fix),) = found["spool"]
    assert (code, level) == (0, "warning")
    assert told.startswith("accepted events are kept in memory only: ")
    assert str(fix).endswith("name another directory in AGENTEXEC_SPOOL_DIR")
    monkeypatch.setattr(ax.CONF, "spool_dir", "off")
    assert doctor(url)[1]["spool"][0][0] == "ok"


def test_spool_on_a_full_disk(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less space than the spool may take."""
    monkeypatch.setattr(ax.CONF, "spool_max_bytes", 1 << 60)
    code, found = doctor(url)
    ((level, _, fix),) = found["spool"]
    assert (code, level, fix) == (0, "warning", "free some space, or lower AGENTEXEC_SPOOL_MAX_BYTES")


# -- environment -----------------------------------------------------------------------------------------------------


def test_misspelt_variables(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with the name that may be meant. No value is shown."""
    monkeypatch.setenv("AGENTEXEC_DATABSE_URL", "canary")
    monkeypatch.setenv("AGENTEXEC_QQQQQQ", "canary")
    monkeypatch.setenv("AGENTEXEC_PROGRESS", "steps")
    code, found = doctor(url)
    assert code == 0
    assert [(level, fix) for level, _, fix in found["settings"]] == [
        ("warning", "rename it to AGENTEXEC_DATABASE_URL"),
        ("warning", "remove it"),
        ("ok", None),
    ]
    assert found["settings"][0][1].startswith("AGENTEXEC_DATABSE_URL is no setting")
    assert "AGENTEXEC_PROGRESS" in found["settings"][2][1]
    assert "canary" not in str(found)


def test_exporters_of_opentelemetry(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter that is not installed, and a disabled SDK."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "agentexec_sql, otlp,unheard_of,none")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    code, found = doctor(url)
    assert code == 0
    warnings = [(told, fix) for level, told, fix in found["tracing"] if level == "warning"]
    assert [fix for _, fix in warnings] == ["unset it", "correct the name, or install its package"]
    assert "unheard_of" in warnings[1][0]


def test_framework_of_another_version(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An installed framework that is not supported, with the command that installs one that is."""
    info = tmp_path / "openai_agents-0.99.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: openai-agents\nVersion: 0.99\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    code, found = doctor(url)
    ((level, told, fix),) = found["agents"]
    assert (code, level, told) == (0, "warning", "openai-agents 0.99 is not supported")
    assert str(fix).startswith("pip install 'openai-agents")


# -- what it looks like ----------------------------------------------------------------------------------------------


def test_in_a_terminal(url: str) -> None:
    """80 columns, no word is broken, and the last line sums up."""
    variables = {"AGENTEXEC_DATABSE_URL": "canary", "OTEL_TRACES_EXPORTER": "unheard_of"}
    with Terminal("doctor", url=url, variables=variables, rows=60) as terminal:
        assert terminal.end() == 0
        lines = [line for line in terminal.lines if line]
    assert all(cell_len(line) <= 80 for line in lines)
    words = {word for line in lines for word in line.split()}
    assert {"→", "AGENTEXEC_DATABASE_URL", "OTEL_TRACES_EXPORTER", "TracerProvider"} <= words
    assert lines[-1].strip() == "activities can be stored: 0 errors, 2 warnings"


def test_in_a_pipe(url: str) -> None:
    """One line for each finding, and one for its fix."""
    done: Done = run("doctor", url=url)
    assert (done.code, done.err) == (0, "")
    assert done.lines[0].startswith("database  ok: SQLite ")
    assert done.lines[-1].strip() == "activities can be stored: 0 errors, 0 warnings"
