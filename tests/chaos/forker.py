"""Processes that fork while they report: its argument is a JSON object."""

import ctypes
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

import agentexec_otel as ax
from agentexec_otel._runtime import process
from tests.chaos.journal import Journal
from tests.chaos.law import settled
from tests.chaos.producer import say

SECONDS = 20
STATEMENTS = 300


class ToFile(SpanExporter):
    """One line for each span, whichever process it ends in."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            os.write(self._fd, f"{span.name} {(span.attributes or {}).get('agentexec.status')}\n".encode())
        return SpanExportResult.SUCCESS


def fork(work: Callable[[], object], c_fork: Callable[[], int] = os.fork, seconds: int = SECONDS) -> int:
    """Run `work` in a child that has no clean-up and dies of SIGALRM where it hangs. Its pid."""
    pid = c_fork()
    if pid == 0:
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)
            work()
            code = 0
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def join(*pids: int) -> None:
    """All of them must have come to their end."""
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    if any(codes):
        raise SystemExit(f"children ended with {codes}")


def queued(journal: Journal, url: str) -> None:
    """Nine events wait (the test has taken the database away); parent and child both go on, and end in good order."""
    agent_id = ax.activity.create("queued", "created 0")
    journal.accepted(agent_id, "created 0")
    say("ready")
    sys.stdin.readline()
    for number in range(1, 10):
        ax.activity.update(agent_id, f"parent {number}")
        journal.accepted(agent_id, f"parent {number}")
    ax.CONF.lookup_timeout = 0.1  # the child asks for the row it does not know, in vain
    pid = os.fork()
    who = "child" if pid == 0 else "after"
    for number in range(1, 4):
        ax.activity.update(agent_id, f"{who} {number}")
        journal.accepted(agent_id, f"{who} {number}")
    if pid:
        say("forked")
        join(pid)
    ax.flush(SECONDS)


def opened(journal: Journal, url: str) -> None:
    """An activity that is open across the fork is ended on both sides."""
    with ax.activity.run("opened") as run:
        journal.accepted(run.agent_id, "Task started.")
        pid = os.fork()
        run.update("child 1" if pid == 0 else "parent 1")
    if pid:
        ax.flush(SECONDS)
        join(pid)
        settled()


def let_threads_rest() -> None:
    """Wait until no other thread has run, or wanted to, for 0.1 s.

    A thread that waits for the GIL while C code forks hangs the child: its condition variable waits for that thread.
    """
    before: dict[str, str] = {}
    while (now := _time_of_threads()) != before:
        before = now
        time.sleep(0.1)


def _time_of_threads() -> dict[str, str]:
    """How long each other thread has run and waited for a processor."""
    times: dict[str, str] = {}
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it ends
            times[task.name] = (task / "schedstat").read_text()
    times.pop(str(threading.get_native_id()), None)
    return times


def under_load(journal: Journal, url: str, count: int = 40, c_fork: Callable[[], int] = os.fork) -> None:
    """Forks while four threads report without a pause; every child reports, too."""
    agent_id = ax.activity.create("load", "created 0")
    journal.accepted(agent_id, "created 0")
    stop = threading.Event()

    def report(name: str) -> None:
        number = 0
        while not stop.wait(0.001):
            number += 1
            ax.activity.update(agent_id, f"{name} {number}")
            journal.accepted(agent_id, f"{name} {number}")

    def in_child(name: str) -> None:
        ax.CONF.lookup_timeout = 5.0
        ax.activity.update(agent_id, f"{name} 1")
        journal.accepted(agent_id, f"{name} 1")

    threads = [threading.Thread(target=report, args=(f"thread{number}",), daemon=True) for number in range(4)]
    for thread in threads:
        thread.start()
    for number in range(count):
        name = f"child{number}"
        join(fork(lambda name=name: in_child(name), c_fork, 5))  # type: ignore[misc]
    stop.set()
    for thread in threads:
        thread.join()
    ax.flush(SECONDS)
    ax.recover()
    settled()


def from_c(journal: Journal, url: str) -> None:
    """A fork that calls none of Python's hooks, as uWSGI's may. The child flushes, and ends no span of its parent's."""
    # PyDLL keeps the GIL during the call: another thread must not hold it in the child.
    c_fork: Callable[[], int] = ctypes.PyDLL(None).fork
    with ax.activity.run("from C") as run:
        journal.accepted(run.agent_id, "Task started.")
        ax.flush()

        def in_child() -> None:
            ax.activity.update(run.agent_id, "child 1")
            journal.accepted(run.agent_id, "child 1")
            ax.activity.complete(run.agent_id, "by the child")
            if not ax.flush(10):
                raise SystemExit("the child could not flush")
            settled()

        let_threads_rest()
        join(fork(in_child, c_fork))
        run.update("parent 1")
    settled()


def statements(journal: Journal, url: str) -> None:
    """Two processes use the database at the same time; each sees its own answers only."""
    mine, childs = ax.activity.create("mine", "created 0"), ax.activity.create("the child's", "created 0")
    journal.accepted(mine, "created 0")

    def ask(agent_id: Any, name: str) -> None:
        for _ in range(STATEMENTS):
            found = process.active().read(agent_id, 10)
            if found is None or (found.agent_id, found.opening.agent_type) != (agent_id, name):
                raise SystemExit(f"asked for {name} and was given {found}")

    pid = fork(lambda: ask(childs, "the child's"), seconds=60)
    ask(mine, "mine")
    join(pid)


WAYS = {"queued": queued, "opened": opened, "under load": under_load, "from C": from_c, "statements": statements}


def main(url: str, journal: str, how: str, spans: str, **options: Any) -> None:
    """Do it, and end in good order."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ToFile(spans)))
    ax.configure(url, tracer_provider=provider)
    WAYS[how](Journal(Path(journal)), url, **options)


def start(options: str) -> None:
    """The program."""
    main(**json.loads(options))
