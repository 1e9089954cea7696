"""``python -m benchmarks``: measure, print tables, and with ``--markdown`` write them into a page."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import (
    caller,
    cancel,
    dashboard,
    imports,
    ingest,
    instrumentation,
    live,
    memory,
    otlp,
    queries,
    replay,
    tail,
    tasks,
    viewers,
)
from benchmarks._context import Context, Scale
from benchmarks._databases import databases
from benchmarks._environment import environment
from benchmarks._measure import Section
from benchmarks._report import markdown, show, write_markdown

BENCHMARKS: Final[dict[str, Callable[[Context], Section]]] = {
    "imports": imports.run,
    "caller": caller.run,
    "live": live.run,
    "ingest": ingest.run,
    "queries": queries.run,
    "cancel": cancel.run,
    "replay": replay.run,
    "tail": tail.run,
    "viewers": viewers.run,
    "dashboard": dashboard.run,
    "instrumentation": instrumentation.run,
    "tasks": tasks.run,
    "memory": memory.run,
    "otlp": otlp.run,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks that were asked for. Returns 1 where a target is missed and ``--strict`` was given."""
    options = _options(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    sections: list[Section] = []
    with (
        tempfile.TemporaryDirectory(prefix="agentexec-bench-", dir=options.folder) as folder,
        databases(Path(folder)) as found,
        _progress() as progress,
    ):
        if len(found) == 1:
            console.print("PostgreSQL does not answer (AGENTEXEC_TEST_POSTGRES): SQLite only.")
        context = Context(found, options.scale, Path(folder), _track(progress), options.agentexec)
        about = environment(context)
        for name in options.only or BENCHMARKS:
            section = BENCHMARKS[name](context)
            show(section, console)
            sections.append(section)
            if options.markdown is not None:
                write_markdown(options.markdown, markdown(about, sections))
    for name, value in about:
        console.print(f"[bold]{name}[/bold]: {value}", highlight=False)
    missed = [row for section in sections for table in section.tables for row in table.rows if row.met is False]
    return 1 if missed and options.strict else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--smoke", dest="scale", action="store_const", const=Scale.SMOKE, help="only see that it runs")
    size.add_argument("--quick", dest="scale", action="store_const", const=Scale.QUICK, help="about two minutes")
    size.add_argument(
        "--million", dest="scale", action="store_const", const=Scale.MILLION, help="with a million activities"
    )
    parser.add_argument(
        "--only", action="append", choices=BENCHMARKS, metavar="NAME", help=f"of {', '.join(BENCHMARKS)}"
    )
    parser.add_argument("--markdown", type=Path, metavar="PAGE", help="write the results into this page")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where the SQLite files go, on the disk to measure")
    parser.add_argument("--strict", action="store_true", help="fail where a target is missed")
    parser.set_defaults(scale=Scale.FULL, agentexec=os.environ.get("AGENTEXEC_TEST_BASELINE_PYTHON"))
    return parser.parse_args(arguments)


def _progress() -> Progress:
    # On stderr, so that the tables can be piped into a file.
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[now]}"),
        console=Console(stderr=True),
        transient=True,
        refresh_per_second=4,
    )


def _track(progress: Progress) -> Callable[[str, int], Callable[[str], None]]:
    def track(title: str, total: int) -> Callable[[str], None]:
        task = progress.add_task(title, total=total, now="")
        begun = False

        def step(now: str) -> None:
            nonlocal begun
            progress.update(task, advance=int(begun), now=now)
            begun = True

        return step

    return track


if __name__ == "__main__":
    sys.exit(main())
