"""A process that reports and then ends in one of many ways: its argument is a JSON object."""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import agentexec_otel as ax
from tests.chaos.journal import Journal
from tests.chaos.producer import say

LINES = 20


def report(journal: str) -> UUID:
    """An activity of which nothing is flushed by us."""
    written = Journal(Path(journal))
    agent_id = ax.activity.create("leaver", "created 0")
    written.accepted(agent_id, "created 0")
    for number in range(1, LINES + 1):
        ax.activity.update(agent_id, f"line {number}")
        written.accepted(agent_id, f"line {number}")
    return agent_id


def in_child(url: str, journal: str) -> None:
    """The work of a process of multiprocessing, which configures where it does not inherit that."""
    if not ax.health()["configured"]:
        ax.configure(url)
    report(journal)


def by_multiprocessing(method: str) -> Callable[[str, str], None]:
    def run(url: str, journal: str) -> None:
        if method == "fork":
            report(journal)  # the parent's writer and connection exist
        context: Any = multiprocessing.get_context(method)
        process = context.Process(target=in_child, args=(url, f"{journal}.child"))
        process.start()
        process.join()
        sys.exit(process.exitcode)

    return run


def raise_error() -> None:
    raise RuntimeError("the application failed")


def handled() -> None:
    def handler(*_: object) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, handler)
    signal.raise_signal(signal.SIGTERM)


def installed() -> None:
    ax.install_signal_handlers()
    signal.raise_signal(signal.SIGTERM)


def chained() -> None:
    """The application's handler is called after the flush, and what runs on can still report."""

    def handler(*_: object) -> None:
        say(f"pending {ax.health()['exporters'][0]['pending']}")

    signal.signal(signal.SIGTERM, handler)
    ax.install_signal_handlers()
    signal.raise_signal(signal.SIGTERM)
    ax.activity.create("draining", "created 0")


def interrupt() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)


WAYS: dict[str, Callable[[], Any]] = {
    "end": lambda: None,
    "sys.exit": lambda: sys.exit(0),
    "exception": raise_error,
    "SIGTERM with handler": handled,
    "SIGTERM installed": installed,
    "SIGTERM chained": chained,
    "SIGINT": interrupt,
    "os._exit": lambda: os._exit(0),
    "SIGTERM": lambda: signal.raise_signal(signal.SIGTERM),
    "SIGKILL": lambda: signal.raise_signal(signal.SIGKILL),
}
METHODS = ("fork", "spawn", "forkserver")


def main(url: str, journal: str, how: str, wait: bool = False, shutdown: float = 5.0) -> None:
    """Report, and end.

    Args:
        wait: Say `ready` once the database was reached, and wait for a line of input before anything is reported.
        shutdown: AGENTEXEC_SHUTDOWN_TIMEOUT.
    """
    ax.CONF.shutdown_timeout = shutdown
    if how in METHODS:
        if how == "fork":
            ax.configure(url)
        by_multiprocessing(how)(url, journal)
    ax.configure(url)
    if wait:
        agent_id = ax.activity.create("leaver", "created 0")
        say("ready")
        sys.stdin.readline()
        written = Journal(Path(journal))
        for number in range(1, LINES + 1):
            ax.activity.update(agent_id, f"line {number}")
            written.accepted(agent_id, f"line {number}")
    else:
        report(journal)
    WAYS[how]()


def start(options: str) -> None:
    """The program."""
    main(**json.loads(options))
