"""Options that commands share: the database, times, and output as JSON."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final

import typer
from sqlalchemy import Engine, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import Session

import agentexec_otel as ax

Database = Annotated[
    str | None,
    typer.Option("--database", "-d", metavar="URL", help="SQLAlchemy URL. Default: $AGENTEXEC_DATABASE_URL."),
]
AgentId = Annotated[str, typer.Argument(help="agent_id of the activity, or its first characters.", metavar="ID")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DURATION: Final = re.compile(r"(?:\d{1,9}[smhdw])+")


def database_url(given: str | None) -> str:
    """The URL of the option or of the environment. Raises ConfigurationError if neither names one."""
    found = given or ax.CONF.database_url
    if found is None:
        raise ax.ConfigurationError("no database is named: give --database, or set AGENTEXEC_DATABASE_URL")
    return found


def existing_url(given: str | None) -> str:
    """As `database_url`. Raises ConfigurationError for a SQLite file that does not exist, which SQLite would create."""
    found = database_url(given)
    try:
        url = make_url(found)
    except (ArgumentError, ValueError):
        return found  # its user has a better sentence for it
    file = url.database
    if url.get_backend_name() != "sqlite" or not file or file.startswith("file:") or Path(file).exists():
        return found
    raise ax.ConfigurationError(f"there is no file {file}: check the URL, or create it with agentexec-otel db upgrade")


def shown_url(url: str) -> str:
    """The URL without what may be secret: the password, and the query, which may have one.

    Raises ConfigurationError if it is not the URL of a database that can be used here.
    """
    ax.db.engine(url)
    return make_url(url).set(query={}).render_as_string(hide_password=True)


@contextmanager
def reading(given: str | None) -> Generator[Engine]:
    """An engine for queries. Creates nothing: raises as `existing_url`."""
    engine = ax.db.engine(existing_url(given))
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def session(given: str | None) -> Generator[Session]:
    """A session for one query, as `reading`."""
    with reading(given) as engine, Session(engine) as opened:
        yield opened


@contextmanager
def acting(given: str | None) -> Generator[None]:
    """In the block, this process is set up to change activities.

    It creates no tables, and does not end the activities of lost workers beside what the command is for.

    Raises:
        AgentExecError: Afterwards: the database has not stored everything in time.
    """
    ax.CONF.sweep_interval = 0
    ax.configure(database_url(given), create_tables=False)
    try:
        yield
    finally:
        stored = ax.shutdown()
    if not stored:
        raise ax.AgentExecError(
            "the database has not stored everything in time: the rest waits in the spool, and your processes store it"
        )


# -- times ---------------------------------------------------------------------------------------------------------


def duration(text: str) -> timedelta:
    """A duration such as ``90s``, ``10m``, ``1h30m``, ``7d`` or ``2w``."""
    if not _DURATION.fullmatch(text):
        raise typer.BadParameter(f"{text!r:.40} is no duration: write 90s, 10m, 1h30m, 7d or 2w")
    try:
        return sum(
            (timedelta(**{_UNITS[unit]: int(number)}) for number, unit in re.findall(r"(\d+)(\w)", text)), timedelta()
        )
    except OverflowError:
        raise typer.BadParameter(f"{text!r:.40} is too long") from None


def moment(text: str) -> datetime:
    """A moment: a duration before now, or an ISO date or time, which is UTC unless it names a zone."""
    if _DURATION.fullmatch(text):
        try:
            return datetime.now(UTC) - duration(text)
        except OverflowError:
            raise typer.BadParameter(f"{text!r:.40} is too long ago") from None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r:.40} is no time: write 10m or 7d (ago), or 2026-01-31T12:00") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
