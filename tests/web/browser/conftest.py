"""Real Chromium, a real server and a real worker, each in a process of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect, sync_playwright

from tests.chaos.private import free_port
from tests.databases import Database
from tests.docs.blocks import ROOT
from tests.sql.rows import eventually

HERE = Path(__file__).parent
PATIENCE_MS = 20_000
CHROMIUM = Path("/usr/bin/chromium")
# As root, and on a machine whose network is closed.
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--font-render-hinting=none"),
]
FONTS = "<fontconfig><dir>{font}</dir><cachedir>{cache}</cachedir></fontconfig>"
"""Pages look the same whatever fonts the machine has."""


class Server:
    """A server with the dashboard, which can be killed and started again at the same address."""

    def __init__(self, database: str) -> None:
        self._database = database
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}/agents/"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it answers."""
        command = [sys.executable, "-m", "tests.web.browser.serve", self._database, str(self._port)]
        self._process = subprocess.Popen(command, cwd=ROOT)
        assert eventually(self._answers, timeout=60)

    def kill(self) -> None:
        """Kill with SIGKILL, as the kernel does when memory is short."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(10)

    def _answers(self) -> bool:
        try:
            return httpx.get(self.url, verify=False).status_code == 200  # certificates take 40 ms
        except httpx.TransportError:
            return False


class Worker:
    """A process that runs what is asked of it: see `work.py`."""

    def __init__(self, database: str) -> None:
        command = [sys.executable, "-m", "tests.web.browser.work", database]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def begin(self, name: str, *arguments: Any) -> None:
        """Ask for something."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, arguments]) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """What it answers. Waits for it."""
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def ask(self, name: str, *arguments: Any) -> Any:
        """Ask, and wait for the answer."""
        self.begin(name, *arguments)
        return self.answer()

    def stop(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.communicate()


def log_of(page: Page) -> Locator:
    """The log of an activity."""
    return page.get_by_role("region", name="Logs")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Debian's Chromium with one font. Playwright's event loop runs on this thread while it is open: no other module
    shares it.
    """
    if not CHROMIUM.exists():
        pytest.fail("/usr/bin/chromium is missing: install Debian's chromium")
    with sync_playwright() as playwright:
        fonts = tmp_path_factory.mktemp("fonts")
        (fonts / "fonts.conf").write_text(FONTS.format(font=files("font_roboto"), cache=fonts / "cache"))
        environment: dict[str, str | float | bool] = {**os.environ, "FONTCONFIG_FILE": str(fonts / "fonts.conf")}
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS, env=environment)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of 1440 by 900. The test fails if it throws an error or if the console has one, but for lost streams."""
    context = browser.new_context(
        viewport={"width": 1440, "height": 900}, reduced_motion="reduce", color_scheme="light"
    )
    context.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    page = context.new_page()
    faults: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and "ERR_" not in message.text:
            faults.append(message.text)

    page.on("console", note)
    page.on("pageerror", lambda error: faults.append(str(error)))
    yield page
    context.close()
    assert faults == []


@pytest.fixture
def server(database: Database) -> Iterator[Server]:
    """The dashboard of the test's database."""
    server = Server(database.url)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def worker(database: Database) -> Iterator[Worker]:
    """A worker that writes to the test's database."""
    worker = Worker(database.url)
    yield worker
    worker.stop()
