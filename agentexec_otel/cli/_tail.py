"""`agentexec-otel tail`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Annotated, Any, Final, TypeAlias, cast
from uuid import UUID

import typer
from sqlalchemy import Engine
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity import ActivityFeedFilters, ActivityFilters, ActivityListItemSchema, ActivityLogSchema
from agentexec_otel.cli._filters import activities_of, filtered, find_item, no_activity
from agentexec_otel.cli._logs import LogPrinter
from agentexec_otel.cli._options import AsJson, Database, moment, reading
from agentexec_otel.cli._output import interruptible, print_json

_Print: TypeAlias = Callable[[ActivityLogSchema, UUID, str], None]

_POLL_SECONDS: Final = 0.2
_LINES: Final = 10


@filtered("agent_type", "metadata")
def tail(
    filters: ActivityFilters,
    agent_id: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="One activity, until it ends. Default: all.", show_default=False),
    ] = None,
    lines: Annotated[
        int | None,
        typer.Option(
            "--lines", "-n", metavar="N", min=0, help=f"Number of earlier logs. Default with an ID: {_LINES}."
        ),
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option(
            parser=moment, metavar="TIME", help="Earlier logs since: 30m or 7d (ago), or 2026-01-31T12:00 (UTC)."
        ),
    ] = None,
    as_json: AsJson = False,
    database: Database = None,
) -> None:
    """Print logs as they come, by any process: those of one activity until it ends, or those of all until Ctrl-C.

    As JSON, each log is a line.
    """
    if agent_id is not None and filters:
        raise typer.BadParameter("filters are for the logs of all activities; give them or an ID")
    printed: _Print = _print_json_line if as_json else LogPrinter(whose=agent_id is None).print
    with reading(database) as engine, interruptible():
        if agent_id is not None:
            _tail_one(engine, agent_id, since, _LINES if lines is None and since is None else lines, printed)
        elif lines is not None and since is None:
            raise typer.BadParameter("without an ID it needs --since", param_hint="--lines")
        else:
            _tail_all(engine, filters, since, lines, printed)


def _print_json_line(log: ActivityLogSchema, agent_id: UUID, agent_type: str) -> None:
    whose = {"agent_id": str(agent_id), "agent_type": agent_type}
    print_json(whose | log.model_dump(mode="json", include=set(ActivityLogSchema.model_fields)), indent=None)


# -- one -----------------------------------------------------------------------------------------------------------


def _tail_one(engine: Engine, text: str, since: datetime | None, lines: int | None, printed: _Print) -> None:
    with Session(engine) as session:
        item = find_item(session, text)
        logs = ax.activity.logs(session, item.agent_id)
    seq = logs[-1].seq if logs else 0
    for log in _latest([log for log in logs if since is None or log.created_at >= since], lines):
        printed(log, item.agent_id, item.agent_type)
    while not item.status.terminal:
        time.sleep(_POLL_SECONDS)
        item, logs = _poll(engine, item.agent_id, seq)
        for log in logs:
            seq = log.seq
            printed(log, item.agent_id, item.agent_type)


def _poll(engine: Engine, agent_id: UUID, seq: int) -> tuple[ActivityListItemSchema, list[ActivityLogSchema]]:
    with Session(engine) as session:
        item = ax.activity.get(session, agent_id)  # before the logs: with the end, all of them are there
        if item is None:
            raise no_activity(agent_id)
        return item, ax.activity.logs(session, agent_id, after_seq=seq)


def _latest(logs: list[Any], lines: int | None) -> list[Any]:
    return logs if lines is None else logs[len(logs) - min(lines, len(logs)) :]


# -- all -----------------------------------------------------------------------------------------------------------


def _tail_all(
    engine: Engine, filters: ActivityFilters, since: datetime | None, lines: int | None, printed: _Print
) -> None:
    with Session(engine) as session:
        cursor = ax.activity.feed(session, "now").next_cursor
        # Read after the cursor is taken: what is committed in between is seen twice, and not missed.
        earlier = [] if since is None else list(_earlier(session, since, filters))
    earlier.sort(key=lambda found: (found[1].created_at, found[1].id))
    for item, log in _latest(earlier, lines):
        printed(log, item.agent_id, item.agent_type)
    seen = {log.id for _, log in earlier}
    wanted = cast(ActivityFeedFilters, filters)
    while True:
        with Session(engine) as session:
            page = ax.activity.feed(session, cursor, **wanted)
        for log in page.logs:
            if log.id not in seen:
                printed(log, log.agent_id, log.agent_type)
        cursor = page.next_cursor
        if not page.has_more:
            time.sleep(_POLL_SECONDS)


def _earlier(
    session: Session, since: datetime, filters: ActivityFilters
) -> Iterator[tuple[ActivityListItemSchema, ActivityLogSchema]]:
    """The logs since then, with their activities."""
    for item in activities_of(session, {**filters, "updated_after": since}):
        yield from ((item, log) for log in ax.activity.logs(session, item.agent_id) if log.created_at >= since)
