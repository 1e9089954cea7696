"""The command line, with Typer. The modules beside this one have the commands."""

from __future__ import annotations

import io
import sys
from typing import Annotated, NoReturn

import typer
from sqlalchemy.exc import SQLAlchemyError

from agentexec_otel import AgentExecError, MissingExtraError, __version__
from agentexec_otel.cli import (
    _act,
    _dashboard,
    _db,
    _doctor,
    _list,
    _replay,
    _retention,
    _run,
    _show,
    _spool,
    _stats,
    _tail,
)
from agentexec_otel.cli._output import database_fault, note, one_line

app = typer.Typer(
    name="agentexec-otel",
    help="Live activity history for AI-agent runs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("list")(_list.list_activities)
app.command("show")(_show.show)
app.command("tail")(_tail.tail)
app.command("stats")(_stats.stats)
app.command("dashboard")(_dashboard.dashboard)
app.command("cancel")(_act.cancel)
app.command("retry")(_act.retry)
app.command("reap")(_act.reap)
app.command("archive")(_retention.archive)
app.command("restore")(_retention.restore)
app.command("replay")(_replay.replay)
# What stands after the program is the program's.
app.command("run", context_settings={"allow_interspersed_args": False})(_run.run)
app.add_typer(_spool.app, name="spool")
app.command("doctor")(_doctor.doctor)
app.add_typer(_db.app, name="db")


def run() -> None:
    """Run the command line. Exit codes: 0 done, 1 an error or nothing found, 2 wrong usage, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="agentexec-otel")
    except (AgentExecError, ValueError) as exc:
        fail(str(exc))
    except OSError as exc:
        fail(f"{exc.filename or 'failed'}: {exc.strerror or exc}")
    except SQLAlchemyError as exc:
        fail(database_fault(exc))


def fail(words: str) -> NoReturn:
    """End with one line on the error output, and exit code 1."""
    note(f"agentexec-otel: {one_line(words)}")
    sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Live activity history for AI-agent runs."""


@app.command()
def worker(
    pool: Annotated[str, typer.Argument(help="The pool, as module:variable.", metavar="MODULE:POOL")],
    workers: Annotated[int, typer.Option("--workers", "-w", min=1, help="Number of processes.")] = 2,
) -> None:
    """Run the tasks of a pool in worker processes. After Ctrl-C or SIGTERM, running tasks finish first."""
    try:
        from agentexec_otel.tasks.worker import load_pool, run_workers
    except ModuleNotFoundError as exc:
        if exc.name != "taskiq":
            raise
        raise MissingExtraError("agentexec-otel worker", "taskiq", "tasks") from None
    found = load_pool(pool)
    run_workers(found, workers, pool)
