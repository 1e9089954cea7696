"""Secrets are found nowhere; what is on the disk is its user's alone; the rights that are needed are few."""

import json
import os
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from sqlalchemy import Engine, make_url, select, text
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity.models import Activity, ActivityLog, Status
from tests.chaos.law import settled
from tests.chaos.processes import Program
from tests.chaos.proxy import Proxy
from tests.databases import Database

pytestmark = pytest.mark.one_python

KEY = "sk-proj-CANARYq8Zr4Tn6Wb1Xk5Vm9Lp3Hs7Jd2"
PASSWORD = "CANARY-hunter2-pa55word"
HEADER = "CANARYheaderToken1234567890abcdef"
POSTGRES = pytest.mark.parametrize("database", ["postgres"], indirect=True)


class Collector:
    """Keeps the bodies of whatever is sent to it."""

    def __init__(self) -> None:
        bodies = self.bodies = list[bytes]()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.close()


@POSTGRES
def test_the_canary_is_found_nowhere(database: Database, proxy: Proxy, collector: Collector, tmp_path: Path) -> None:
    """Secrets in a message, an error, metadata, a task's name, SQLAlchemy's parameters, the database's URL and an OTLP
    header: none in the tables, the spool, the dead letters, the exported spans and log records, our logs, `health()`.
    """
    with database.engine.begin() as connection:
        connection.execute(
            text("ALTER TABLE agentexec_activity_log ADD CONSTRAINT refuse CHECK (message NOT LIKE 'poison%')")
        )
    url = make_url(proxy.url).set(password=PASSWORD).render_as_string(hide_password=False)
    options = {"url": url, "otlp": collector.url, "key": KEY, "password": PASSWORD, "header": HEADER}
    with Program(tmp_path / "out", "canary", json.dumps(options)) as program:
        program.says("away")
        proxy.refuse()
        program.tell("go")
        program.says("spooled")
        spool = tmp_path / "state"
        on_disk = b"".join(path.read_bytes() for path in spool.rglob("*") if path.is_file())
        assert b"mysql://" in on_disk  # the lines are there
        assert {stat.S_IMODE(path.stat().st_mode) for path in spool.rglob("*") if path.is_file()} == {0o600}
        folders = [path for path in spool.rglob("*") if path.is_dir()]
        assert {stat.S_IMODE(path.stat().st_mode) for path in folders if path.parent != spool} == {0o700}
        proxy.let_pass()
        program.tell("go")
        assert program.join(60) == 0, program.stderr
        health = json.loads(program.stdout.splitlines()[-1])
    (exporter,) = health["exporters"]
    assert exporter["dead_lettered"] == 1
    assert len(collector.bodies) > 5
    stored = dump(database.engine)
    assert "again with" in stored
    for name, haystack in {
        "database": stored.encode(),
        "spool": on_disk,
        "dead letters": b"".join(path.read_bytes() for path in spool.rglob("dead-letters.jsonl")),
        "otlp": b"".join(collector.bodies),
        "stderr": program.stderr.encode(),
        "health": json.dumps(health).encode(),
    }.items():
        assert haystack, name
        assert b"CANARY" not in haystack, (name, around(haystack))


@POSTGRES
def test_a_role_with_few_rights_is_enough(database: Database) -> None:
    """SELECT, INSERT, UPDATE on two tables and USAGE of a sequence: a whole life, a retry, a sweep, a bulk cancel."""
    role = f"agentexec_least_{os.getpid()}"
    grants = (
        f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'",
        f"GRANT USAGE ON SCHEMA public TO {role}",
        f"GRANT SELECT, INSERT, UPDATE ON agentexec_activity, agentexec_activity_log TO {role}",
        f"GRANT USAGE ON SEQUENCE agentexec_activity_log_id_seq TO {role}",
    )
    with database.engine.begin() as connection:
        for statement in grants:
            connection.execute(text(statement))
    try:
        ax.configure(make_url(database.url).set(username=role, password=PASSWORD))
        with ax.activity.run("task", metadata={"tenant": 1}) as run:
            run.update("half way", 50)
        assert ax.activity.retry(run.agent_id) == 2
        ax.activity.update(run.agent_id, "again")
        assert ax.activity.error(run.agent_id)
        ax.activity.create("waiting")
        assert ax.activity.reap() == 0
        assert ax.activity.cancel_pending() == 1
        settled()
        with Session(database.engine) as session:
            assert session.scalars(select(Activity.status).order_by(Activity.id)).all() == [
                Status.ERROR,
                Status.CANCELED,
            ]
        ax.shutdown()
    finally:
        with database.engine.begin() as connection:
            connection.execute(text(f"DROP OWNED BY {role}"))
            connection.execute(text(f"DROP ROLE {role}"))


def dump(engine: Engine) -> str:
    """Every column of both tables."""
    with Session(engine) as session:
        rows = [
            *session.execute(select(Activity.__table__)),
            *session.execute(select(ActivityLog.__table__)),
        ]
    return "\n".join(map(repr, rows))


def around(haystack: bytes) -> bytes:
    at = haystack.index(b"CANARY")
    return haystack[max(0, at - 100) : at + 60]
