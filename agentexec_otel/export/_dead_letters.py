"""Events that can never be stored and messages that no task can run, kept beside the spool for a person to inspect.

``dead-letters.jsonl`` has one JSON object a line: ``reason``, and ``event`` as the spool encodes it, or ``message``.
"""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from agentexec_otel._model.codec import MalformedEventError, encode
from agentexec_otel._model.event import ActivityEvent

_logger = logging.getLogger("agentexec_otel.export")

FILE_NAME = "dead-letters.jsonl"
LIMIT = 16 << 20


def keep_dead_letter(directory: Path | None, event: ActivityEvent, reason: str) -> None:
    """Append an event to the file of this directory, and log its activity and the reason, never its content.

    Args:
        directory: None only logs. The file has the mode 0600 and is bounded to 16 MiB.
    """
    entry: dict[str, Any] | None = None
    with suppress(MalformedEventError):
        entry = {"reason": reason, "event": json.loads(encode(event))}
    where = _keep(directory, entry)
    _logger.error("an event of activity %s was refused and is %s: %s", event.agent_id, where, reason)


def keep_message(directory: Path | None, message: str, reason: str) -> None:
    """Like `keep_dead_letter`, for a message of a task queue. Both texts are bounded and redacted by the caller."""
    where = _keep(directory, {"reason": reason, "message": message})
    _logger.error("a message of a task was refused and is %s: %s", where, reason)


def _keep(directory: Path | None, entry: dict[str, Any] | None) -> str:
    if directory is not None and entry is not None and _append(directory / FILE_NAME, entry):
        return f"kept in {directory}/{FILE_NAME}"
    return "lost"


def _append(path: Path, entry: dict[str, Any]) -> bool:
    with suppress(OSError):
        line = json.dumps(entry) + "\n"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(path, flags, 0o600)
        try:
            return os.fstat(handle).st_size < LIMIT and os.write(handle, line.encode()) > 0
        finally:
            os.close(handle)
    return False
