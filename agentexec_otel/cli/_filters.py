"""How commands choose activities: by filter options, which are the same everywhere, and by the start of an id."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import wraps
from typing import Annotated, Any, Final, cast
from uuid import UUID

import typer
from sqlalchemy import ColumnElement, String, func, select
from sqlalchemy import cast as sql_cast
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity import Activity, ActivityFilters, ActivityListItemSchema, Status
from agentexec_otel.cli._options import moment

_PANEL: Final = "Filters"
_PAGE: Final = 1_000
_TEXT: Final[dict[str, Any]] = {"metavar": "TEXT", "rich_help_panel": _PANEL}


def _several(*names: str, help: str) -> Any:  # noqa: A002  # as typer has it
    return Annotated[list[str] | None, typer.Option(*names, help=help, **_TEXT)]


def _time(name: str, *, help: str) -> Any:  # noqa: A002  # as typer has it
    option = typer.Option(name, help=help, parser=moment, metavar="TIME", rich_help_panel=_PANEL)
    return Annotated[datetime | None, option]


_OPTIONS: Final[dict[str, Any]] = {
    "status": Annotated[
        list[Status] | None,
        typer.Option(
            "--status", "-s", case_sensitive=False, metavar="STATUS", rich_help_panel=_PANEL,
            help="queued, running, complete, error or canceled. Can be given several times, like most of these.",
        ),
    ],
    "agent_type": _several("--type", "-t", help="Task name."),
    "metadata": _several("--metadata", "-m", help='KEY=TEXT, or KEY:=JSON for a number, true or false.'),
    "created_after": _time("--since", help="Created since: 30m or 7d (ago), or 2026-01-31T12:00 (UTC)."),
    "created_before": _time("--until", help="Created before."),
    "updated_after": _time("--updated-since", help="With a log since."),
    "updated_before": _time("--updated-until", help="Without a log since."),
    "ended_after": _time("--ended-since", help="Ended since."),
    "ended_before": _time("--ended-until", help="Ended before."),
    "reason": _several("--reason", "-r", help="Why it ended, such as timeout or lost."),
    "error_type": _several("--error-type", help="Exception, such as TimeoutError."),
    "text": Annotated[str | None, typer.Option("--text", help="Part of its latest log.", **_TEXT)],
    "waiting": Annotated[
        bool | None,
        typer.Option("--waiting/--not-waiting", help="It waits, such as for an approval.", rich_help_panel=_PANEL),
    ],
    "trace_id": _several("--trace", help="Trace id."),
    "worker_id": _several("--worker", help="Worker id."),
}  # fmt: skip


def filtered(*only: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the filter options, all or those named. It gets them as its keyword argument `filters`."""
    options = {name: _OPTIONS[name] for name in only or _OPTIONS}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def wrapper(**given: Any) -> None:
            command(filters=filters_of({name: given.pop(name) for name in options}), **given)

        own = inspect.signature(command, eval_str=True).parameters.values()
        named = [(one.name, one.default, one.annotation) for one in own if one.name != "filters"]
        named += [(name, None, annotation) for name, annotation in options.items()]
        wrapper.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
                for name, default, annotation in named
            ]
        )
        wrapper.__annotations__ = {name: annotation for name, _, annotation in named}
        return wrapper

    return decorate


def filters_of(options: dict[str, Any]) -> ActivityFilters:
    """The filters of the query API. Those that are not given are left out."""
    given = {name: value for name, value in options.items() if value not in (None, [], ())}
    pairs = given.pop("metadata", None)
    if pairs:
        given["metadata_filter"] = dict(_pair(pair) for pair in pairs)
    return cast(ActivityFilters, given)


def _pair(text: str) -> tuple[str, Any]:
    key, found, value = text.partition("=")
    if not (key and found):
        raise typer.BadParameter(f"{text!r:.40}: write KEY=TEXT, such as tenant=acme", param_hint="--metadata")
    if not key.endswith(":"):
        return key, value
    try:
        return key[:-1], json.loads(value)
    except ValueError:
        raise typer.BadParameter(f"{value!r:.40} is no JSON", param_hint="--metadata") from None


def activities_of(session: Session, filters: ActivityFilters) -> Iterator[ActivityListItemSchema]:
    """All activities that meet the filters, read page by page."""
    cursor: str | None = ""
    while cursor is not None:
        page = ax.activity.list(session, page_size=_PAGE, cursor=cursor, **filters)
        yield from page.items
        cursor = page.next_cursor


# -- by id ---------------------------------------------------------------------------------------------------------

_LEAST_DIGITS: Final = 4
_DIGITS: Final = re.compile(rf"[0-9a-f]{{{_LEAST_DIGITS},32}}")


def find_id(session: Session, text: str) -> UUID:
    """The agent_id that an id, or its first characters, names. A whole id need not exist.

    Raises:
        typer.BadParameter: The text is no part of an id.
        AgentExecError: No activity has such an id, or several have.
    """
    digits = text.strip().lower().replace("-", "")
    if not _DIGITS.fullmatch(digits):
        raise typer.BadParameter(
            f"{text!r:.50} is no id: give an agent_id, or its first {_LEAST_DIGITS} characters or more"
        )
    if len(digits) == 32:
        return UUID(digits)
    ax.activity.get(session, UUID(digits.ljust(32, "0")))  # explains tables that are missing
    found = session.scalars(select(Activity.agent_id).where(_starts_with(session, digits)).limit(2)).all()
    if not found:
        raise ax.AgentExecError(f"no activity has an agent_id that starts with {text}")
    if len(found) > 1:
        raise ax.AgentExecError(f"several activities have an agent_id that starts with {text}: give more of it")
    return found[0]


def find_item(session: Session, text: str) -> ActivityListItemSchema:
    """The activity that an id, or its first characters, names. Raises as `find_id`."""
    agent_id = find_id(session, text)
    found = ax.activity.get(session, agent_id)
    if found is None:
        raise no_activity(agent_id)
    return found


def no_activity(agent_id: UUID) -> ax.AgentExecError:
    """The error for a whole id that does not exist."""
    return ax.AgentExecError(f"no activity has the agent_id {agent_id}")


def _starts_with(session: Session, digits: str) -> ColumnElement[bool]:
    if getattr(session.connection().dialect, "is_mariadb", False):  # its UUIDs are ordered by their last part
        return func.replace(sql_cast(Activity.agent_id, String(36)), "-", "").startswith(digits)
    return Activity.agent_id.between(UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f")))
