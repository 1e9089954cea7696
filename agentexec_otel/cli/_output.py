"""What commands print: text that cannot steer the terminal, JSON, tables, questions and progress."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

import typer
from pydantic import BaseModel
from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError

import agentexec_otel as ax

MESSAGE_LIMIT: Final = 8_192
"""Characters of a message that are printed. Messages of other programs may be longer than ours."""
_LABEL_CELLS: Final = 10

# Controls but for \n and \t, directional marks and overrides, line separators, surrogates, and invisible tags.
_UNSAFE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]"
)


# -- text ------------------------------------------------------------------------------------------------------------


def safe(text: str, limit: int = MESSAGE_LIMIT) -> str:
    r"""The text without anything that a terminal obeys: ``\x1b`` and the like become visible. Cut at `limit`."""
    shown = _UNSAFE.sub(lambda found: _escaped(ord(found[0])), text[:limit])
    return shown if len(text) <= limit else f"{shown}…[+{len(text) - limit:,} characters]"


def one_line(text: str, limit: int = MESSAGE_LIMIT) -> str:
    """As `safe`, with each run of white space as one space."""
    return " ".join(safe(text, limit).split())


def shortened(text: str, width: int) -> str:
    """The text in at most that many cells: cut between two words if that keeps half of it, and marked with ``…``."""
    if cell_len(text) <= width:
        return text
    if width < 2:
        return "…"[:width]
    kept = next(iter(chop_cells(text, width - 1)), "")
    words = kept.rpartition(" ")[0] if text[len(kept) : len(kept) + 1] != " " else kept
    return f"{(words if cell_len(words) * 2 >= width else kept).rstrip(' .')}…"


def _escaped(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


# -- where it goes -----------------------------------------------------------------------------------------------


def console(*, err: bool = False) -> Console:
    """Standard output, or the error output. Text is never markup; colors are for terminals only, without NO_COLOR."""
    return _console(err)


@cache  # One for each stream: for it, console() and console(err=False) would be two.
def _console(err: bool) -> Console:
    return Console(stderr=err, highlight=False, markup=False, emoji=False)


def is_terminal(*, err: bool = False) -> bool:
    """Whether the stream is a terminal, for which text is cut or wrapped. FORCE_COLOR makes none of a pipe."""
    return console(err=err).file.isatty()


def print_text(*parts: str | Text | tuple[str, str]) -> None:
    """Print parts of text, some with a style. A terminal gets it wrapped between words, a pipe as it is."""
    console().print(Text.assemble(*parts), soft_wrap=not is_terminal())


def print_field(label: str, value: str, style: str = "") -> None:
    """Print a label and its value. On a terminal, a long value is wrapped in a column of its own."""
    if not is_terminal():
        print_text(f"{label:<{_LABEL_CELLS}}{one_line(value)}")
        return
    row = Table.grid()
    row.add_column(width=_LABEL_CELLS)
    row.add_column(overflow="fold")
    row.add_row(Text(label, "dim"), Text(one_line(value), style))
    console().print(row)


def note(text: str) -> None:
    """Print a line for the reader on the error output, so that it is not part of the result."""
    console(err=True).print(Text(safe(text)), soft_wrap=not is_terminal(err=True))


def print_result(plain: Mapping[str, Any], words: str, *, as_json: bool) -> None:
    """Print what a command has done: as JSON, or in words for the reader."""
    if as_json:
        print_json(plain)
    else:
        note(words)


def print_json(value: BaseModel | Mapping[str, Any] | Sequence[Any], *, indent: int | None = 2) -> None:
    """Print a schema or a plain value as JSON. What a terminal would obey is escaped, without loss."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    text = json.dumps(plain, indent=indent, ensure_ascii=False)
    sys.stdout.write(_UNSAFE.sub(lambda found: json.dumps(found[0])[1:-1].replace("\x7f", "\\u007f"), text) + "\n")
    sys.stdout.flush()


# -- tables ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        weight: Its share of the cells, if the terminal is too narrow. 0: it is never cut.
    """

    title: str
    justify: Literal["left", "right"] = "left"
    weight: float = 0.0


Cell = str | tuple[str, str]
"""Text, or text and its style."""


def table_lines(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], *, err: bool = False) -> list[Text]:
    """The lines of a table. Cells are cut to the width of the terminal; in a pipe nothing is cut."""
    width = console(err=err).width if is_terminal(err=err) else None
    texts = [[one_line(cell if isinstance(cell, str) else cell[0]) for cell in row] for row in rows]
    widths = _widths(columns, texts, width)
    styles = [["" if isinstance(cell, str) else cell[1] for cell in row] for row in rows]
    head = _table_line(columns, [column.title for column in columns], ["bold"] * len(columns), widths)
    return [head, *(_table_line(columns, *row, widths) for row in zip(texts, styles, strict=True))]


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], *, err: bool = False) -> None:
    """Print a table, as `table_lines` makes it."""
    for line in table_lines(columns, rows, err=err):
        console(err=err).print(line, soft_wrap=True)


def _widths(columns: Sequence[Column], texts: Sequence[Sequence[str]], width: int | None) -> list[int]:
    widths = [
        max(cell_len(text) for text in (column.title, *(row[at] for row in texts))) for at, column in enumerate(columns)
    ]
    if width is None:
        return widths
    flexible = [at for at, column in enumerate(columns) if column.weight]
    for _ in range(sum(widths) + 2 * (len(columns) - 1) - width):
        widest = max(flexible, key=lambda at: widths[at] / columns[at].weight, default=None)
        if widest is None or widths[widest] == 1:
            break
        widths[widest] -= 1
    return widths


def _table_line(columns: Sequence[Column], texts: Sequence[str], styles: Sequence[str], widths: Sequence[int]) -> Text:
    line = Text()
    for at, (column, text, style, width) in enumerate(zip(columns, texts, styles, widths, strict=True)):
        shown = shortened(text, width)
        gap = " " * (width - cell_len(shown))
        line.append("  " if at else "")
        if column.justify == "right":
            line.append(gap)
        line.append(shown, style)
        if column.justify == "left" and at < len(columns) - 1:
            line.append(gap)
    line.rstrip()
    return line


@contextmanager
def interruptible() -> Generator[None]:
    """Ctrl-C in the block ends the command quietly, with the exit code of shells for it."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


# -- questions, progress, errors -------------------------------------------------------------------------------------


def check_can_ask() -> None:
    """Raise ConfigurationError if there is no terminal to ask."""
    if not sys.stdin.isatty():
        raise ax.ConfigurationError("there is no terminal to ask: give --yes")


def confirm(question: str) -> None:
    """Ask. Ends the command with exit code 1 if the answer is no."""
    if not typer.confirm(question, err=True):
        raise typer.Exit(1)


@contextmanager
def progress(what: str) -> Generator[Callable[[int, int], None]]:
    """A spinner on the error output while the block works, and a bar once a total is reported. Only on a terminal.

    Yields:
        A function that takes how much is done so far, and the total.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    name, bar = TextColumn("{task.description}", markup=False), BarColumn(bar_width=30)
    columns = (SpinnerColumn(), name, bar, MofNCompleteColumn(), TimeElapsedColumn())
    hidden = not is_terminal(err=True)
    with Progress(*columns, console=console(err=True), transient=True, disable=hidden) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def database_fault(exc: SQLAlchemyError) -> str:
    """The server's words about an error, in one line."""
    orig = getattr(exc, "orig", None)
    words = [part for part in getattr(orig, "args", ()) if isinstance(part, str)]
    first = (words[-1] if words else str(orig or exc)).strip().partition("\n")[0]
    return one_line(f"the database cannot be used: {first}", 400)
