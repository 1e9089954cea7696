"""The commands, with Typer."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from agentexec_otel import __version__
from agentexec_otel._errors import AgentExecError, MissingExtraError
from agentexec_otel.cli import _db

app = typer.Typer(
    name="agentexec-otel",
    help="Live activity history for AI-agent runs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(_db.app, name="db")


def run() -> None:
    """Run the command line."""
    try:
        app()
    except (AgentExecError, ValueError) as exc:
        typer.echo(f"agentexec-otel: {exc}", err=True)
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
