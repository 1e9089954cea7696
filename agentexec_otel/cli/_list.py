"""`agentexec-otel list`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Annotated, Final, Literal, NoReturn, TypeAlias

import typer
from rich.text import Text
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity import (
    ActivityCursorPageSchema,
    ActivityFilters,
    ActivityListItemSchema,
    ActivityListSchema,
)
from agentexec_otel.cli._filters import filtered
from agentexec_otel.cli._format import age, bar, id_text, link_style, percent, span, status_cell
from agentexec_otel.cli._options import AsJson, Database, reading
from agentexec_otel.cli._output import (
    Cell,
    Column,
    console,
    interruptible,
    is_terminal,
    note,
    print_json,
    print_table,
    table_lines,
)

_Page: TypeAlias = ActivityListSchema | ActivityCursorPageSchema

_POLL_SECONDS: Final = 0.5
_ID: Final = Column("ID")
_TYPE: Final = Column("TYPE", weight=1)
_STATUS: Final = Column("STATUS")
_LOG: Final = Column("LOG", weight=1.3)
_COLUMNS: Final = (_ID, _TYPE, _STATUS, Column("%", "right"), Column("AGE", "right"), Column("TIME", "right"), _LOG)
_WATCHED: Final = (_ID, _TYPE, _STATUS, Column("PROGRESS"), Column("TIME", "right"), _LOG)


@filtered()
def list_activities(
    filters: ActivityFilters,
    limit: Annotated[
        int, typer.Option("--limit", "-n", metavar="N", min=1, max=1_000, help="Number of activities.")
    ] = 20,
    page: Annotated[int, typer.Option(metavar="N", min=1, help="Number of the page.")] = 1,
    cursor: Annotated[
        str | None,
        typer.Option(
            metavar="CURSOR",
            help='Continue after an earlier page: its next_cursor (in --json), or "" for the first page.',
        ),
    ] = None,
    oldest: Annotated[bool, typer.Option("--oldest", help="Oldest first.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it live, until Ctrl-C.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print ids only.")] = False,
    as_json: AsJson = False,
    database: Database = None,
) -> None:
    """List activities with their latest log, newest first."""
    with reading(database) as engine:

        def read(most: int) -> _Page:
            order: Literal["newest", "oldest"] = "oldest" if oldest else "newest"
            with Session(engine) as session:
                return ax.activity.list(session, page, most, order=order, cursor=cursor, **filters)

        if watch:
            if as_json or quiet or not is_terminal():
                raise typer.BadParameter("it is for terminals; for a program, use tail --json", param_hint="--watch")
            _watch(lambda rows: read(min(limit, rows)))
        _show(read(limit), quiet=quiet, as_json=as_json)


def _show(found: _Page, *, quiet: bool, as_json: bool) -> None:
    if as_json:
        print_json(found)
    elif quiet:
        for item in found.items:
            console().print(str(item.agent_id), soft_wrap=True)
    elif found.items:
        print_table(*item_table(found.items))
        if found.next_cursor is not None and is_terminal():
            note(_rest(found))
    else:
        note("no activity matches")


def _rest(found: _Page) -> str:
    if isinstance(found, ActivityListSchema):
        return (
            f"page {found.page:,} of {found.pages:,} ({found.total:,} activities); --page {found.page + 1} is the next"
        )
    return f"there are more: --cursor {found.next_cursor}"


def item_table(items: Sequence[ActivityListItemSchema]) -> tuple[Sequence[Column], Sequence[Sequence[Cell]]]:
    """Columns and rows of a table of activities."""
    return _COLUMNS, [_row(item, percent(item.latest_percentage), age(item.created_at)) for item in items]


def _row(item: ActivityListItemSchema, *progress: Cell) -> list[Cell]:
    return [
        (id_text(item.agent_id), link_style(item.trace_url)),
        item.agent_type,
        status_cell(item.status),
        *progress,
        span(item.duration_seconds),
        item.latest_log or "",
    ]


def _watch(read: Callable[[int], _Page]) -> NoReturn:
    from rich.console import Group
    from rich.live import Live

    screen = console()
    with interruptible(), Live(console=screen, auto_refresh=False) as live:
        while True:
            found = read(max(1, screen.height - 3))
            rows = [_row(item, bar(item.latest_percentage, item.status)) for item in found.items]
            lines = table_lines(_WATCHED, rows)
            total = f" of {found.total:,}" if found.total is not None else ""
            live.update(
                Group(*lines, Text(f"{len(found.items)}{total}, live; Ctrl-C ends", "dim")),
                refresh=True,
            )
            time.sleep(_POLL_SECONDS)
