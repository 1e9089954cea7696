"""Make a virtual environment ready, and say every few seconds what happens. The Makefile calls it as

    python .ci/environment.py FOLDER REQUIREMENT...

with the Python that the environment is to have. It needs the standard library only. FOLDER/.ready exists if the
requirements are installed; FOLDER.log has the output of uv and pip.
"""

from __future__ import annotations

import fcntl
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

REPORT_SECONDS = 2
WIDTH = 79
IDENTITY = "import pip, platform, sys; print(platform.python_version(), sys.implementation.cache_tag)"
PIP_INSTALL = ("pip", "install", "--progress-bar=off")


def main(folder: Path, requirements: list[str]) -> int:
    """Set up the environment, or wait for another process that does. The exit code."""
    started_at = time.time()
    lock_checkout()
    ready = folder / ".ready"
    if ready.exists() and ready.stat().st_mtime > started_at and has_this_python(folder):
        return 0
    ready.unlink(missing_ok=True)
    say(f"Setting up {folder} with Python {platform.python_version()}, once ...")
    log = folder.with_name(f"{folder.name}.log")
    log.write_bytes(b"")
    try:
        set_up(folder, requirements, log)
    except subprocess.CalledProcessError:
        say("\n".join(["The end of its output:", *lines_of(log)[-5:], f"All of it: {log}"]))
        return 1
    ready.touch()
    say(f"  ready after {time.time() - started_at:.0f} s")
    return 0


def lock_checkout() -> None:
    """Let one process at a time set up an environment here. The lock ends with this process."""
    checkout = os.open(".", os.O_RDONLY)
    try:
        fcntl.flock(checkout, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("Waiting for another make, which sets up an environment here ...")
        fcntl.flock(checkout, fcntl.LOCK_EX)


def set_up(folder: Path, requirements: list[str], log: Path) -> None:
    """Create the environment if it is missing. Install with uv; if that fails, with pip."""
    python = folder / "bin" / "python"
    if not has_this_python(folder):
        run("Creating the environment", log, Path(sys.executable).resolve(), "venv", "--clear", str(folder))
    try:
        run("Fetching the installer uv", log, python, *PIP_INSTALL, "uv")
        uv = ("uv", "pip", "install", "--compile-bytecode", "--python", str(python))
        run("Installing with uv", log, python, *uv, *requirements)
    except subprocess.CalledProcessError:
        run("Updating pip", log, python, *PIP_INSTALL, "pip>=25.1")  # knows --group
        run("Installing with pip", log, python, *PIP_INSTALL, *requirements)


def has_this_python(folder: Path) -> bool:
    """Whether the environment exists, has pip, and has the version of the Python that runs this."""
    try:
        found = subprocess.check_output(
            [folder / "bin" / "python", "-c", IDENTITY], stderr=subprocess.DEVNULL, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return False
    return found.split() == [platform.python_version(), sys.implementation.cache_tag]


def run(what: str, log: Path, python: Path, *module_and_arguments: str) -> None:
    """Run a module; while it works, print the last line of its output. Raises CalledProcessError if it fails."""
    began_at = time.monotonic()
    say(f"  {what}")
    command = [str(python), "-m", *module_and_arguments]
    with log.open("ab") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        while (exit_code := wait(process)) is None:
            latest = (lines_of(log) or ["..."])[-1]
            say(f"    {time.monotonic() - began_at:3.0f} s  {latest}"[:WIDTH])
    if exit_code:
        say(f"  {what} failed")
        raise subprocess.CalledProcessError(exit_code, command)


def wait(process: subprocess.Popen[bytes]) -> int | None:
    """The exit code, or None if the process has not ended within the time between two reports."""
    try:
        return process.wait(timeout=REPORT_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def lines_of(log: Path) -> list[str]:
    """The lines in the log that say something."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()]


def say(text: str) -> None:
    """Print at once, also if the output is a file."""
    print(text, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
    except PermissionError as error:
        sys.exit(f"Cannot set up {sys.argv[1]} here: {error}. Use a clone that belongs to you.")
    except KeyboardInterrupt:
        sys.exit(130)
