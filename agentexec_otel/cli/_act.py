"""`agentexec-otel cancel`, `retry` and `reap`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from typing import Annotated, Any, Final, NamedTuple
from uuid import UUID

import typer
from sqlalchemy import Engine
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity import ActivityFilters, ActivityListItemSchema, Status
from agentexec_otel.cli._filters import activities_of, filtered, find_item
from agentexec_otel.cli._format import activities
from agentexec_otel.cli._list import item_table
from agentexec_otel.cli._options import AsJson, Database, Yes, acting, duration, reading, session
from agentexec_otel.cli._output import (
    check_can_ask,
    confirm,
    interruptible,
    note,
    print_json,
    print_result,
    print_table,
    print_text,
    progress,
)

_Ids = Annotated[
    list[str] | None,
    typer.Argument(metavar="[ID]...", help="agent_ids, or their first characters.", show_default=False),
]
_OlderThan = Annotated[
    timedelta | None,
    typer.Option(
        "--older-than", parser=duration, metavar="DURATION", rich_help_panel="Filters",
        help="Without a log for that long: 90s, 10m, 1h30m, 7d. Spares those that wait, without --waiting.",
    ),
]  # fmt: skip
_SHOWN: Final = 5
_CHUNK: Final = 500


@filtered()
def cancel(
    filters: ActivityFilters,
    ids: _Ids = None,
    older_than: _OlderThan = None,
    everything: Annotated[bool, typer.Option("--all", help="All that are queued or running.")] = False,
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="Log of the cancellation; only with ids.")] = None,
    yes: Yes = False,
    as_json: AsJson = False,
    database: Database = None,
) -> None:
    """Cancel activities that are queued or running: those named, or all that meet the filters. Asks first.

    The worker that runs an activity is notified. The exit code is 1 if a named activity had ended already.
    """
    _add_age(filters, older_than)
    _check_choice(filters, ids, everything=everything)
    with reading(database) as engine:
        if ids:
            named = _named(engine, ids)
            _ask("Cancel", named, len(named), yes=yes)
            with acting(database):
                done = _each(named, lambda agent_id: _cancel_one(agent_id, message))
            _report_each("canceled", done, {"canceled": len(done.results)}, as_json=as_json)
            return
        if message is not None:
            raise typer.BadParameter("it needs ids", param_hint="--message")
        filters["status"] = _those(filters, lambda status: not status.terminal)
        found = _ask_of_many("Cancel", engine, filters, yes=yes)
    count = 0
    if found:
        with acting(database), interruptible():
            for chunk in _chunks("Canceling", filters, found):
                count += ax.activity.cancel_pending(**chunk)
    print_result({"canceled": count, "refused": {}}, _what_was("canceled", count), as_json=as_json)


@filtered()
def retry(
    filters: ActivityFilters,
    ids: _Ids = None,
    older_than: _OlderThan = None,
    everything: Annotated[bool, typer.Option("--all", help="All that have failed.")] = False,
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="First log of the new attempt.")] = None,
    yes: Yes = False,
    as_json: AsJson = False,
    database: Database = None,
) -> None:
    """Re-open activities that have ended, as their next attempt: those named, or all that meet the filters. Asks first.

    With filters, only those that have failed, unless --status says otherwise. It runs nothing: it prints the agent_id
    and the attempt of each, for your workers. The exit code is 1 if a named activity has not ended.
    """
    _add_age(filters, older_than)
    _check_choice(filters, ids, everything=everything)
    with reading(database) as engine:
        if ids:
            named = _named(engine, ids)
            _ask("Retry", named, len(named), yes=yes)
            with acting(database):
                done = _each(named, lambda agent_id: ax.activity.retry(agent_id, message))
            _report_each("retried as attempt", done, {"retried": _attempts(done.results)}, as_json=as_json)
            return
        filters["status"] = _those(filters, lambda status: status.terminal) if "status" in filters else [Status.ERROR]
        found = _ask_of_many("Retry", engine, filters, yes=yes)
    opened: dict[UUID, int] = {}
    if found:
        with acting(database), interruptible():
            for chunk in _chunks("Retrying", filters, found):
                opened |= ax.activity.retry_many(message=message, **chunk)
    if not as_json:
        for agent_id, attempt in opened.items():
            print_text(f"{agent_id}  attempt {attempt}")
    plain = {"retried": _attempts(opened), "refused": {}}
    print_result(plain, _what_was("retried", len(opened)), as_json=as_json)


def reap(as_json: AsJson = False, database: Database = None) -> None:
    """End the activities whose worker is lost, as ERROR with the reason "lost".

    Each process that stores activities does so by itself; this is for when none is left.
    """
    with session(database) as opened:
        ax.activity.count_active(opened)  # explains tables that are missing
    with acting(database):
        count = ax.activity.reap()
    print_result({"reaped": count}, f"{activities(count)} ended as lost", as_json=as_json)


# -- which -----------------------------------------------------------------------------------------------------------


def _add_age(filters: ActivityFilters, older_than: timedelta | None) -> None:
    if older_than is None:
        return
    if "updated_before" in filters:
        raise typer.BadParameter("give this or --updated-until", param_hint="--older-than")
    filters["updated_before"] = datetime.now(UTC) - older_than
    filters.setdefault("waiting", False)  # as `ax.activity.cancel_pending` has it


def _check_choice(filters: ActivityFilters, ids: Sequence[str] | None, *, everything: bool) -> None:
    """Exactly one way to choose: a forgotten filter must not mean everything."""
    given = [bool(ids), bool(filters), everything]
    if sum(given) != 1:
        why = "give only one of them" if any(given) else "nothing is chosen"
        raise typer.BadParameter(f"{why}: ids, filters, or --all")


def _those(filters: ActivityFilters, wanted: Callable[[Status], bool]) -> list[Status]:
    """The statuses that the command can act on, among those of the filter."""
    chosen: Any = filters.get("status") or list(Status)
    return [status for status in chosen if wanted(status)]


def _named(engine: Engine, ids: Sequence[str]) -> list[ActivityListItemSchema]:
    with Session(engine) as session:
        found = [find_item(session, text) for text in ids]
    return list({item.agent_id: item for item in found}.values())


# -- the question ----------------------------------------------------------------------------------------------------


def _ask_of_many(verb: str, engine: Engine, filters: ActivityFilters, *, yes: bool) -> list[UUID]:
    """Ask about those that meet the filters, if there are any. Returns their ids."""
    with Session(engine) as session:
        found = activities_of(session, filters)
        first = list(islice(found, _SHOWN))
        ids = [item.agent_id for item in chain(first, found)]
    if ids:
        _ask(verb, first, len(ids), yes=yes)
    return ids


def _chunks(what: str, filters: ActivityFilters, ids: Sequence[UUID]) -> Iterator[ActivityFilters]:
    """The filters for parts of the ids, which must still meet them. Shows a progress bar."""
    with progress(what) as report:
        for start in range(0, len(ids), _CHUNK):
            report(start, len(ids))
            yield {**filters, "agent_id": ids[start : start + _CHUNK]}


def _ask(verb: str, shown: Sequence[ActivityListItemSchema], total: int, *, yes: bool) -> None:
    if yes:
        return
    check_can_ask()
    print_table(*item_table(shown[:_SHOWN]), err=True)
    if total > _SHOWN:
        note(f"… and {total - _SHOWN:,} more")
    confirm(f"{verb} {activities(total)}?")


# -- what was done ---------------------------------------------------------------------------------------------------


class _Done(NamedTuple):
    results: dict[UUID, Any]
    refused: dict[UUID, str]


def _cancel_one(agent_id: UUID, message: str | None) -> str:
    if not ax.activity.cancel(agent_id, message):
        raise ax.ActivityStateError("it had ended already")
    return ""


def _each(items: Sequence[ActivityListItemSchema], act: Callable[[UUID], Any]) -> _Done:
    done = _Done({}, {})
    for item in items:
        try:
            done.results[item.agent_id] = act(item.agent_id)
        except (ax.ActivityStateError, ax.ActivityNotFoundError) as exc:
            done.refused[item.agent_id] = str(exc)
    return done


def _attempts(opened: Mapping[UUID, int]) -> dict[str, int]:
    return {str(agent_id): attempt for agent_id, attempt in opened.items()}


def _report_each(what: str, done: _Done, plain: Mapping[str, Any], *, as_json: bool) -> None:
    """Print what became of each. Exit code 1 if one was refused."""
    if as_json:
        print_json({**plain, "refused": {str(agent_id): why for agent_id, why in done.refused.items()}})
    else:
        for agent_id, result in done.results.items():
            print_text(f"{agent_id}  {what} {result}".rstrip())
    for agent_id, why in done.refused.items():
        note(f"{agent_id}  {why}")
    if done.refused:
        raise typer.Exit(1)


def _what_was(done: str, count: int) -> str:
    return f"{activities(count)} {done}" if count else "no activity matches"
