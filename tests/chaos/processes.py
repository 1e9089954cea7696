"""Producers and other programs as processes that a test can kill."""

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any, Self

ROOT = Path(__file__).parents[2]


class Zygote:
    """Starts programs by forking a process that has imported everything; see `tests.chaos.zygote`."""

    def __init__(self, *preloaded: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.zygote", *preloaded],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment_with({}),
        )
        self._started: Queue[int] = Queue()
        self.codes: dict[int, int] = {}
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            pid, _, code = line.decode().strip().partition(" ")
            if code:
                self.codes[int(pid)] = int(code)
            else:
                self._started.put(int(pid))

    def start(self, **request: Any) -> int:
        """The pid of a new process."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        return self._started.get(timeout=90)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._reader.join()
        self._process.stdout.close()


@cache
def zygote(*preloaded: str) -> Zygote:
    """The one of this test run that has imported these modules as well, started at its first use."""
    started = Zygote(*preloaded)
    atexit.register(started.close)
    return started


def environment_with(more: dict[str, str]) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'exporters'}", **more}


class Program:
    """A program of this package as a process of its own, with its output in files so that it never blocks on us.

    Args:
        name: The module, whose `start` is called with the arguments.
    """

    def __init__(self, folder: Path, name: str, *arguments: str, **environment: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("*.stderr")))
        stdin, self._out, self._err = (folder / f"{number}.{name}" for name in ("stdin", "stdout", "stderr"))
        self._out.touch()
        self._err.touch()
        os.mkfifo(stdin)
        self._zygote = zygote()
        self.pid = self._zygote.start(
            module=f"tests.chaos.{name}",
            arguments=arguments,
            environment=environment_with(environment),
            stdin=str(stdin),
            stdout=str(self._out),
            stderr=str(self._err),
        )
        self._stdin = os.open(stdin, os.O_WRONLY)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        os.close(self._stdin)

    @property
    def code(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._zygote.codes.get(self.pid)

    @property
    def stdout(self) -> str:
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        return self._err.read_text()

    def says(self, text: str, timeout: float = 90) -> None:
        """Wait until it has printed that."""
        await_that(lambda: text in self.stdout or self._ended(text), timeout)

    def _ended(self, text: str) -> bool:
        assert self.code is None or text in self.stdout, self.stderr
        return False

    def tell(self, line: str) -> None:
        """Write a line to its input."""
        os.write(self._stdin, f"{line}\n".encode())

    def stop(self) -> None:
        """Tell a producer to end its activities and report."""
        self.tell("stop")

    def do(self, line: str, timeout: float = 30) -> None:
        """Have a worker do something, and wait until it has."""
        done = f"{line.split(maxsplit=1)[0]} done"
        before = self.stdout.count(done)
        self.tell(line)
        await_that(lambda: self.stdout.count(done) > before or self._ended(line), timeout, line)

    def report(self, timeout: float = 60) -> dict[str, Any]:
        """What a producer said at its end."""
        assert self.join(timeout) == 0, self.stderr
        result: dict[str, Any] = json.loads(self.stdout.splitlines()[-1])
        return result

    def join(self, timeout: float = 30) -> int:
        """Its exit status."""
        await_that(lambda: self.code is not None, timeout, "the end of a program")
        assert self.code is not None
        return self.code

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait."""
        if self.code is None:
            self.signal(signal.SIGKILL)
            self.join()


def producer(folder: Path, url: str, name: str, environment: dict[str, str] | None = None, **options: Any) -> Program:
    """A running `tests.chaos.producer`, whose activities exist; its journal is `NAME.journal` in the folder."""
    options = {"url": url, "journal": str(folder / f"{name}.journal"), **options}
    return Program(folder / name, "producer", json.dumps(options), **(environment or {}))


def worker(folder: Path, url: str, name: str, **environment: str) -> Program:
    """A running `tests.chaos.worker`."""
    return Program(folder / name, "worker", url, **environment)


def journals(folder: Path) -> list[Path]:
    """What the producers of this folder were promised."""
    return sorted(folder.glob("*.journal"))


def await_that(condition: Callable[[], object], timeout: float = 10.0, what: str = "it") -> float:
    """Wait until the condition holds; how long that took. Fails where it takes too long."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout, f"{what} did not come true within {timeout:g} s"
        time.sleep(0.02)
    return time.monotonic() - began
