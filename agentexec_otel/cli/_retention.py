"""`agentexec-otel archive` and `restore`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity import ActivityFilters
from agentexec_otel.cli._filters import filtered
from agentexec_otel.cli._format import activities
from agentexec_otel.cli._options import AsJson, Database, Yes, duration, reading
from agentexec_otel.cli._output import check_can_ask, confirm, interruptible, print_result, progress

_BatchSize = Annotated[int, typer.Option(metavar="N", min=1, max=10_000, help="Activities per transaction.")]


@filtered()
def archive(
    filters: ActivityFilters,
    older_than: Annotated[
        timedelta,
        typer.Option("--older-than", parser=duration, metavar="DURATION", help="Ended that long ago: 12h, 30d, 8w."),
    ],
    to: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="A file that ends in .jsonl, or a directory for Parquet. It is appended to."),
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete without an archive, instead of --to.")] = False,
    batch_size: _BatchSize = 500,
    yes: Yes = False,
    as_json: AsJson = False,
    database: Database = None,
) -> None:
    """Move activities that have ended, with their logs, from the database to files, or delete them. Asks first.

    After an interruption, run it again: no activity is lost, and none is in the archive twice.
    """
    if (to is None) is not delete:
        raise typer.BadParameter("give either --to or --delete")
    before = datetime.now(UTC) - older_than
    with reading(database) as engine:
        if not yes:
            check_can_ask()
            with Session(engine) as session:
                total = ax.activity.list(session, page_size=1, **_narrowed(filters, before)).total
            what = f"Delete {activities(total)}" if to is None else f"Move {activities(total)} to {to}"
            confirm(f"{what}?")
        with interruptible(), progress("Deleting" if to is None else "Archiving") as report:
            count = ax.activity.archive(engine, before, to=to, batch_size=batch_size, progress=report, **filters)
    words = f"{activities(count)} {'deleted' if to is None else f'moved to {to}'}"
    print_result({"archived": count, "to": None if to is None else str(to)}, words, as_json=as_json)


def restore(
    source: Annotated[Path, typer.Argument(help="What archive was given with --to.")],
    batch_size: _BatchSize = 500,
    as_json: AsJson = False,
    database: Database = None,
) -> None:
    """Read an archive back into the database, as it was. Activities that exist already are skipped."""
    with reading(database) as engine, interruptible(), progress("Restoring") as report:
        count = ax.activity.restore(engine, source, batch_size=batch_size, progress=report)
    print_result({"restored": count}, f"{activities(count)} restored", as_json=as_json)


def _narrowed(filters: ActivityFilters, before: datetime) -> ActivityFilters:
    """The filters with the age: what has not ended has no end, and is left out."""
    ended_before = filters.get("ended_before")
    return {**filters, "ended_before": before if ended_before is None else min(before, ended_before)}
