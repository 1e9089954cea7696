"""How long a log takes from `update()` until it is in the dashboard's page, in Chromium."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import UUID

from playwright.sync_api import Page, sync_playwright

import agentexec_otel as ax
from benchmarks._context import Context, Scale
from benchmarks._databases import Database
from benchmarks._measure import Row, Section, Table, Target, percentile

_COMMAND: Final = Path(sys.executable).with_name("agentexec-otel")
_LOGS: Final = {Scale.SMOKE: 3, Scale.QUICK: 15, Scale.FULL: 60}
_MOST_MS: Final = 500.0
_PATIENCE: Final = 60.0
_OBSERVE: Final = """() => {
  window.seen = {};
  const look = () => {
    for (const log of document.querySelectorAll(".log-text")) window.seen[log.textContent] ??= Date.now();
  };
  new MutationObserver(look).observe(document.body, { subtree: true, childList: true, characterData: true });
}"""


def run(context: Context) -> Section:
    """Measure on every database."""
    tables = [_table(context, database) for database in context.databases]
    return Section("dashboard", "dashboard: from update() until the page shows it", tables)


def _table(context: Context, database: Database) -> Table:
    database.reset()
    ax.configure(database.url)
    try:
        step = context.track(f"dashboard {database.kind}", context.runs)
        found: list[list[float]] = []
        with dashboard(database.url) as url:
            for number in range(context.runs):
                step(f"run {number + 1}")
                found.append(latencies(url, context.pick(_LOGS)))
    finally:
        ax.shutdown(30.0)
    rows = [
        Row("p50", "ms", [percentile(one, 0.5) for one in found]),
        Row("p99", "ms", [percentile(one, 0.99) for one in found], None, Target(_MOST_MS, of="value")),
    ]
    return Table(f"{database.title}, one log at a time", "no baseline", rows)


def latencies(url: str, logs: int) -> list[float]:
    """Report so many logs, and return for each the milliseconds until the page of its activity has it."""
    agent_id = ax.activity.create("bench")
    ax.activity.update(agent_id, "The first.")
    with _chromium(f"{url}activities/{agent_id}") as page:
        page.get_by_text("The first.").wait_for(timeout=_PATIENCE * 1_000)
        page.evaluate(_OBSERVE)
        sent = dict(_send(agent_id, logs))
        page.get_by_text(list(sent)[-1], exact=True).wait_for(timeout=_PATIENCE * 1_000)
        seen: dict[str, float] = page.evaluate("() => window.seen")
    ax.activity.complete(agent_id)
    return [seen[message] - at for message, at in sent.items()]


def _send(agent_id: UUID, logs: int) -> Generator[tuple[str, float]]:
    """Messages, and when `update()` was called, in milliseconds."""
    for number in range(logs):
        time.sleep(random.uniform(0.2, 0.6))
        at = time.time() * 1_000
        ax.activity.update(agent_id, f"Log {number}.")
        yield f"Log {number}.", at


@contextmanager
def dashboard(database: str) -> Generator[str]:
    """The address of ``agentexec-otel dashboard``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    url = f"http://127.0.0.1:{port}/"
    command = [str(_COMMAND), "dashboard", "--database", database, "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            _wait_for(url)
            yield url
        finally:
            process.terminate()


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()  # the address above
        except (urllib.error.URLError, OSError):
            assert time.monotonic() < deadline, f"nothing answers at {url}"
            time.sleep(0.1)
        else:
            return


@contextmanager
def _chromium(url: str) -> Generator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(url)
        yield page
        browser.close()
