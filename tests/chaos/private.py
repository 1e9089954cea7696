"""Database servers of a test's own, to be killed and started again."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from tests.chaos.processes import await_that


class Server:
    """A server that dies as on a power failure, and comes back.

    Attributes:
        url: A database on it.
    """

    url: str

    def start(self) -> None:
        """Return once it answers."""
        raise NotImplementedError

    def crash(self) -> None:
        """Without a word to its clients, and without writing anything back."""
        raise NotImplementedError


class PostgreSQL(Server):
    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self._user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        self.url = f"postgresql+psycopg://{self._user}@127.0.0.1:{self._port}/postgres"
        _own(folder, self._user)
        self._run("initdb", "-D", f"{folder}/data", "-A", "trust")
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        path = shutil.which(program) or str(sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))[-1])
        command = [path, *arguments] if os.geteuid() else ["runuser", "-u", self._user, "--", path, *arguments]
        subprocess.run(command, check=True, cwd=self._folder, stdout=subprocess.DEVNULL)

    def start(self) -> None:
        options = f"-p {self._port} -k {self._folder} -h 127.0.0.1"
        log = f"{self._folder}/log"
        self._run("pg_ctl", "-D", f"{self._folder}/data", "-l", log, "-o", options, "-w", "start")

    def crash(self) -> None:
        self._run("pg_ctl", "-D", f"{self._folder}/data", "-m", "immediate", "stop")


class MariaDB(Server):
    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self._user = "mysql" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        self.url = f"mysql+pymysql://root@127.0.0.1:{self._port}/chaos"
        _own(folder, self._user)
        subprocess.run(
            ["mariadb-install-db", *self._options, "--auth-root-authentication-method=normal"],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.start()

    @property
    def _options(self) -> Sequence[str]:
        return ("--no-defaults", f"--user={self._user}", f"--datadir={self._folder}/data")

    def start(self) -> None:
        program = shutil.which("mariadbd") or "/usr/sbin/mariadbd"
        place = [f"--port={self._port}", f"--socket={self._folder}/socket", "--bind-address=127.0.0.1"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen([program, *self._options, *place], stdout=log, stderr=log)
        await_that(self._answers, 60, "MariaDB's answer")

    def _answers(self) -> bool:
        engine = create_engine(self.url.rpartition("/")[0] + "/mysql", isolation_level="AUTOCOMMIT")
        with suppress(DBAPIError), engine.connect() as connection:
            connection.execute(text("CREATE DATABASE IF NOT EXISTS chaos"))
            return True
        engine.dispose()
        return False

    def crash(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


KINDS = {"postgres": (PostgreSQL, "pg_ctl"), "mariadb": (MariaDB, "mariadbd")}


@contextmanager
def private_server(kind: str) -> Generator[Server]:
    """A fresh server; skips the test where its programs are not installed."""
    make, program = KINDS[kind]
    elsewhere = [*Path("/usr/lib/postgresql").glob(f"*/bin/{program}"), *Path("/usr/sbin").glob(program)]
    if shutil.which(program) is None and not elsewhere:
        pytest.skip(f"{program} is not installed")
    # Not below pytest's folder, which is closed to the server's user.
    folder = Path(tempfile.mkdtemp(prefix="agentexec-chaos-"))
    try:
        server = make(folder)
        try:
            yield server
        finally:
            server.crash()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _own(folder: Path, user: str) -> None:
    (folder / "data").mkdir(mode=0o700)
    if os.geteuid() == 0:
        for path in (folder, folder / "data"):
            shutil.chown(path, user)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port: int = chosen.getsockname()[1]
        return port
