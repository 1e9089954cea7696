"""`agentexec-otel stats`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import typer

import agentexec_otel as ax
from agentexec_otel.activity import ActivityFilters, ActivityStatsSchema, PercentilesSchema
from agentexec_otel.cli._filters import filtered
from agentexec_otel.cli._format import activities, number, portion, span, status_cell
from agentexec_otel.cli._options import AsJson, Database, duration, session
from agentexec_otel.cli._output import Cell, Column, print_json, print_table, print_text

_TYPE_TITLES: Final = ("TOTAL", "ACTIVE", "FAILED", "P50", "P95", "MAX")
_POINTS: Final = ("p50", "p90", "p95", "p99", "max")
_COUNT: Final = Column("COUNT", "right")
_DEFAULT: Final = timedelta(hours=24)


@filtered()
def stats(
    filters: ActivityFilters,
    bucket: Annotated[
        timedelta | None,
        typer.Option(parser=duration, metavar="DURATION", help="Starts and ends in steps of 10m, 1h, 1d, …."),
    ] = None,
    as_json: AsJson = False,
    database: Database = None,
) -> None:
    """Count and measure activities: statuses, types, reasons, times, tokens. Those of the last 24 hours, by default."""
    by_default = not any(name.endswith(("_after", "_before")) for name in filters)
    if by_default:
        filters["created_after"] = datetime.now(UTC) - _DEFAULT
    with session(database) as opened:
        found = ax.activity.stats(opened, bucket=bucket, **filters)
    if as_json:
        print_json(found)
    else:
        _show(found, " created in the last 24 hours" if by_default else "")


def _show(found: ActivityStatsSchema, when: str) -> None:
    print_text((activities(found.total), "bold"), when)
    if not found.total:
        return
    _section(
        [Column("STATUS"), _COUNT, Column("")],
        [[status_cell(status), f"{count:,}", portion(count, found.total)] for status, count in found.by_status.items()],
    )
    _section(
        [Column("TYPE", weight=1), *(Column(title, "right") for title in _TYPE_TITLES)],
        [
            [one.agent_type, f"{one.total:,}", f"{one.active:,}", f"{one.failed:,}",
             span(one.duration_seconds.p50), span(one.duration_seconds.p95), span(one.duration_seconds.max)]
            for one in found.by_type
        ],
    )  # fmt: skip
    ended = sum(found.by_reason.values())
    _section(
        [Column("REASON", weight=1), _COUNT, Column("")],
        [[reason, f"{count:,}", portion(count, ended)] for reason, count in found.by_reason.items()],
    )
    measures = {
        "duration": (found.duration_seconds, span),
        "queued": (found.queued_seconds, span),
        "input tokens": (found.input_tokens, number),
        "output tokens": (found.output_tokens, number),
    }
    _section(
        [Column("MEASURE"), _COUNT, *(Column(point.upper(), "right") for point in _POINTS)],
        [[name, f"{of.count:,}", *_percentiles(of, shown)] for name, (of, shown) in measures.items() if of.count],
    )
    most = max((max(one.started, one.ended) for one in found.series), default=0)
    _section(
        [Column("FROM"), *(Column(title, "right") for title in ("STARTED", "ENDED", "FAILED")), Column("")],
        [
            [f"{one.start.astimezone():%Y-%m-%d %H:%M}", f"{one.started:,}", f"{one.ended:,}", f"{one.failed:,}",
             portion(one.started, most)]
            for one in found.series
        ],
    )  # fmt: skip


def _section(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> None:
    if rows:
        print_text()
        print_table(columns, rows)


def _percentiles(of: PercentilesSchema, shown: Callable[[float | None], str]) -> list[str]:
    return [shown(getattr(of, point)) for point in _POINTS]
