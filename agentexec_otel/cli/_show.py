"""`agentexec-otel show`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

import typer

import agentexec_otel as ax
from agentexec_otel.activity import ActivityDetailSchema
from agentexec_otel.cli._filters import find_id, no_activity
from agentexec_otel.cli._format import STATUS_STYLES, age, link_style, local_time, percent, span
from agentexec_otel.cli._logs import LogPrinter
from agentexec_otel.cli._options import AgentId, AsJson, Database, session
from agentexec_otel.cli._output import one_line, print_field, print_json, print_text

_TOKENS: Final = {
    "input_tokens": "in",
    "cached_input_tokens": "of them cached",
    "output_tokens": "out",
    "reasoning_tokens": "of them for reasoning",
    "requests": "requests",
}


def show(
    agent_id: AgentId,
    lines: Annotated[int, typer.Option("--lines", "-n", metavar="N", min=0, help="Number of latest logs.")] = 20,
    late: Annotated[bool, typer.Option("--late", help="With the logs that came after the end.")] = False,
    as_json: AsJson = False,
    database: Database = None,
) -> None:
    """Show an activity with its logs. As JSON, with all of them."""
    with session(database) as opened:
        found = ax.activity.detail(opened, wanted := find_id(opened, agent_id), include_late=late)
    if found is None:
        raise no_activity(wanted)
    if as_json:
        print_json(found)
        return
    print_text((one_line(found.agent_type), "bold"), f"  {found.agent_id}")
    for label, value, style in _fields(found):
        print_field(label, value, style)
    _print_logs(found, lines)


def _print_logs(found: ActivityDetailSchema, lines: int) -> None:
    if not lines:
        return
    left_out = max(0, len(found.logs) - lines)
    print_text()
    if left_out:
        print_text((f"── {left_out:,} earlier logs: --lines {len(found.logs)} shows them", "dim"))
    printer = LogPrinter()
    for log in found.logs[left_out:]:
        printer.print(log, found.agent_id, found.agent_type)


def _fields(found: ActivityDetailSchema) -> Iterator[tuple[str, str, str]]:
    """Label, value and style of what is known."""
    attempt = f"attempt {found.attempt}" if found.attempt > 1 else ""
    yield "status", _joined(found.status.value, percent(found.latest_percentage), attempt), STATUS_STYLES[found.status]
    why = f"{found.reason or ''}{f' ({found.error_type})' if found.error_type else ''}"
    times = _joined(
        f"queued {span(found.queued_seconds)}" if found.queued_seconds is not None else "",
        f"ran {span(found.duration_seconds)}" if found.duration_seconds is not None else "",
    )
    values = {
        "waits for": _waiting(found.waiting or {}),
        "reason": why.strip(),
        "created": f"{local_time(found.created_at)} ({age(found.created_at)} ago)",
        "started": local_time(found.started_at) if found.started_at else "",
        "ended": local_time(found.ended_at) if found.ended_at else "",
        "time": times,
        "tokens": _joined(*(_count(found, name, unit) for name, unit in _TOKENS.items())),
        "model": found.model or "",
        "worker": found.worker_id or "",
        "trace": found.trace_id or "",
        "link": found.trace_url or "",
        "metadata": _joined(*(f"{key}={_plain(value)}" for key, value in (found.metadata or {}).items())),
    }
    linked = {"trace", "link"}
    link = link_style(found.trace_url)
    yield from ((label, value, link if label in linked else "") for label, value in values.items() if value)


def _count(found: ActivityDetailSchema, name: str, unit: str) -> str:
    number: int | None = getattr(found, name)
    return "" if number is None else f"{number:,} {unit}"


def _waiting(what: Mapping[str, Any]) -> str:
    tools = [str(item["tool"]) for item in what.get("items") or () if "tool" in item]
    return f"{what.get('for', '')}{' of ' if tools else ''}{', '.join(tools)}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
