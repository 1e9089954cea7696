"""Events that can never be stored and messages that no task can run, kept beside the spool for a person to inspect.

``dead-letters.jsonl`` has one JSON object a line: ``reason``, ``target``, and ``event`` as the spool encodes it, or
``message``.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from agentexec_otel._model.codec import MalformedEventError, decode, encode
from agentexec_otel._model.event import ActivityEvent
from agentexec_otel.export.spool import Spool

_logger = logging.getLogger("agentexec_otel.export")

FILE_NAME = "dead-letters.jsonl"
LIMIT = 16 << 20


class DeadLetter(NamedTuple):
    """A line of the file. It has an event, or the message of a task queue, or neither if it is damaged."""

    reason: str
    target: str = ""
    event: ActivityEvent | None = None
    message: str | None = None


def read_dead_letters(directory: Path) -> Iterator[DeadLetter]:
    """Yield the dead letters of this directory, the oldest first.

    Raises:
        OSError: The file cannot be read.
    """
    with suppress(FileNotFoundError), (directory / FILE_NAME).open("rb") as lines:
        yield from map(_parse, lines)


def _parse(line: bytes) -> DeadLetter:
    try:
        entry: Any = json.loads(line)
        reason, target = str(entry["reason"]), str(entry.get("target", ""))
        if "event" in entry:
            return DeadLetter(reason, target, event=decode(json.dumps(entry["event"]).encode()))
        return DeadLetter(reason, target, message=str(entry["message"]))
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return DeadLetter("the line is damaged")


@contextmanager
def taking_events(directory: Path) -> Generator[list[ActivityEvent]]:
    """Yield the events of the file, which are removed from it if the block succeeds. Other lines stay.

    Raises:
        OSError: The file cannot be read or replaced.
    """
    path = directory / FILE_NAME
    if not path.exists():
        yield []
        return
    with _locked(path, os.O_RDONLY) as handle, open(handle, "rb", closefd=False) as stream:
        letters = [(line, _parse(line).event) for line in stream]
        yield [event for _, event in letters if event is not None]
        kept = path.with_suffix(".kept")
        kept.touch(0o600)
        kept.write_bytes(b"".join(line for line, event in letters if event is None))
        kept.replace(path)


def keep_dead_letter(spool: Spool | None, event: ActivityEvent, reason: str) -> None:
    """Append an event to the file beside this spool, and log its activity and the reason, never its content.

    Args:
        spool: None only logs. The file has the mode 0600 and is bounded to 16 MiB.
    """
    where = "lost"
    with suppress(MalformedEventError):
        where = _keep(spool, reason, {"event": json.loads(encode(event))})
    _logger.error("an event of activity %s was refused and is %s: %s", event.agent_id, where, reason)


def keep_message(spool: Spool | None, message: str, reason: str) -> None:
    """Like `keep_dead_letter`, for a message of a task queue. Both texts are bounded and redacted by the caller."""
    where = _keep(spool, reason, {"message": message})
    _logger.error("a message of a task was refused and is %s: %s", where, reason)


def _keep(spool: Spool | None, reason: str, content: dict[str, Any]) -> str:
    if spool is not None:
        path = spool.path / FILE_NAME
        line = json.dumps({"reason": reason, "target": spool.target, **content}) + "\n"
        with suppress(OSError), _locked(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as handle:
            if os.fstat(handle).st_size < LIMIT and os.write(handle, line.encode()) > 0:
                return f"kept in {path}"
    return "lost"


@contextmanager
def _locked(path: Path, flags: int) -> Generator[int]:
    """Open the file and lock it against others that do so, in this process or another."""
    from fcntl import LOCK_EX, flock

    while True:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            flock(handle, LOCK_EX)
            if _is_at(path, handle):  # It may have been replaced while this waited.
                yield handle
                return
        finally:
            os.close(handle)


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False
