"""Values as text for a terminal: ids, times, durations, progress, numbers."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from typing import Final
from uuid import UUID

from agentexec_otel.activity import Status
from agentexec_otel.cli._output import Cell, is_terminal

STATUS_STYLES: Final = {
    Status.QUEUED: "dim",
    Status.RUNNING: "cyan",
    Status.COMPLETE: "green",
    Status.ERROR: "red",
    Status.CANCELED: "yellow",
}
_UNITS: Final = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))
_BAR_CELLS: Final = 8
_PORTION_CELLS: Final = 24


def id_text(agent_id: UUID) -> str:
    """The first characters of an id on a terminal, which other commands take; all of it in a pipe."""
    return str(agent_id)[:8] if is_terminal() else str(agent_id)


def link_style(url: str | None) -> str:
    """The style of a text that links to this URL, on a terminal that can."""
    return "" if url is None else f"link {url}"


def status_cell(status: Status) -> Cell:
    """The status in its color."""
    return (status.value, STATUS_STYLES[status])


def percent(percentage: int | None) -> str:
    """``45%``, or nothing."""
    return "" if percentage is None else f"{percentage}%"


def bar(percentage: int | None, status: Status) -> Cell:
    """A bar in the color of the status, and the number."""
    if percentage is None:
        return ""
    done = percentage * _BAR_CELLS // 100
    return (f"{'━' * done}{'╌' * (_BAR_CELLS - done)} {percentage:>3}%", STATUS_STYLES[status])


def span(seconds: float | None) -> str:
    """A duration in at most six cells: ``0.8s``, ``45s``, ``2m05s``, ``3h07m``, ``12d04h``."""
    if seconds is None:
        return ""
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    for (unit, size), (lesser, lesser_size) in pairwise(_UNITS):
        if whole >= 1_000 * size and unit == "d":
            return f"{whole // size}d"
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // lesser_size:02}{lesser}"
    return f"{whole}s"


def age(since: datetime) -> str:
    """How long ago, in its largest unit."""
    seconds = max(0, int((datetime.now(UTC) - since).total_seconds()))
    return next((f"{seconds // size}{unit}" for unit, size in _UNITS if seconds >= size), "0s")


def local_time(moment: datetime) -> str:
    """Date and time in the reader's time zone."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def activities(count: int) -> str:
    """How many, in words."""
    if not count:
        return "no activity"
    return "1 activity" if count == 1 else f"{count:,} activities"


def number(value: float | None) -> str:
    """A number with separators, or nothing."""
    return "" if value is None else f"{value:,.0f}"


def portion(count: int, whole: int) -> str:
    """A bar without a number, as long as the count's part of the whole. Anything but 0 is seen."""
    return "━" * -(-count * _PORTION_CELLS // whole) if count else ""
