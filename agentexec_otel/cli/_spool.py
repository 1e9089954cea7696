"""The commands ``agentexec-otel spool …``: what waits, what was refused, and its delivery."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Final

import typer

import agentexec_otel as ax
from agentexec_otel.cli._format import age, id_text, local_time
from agentexec_otel.cli._options import AsJson, Database, acting, existing_url
from agentexec_otel.cli._output import Column, one_line, print_field, print_json, print_table, print_text

app: Final = typer.Typer(help="Show what waits in the spool of this machine, and deliver it.", no_args_is_help=True)

_FOLDERS: Final = (
    Column("TARGET", weight=1),
    *(Column(title, "right") for title in ("FILES", "EVENTS", "ORPHANED", "KIB", "OLDEST", "DEAD")),
)
_LETTERS: Final = (
    Column("NO", "right"),
    Column("AGE", "right"),
    Column("ACTIVITY"),
    Column("STATUS"),
    Column("REASON", weight=1),
)


@app.command("list")
def list_folders(as_json: AsJson = False) -> None:
    """List what waits to be stored, for each database and exporter.

    ORPHANED events are those whose process has ended; the next process that stores there delivers them.
    """
    found = ax.spool.contents()
    if as_json:
        print_json([_plain(folder) for folder in found])
        return
    print_text(f"spool: {ax.spool.directory() or 'off'}")
    if not found:
        print_text("nothing waits")
        return
    rows = [
        [
            folder.target or folder.path.name,
            f"{folder.files:,}",
            f"{folder.events:,}",
            f"{folder.orphaned:,}",
            f"{-(-folder.bytes // 1024):,}",
            age(folder.oldest) if folder.oldest else "",
            f"{folder.dead_letters:,}",
        ]
        for folder in found
    ]
    print_table(_FOLDERS, rows)


@app.command("dead-letters")
def dead_letters(
    number: Annotated[int | None, typer.Argument(help="Show this one in full.", min=1)] = None, as_json: AsJson = False
) -> None:
    """List the events and messages that were refused, with the reason; or show one of them."""
    found = ax.spool.dead_letters()
    if number is not None and number > len(found):
        raise ax.ConfigurationError(f"there is no dead letter {number}: there are {len(found)}")
    if as_json:
        print_json([_plain(letter) for letter in found] if number is None else _plain(found[number - 1]))
    elif number is not None:
        _show(found[number - 1])
    elif found:
        print_table(_LETTERS, [_row(at, letter) for at, letter in enumerate(found, 1)])
    else:
        print_text("no dead letters")


@app.command()
def replay(
    dead_letters: Annotated[
        bool, typer.Option("--dead-letters", help="Deliver the dead letters of the database, too.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="How long it may take.", metavar="SECONDS")] = 60.0,
    as_json: AsJson = False,
    database: Database = None,
) -> None:
    """Deliver what ended processes have left for a database. The exit code is 1 if something is left."""
    ax.db.rights(existing_url(database))  # Raises, instead of waiting for a database that does not answer.
    with acting(database):
        ax.recover(timeout, dead_letters=dead_letters)
        (sql, *_) = ax.health()["exporters"]
    result = {
        "replayed": sql["replayed"],  # With what the writer has replayed before `recover`.
        "stored": sql["committed"],
        "stored_before": sql["duplicate"],
        "refused": sql["dead_lettered"],
        "waiting": sql["pending"],
        "last_error": sql["last_error"],
    }
    if as_json:
        print_json(result)
    else:
        print_text(
            f"{sql['replayed']:,} events replayed: {sql['committed']:,} stored, {sql['duplicate']:,} had been stored,"
            f" {sql['dead_lettered']:,} refused"
        )
    if sql["last_error"]:
        raise ax.ConfigurationError(f"{sql['pending']:,} events wait: {sql['last_error']}")
    if sql["dead_lettered"] or sql["pending"]:
        raise typer.Exit(1)


def _plain(value: ax.spool.SpoolFolder | ax.spool.DeadLetter) -> dict[str, Any]:
    return {name: _plain_value(one) for name, one in asdict(value).items()}


def _plain_value(value: object) -> int | str | None:
    if isinstance(value, datetime):
        return value.isoformat()
    return value if isinstance(value, int | None) else str(value)


def _row(number: int, letter: ax.spool.DeadLetter) -> list[str]:
    return [
        str(number),
        age(letter.occurred_at) if letter.occurred_at else "",
        id_text(letter.agent_id) if letter.agent_id else "",
        letter.status or "",
        letter.reason,
    ]


def _show(letter: ax.spool.DeadLetter) -> None:
    values = {
        "reason": letter.reason,
        "activity": str(letter.agent_id or ""),
        "status": letter.status or "",
        "happened": local_time(letter.occurred_at) if letter.occurred_at else "",
        "message": letter.message,
        "target": letter.target or "",
        "folder": str(letter.folder),
    }
    for label, value in values.items():
        if value:
            print_field(label, one_line(value))
