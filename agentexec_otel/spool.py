"""What waits in the spool of this machine, and what could not be stored, as `ax.spool`.

`ax.recover` delivers both. These functions only read, and need no set-up.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from agentexec_otel._config import CONF
from agentexec_otel._errors import ConfigurationError
from agentexec_otel._model.codec import MalformedEventError, decode
from agentexec_otel._model.event import Status
from agentexec_otel.export._dead_letters import read_dead_letters
from agentexec_otel.export.spool import SpoolUnavailableError, default_directory
from agentexec_otel.export.spool.directory import SpoolDirectory
from agentexec_otel.export.spool.segment import SegmentContent, folders, segments

__all__ = ["DeadLetter", "SpoolFolder", "check", "contents", "dead_letters", "directory"]


@dataclass(frozen=True, slots=True)
class SpoolFolder:
    """What waits for one database and table prefix, or for one exporter.

    Attributes:
        target: The database, without user and password, or the class of the exporter. None if it is not known.
        files: Number of files with events.
        events: Number of events in them. Some may be stored already.
        bytes: Size of all files.
        oldest: When the oldest of these events happened.
        orphaned: Number of those events whose process has ended. The next process that stores there delivers them.
        dead_letters: Number of events and messages that were refused.
        damaged_files: Number of files that cannot be read.
    """

    path: Path
    target: str | None
    files: int
    events: int
    bytes: int
    oldest: datetime | None
    orphaned: int
    dead_letters: int
    damaged_files: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that the database has refused, or a message of a task queue that no worker could run.

    Attributes:
        folder: Where it is kept; see `SpoolFolder.path`.
        target: What has refused it; see `SpoolFolder.target`.
        reason: Why it was refused.
        agent_id: The activity of the event. None for a message, and for a line of the file that is damaged.
        occurred_at: When the event happened.
    """

    folder: Path
    target: str | None
    reason: str
    message: str
    agent_id: UUID | None = None
    status: Status | None = None
    occurred_at: datetime | None = None


def directory() -> Path | None:
    """Return the directory of the spool, which may not exist yet. None if ``AGENTEXEC_SPOOL_DIR`` is ``off``.

    Raises:
        ConfigurationError: There is none to use: this user has no home directory.
    """
    if (CONF.spool_dir or "").lower() == "off":
        return None
    with _as_configuration_error():
        return default_directory(CONF.spool_dir)


def check() -> None:
    """Write a file to the spool, as a process that stores does, and remove it.

    Raises:
        ConfigurationError: The spool cannot be used. The message says why.
    """
    base = directory()
    if base is not None:
        with _as_configuration_error():
            probe = SpoolDirectory(base, f"check-{os.getpid()}")
            with probe.open() as fd:
                os.close(os.open("probe", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=fd))
            probe.remove("probe")
            probe.path.rmdir()


def contents() -> list[SpoolFolder]:
    """Return what waits, for each database and exporter. Files of the calling process count by their size alone.

    Raises:
        ConfigurationError: The spool cannot be read.
    """
    with _as_configuration_error():
        return [_folder(path, list(segments(path))) for path in _folders()]


def dead_letters() -> list[DeadLetter]:
    """Return the events and messages that were refused, the oldest of each folder first.

    Raises:
        ConfigurationError: The spool cannot be read.
    """
    with _as_configuration_error():
        return [letter for path in _folders() for letter in _dead_letters(path)]


def _folders() -> list[Path]:
    base = directory()
    return [] if base is None else folders(base)


def _folder(path: Path, found: Sequence[SegmentContent]) -> SpoolFolder:
    sound = [one for one in found if not one.is_damaged]
    letters = list(read_dead_letters(path))
    targets = [*(one.target for one in sound), *(letter.target for letter in letters)]
    moments = [moment for one in sound if (moment := _moment(one.first)) is not None]
    return SpoolFolder(
        path=path,
        target=next((_shown(target) for target in targets if target), None),
        files=len(sound),
        events=sum(one.records for one in sound),
        bytes=sum(one.size for one in found),
        oldest=min(moments, default=None),
        orphaned=sum(one.records for one in sound if one.is_orphan),
        dead_letters=len(letters),
        damaged_files=len(found) - len(sound),
    )


def _dead_letters(path: Path) -> Iterator[DeadLetter]:
    for reason, target, event, message in read_dead_letters(path):
        shown = _shown(target) or None
        if event is None:
            yield DeadLetter(path, shown, reason, message or "")
        else:
            moment = _from_ns(event.occurred_at_ns)
            yield DeadLetter(path, shown, reason, event.message, event.agent_id, event.status, moment)


def _moment(payload: bytes | None) -> datetime | None:
    try:
        return None if payload is None else _from_ns(decode(payload).occurred_at_ns)
    except MalformedEventError:
        return None


def _from_ns(nanoseconds: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(nanoseconds / 1e9, UTC)
    except (OverflowError, ValueError, OSError):
        return None


def _shown(target: str) -> str:
    """A target as a URL: an exporter's identity names its host and port even if there are none."""
    return target.replace("://None:None/", ":///").replace(":None/", "/")


@contextmanager
def _as_configuration_error() -> Generator[None]:
    try:
        yield
    except SpoolUnavailableError as exc:
        raise ConfigurationError(str(exc)) from None
    except OSError as exc:
        raise ConfigurationError(f"the spool cannot be used: {exc.strerror}: {exc.filename}") from exc
