"""`agentexec-otel replay`."""

from __future__ import annotations

from typing import Annotated

import typer
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity import ActivityFilters
from agentexec_otel.cli._filters import filtered, find_id
from agentexec_otel.cli._options import AsJson, Database, acting, reading
from agentexec_otel.cli._output import interruptible, print_result, progress


@filtered()
def replay(
    filters: ActivityFilters,
    lost: Annotated[bool, typer.Option("--lost", help="All spans that were never exported.")] = False,
    ids: Annotated[
        list[str] | None, typer.Option("--id", metavar="ID", help="agent_id of an activity, or its first characters.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count the spans.")] = False,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, max=10_000, help="Spans per export.")] = 500,
    as_json: AsJson = False,
    database: Database = None,
) -> None:
    """Export the spans of activities that have ended and that no process has exported, such as those of killed workers.

    They go to what OTEL_TRACES_EXPORTER or OTEL_EXPORTER_OTLP_ENDPOINT name, each once. After an interruption, run it
    again.
    """
    if not (lost or ids or filters):
        raise typer.BadParameter("nothing is chosen: give --lost, --id, or filters such as --since")
    with reading(database) as engine, Session(engine) as session:
        ax.activity.count_active(session)  # explains tables that are missing
        if ids:
            filters["agent_id"] = [find_id(session, text) for text in ids]
    with acting(database), interruptible(), progress("Replaying") as report:
        count = ax.replay(batch_size=batch_size, progress=report, dry_run=dry_run, **filters)
    words = f"{count:,} span{'s'[: count != 1]} {'would be ' if dry_run else ''}replayed"
    print_result({"replayed": 0 if dry_run else count, "found": count}, words, as_json=as_json)
