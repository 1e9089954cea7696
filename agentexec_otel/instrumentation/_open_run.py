"""Which activity a run belongs to: the one whose block encloses it, one that was left open for it, or a new one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, cast
from uuid import UUID, uuid4

from agentexec_otel import activity
from agentexec_otel._errors import ConfigurationError
from agentexec_otel._model.event import Status
from agentexec_otel._model.text import type_name
from agentexec_otel.activity import ActivityRun
from agentexec_otel.export import StoredActivity
from agentexec_otel.instrumentation._activities import RowUnavailableError, active, complain, known

_MOST_KEYS: Final = 60
_MOST_BYTES: Final = 12_000


@dataclass(frozen=True, slots=True)
class RunDescription:
    """What is known about a run, or about a trace around several runs, before it starts.

    Attributes:
        agent_id: The UUID that the framework's own id of the run contains, if it does.
        metadata: What the application has given, which may be anything. A mapping is kept.
        ids: Further ids, kept in the metadata.
        own_id: The framework's id of the run, kept in the metadata unless the activity has the UUID in it.
        resumes: The activity that was left open for this run.
        stored: The row of the activity that `resumes` or `agent_id` names.
        is_unread: Whether the database did not answer in time, so that the activity may exist.
    """

    agent_type: str
    agent_id: UUID | None = None
    metadata: object = None
    ids: Mapping[str, object] = field(default_factory=dict[str, object])
    own_id: Mapping[str, object] = field(default_factory=dict[str, object])
    resumes: UUID | None = None
    stored: StoredActivity | None = None
    is_unread: bool = False


class Opening(NamedTuple):
    """The block for a run, not entered yet.

    Attributes:
        is_new: Entering the block creates the activity.
        is_joined: The block encloses the run already, so another owner leaves it.
        is_refused: The activity was canceled while it waited for this run. The block must not be entered.
    """

    block: ActivityRun
    is_new: bool = False
    is_joined: bool = False
    is_refused: bool = False


def is_configured() -> bool:
    """Whether there is anywhere to send activities; warns once if not."""
    try:
        active()
    except ConfigurationError as exc:
        complain(f"runs of agents are not tracked: {exc}")
        return False
    return True


def enclosing_block() -> ActivityRun | None:
    """The block that encloses this code and is still open. A context may outlive the block it was copied in."""
    block = activity.current()
    return block if block is not None and is_owned(block.agent_id) else None


def is_owned(agent_id: UUID) -> bool:
    """Whether a block of this process will end the activity."""
    view = known(agent_id)
    return view is not None and view.owner is not None


def open_run(about: RunDescription, trace_block: Callable[[], ActivityRun | None]) -> Opening:
    """Choose the block for a run.

    Args:
        trace_block: Returns the block for a run inside a trace of the application, if there is such a trace.
    """
    block = _waiting_block(about.resumes, about.stored, resumed=True)
    if block is not None:
        view = known(block.agent_id)
        is_canceled = view is not None and view.status is Status.CANCELED
        return Opening(block, is_joined=is_canceled, is_refused=is_canceled)
    if (block := enclosing_block()) is not None:
        return Opening(block, is_joined=True)
    if (block := trace_block()) is not None:
        return Opening(block)
    return open_activity(about)


def open_activity(about: RunDescription) -> Opening:
    """Choose the block for a run or a trace that nothing encloses: a waiting activity's, or a new one's."""
    block = _waiting_block(about.resumes or about.agent_id, about.stored)
    if block is not None:
        return Opening(block)
    wanted = about.agent_id
    is_taken = about.stored is not None or (wanted is not None and known(wanted) is not None)
    agent_id = uuid4() if wanted is None or is_taken else wanted
    ids = about.ids if agent_id == wanted else {**about.ids, **about.own_id}
    may_exist = about.is_unread and agent_id == wanted
    metadata = _metadata(about.metadata, ids)
    block = ActivityRun(about.agent_type, agent_id=agent_id, metadata=metadata, waits=False, may_exist=may_exist)
    return Opening(block, is_new=True)


def existing_block(agent_id: UUID) -> ActivityRun:
    """A block that runs an existing activity, and never waits for the database."""
    return ActivityRun(agent_id=agent_id, waits=False)


def _waiting_block(
    agent_id: UUID | None, stored: StoredActivity | None, *, resumed: bool = False
) -> ActivityRun | None:
    """The block for an activity that has not ended and that no block runs here; None if it is not one.

    Args:
        resumed: The activity was left open for this run: it exists, even if the database did not say so in time, and
            it may have been canceled since.
    """
    if agent_id is None:
        return None
    view = known(agent_id) if stored is None else active().adopt(stored)
    if view is None:
        return existing_block(agent_id) if resumed else None
    # An activity with token counts was resumed before, and canceled then: that does not refuse this run.
    is_refusal = resumed and view.status is Status.CANCELED and (stored is None or not stored.counted)
    if view.owner is not None or (view.status.terminal and not is_refusal):
        return None
    return existing_block(agent_id)


# -- what the database knows ------------------------------------------------------------------------------------


def look_up(about: RunDescription, seconds: float) -> RunDescription:
    """Add the row of the activity that the run may continue, if the database answers in time. Blocks."""
    if (agent_id := _id_to_read(about)) is None:
        return about
    with suppress(RowUnavailableError):
        return _with_row(about, active().read(agent_id, seconds))
    return replace(about, is_unread=True)


async def look_up_async(about: RunDescription, seconds: float) -> RunDescription:
    """Like `look_up`, on an event loop. Does not use a thread: the application's thread pool may be exhausted."""
    if (agent_id := _id_to_read(about)) is None:
        return about
    with suppress(RowUnavailableError):
        return _with_row(about, await active().read_async(agent_id, seconds))
    return replace(about, is_unread=True)


def _id_to_read(about: RunDescription) -> UUID | None:
    """The activity to read before the run begins: only an id that the application chose can name one that exists."""
    if not active().has_store:
        return None
    if about.resumes is not None:
        return about.resumes  # It may have been canceled in another process since.
    if about.agent_id is None or enclosing_block() is not None or known(about.agent_id) is not None:
        return None
    return about.agent_id


def _with_row(about: RunDescription, stored: StoredActivity | None) -> RunDescription:
    if stored is None and about.resumes is not None and known(about.resumes) is None:
        return replace(about, resumes=None)  # It was deleted, or is in another database: create a new activity.
    return replace(about, stored=stored)


# -- metadata ---------------------------------------------------------------------------------------------------


def _metadata(given: object, ids: Mapping[str, object]) -> dict[str, Any] | None:
    """The activity's metadata: the framework's ids, then as much of what the application gave as fits."""
    kept: dict[str, Any] = {key: value for key, value in ids.items() if value is not None}
    room = _MOST_BYTES
    items = cast("Mapping[object, object]", given).items() if isinstance(given, Mapping) else ()
    for key, value in items:
        name, plain = _text(key), _plain(value)
        room -= len(name) + len(json.dumps(plain))
        if len(kept) >= _MOST_KEYS or room < 0:
            complain("the metadata of a trace is too large for an activity: the rest of it was left out")
            break
        kept[name] = plain
    return kept or None


def _plain(value: object) -> Any:
    with suppress(Exception):  # The application's value may be anything: its text is kept instead.
        return json.loads(json.dumps(value, allow_nan=False))
    return _text(value)


def _text(value: object) -> str:
    with suppress(Exception):  # Its `__str__` may raise: the name of its type is kept instead.
        return str(value)
    return f"<{type_name(value)}>"
