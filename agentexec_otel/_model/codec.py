"""Codec of activity events for the spool and the dead-letter file.

One JSON array by position::

    [1, event_id, agent_id, status, message, percentage, occurred_at_ns, attempt, worker_id, flags,
     [trace_id, span_id, sampled, started_in] | null,
     [agent_type, metadata, trace_context] | null,
     [error_type, reason, input_tokens, output_tokens, requests, cached_input_tokens, reasoning_tokens, model] | null,
     waiting | null, agent_type | null]

The first element is the schema's major version. A later minor version appends elements or flags, which are ignored
here. An incompatible version takes the next number: its events are left to a version that knows it. Minor versions have
appended ``waiting``, ``agent_type``, ``started_in`` and the last three elements of the outcome, which may be missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from json import JSONDecoder, JSONEncoder
from json.encoder import encode_basestring as quote
from operator import attrgetter
from typing import Any, Final, NoReturn, cast
from uuid import UUID

from agentexec_otel._model.event import ActivityEvent, Opening, Outcome, SpanRef, Status

SCHEMA: Final = 1

_NULL: Final = "null"
_FLAGS: Final = ("expects_row", "reopens", "claims", "withdraws", "starts")
"""From the lowest bit on."""
_INT64: Final = 2**63 - 1


class MalformedEventError(ValueError):
    """Not an activity event of a known schema. The message says what is wrong, never the content."""


class LaterSchemaError(MalformedEventError):
    """An event that a later version of this library has written."""


# -- to bytes ---------------------------------------------------------------------------------------------------


def encode(event: ActivityEvent) -> bytes:
    """Encode an event as UTF-8 JSON.

    Raises:
        MalformedEventError: Its metadata is not JSON (NaN, cycles, arbitrary objects, too deep).
    """
    # By hand, because every caller waits for it: it takes half the time of the fastest call of a JSON encoder.
    (
        event_id, agent_id, status, message, percentage, occurred_at_ns, attempt, opening, span, outcome, worker_id,
        expects_row, reopens, claims, withdraws, waiting, starts, agent_type,
    ) = event  # fmt: skip
    bare = span is None and opening is None and outcome is None and waiting is None and agent_type is None
    # In the order of `_FLAGS`.
    flags = expects_row | reopens << 1 | claims << 2 | withdraws << 3 | starts << 4
    line = (
        f'[1,"{event_id.int:032x}","{agent_id.int:032x}",{quote(status)},{quote(message)},'
        f"{_NULL if percentage is None else percentage},{occurred_at_ns},"
        f"{_NULL if attempt is None else attempt},{_NULL if worker_id is None else quote(worker_id)},"
        f"{flags}{'' if bare else _details(event)}]"
    )
    try:
        return line.encode()
    except UnicodeEncodeError:  # a lone surrogate, which the spool keeps
        return line.encode("utf-8", "surrogatepass")


def _details(event: ActivityEvent) -> str:
    span, opening, outcome, waiting = event.span, event.opening, event.outcome, event.waiting
    text = (
        f",{_NULL if span is None else _json(_span_fields(span))}"
        f",{_NULL if opening is None else _json(_opening_fields(opening))}"
        f",{_NULL if outcome is None else _json(_outcome_fields(outcome))}"
    )
    if waiting is not None or event.agent_type is not None:
        text += f",{_NULL if waiting is None else _json(_plain(waiting))}"
    return text if event.agent_type is None else f"{text},{quote(event.agent_type)}"


_span_fields = attrgetter("trace_id", "span_id", "sampled", "started_in")
_outcome_fields = attrgetter(
    "error_type", "reason", "input_tokens", "output_tokens", "requests", "cached_input_tokens", "reasoning_tokens",
    "model",
)  # fmt: skip


def _opening_fields(opening: Opening) -> list[object]:
    return [opening.agent_type, _plain(opening.metadata), _plain(opening.trace_context)]


def _plain(mapping: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if mapping is None else dict(mapping)


_encoder = JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _json(value: object) -> str:
    try:
        return _encoder.encode(value)
    except (TypeError, ValueError, RecursionError) as exc:
        raise MalformedEventError(f"the event's metadata is not JSON ({type(exc).__name__})") from None


# -- from bytes -------------------------------------------------------------------------------------------------


def decode(payload: bytes) -> ActivityEvent:
    """Return the event that `encode` was given.

    Raises:
        MalformedEventError: For all other bytes. `LaterSchemaError` if a later version can read them.
    """
    try:
        fields: object = _decoder.decode(payload.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as exc:
        raise MalformedEventError(f"an event that is not JSON ({type(exc).__name__})") from None
    if not isinstance(fields, list):
        raise MalformedEventError("an event that is not a JSON array")
    return _event(cast("list[object]", fields))


def _refuse(name: str) -> NoReturn:
    raise MalformedEventError("a number that JSON does not have")


_decoder = JSONDecoder(parse_constant=_refuse)


def _event(fields: list[object]) -> ActivityEvent:
    if not fields or type(fields[0]) is not int or fields[0] < SCHEMA:
        raise MalformedEventError("an event of an unknown schema version")
    if fields[0] > SCHEMA:
        raise LaterSchemaError(f"an event of schema version {fields[0]}, this version knows {SCHEMA}")
    values = dict(zip(_EVENT, _read(_EVENT, fields[1:], "event", _FIRST_EVENT), strict=False))
    flags = values.pop("flags")
    values |= {name: bool(flags >> bit & 1) for bit, name in enumerate(_FLAGS)}
    return ActivityEvent(**values)


_Reader = Callable[[object, str], Any]


def _read(readers: Mapping[str, _Reader], value: object, what: str, least: int) -> list[Any]:
    """Check an array and read its values by position. Ignores what a later version has appended.

    Args:
        least: How many values the first version had.
    """
    if not isinstance(value, list) or len(cast("list[object]", value)) < least:
        raise MalformedEventError(f"a malformed {what}")
    return [read(one, name) for (name, read), one in zip(readers.items(), cast("list[object]", value), strict=False)]


def _optional(read: _Reader) -> _Reader:
    return lambda value, what: None if value is None else read(value, what)


def _made(make: Callable[..., object], readers: Mapping[str, _Reader], least: int) -> _Reader:
    return lambda value, what: make(*_read(readers, value, what, least))


def _a(kind: type, noun: str) -> _Reader:
    def read(value: object, what: str) -> Any:
        if type(value) is not kind:  # As JSON has it: true is an int in Python.
            raise MalformedEventError(f"{what} is not {noun}")
        return value

    return read


_text = _a(str, "a text")
_boolean = _a(bool, "a boolean")
_object = _a(dict, "an object")
_HEX32 = re.compile(r"[0-9a-f]{32}", re.ASCII).fullmatch


def _uuid(value: object, what: str) -> UUID:
    if not isinstance(value, str) or _HEX32(value) is None:
        raise MalformedEventError(f"{what} is not a UUID")
    return UUID(int=int(value, 16))


_statuses: dict[object, Status] = {status.value: status for status in Status}


def _status(value: object, what: str) -> Status:
    status = _statuses.get(value) if isinstance(value, str) else None
    if status is None:
        raise MalformedEventError(f"an unknown {what}")
    return status


def _integer(value: object, what: str) -> int:
    # No database column holds more than 64 bits.
    if type(value) is not int or not -_INT64 <= value <= _INT64:
        raise MalformedEventError(f"{what} is not a 64 bit integer")
    return value


def _carrier(value: object, what: str) -> dict[str, str]:
    return {key: _text(entry, what) for key, entry in _object(value, what).items()}


# By position. Names are the fields of `ActivityEvent` in the last, and for error messages in the others.
_SPAN: Final[dict[str, _Reader]] = {
    "trace id": _text,
    "span id": _text,
    "sampling decision": _boolean,
    "span of the worker": _optional(_text),
}
_OPENING: Final[dict[str, _Reader]] = {
    "agent type": _text,
    "metadata": _optional(_object),
    "trace context": _optional(_carrier),
}
_OUTCOME: Final[dict[str, _Reader]] = {
    "error type": _optional(_text),
    "reason": _optional(_text),
    **dict.fromkeys(
        ("input tokens", "output tokens", "requests", "cached input tokens", "reasoning tokens"), _optional(_integer)
    ),
    "model": _optional(_text),
}
_EVENT: Final[dict[str, _Reader]] = {
    "event_id": _uuid,
    "agent_id": _uuid,
    "status": _status,
    "message": _text,
    "percentage": _optional(_integer),
    "occurred_at_ns": _integer,
    "attempt": _optional(_integer),
    "worker_id": _optional(_text),
    "flags": _integer,
    "span": _optional(_made(SpanRef, _SPAN, least=3)),
    "opening": _optional(_made(Opening, _OPENING, least=3)),
    "outcome": _optional(_made(Outcome, _OUTCOME, least=5)),
    "waiting": _optional(_object),
    "agent_type": _optional(_text),
}
_FIRST_EVENT: Final = 9
