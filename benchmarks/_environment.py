"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final

from benchmarks._context import Context

_PACKAGES: Final = ("agentexec-otel", "opentelemetry-sdk", "SQLAlchemy", "pydantic", "psycopg")


def environment(context: Context) -> list[tuple[str, str]]:
    """Machine and versions, as pairs of a name and a value."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return [
        ("machine", f"{os.cpu_count()} cores ({_processor()}), {_memory()} memory, {platform.system()}"),
        ("load average at the start", f"{load} (1, 5, 15 minutes): what else ran on the machine"),
        ("Python", f"{platform.python_implementation()} {platform.python_version()}"),
        ("packages", ", ".join(f"{name} {version(name)}" for name in _PACKAGES)),
        *((database.title, database.version()) for database in context.databases),
        ("scale", f"{context.scale.name.lower()}, {context.runs} interleaved runs, medians with min to max"),
    ]


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> str:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"{pages / 2**30:.0f} GiB"
