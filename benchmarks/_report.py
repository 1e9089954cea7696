"""Tables for the terminal, and the same tables as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from benchmarks._measure import Listing, Row, Section, Table

BEGIN: Final = "<!-- results: written by `python -m benchmarks --markdown`, do not edit -->"
END: Final = "<!-- end of results -->"

_COLUMNS: Final = ("", "median", "min to max", "unit", "ratio", "min to max", "target")


def show(section: Section, console: Console) -> None:
    """Print a section."""
    console.rule(f"[bold]{escape(section.title)}")
    for block in section.blocks:
        if isinstance(block, Listing):
            console.print(f"\n[bold]{escape(block.title)}[/bold]")
            console.print(escape(block.text), soft_wrap=True, highlight=False)
        else:
            _show(block, console)


def _show(table: Table, console: Console) -> None:
    drawn = RichTable(
        title=escape(_heading(table)), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for number, name in enumerate(_COLUMNS):
        drawn.add_column(name, justify="left" if number == 0 else "right", no_wrap=number > 0)
    for row in table.rows:
        color = {True: "green", False: "red", None: ""}[row.met]
        cells = [escape(cell) for cell in _cells(row)]
        drawn.add_row(*cells, style=color)
    console.print(drawn)
    for note in table.notes:
        console.print(f"  {escape(note)}", highlight=False)


def markdown(environment: Sequence[tuple[str, str]], sections: Sequence[Section]) -> str:
    """The results as they stand in the docs, markers included."""
    return "\n".join([BEGIN, "", *_environment(environment), *_sections(sections), END])


def write_markdown(path: Path, text: str) -> None:
    """Put the results between the markers of an existing page; a new page holds nothing else."""
    page = path.read_text(encoding="utf-8") if path.exists() else f"# Benchmarks\n\n{BEGIN}\n{END}\n"
    before, found, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"{path} has no place for the results: it needs the lines {BEGIN} and {END}")
    path.write_text(f"{before}{text}{after}", encoding="utf-8")


def _environment(environment: Sequence[tuple[str, str]]) -> Iterator[str]:
    yield "| machine and versions | |"
    yield "|---|---|"
    for name, value in environment:
        yield f"| {name} | {value} |"
    yield ""


def _sections(sections: Sequence[Section]) -> Iterator[str]:
    for section in sections:
        yield f"### {section.title}"
        yield ""
        for block in section.blocks:
            yield from _listing(block) if isinstance(block, Listing) else _table(block)
            yield ""


def _listing(block: Listing) -> Iterator[str]:
    yield f"{block.title}:"
    yield ""
    yield "```text"
    yield block.text
    yield "```"


def _table(table: Table) -> Iterator[str]:
    yield f"**{_heading(table)}**"
    yield ""
    yield f"| {' | '.join(_COLUMNS)} |"
    yield f"|{'|'.join(['---', *['--:'] * (len(_COLUMNS) - 1)])}|"
    for row in table.rows:
        yield f"| {' | '.join(_cells(row))} |"
    for note in table.notes:
        yield ""
        yield note


def _heading(table: Table) -> str:
    return f"{table.title} (ratio to: {table.baseline})" if table.baseline else table.title


def _cells(row: Row) -> list[str]:
    ratios = row.ratios
    target = "" if row.target is None else f"{row.target} {'met' if row.met else 'MISSED'}"
    return [
        row.label,
        number(statistics.median(row.values)),
        f"{number(min(row.values))} to {number(max(row.values))}",
        row.unit,
        f"{number(statistics.median(ratios))}x" if ratios else "",
        f"{number(min(ratios))} to {number(max(ratios))}" if ratios else "",
        target,
    ]


def number(value: float) -> str:
    """Three digits that mean something."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
