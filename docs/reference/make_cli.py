"""Writes the commands and their options into docs/reference/cli.md: python docs/reference/make_cli.py

They are read from the command line itself, so that the page has all of them, in its own words.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import typer

from agentexec_otel.cli._app import app

PAGE: Final = Path(__file__).with_name("cli.md")
BEGIN: Final = "<!-- commands: written by docs/reference/make_cli.py, do not edit -->"
SHARED: Final = {"--database", "--json", "--help"}
"""Explained once at the top of the page."""


def commands() -> Iterator[tuple[str, Any]]:
    """Each command that does something, with its whole name."""
    yield from _commands("agentexec-otel", typer.main.get_command(app))


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    inner: dict[str, Any] = getattr(command, "commands", {})
    if not inner:
        yield name, command
    for part in sorted(inner):
        yield from _commands(f"{name} {part}", inner[part])


def reference() -> str:
    """The commands as Markdown."""
    return "\n".join([BEGIN, *(line for name, command in commands() for line in _section(name, command))]) + "\n"


def _section(name: str, command: Any) -> Iterator[str]:
    shown = command.get_params(typer.Context(command))
    arguments = [one for one in shown if one.param_type_name == "argument"]
    options = [one for one in shown if one.param_type_name == "option" and not SHARED & set(one.opts)]
    usage = " ".join([name, *(["[OPTIONS]"] if options else []), *(_placeholder(one) for one in arguments)])
    yield from ("", f"### {name.removeprefix('agentexec-otel ')}", "", "```text", usage, "```", "")
    yield from (" ".join(part.split()) + "\n" for part in command.help.split("\n\n"))
    shared = [f"`{one.opts[0]}`" for one in shown if {"--database", "--json"} & set(one.opts)]
    if arguments or options:
        yield from ("| | |", "|---|---|")
    for one in arguments:
        yield f"| `{_placeholder(one)}` | {_meaning(one)} |"
    for one in options:
        yield f"| {_names(one)} | {_meaning(one)} |"
    if shared:
        yield from ([""] if arguments or options else [])
        yield f"Also {' and '.join(sorted(shared))}."


def _placeholder(argument: Any) -> str:
    name = str(argument.metavar or argument.name.upper())
    return name if argument.required or name.startswith("[") else f"[{name}]"


def _names(option: Any) -> str:
    value = "" if option.is_flag else f" {option.metavar or option.name.upper()}"
    return ", ".join(f"`{name}{value}`" for name in (*option.opts, *option.secondary_opts))


def _meaning(param: Any) -> str:
    stated = " ".join((param.help or "").split()).replace("|", "\\|")
    wanted = param.param_type_name == "option" and not param.is_flag
    default = f" Default: `{param.default}`." if wanted and param.default not in (None, "", [], ()) else ""
    return (
        f"{stated}{' Required.' if param.required and wanted else ''}{default if not callable(param.default) else ''}"
    )


def write(page: Path = PAGE) -> None:
    """Replace what stands behind the marker."""
    before, _, _ = page.read_text(encoding="utf-8").partition(BEGIN)
    page.write_text(before + reference(), encoding="utf-8")


if __name__ == "__main__":
    write()
