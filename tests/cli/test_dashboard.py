"""`agentexec-otel dashboard`, and `run --dashboard`: real processes, asked over HTTP."""

import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import httpx
import pytest

import agentexec_otel as ax
from tests.cli.terminal import COMMAND, Terminal, environment, run
from tests.conftest import reset_runtime

pytestmark = pytest.mark.one_python

ACT = {"X-AgentExec-Action": "test"}
TOKEN = "correct-horse"
RUNNING, QUEUED = UUID(int=1), UUID(int=2)


class Served:
    """A dashboard in a process of its own.

    Attributes:
        url: The address that it has printed.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.process = process
        self.said = process.stdout.readline()
        self.url = process.stdout.readline().strip()
        assert self.url.startswith("http://"), self.said + self.url

    def client(self, **headers: str) -> httpx.Client:
        """A client that knows no token."""
        return httpx.Client(base_url=self.url.partition("?")[0], headers=headers, timeout=30)


@contextmanager
def served(url: str, *options: str, **variables: str) -> Generator[Served]:
    """Serve at any free port, and end."""
    with subprocess.Popen(
        [str(COMMAND), "dashboard", "--port", "0", *options],
        env=environment(url, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Served(process)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SQLite file with a running activity, and a queued one."""
    url = f"sqlite:///{tmp_path_factory.mktemp('dashboard') / 'app.db'}"
    ax.configure(url, create_tables=True)
    ax.activity.update(ax.activity.create("research", agent_id=RUNNING), "Half", 50)
    ax.activity.create("write", agent_id=QUEUED)
    reset_runtime()
    return url


@pytest.fixture(scope="module")
def open_one(database: str) -> Iterator[Served]:
    """A dashboard that has one more name."""
    with served(database, "--allowed-host", "Agents.example") as dashboard:
        yield dashboard


@pytest.fixture(scope="module")
def closed_one(database: str) -> Iterator[Served]:
    """A dashboard that is read-only and needs a token."""
    with served(database, "--read-only", AGENTEXEC_DASHBOARD_TOKEN=TOKEN) as dashboard:
        yield dashboard


def test_page_and_api(open_one: Served, database: str) -> None:
    """The page, its files and the status API are served, and an activity can be canceled."""
    assert f"Dashboard of {database}." in open_one.said
    with open_one.client() as client:
        page = client.get("/")
        assert "<title>Agents</title>" in page.text
        paths = re.findall(r'(?:src|href)="(assets/[^"]+)"', page.text)
        assert len(paths) == 3
        for path in paths:
            assert client.get(path).is_success
        session = client.get("/api/session").json()
        assert (session["may_act"], session["may_retry"]) == (True, False)
        items = client.get("/api/activities").json()["items"]
        assert {item["agent_id"] for item in items} == {str(RUNNING), str(QUEUED)}
        assert client.post(f"/api/activities/{QUEUED}/cancel", headers=ACT).json() == {"canceled": True}
        assert client.get(f"/api/activities/{QUEUED}").json()["status"] == "CANCELED"


def test_read_only(closed_one: Served) -> None:
    """With --read-only, nothing can be changed."""
    assert "read-only" in closed_one.said
    with closed_one.client(Authorization=f"Bearer {TOKEN}") as client:
        assert client.get("/api/session").json()["may_act"] is False
        refused = client.post(f"/api/activities/{RUNNING}/cancel", headers=ACT)
        assert (refused.status_code, refused.headers["Content-Type"]) == (403, "application/problem+json")
        assert client.get(f"/api/activities/{RUNNING}").json()["status"] == "RUNNING"


def test_foreign_host_is_refused(open_one: Served) -> None:
    """Only loopback names and those that are allowed: a rebound name of a foreign site reaches nothing."""
    with open_one.client() as client:
        for host in ("localhost", "LOCALHOST:1", "127.0.0.1:99", "[::1]:8180", "agents.example", "localhost."):
            assert client.get("/", headers={"Host": host}).is_success, host
        for host in ("evil.example", "localhost.evil.example", "10.0.0.1", "127.0.0.1.evil.example:80", "", "[::2]"):
            for path in ("/", "/api/activities", "/assets/app.js", "/nothing"):
                refused = client.get(path, headers={"Host": host})
                assert (refused.status_code, refused.headers["Content-Type"]) == (421, "application/problem+json"), host


def test_token(closed_one: Served) -> None:
    """With a token, a request needs it: in the address once, then as a cookie; or as a bearer token."""
    assert closed_one.url.endswith(f"/?token={TOKEN}")
    with closed_one.client() as client:
        for path in ("/", "/api/activities", "/assets/app.js", "/?token=wrong", "/?token=", "/?token=%C3%A9"):
            refused = client.get(path, headers={"Cookie": "agentexec-dashboard=x; broken[=;"})
            assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer"), path
            assert "set-cookie" not in refused.headers
        for given in (f"Bearer {TOKEN}", f"bearer  {TOKEN}"):
            assert client.get("/api/activities", headers={"Authorization": given}).is_success
        for given in ("Bearer wrong", "Bearer", f"Basic {TOKEN}"):
            assert client.get("/api/activities", headers={"Authorization": given}).status_code == 401
        first = client.get(f"/activities/1?token={TOKEN}&status=ERROR")
        assert (first.status_code, first.headers["Location"]) == (303, "./1?status=ERROR")
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(first.headers["Set-Cookie"].split("; "))
        assert client.get("/api/activities").is_success  # the client has the cookie
        assert client.get("/", headers={"Host": "evil.example"}).status_code == 421


def test_other_hosts_need_a_token(database: str) -> None:
    """At an address that others can reach, a token is made. IP addresses and the machine's names are answered to."""
    with served(database, "--host", "0.0.0.0") as dashboard, dashboard.client() as client:
        token = dashboard.url.partition("?token=")[2]
        assert len(token) >= 32
        assert client.get("/").status_code == 401
        bearer = {"Authorization": f"Bearer {token}"}
        for host in ("192.0.2.7:8180", socket.gethostname()):
            assert client.get("/", headers={**bearer, "Host": host}).is_success
        assert client.get("/", headers={**bearer, "Host": "evil.example"}).status_code == 421


def test_ctrl_c_ends_it_with_open_streams(database: str) -> None:
    """In a terminal, Ctrl-C ends it although streams are open, and leaves the two lines that were printed."""
    with Terminal("dashboard", "--port", "0", url=database) as terminal:
        shown = terminal.wait_for(lambda text: re.search(r"http://127.0.0.1:\d+/", text) is not None)
        with httpx.Client(base_url=shown.split()[-1], timeout=30) as client:
            readers = reading(client, "/api/events", f"/api/activities/{RUNNING}/events")
            assert terminal.interrupt() == 130
            for reader in readers:
                reader.join(10)
                assert not reader.is_alive()
        assert len(terminal.text.splitlines()) <= 5  # the path of a test's database is long
        assert "Traceback" not in terminal.text


def test_sigterm_ends_it_with_open_streams(database: str) -> None:
    """A supervisor ends it without a word."""
    with served(database) as dashboard, dashboard.client() as client:
        reading(client, "/api/events")
        dashboard.process.terminate()
        assert dashboard.process.communicate(timeout=20) == ("", "")
        assert dashboard.process.returncode == -signal.SIGTERM


def reading(client: httpx.Client, *paths: str) -> list[threading.Thread]:
    """Threads that read streams to their ends. Each has read something."""
    readers: list[threading.Thread] = []
    for path in paths:
        readers.append(threading.Thread(target=read, args=(client, path, begun := threading.Event())))
        readers[-1].start()
        assert begun.wait(30)
    return readers


def read(client: httpx.Client, path: str, begun: threading.Event) -> None:
    """Read a stream to its end."""
    with client.stream("GET", path) as response:
        for _ in response.iter_bytes():
            begun.set()


def test_mistakes_are_one_sentence(url: str, tmp_path: Path) -> None:
    """A port in use, a host that is none, no tables, and those of another version."""
    ax.db.upgrade(old := f"sqlite:///{tmp_path / 'old.db'}")
    ax.db.downgrade(old)
    (tmp_path / "empty.db").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, database, words in [
            (["--port", port], url, f"port {port} of 127.0.0.1 is in use: name another one with --port"),
            (["--host", "nowhere.invalid"], url, "of nowhere.invalid cannot be opened: "),
            ([], f"sqlite:///{tmp_path / 'empty.db'}", "agentexec-otel db upgrade"),
            ([], old, "run agentexec-otel db upgrade"),
        ]:
            done = run("dashboard", *arguments, url=database)
            assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 1), done.err
            assert words in done.err


# -- beside a program ------------------------------------------------------------------------------------------------

PROGRAM = """
import os, sys
import agentexec_otel as ax
with ax.activity.run("beside") as run:
    run.update("Half", 50)
    ax.flush()
    print("runs", flush=True)
    sys.stdin.readline()
try:
    print(os.wait())
except ChildProcessError:
    print("no child")
"""


@contextmanager
def program(folder: Path, code: str, *options: str, **variables: str) -> Generator[subprocess.Popen[str]]:
    """A program that runs beside its dashboard, until its input ends."""
    (folder / "app.py").write_text(code)
    with subprocess.Popen(
        [str(COMMAND), "run", *options, "app.py"],
        cwd=folder,
        env=environment(**variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def is_gone(url: str) -> bool:
    """Whether nothing answers there any longer."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            httpx.get(url, timeout=5)
        except httpx.TransportError:
            return True
        time.sleep(0.05)
    return False


def address(process: subprocess.Popen[str]) -> str:
    """Where the dashboard is, which the second line says."""
    assert process.stderr is not None
    recording, place = process.stderr.readline(), process.stderr.readline()
    assert recording.startswith("agentexec-otel: recording; ")
    found = re.fullmatch(r"agentexec-otel: dashboard at (http://127\.0\.0\.1:\d+/\S*)\n", place)
    assert found is not None, place
    return found[1]


def test_beside_a_program(tmp_path: Path) -> None:
    """The dashboard shows what the program does, is none of its children, and ends with it."""
    with program(tmp_path, PROGRAM, "--dashboard", "--dashboard-port", "0") as process:
        url = address(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n"
        (item,) = httpx.get(f"{url}api/activities", timeout=60).json()["items"]
        assert (item["agent_type"], item["status"], item["latest_log"]) == ("beside", "RUNNING", "Half")
        assert httpx.get(url, headers={"Host": "evil.example"}).status_code == 421
        assert process.communicate("\n", timeout=30) == ("no child\n", "")
        assert process.returncode == 0
    assert is_gone(url)


def test_beside_a_program_that_is_killed(tmp_path: Path) -> None:
    """The dashboard ends with a killed program as well, although a page is open. The token is that of the settings."""
    options = ("--dashboard", "--dashboard-port", "0")
    with program(tmp_path, "input()", *options, AGENTEXEC_DASHBOARD_TOKEN=TOKEN) as process:
        url, _, token = address(process).partition("?token=")
        with httpx.Client(base_url=url, timeout=60) as client:
            assert (client.get("/").status_code, token) == (401, TOKEN)
            client.headers["Authorization"] = f"Bearer {token}"
            (reader,) = reading(client, "/api/events")
            process.kill()
            reader.join(30)
            assert not reader.is_alive()
    assert is_gone(url)


def test_busy_port_beside_a_program(tmp_path: Path) -> None:
    """If the port is in use, one line says so, and the program runs."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with program(tmp_path, "print('ran')", "--dashboard", "--dashboard-port", str(port)) as process:
            printed, said = process.communicate(timeout=60)
    assert (process.returncode, printed) == (0, "ran\n")
    busy = f"port {port} of 127.0.0.1 is in use: name another one with --dashboard-port"
    assert said.splitlines()[1:] == [f"agentexec-otel: no dashboard: {busy}"]
