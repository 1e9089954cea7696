"""`agentexec-otel doctor`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

import typer

from agentexec_otel.cli._checks import Finding, Level, findings
from agentexec_otel.cli._options import AsJson, Database
from agentexec_otel.cli._output import print_field, print_json

_STYLES: Final[dict[Level, str]] = {"ok": "", "warning": "yellow", "error": "red"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(database: Database = None, as_json: AsJson = False) -> None:
    """Check database, tables, rights, spool, exporters, tracing, agents and settings, and say what to do.

    The exit code is 1 if activities cannot be stored. Nothing is changed.
    """
    found = list(findings(database))
    fails = any(finding.level == "error" for finding in found)
    if as_json:
        print_json({"ok": not fails, "findings": [asdict(finding) for finding in found]})
    else:
        for finding in found:
            _print(finding)
        print_field("", _summary(found), "bold")
    if fails:
        raise typer.Exit(1)


def _print(finding: Finding) -> None:
    print_field(finding.check, f"{finding.level}: {finding.text}", _STYLES[finding.level])
    if finding.fix is not None:
        print_field("", f"→ {finding.fix}")


def _summary(found: list[Finding]) -> str:
    errors, warnings = (sum(finding.level == level for finding in found) for level in ("error", "warning"))
    what = "activities cannot be stored" if errors else "activities can be stored"
    return f"{what}: {_count(errors, 'error')}, {_count(warnings, 'warning')}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
