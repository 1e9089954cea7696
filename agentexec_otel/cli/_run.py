"""The command ``agentexec-otel run``: any program, recorded.

The program replaces this process, in the same interpreter: arguments, ``__main__``, the module path, signals, exit
codes and tracebacks are those of ``python app.py``. The environment makes this interpreter, and those that the program
starts, run ``_bootstrap/sitecustomize.py`` first.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

import agentexec_otel as ax
from agentexec_otel.cli._dashboard import PORT, serve_beside
from agentexec_otel.cli._options import Database, shown_url
from agentexec_otel.cli._output import note

_BOOTSTRAP: Final = Path(__file__).parent / "_bootstrap"
_FILE: Final = "agentexec.db"
_POOL: Final = re.compile(r"[\w.]+:\w+")


def run(
    program: Annotated[
        str, typer.Argument(help="A Python file, with -m a module, or a pool, as module:variable.", metavar="PROGRAM")
    ],
    arguments: Annotated[list[str] | None, typer.Argument(help="Arguments of the program.", metavar="ARGS")] = None,
    module: Annotated[bool, typer.Option("-m", help="PROGRAM is a module.")] = False,
    database: Database = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", "-w", min=1, help="Number of processes of a pool. Default: 2.", metavar="N"),
    ] = None,
    dashboard: Annotated[
        bool, typer.Option("--dashboard", help="Serve the dashboard on this machine while the program runs.")
    ] = False,
    dashboard_port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Its port; 0 for any free port.", metavar="PORT")
    ] = PORT,
) -> None:
    """Run a Python program, and record the runs of its agents.

    Without a database they are recorded in the file agentexec.db of this folder. Options stand before PROGRAM.
    """
    is_pool = not module and _POOL.fullmatch(program) is not None and not Path(program).exists()
    if not (module or is_pool or program == "-" or Path(program).exists()):
        raise typer.BadParameter(f"there is no file {program!r}. If it is a module, write -m before it.")
    if not is_pool and workers is not None:
        raise typer.BadParameter("--workers is for a pool, as module:variable")
    if is_pool:
        command = ["-m", "agentexec_otel.cli", "worker", program, "--workers", str(workers or 2)]
    else:
        command = [*(["-m"] if module else []), program]
    url = _database(database)
    if dashboard:
        serve_beside(url, dashboard_port)
    _execute([*command, *(arguments or [])], url)


def _database(given: str | None) -> str:
    """The URL to record to, after one line that says how to look at it."""
    if given or ax.CONF.database_url:
        url = given or str(ax.CONF.database_url)
        shown = shown_url(url)
        note(f"agentexec-otel: recording to {shown}; see agentexec-otel list{f' -d {shown}' if given else ''}")
        return url
    url = f"sqlite:///{Path.cwd() / _FILE}"
    ax.configure(url, create_tables=True)
    ax.shutdown()
    ax.db.rights(url)  # Raises if the file is there and has tables of another version.
    note(f"agentexec-otel: recording; see agentexec-otel list -d sqlite:///{_FILE}")
    return url


def _execute(command: Sequence[str], database: str) -> NoReturn:
    path = os.environ.get("PYTHONPATH")
    added = {
        "AGENTEXEC_DATABASE_URL": database,
        "PYTHONPATH": f"{_BOOTSTRAP}{os.pathsep}{path}" if path else str(_BOOTSTRAP),
    }
    os.execve(sys.executable, [sys.executable, *command], os.environ | added)  # noqa: S606
