"""Which activity a run belongs to: the one around it, one that waits for it, or a new one."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, cast
from uuid import UUID, uuid4

from agents import RunConfig, RunState

from agentexec_otel import activity
from agentexec_otel._errors import ConfigurationError, ExportError
from agentexec_otel._model.event import Status
from agentexec_otel._model.text import type_name
from agentexec_otel._runtime import process as _runtime
from agentexec_otel.activity import ActivityRun
from agentexec_otel.export import StoredActivity
from agentexec_otel.openai_agents._waiting import waiting_of

_logger = logging.getLogger("agentexec_otel.openai_agents")

_TRACE_PREFIX: Final = "trace_"
_MOST_KEYS: Final = 60
_MOST_BYTES: Final = 12_000
DEFAULT_WORKFLOW: Final = "Agent workflow"


@dataclass(frozen=True, slots=True)
class Description:
    """What is known of a run or a trace before it starts.

    Attributes:
        trace_id: The SDK's, where it is decided already.
        metadata: Whatever the application has given: a mapping, one hopes.
        waiting: The activity that was left open for this run to go on in it.
        unread: Whether there is such an activity already was to be looked up, but the database did not answer in time.
    """

    agent_type: str
    trace_id: str | None = None
    group_id: str | None = None
    metadata: object = None
    waiting: UUID | None = None
    unread: bool = False

    @property
    def wanted(self) -> UUID | None:
        """The activity that may exist already."""
        return self.waiting or agent_id_of(self.trace_id)


def describe(agent: object, given: object, config: RunConfig | Mapping[str, Any] | None) -> Description:
    """What a run's arguments say about it; a resumed one says what it said when it was started."""
    waiting = waiting_of(given)
    state: Any = getattr(cast(object, given), "_trace_state", None) if isinstance(given, RunState) else None
    workflow = _setting(config, "workflow_name")
    if workflow in (None, DEFAULT_WORKFLOW):
        workflow = getattr(state, "workflow_name", None)
    if workflow in (None, DEFAULT_WORKFLOW):
        workflow = getattr(agent, "name", None)
    return Description(
        _name(workflow),
        _setting(config, "trace_id") or getattr(state, "trace_id", None),
        _setting(config, "group_id") or getattr(state, "group_id", None),
        _setting(config, "trace_metadata") or getattr(state, "metadata", None),
        waiting,
    )


def describe_trace(trace: object) -> Description:
    """What a trace that the application opened says about itself."""
    return Description(
        _name(getattr(trace, "name", None)),
        getattr(trace, "trace_id", None),
        getattr(trace, "group_id", None),
        getattr(trace, "metadata", None),
    )


def _setting(config: RunConfig | Mapping[str, Any] | None, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


def _name(value: object) -> str:
    return value if isinstance(value, str) and value.strip() else "agent"


def agent_id_of(trace_id: object) -> UUID | None:
    """The UUID in a trace id of the SDK, ``trace_`` and 32 hexadecimal digits; None where it is something else."""
    digits = str(trace_id).removeprefix(_TRACE_PREFIX)
    if len(digits) != 32 or not str(trace_id).startswith(_TRACE_PREFIX):
        return None
    with suppress(ValueError):
        return UUID(digits)
    return None


def trace_id_of(agent_id: UUID) -> str:
    """The trace id that holds this UUID."""
    return f"{_TRACE_PREFIX}{agent_id.hex}"


# -- the activity around ----------------------------------------------------------------------------------------


def enclosing() -> ActivityRun | None:
    """The activity whose block encloses this code and is still open; a context may outlive the block it was made in."""
    run = activity.current()
    return run if run is not None and is_open(run) else None


def is_open(run: ActivityRun) -> bool:
    """Whether somebody in this process will still end the activity of this block."""
    live = _runtime.active().spans.known(run.agent_id)
    return live is not None and live.owner is not None


def is_canceled(run: ActivityRun) -> bool:
    """Whether the activity is known to be canceled before its block is entered."""
    live = _runtime.active().spans.known(run.agent_id)
    return live is not None and live.status is Status.CANCELED


# -- a new one --------------------------------------------------------------------------------------------------


def prepare(about: Description, stored: StoredActivity | None = None) -> ActivityRun:
    """The block for a run or trace, not entered yet.

    Args:
        stored: The row of the activity that the trace id names, where there is one.

    Raises:
        ConfigurationError: nothing is set up.
    """
    if (waiting := waiting_block(about.wanted, stored)) is not None:
        return waiting
    wanted = agent_id_of(about.trace_id)
    known = None if wanted is None else _runtime.active().spans.known(wanted)
    taken = known is not None or stored is not None
    agent_id = uuid4() if wanted is None or taken else wanted
    metadata = metadata_of(about, with_trace_id=about.trace_id is not None and agent_id != wanted)
    unread = about.unread and agent_id == wanted
    return ActivityRun(about.agent_type, None, agent_id, None, metadata, waits=False, may_exist=unread)


def waiting_block(
    wanted: UUID | None, stored: StoredActivity | None = None, *, resumed: bool = False
) -> ActivityRun | None:
    """The block for an activity that has not ended, and that nobody runs here; None where this is none.

    Args:
        resumed: It was left open for this run: it is there, though the database may not have said so in time, and
            somebody may have canceled it meanwhile.
    """
    if wanted is None:
        return None
    spans = _runtime.active().spans
    live = spans.adopt(stored) if stored is not None else spans.known(wanted)
    if live is None and not resumed:
        return None
    if live is not None and live.owner is not None:
        return None
    refused = resumed and (stored is None or not stored.counted)  # Not where it was resumed, and canceled then.
    if live is not None and live.status.terminal and not (refused and live.status is Status.CANCELED):
        return None
    return ActivityRun(None, wanted, None, None, None, waits=False)


def metadata_of(about: Description, *, with_trace_id: bool) -> dict[str, Any] | None:
    """The activity's metadata: what of a trace's fits into it, and the ids that find the trace again."""
    ids = {"group_id": about.group_id, "trace_id": about.trace_id if with_trace_id else None}
    kept: dict[str, Any] = {key: value for key, value in ids.items() if value is not None}
    room = _MOST_BYTES
    for key, value in _mapping(about.metadata).items():
        name, plain = _text(key), _plain(value)
        room -= len(name) + len(json.dumps(plain))
        if len(kept) >= _MOST_KEYS or room < 0:
            _complain("the metadata of a trace is too large for an activity: the rest of it was left out")
            break
        kept[name] = plain
    return kept or None


def _mapping(value: object) -> Mapping[object, object]:
    return cast("Mapping[object, object]", value) if isinstance(value, Mapping) else {}


def _plain(value: object) -> Any:
    with suppress(Exception):
        return json.loads(json.dumps(value, allow_nan=False))
    return _text(value)


def _text(value: object) -> str:
    with suppress(Exception):
        return str(value)
    return f"<{type_name(value)}>"


def stored_activity(about: Description, seconds: float) -> tuple[Description, StoredActivity | None]:
    """The row of the activity that a run goes on in, if there is one and the database answers in time. Blocks."""
    wanted, runtime = _to_look_up(about), _runtime.active()
    store = runtime.store
    if wanted is None or store is None:
        return about, None
    if runtime.primary.last_error is None:
        with suppress(TimeoutError, ExportError):
            return _as_stored(about, runtime.primary.call(lambda: store.lookup(wanted), seconds))
    return replace(about, unread=True), None


async def stored_activity_async(about: Description, seconds: float) -> tuple[Description, StoredActivity | None]:
    """As `stored_activity`, on an event loop: without a thread, which the application may have none to spare of."""
    wanted, runtime = _to_look_up(about), _runtime.active()
    if wanted is None or runtime.lookups is None:
        return about, None
    if runtime.primary.last_error is None:
        with suppress(TimeoutError, ExportError):
            return _as_stored(about, await asyncio.wait_for(asyncio.wrap_future(runtime.lookups.soon(wanted)), seconds))
    return replace(about, unread=True), None


def _to_look_up(about: Description) -> UUID | None:
    """The activity whose row is read before the run begins.

    Only a trace id that somebody has chosen can name one, or the state of a run that waits.
    """
    if about.waiting is not None:
        return about.waiting  # It may have been canceled meanwhile.
    wanted = about.wanted
    if wanted is None or enclosing() is not None or _runtime.active().spans.known(wanted) is not None:
        return None
    return wanted


def _as_stored(about: Description, stored: StoredActivity | None) -> tuple[Description, StoredActivity | None]:
    if stored is None and about.waiting is not None and _runtime.active().spans.known(about.waiting) is None:
        about = replace(about, waiting=None)  # Of another database, or deleted: it cannot go on there.
    return about, stored


def configured() -> bool:
    """Whether there is anywhere to put activities; says so once where there is not."""
    try:
        _runtime.active()
    except ConfigurationError as exc:
        _complain(f"runs of agents are not tracked: {exc}")
        return False
    return True


_complaints: Final[set[str]] = set()


def _complain(text: str) -> None:
    if text not in _complaints:
        _complaints.add(text)
        _logger.warning(text)


def with_trace_id(config: RunConfig | Mapping[str, Any] | None, trace_id: str) -> RunConfig | dict[str, Any]:
    """The run's configuration with a trace id.

    None and mappings stay mappings: the SDK closes the model provider where it makes one itself. What is neither, it
    refuses.
    """
    if isinstance(config, RunConfig):
        changed = copy.copy(config)
        changed.trace_id = trace_id
        return changed
    if config is not None and not isinstance(config, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        return config
    return {**(config or {}), "trace_id": trace_id}
