"""The commands ``agentexec-otel db …``: migrations of the tables."""

from __future__ import annotations

from typing import Annotated

import typer

from agentexec_otel import db
from agentexec_otel.cli._options import AsJson, Database, database_url, existing_url
from agentexec_otel.cli._output import print_json, print_text

app = typer.Typer(help="Create, upgrade and check the tables.", no_args_is_help=True)


@app.command()
def upgrade(
    database: Database = None,
    pre_deploy: Annotated[
        bool, typer.Option("--pre-deploy", help="Only what programs of the version before can work with.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Create the tables, or bring them to the schema of this version."""
    url = database_url(database)
    before = db.current(url)
    db.upgrade(url, pre_deploy=pre_deploy)
    _report(before, db.current(url), as_json=as_json)


@app.command()
def downgrade(database: Database = None, as_json: AsJson = False) -> None:
    """Go back to schema 1: drop what schema 2 has added."""
    url = existing_url(database)
    before = db.current(url)
    db.downgrade(url)
    _report(before, db.current(url), as_json=as_json)


@app.command()
def current(database: Database = None, as_json: AsJson = False) -> None:
    """Print the revision of the tables, or "none"."""
    revision = db.current(existing_url(database))
    if as_json:
        print_json({"revision": revision})
    else:
        print_text(revision or "none")


@app.command()
def check(database: Database = None, as_json: AsJson = False) -> None:
    """Print in what the tables differ from this version. The exit code is 1 if they do."""
    problems = db.check(existing_url(database))
    if as_json:
        print_json({"problems": problems})
    else:
        for line in problems or ["the tables are up to date"]:
            print_text(line)
    if problems:
        raise typer.Exit(1)


@app.command()
def sql(
    database: Database = None,
    start: Annotated[str | None, typer.Option("--from", help="Revision of the tables that are there.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the SQL of an upgrade, without connecting."""
    statements = db.sql(database_url(database), start=start)
    if as_json:
        print_json({"sql": statements})
    else:
        typer.echo(statements, nl=False)


@app.command()
def stamp(
    revision: Annotated[str, typer.Argument(help="The revision that the tables have.")],
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """State the revision of the tables, and change nothing else."""
    url = database_url(database)
    before = db.current(url)
    db.stamp(url, revision)
    _report(before, db.current(url), as_json=as_json)


def _report(before: str | None, after: str | None, *, as_json: bool) -> None:
    if as_json:
        print_json({"before": before, "after": after})
    else:
        print_text(f"{before or 'none'} → {after}")
