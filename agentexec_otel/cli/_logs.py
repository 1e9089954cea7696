"""Logs as lines, for `show` and `tail`."""

from __future__ import annotations

from datetime import date, datetime
from typing import Final
from uuid import UUID

from rich.table import Table
from rich.text import Text

from agentexec_otel.activity import ActivityLogSchema, Status
from agentexec_otel.cli._format import STATUS_STYLES, percent
from agentexec_otel.cli._output import console, is_terminal, one_line, safe, shortened

_TYPE_CELLS: Final = 16


class LogPrinter:
    """Prints logs as they come: on a terminal in columns, with long messages wrapped between words; else as one line.

    Args:
        whose: Print of which activity each log is.
    """

    def __init__(self, *, whose: bool = False) -> None:
        self._whose = whose
        self._day: date = datetime.now().astimezone().date()
        self._attempt = 1

    def print(self, log: ActivityLogSchema, agent_id: UUID, agent_type: str) -> None:
        """Print one log of an activity."""
        if is_terminal():
            self._print_headings(log)
            console().print(self._row(log, agent_id, agent_type))
        else:
            console().print(self._line(log, agent_id, agent_type), soft_wrap=True)

    def _print_headings(self, log: ActivityLogSchema) -> None:
        day = log.created_at.astimezone().date()
        if day != self._day:
            self._day = day
            console().print(Text(f"── {day}", "dim"))
        if not self._whose and log.attempt != self._attempt:
            self._attempt = log.attempt
            console().print(Text(f"── attempt {log.attempt}", "dim"))

    def _row(self, log: ActivityLogSchema, agent_id: UUID, agent_type: str) -> Table:
        cells = [Text(f"{log.created_at.astimezone():%H:%M:%S}", "dim")]
        if self._whose:
            cells += [Text(str(agent_id)[:8]), Text(shortened(one_line(agent_type), _TYPE_CELLS))]
        cells.append(_state(log))
        row = Table.grid(padding=(0, 2, 0, 0))
        for width in (8, 8, _TYPE_CELLS, 8) if self._whose else (8, 8):
            row.add_column(width=width, no_wrap=True)
        row.add_column(overflow="fold")
        row.add_row(*cells, Text(safe(log.message)).append(_late(log), "dim"))
        return row

    def _line(self, log: ActivityLogSchema, agent_id: UUID, agent_type: str) -> str:
        whose = (str(agent_id), one_line(agent_type)) if self._whose else ()
        state = (log.status.value, percent(log.percentage) or "-")
        message = f"{one_line(log.message)}{_late(log)}"
        return "  ".join((log.created_at.isoformat(timespec="microseconds"), *whose, *state, message))


def _state(log: ActivityLogSchema) -> Text:
    style = STATUS_STYLES[log.status]
    if log.status is Status.RUNNING and log.percentage is not None:
        return Text(f"{percent(log.percentage):>8}", style)
    return Text(log.status.value, style)


def _late(log: ActivityLogSchema) -> str:
    return " (late)" if log.late else ""
