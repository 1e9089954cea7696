"""What `import agentexec_otel` costs, and what it brings along."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks._context import Context
from benchmarks._measure import Listing, Row, Section, Table, Target, interleaved

_MOST_SECONDS: Final = 0.5
_BASELINE: Final = "import sqlalchemy.orm, pydantic_settings, opentelemetry.trace"
_TOP: Final = 15


@dataclass(frozen=True, slots=True)
class _Python:
    """Fresh interpreters whose bytecode is cached, as it is once a package is installed."""

    cache: Path

    def run(self, code: str, *options: str) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = str(self.cache)
        # Whatever plug-in of pydantic's is installed here comes with every import of pydantic, and is not ours.
        environment["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
        return subprocess.run(
            [sys.executable, *options, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            env=environment,
            timeout=120,
        )

    def cpu_seconds(self, code: str) -> float:
        """User and system time of a process that runs `code`: what it takes on a machine with nothing else to do."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.run(code)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run(context: Context) -> Section:
    """Measure fresh interpreters.

    Raises:
        AssertionError: importing the package imported `agents`.
    """
    python = _Python(context.folder / "bytecode")
    loaded = python.run("import agentexec_otel, sys; print(*sorted(sys.modules))").stdout.split()
    assert "agents" not in loaded, "importing agentexec_otel imports agents"
    cases: dict[str, Callable[[], float]] = {
        "an empty interpreter": partial(python.cpu_seconds, "pass"),
        _BASELINE: partial(python.cpu_seconds, _BASELINE),
        "import agentexec_otel": partial(python.cpu_seconds, "import agentexec_otel"),
    }
    found = interleaved(cases, context.runs, context.track("imports", context.runs * len(cases)))
    empty, base, ours = found.values()
    without = [value - nothing for value, nothing in zip(ours, empty, strict=True)]
    rows = [
        Row("an empty interpreter", "s", empty),
        Row(_BASELINE, "s", base),
        Row("import agentexec_otel", "s", ours, base),
        Row(
            "import agentexec_otel, without the interpreter's start",
            "s",
            without,
            target=Target(_MOST_SECONDS, of="value"),
        ),
    ]
    notes = [
        f"{len(loaded):,} modules are loaded, `agents` is not among them.",
        "Bytecode is cached, as installers leave it; where PYTHONDONTWRITEBYTECODE is set, it takes twice as long.",
        "Python imports on one core, so that this is the wall time of a machine that is not busy with something else.",
    ]
    top = Listing(f"The {_TOP} packages that take the most of it", _by_package(python))
    return Section("imports", "Import", [Table("CPU time of a process", f"`{_BASELINE}`", rows, notes), top])


def _by_package(python: _Python) -> str:
    """Milliseconds of a module's own import time, summed over each package and its parts."""
    report = python.run("import agentexec_otel", "-X", "importtime").stderr
    own: dict[str, float] = {}
    for match in re.finditer(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", report):
        package = ".".join(match[2].split(".")[:2])
        own[package] = own.get(package, 0.0) + int(match[1]) / 1e3
    ranked = sorted(own.items(), key=lambda item: -item[1])[:_TOP]
    total = sum(own.values())
    lines = [f"{value:7.1f} ms  {name}" for name, value in ranked]
    return "\n".join([*lines, f"{total:7.1f} ms  all together (with the cost of measuring it)"])
