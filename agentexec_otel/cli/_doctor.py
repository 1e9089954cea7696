"""`agentexec-otel doctor`: the command, and what it checks."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint, entry_points, requires
from pathlib import Path
from typing import Final, Literal, TypeAlias

import typer
from opentelemetry import trace

import agentexec_otel as ax
from agentexec_otel.cli._options import AsJson, Database, existing_url, shown_url
from agentexec_otel.cli._output import print_field, print_json
from agentexec_otel.export import ExportError

Level: TypeAlias = Literal["ok", "warning", "error"]

_STYLES: Final[dict[Level, str]] = {"ok": "", "warning": "yellow", "error": "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check.

    Attributes:
        level: ``error`` if activities cannot be stored.
        fix: What to do, in one sentence. None if there is nothing to do.
    """

    check: str
    level: Level
    text: str
    fix: str | None = None


def doctor(database: Database = None, as_json: AsJson = False) -> None:
    """Check database, tables, rights, spool, exporters, tracing, agents and settings, and say what to do.

    The exit code is 1 if activities cannot be stored. Nothing is changed.
    """
    found = list(_findings(database))
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


def _findings(database: str | None) -> Iterator[Finding]:
    """Check everything, the database of the option or of the environment first."""
    yield from _database(database or ax.CONF.database_url)
    yield from _spool()
    yield from _exporters()
    yield from _tracing()
    yield from _agents()
    yield from _settings()


# -- database --------------------------------------------------------------------------------------------------------

_REACH: Final = "start the database, or correct the host and the port in the URL"


def _database(url: str | None) -> Iterator[Finding]:
    if url is None:
        text = "no database is named"
        yield Finding("database", "error", text, "give --database, or set AGENTEXEC_DATABASE_URL")
        return
    try:
        server = ax.db.server(existing_url(url))
    except ax.ConfigurationError as exc:
        text, _, fix = str(exc).partition(": ")
        yield Finding("database", "error", text, fix)
    except ExportError as exc:
        yield Finding("database", "error", exc.text, exc.remedy or _REACH)
    else:
        yield Finding("database", "ok", f"{server}: {shown_url(url)}")
        yield from _tables(url)


def _tables(url: str) -> Iterator[Finding]:
    try:
        rights = ax.db.rights(url)
    except ExportError as exc:
        # The differences say more than the server's words.
        yield from list(_schema(url, "error")) or [Finding("schema", "error", exc.text, exc.remedy or _REACH)]
        return
    yield from list(_schema(url, "warning")) or [Finding("schema", "ok", "the tables are those of this version")]
    refused = {name: refusal for name, refusal in rights.items() if refusal is not None}
    for name, refusal in refused.items():
        level: Level = "warning" if name == "DELETE" else "error"
        yield Finding("rights", level, f"{name} fails: {refusal.text}", refusal.remedy or _REACH)
    if not refused:
        yield Finding("rights", "ok", f"{', '.join(rights)} work")


def _schema(url: str, level: Level) -> Iterator[Finding]:
    """In what the tables differ from this version."""
    try:
        problems = ax.db.check(url)
    except ax.MissingExtraError as exc:
        text, _, fix = str(exc).partition(": ")
        yield Finding("schema", "warning", text, fix)
        return
    except ExportError as exc:  # such as a user without rights on the table of the revision
        yield Finding("schema", "warning", f"not compared: {exc.text}", exc.remedy or _REACH)
        return
    for problem in problems:
        text, _, fix = problem.partition(": ")
        is_known = fix.startswith(("run ", "install "))
        yield Finding(
            "schema", level, text if is_known else problem, fix if is_known else "run agentexec-otel db upgrade"
        )


# -- spool -----------------------------------------------------------------------------------------------------------


def _spool() -> Iterator[Finding]:
    try:
        directory = ax.spool.directory()
        if directory is None:
            yield Finding("spool", "ok", "off: what is not stored is lost when its process ends")
            return
        ax.spool.check()
        folders = ax.spool.contents()
    except ax.ConfigurationError as exc:
        fix = "make it writable for this user, or name another directory in AGENTEXEC_SPOOL_DIR"
        yield Finding("spool", "warning", f"accepted events are kept in memory only: {exc}", fix)
        return
    yield _space(directory)
    for folder in folders:
        yield from _folder(folder)


def _space(directory: Path) -> Finding:
    free = shutil.disk_usage(directory).free
    text = f"{directory}, {free >> 20:,} MiB free"
    if free < ax.CONF.spool_max_bytes:
        return Finding("spool", "warning", text, "free some space, or lower AGENTEXEC_SPOOL_MAX_BYTES")
    return Finding("spool", "ok", text)


def _folder(folder: ax.spool.SpoolFolder) -> Iterator[Finding]:
    target = folder.target or folder.path.name
    if folder.orphaned:
        text = f"{folder.orphaned:,} events of ended processes wait for {target}"
        yield Finding("spool", "warning", text, "run agentexec-otel spool replay with this database")
    if folder.dead_letters:
        text = f"{folder.dead_letters:,} dead letters for {target}"
        fix = "mend what agentexec-otel spool dead-letters shows, then run agentexec-otel spool replay --dead-letters"
        yield Finding("spool", "warning", text, fix)
    if folder.damaged_files:
        text = f"{folder.damaged_files:,} damaged files in {folder.path}"
        yield Finding("spool", "warning", text, "keep them for a report, or delete them: what was readable is stored")


# -- exporters and tracing -------------------------------------------------------------------------------------------


def _exporters() -> Iterator[Finding]:
    found = {point.name: point for point in entry_points(group="agentexec_otel_exporter")}
    if "sql" not in found:
        yield Finding("exporters", "error", "the exporter sql is missing", "install agentexec-otel again")
    for name, point in sorted(found.items()):
        fault = _fault(point)
        if fault is not None:
            level: Level = "error" if name == "sql" else "warning"
            text = f"the exporter {name} cannot be loaded: {fault}"
            yield Finding("exporters", level, text, f"install {point.value.partition(':')[0]} again")
        else:
            yield Finding("exporters", "ok", f"{name} ({point.value})")


def _fault(point: EntryPoint) -> str | None:
    try:
        point.load()
    except (ImportError, AttributeError) as exc:
        return str(exc)
    return None


def _tracing() -> Iterator[Finding]:
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        yield Finding("tracing", "warning", "OTEL_SDK_DISABLED is true: activities have no spans", "unset it")
    known = {point.name for point in entry_points(group="opentelemetry_traces_exporter")}
    for name in filter(None, map(str.strip, os.environ.get("OTEL_TRACES_EXPORTER", "").split(","))):
        wanted = _otlp() if name == "otlp" else name
        if wanted not in known | {"none"}:
            text = f"OTEL_TRACES_EXPORTER names {name}, but no package has {wanted}: nothing is exported at all"
            yield Finding("tracing", "warning", text, _FIXES.get(wanted, "correct the name, or install its package"))
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):
        text = "no TracerProvider here: activities have spans in programs that set one up"
    else:
        text = f"{type(provider).__module__}.{type(provider).__qualname__}"
    yield Finding("tracing", "ok", text)


_FIXES: Final = {
    "otlp_proto_grpc": "set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf and pip install 'agentexec-otel[otlp]',"
    " or pip install opentelemetry-exporter-otlp-proto-grpc",
    "otlp_proto_http": "pip install 'agentexec-otel[otlp]'",
}


def _otlp() -> str:
    """The exporter that OpenTelemetry takes for ``otlp``."""
    names = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"
    protocol = next(filter(None, map(os.environ.get, names)), "grpc")
    return f"otlp_proto_{'http' if protocol.strip().startswith('http') else 'grpc'}"


# -- agent frameworks and settings -----------------------------------------------------------------------------------


def _agents() -> Iterator[Finding]:
    # The extra has what auto-instrumentation looks for.
    wanted = [text for text in requires("agentexec-otel") or () if re.search(r"extra == .instruments.", text)]
    for requirement in sorted(text.partition(";")[0].strip() for text in wanted):
        yield _framework(requirement)


def _framework(requirement: str) -> Finding:
    package = re.split(r"[<>=!~ ]", requirement)[0]
    try:
        from opentelemetry.instrumentation.dependencies import get_dependency_conflicts
    except ImportError:
        text = "opentelemetry-instrumentation is not installed: runs of agents are not recorded by themselves"
        return Finding("agents", "warning", text, f"pip install 'agentexec-otel[{package}]'")
    conflict = get_dependency_conflicts([requirement])
    if conflict is None:
        return Finding("agents", "ok", f"{requirement} is installed")
    if not conflict.found:
        return Finding("agents", "ok", f"{package} is not installed")
    return Finding("agents", "warning", f"{conflict.found} is not supported", f"pip install '{requirement}'")


def _settings() -> Iterator[Finding]:
    unknown = ax.Settings.unknown_variables()
    for name, nearest in unknown.items():
        fix = f"rename it to {nearest}" if nearest else "remove it"
        yield Finding("settings", "warning", f"{name} is no setting and has no effect", fix)
    known = [name for name in os.environ if name.startswith("AGENTEXEC_") and name not in unknown]
    yield Finding("settings", "ok", f"{', '.join(sorted(known)) or 'no variable AGENTEXEC_*'} set")
