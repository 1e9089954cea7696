"""Run the command line: in a pipe, or in a pseudo-terminal whose screen can be read."""

import fcntl
import io
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import pyte

from agentexec_otel.cli import main

COMMAND = Path(sys.executable).with_name("agentexec-otel")
PATIENCE = 30.0
# Makes the terminal the controlling one, so that Ctrl-C is a signal; then becomes the command.
_TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


def environment(url: str | None = None, **more: str) -> dict[str, str]:
    """Variables of the command: without what the developer has set."""
    dropped = ("AGENTEXEC_", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "TTY_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    if url is not None:
        kept["AGENTEXEC_DATABASE_URL"] = url
    return kept | more


@dataclass(frozen=True, slots=True)
class Done:
    """What a command in a pipe has left."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def complaint(self) -> str:
        """The error output without frames and line breaks."""
        return " ".join(re.sub("[│╭╮╰╯─]", " ", self.err).split())

    @property
    def json(self) -> Any:
        assert self.out, self.err
        return json.loads(self.out)


def run(*arguments: str, url: str | None = None) -> Done:
    """Run a command in this process, with pipes for its streams."""
    out, err = _Stream(), _Stream()
    database = () if url is None else ("--database", url)
    before = sys.argv, sys.stdin
    sys.argv, sys.stdin = ["agentexec-otel", *arguments, *database], io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
        code: Any = 0
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv, sys.stdin = before
    return Done(code or 0, out.read_all(), err.read_all())


class _Stream(io.TextIOWrapper):
    """A pipe that remembers what was written to it."""

    def __init__(self) -> None:
        self._bytes = io.BytesIO()
        super().__init__(self._bytes, "utf-8", write_through=True)

    def read_all(self) -> str:
        return self._bytes.getvalue().decode()


def _shows(wanted: str, text: str) -> bool:
    return wanted in text


class Terminal:
    """A command in a terminal of 80 columns, which shows what a person would see."""

    def __init__(
        self, *arguments: str, url: str | None = None, columns: int = 80, rows: int = 24,
        variables: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:  # fmt: skip
        self.screen = pyte.HistoryScreen(columns, rows, history=10_000, ratio=1.0)
        self._stream = pyte.ByteStream(self.screen)
        self.written = b""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _TAKE_TERMINAL, str(COMMAND), *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            cwd=folder,
            env=environment(url, TERM="xterm-256color", **(variables or {})),
        )
        os.close(slave)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    @property
    def lines(self) -> list[str]:
        """What has scrolled off, and what the screen shows, without trailing space."""
        columns = self.screen.columns
        gone = ["".join(line[at].data for at in range(columns)) for line in self.screen.history.top]
        return [line.rstrip() for line in [*gone, *self.screen.display]]

    @property
    def text(self) -> str:
        return "\n".join(self.lines).strip("\n")

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._master, text.encode())

    def wait_for(self, seen: str | Callable[[str], bool], seconds: float = PATIENCE) -> str:
        """Read until the screen shows the text, or meets the condition. Returns what it shows."""
        meets = seen if callable(seen) else partial(_shows, seen)
        deadline = time.monotonic() + seconds
        while not meets(self.text):
            assert time.monotonic() < deadline, f"not seen within {seconds} s:\n{self.text}"
            if not self.read(0.05) and self.process.poll() is not None:
                assert meets(self.text), f"it ended without:\n{self.text}"
        return self.text

    def end(self, seconds: float = PATIENCE) -> int:
        """Read until the command ends. Returns its exit code."""
        deadline = time.monotonic() + seconds
        while self.read(0.05) or self.process.poll() is None:
            assert time.monotonic() < deadline, f"it has not ended within {seconds} s:\n{self.text}"
        return self.process.wait()

    def interrupt(self) -> int:
        """Press Ctrl-C, and return the exit code."""
        self.type(chr(3))
        return self.end()

    def read(self, seconds: float) -> bool:
        """Read what there is, or comes in time. False if nothing does."""
        ready, _, _ = select.select([self._master], [], [], seconds)
        if not ready:
            return False
        try:
            found = os.read(self._master, 65_536)
        except OSError:  # Linux: the other side is closed
            return False
        self.written += found
        self._stream.feed(found)
        return bool(found)
