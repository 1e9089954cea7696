"""The commands ``agentexec-otel db …``: migrations of the tables."""

from __future__ import annotations

from typing import Annotated

import typer

from agentexec_otel import db
from agentexec_otel.cli._options import Database, database_url

app = typer.Typer(help="Create, upgrade and check the tables.", no_args_is_help=True)


@app.command()
def upgrade(
    database: Database = None,
    pre_deploy: Annotated[
        bool, typer.Option("--pre-deploy", help="Only what programs of the version before can work with.")
    ] = False,
) -> None:
    """Create the tables, or bring them to the schema of this version."""
    url = database_url(database)
    before = db.current(url)
    db.upgrade(url, pre_deploy=pre_deploy)
    typer.echo(f"{before or 'none'} → {db.current(url)}")


@app.command()
def downgrade(database: Database = None) -> None:
    """Go back to schema 1: drop what schema 2 has added."""
    url = database_url(database)
    before = db.current(url)
    db.downgrade(url)
    typer.echo(f"{before} → {db.current(url)}")


@app.command()
def current(database: Database = None) -> None:
    """Print the revision of the tables, or "none"."""
    typer.echo(db.current(database_url(database)) or "none")


@app.command()
def check(database: Database = None) -> None:
    """Print in what the tables differ from this version. The exit code is 1 if they do."""
    problems = db.check(database_url(database))
    for problem in problems:
        typer.echo(problem)
    if problems:
        raise typer.Exit(1)
    typer.echo("the tables are up to date")


@app.command()
def sql(
    database: Database = None,
    start: Annotated[str | None, typer.Option("--from", help="Revision of the tables that are there.")] = None,
) -> None:
    """Print the SQL of an upgrade, without connecting."""
    typer.echo(db.sql(database_url(database), start=start), nl=False)


@app.command()
def stamp(
    revision: Annotated[str, typer.Argument(help="The revision that the tables have.")], database: Database = None
) -> None:
    """State the revision of the tables, and change nothing else."""
    db.stamp(database_url(database), revision)
