"""Activity events as bytes, and back: what the spool and the dead-letter file hold.

One JSON array by position::

    [1, event_id, agent_id, status, message, percentage, occurred_at_ns, attempt, worker_id, flags,
     [trace_id, span_id, sampled] | null,
     [agent_type, metadata, trace_context] | null,
     [error_type, reason, input_tokens, output_tokens, requests] | null]

The first element is the schema's major version. A later minor version appends elements or flags, which are
ignored here; an incompatible one takes the next number, which is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from json import JSONDecoder, JSONEncoder
from json.encoder import encode_basestring as quote
from typing import Any, Final, NoReturn, TypeVar, cast
from uuid import UUID

from agentexec_otel._model.event import ActivityEvent, Opening, Outcome, SpanRef, Status

SCHEMA: Final = 1

_NULL: Final = "null"
_EXPECTS_ROW: Final = 1
_REOPENS: Final = 2
_CLAIMS: Final = 4
_WITHDRAWS: Final = 8
_INT64: Final = 2**63 - 1

_T = TypeVar("_T")


class MalformedEventError(ValueError):
    """Not an activity event in a schema known here. The message names what is wrong, never the content."""


# -- to bytes ---------------------------------------------------------------------------------------------------


def encode(event: ActivityEvent) -> bytes:
    """The event as UTF-8 JSON.

    Raises:
        MalformedEventError: its metadata is not JSON (NaN, cycles, arbitrary objects, too deep).
    """
    # Written out by hand: on every caller's path, and half the time of the fastest JSON encoder call.
    percentage, attempt, worker_id = event.percentage, event.attempt, event.worker_id
    bare = event.span is None and event.opening is None and event.outcome is None
    line = (
        f'[1,"{event.event_id.int:032x}","{event.agent_id.int:032x}",'
        f"{quote(event.status)},{quote(event.message)},"
        f"{_NULL if percentage is None else percentage},{event.occurred_at_ns},"
        f"{_NULL if attempt is None else attempt},{_NULL if worker_id is None else quote(worker_id)},"
        f"{_flags(event)}"
        f"{'' if bare else _details(event)}]"
    )
    try:
        return line.encode()
    except UnicodeEncodeError:  # a lone surrogate: the spool keeps what it is given
        return line.encode("utf-8", "surrogatepass")


def _flags(event: ActivityEvent) -> int:
    return (
        _EXPECTS_ROW * event.expects_row
        + _REOPENS * event.reopens
        + _CLAIMS * event.claims
        + _WITHDRAWS * event.withdraws
    )


def _details(event: ActivityEvent) -> str:
    span, opening, outcome = event.span, event.opening, event.outcome
    return (
        f",{_NULL if span is None else _json([span.trace_id, span.span_id, span.sampled])}"
        f",{_NULL if opening is None else _json(_opening_fields(opening))}"
        f",{_NULL if outcome is None else _json(_outcome_fields(outcome))}"
    )


def _opening_fields(opening: Opening) -> list[object]:
    return [opening.agent_type, _plain(opening.metadata), _plain(opening.trace_context)]


def _outcome_fields(outcome: Outcome) -> list[object]:
    return [outcome.error_type, outcome.reason, outcome.input_tokens, outcome.output_tokens, outcome.requests]


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
    """The event that `encode` was given.

    Raises:
        MalformedEventError: for whatever else the bytes may be.
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
    if not fields or type(fields[0]) is not int or fields[0] != SCHEMA:
        raise MalformedEventError("an event of an unknown schema version")
    if len(fields) < 10:
        raise MalformedEventError("an event cut short")
    flags = _integer(fields[9], "flags")
    span, opening, outcome = (*fields[10:13], None, None, None)[:3]
    return ActivityEvent(
        event_id=_uuid(fields[1]),
        agent_id=_uuid(fields[2]),
        status=_status(fields[3]),
        message=_text(fields[4], "message"),
        percentage=_optional(_integer, fields[5], "percentage"),
        occurred_at_ns=_integer(fields[6], "time"),
        attempt=_optional(_integer, fields[7], "attempt"),
        worker_id=_optional(_text, fields[8], "worker id"),
        expects_row=bool(flags & _EXPECTS_ROW),
        reopens=bool(flags & _REOPENS),
        claims=bool(flags & _CLAIMS),
        withdraws=bool(flags & _WITHDRAWS),
        span=None if span is None else _span(span),
        opening=None if opening is None else _opening(opening),
        outcome=None if outcome is None else _outcome(outcome),
    )


def _span(value: object) -> SpanRef:
    trace_id, span_id, sampled = _row(value, 3, "span")
    if not isinstance(sampled, bool):
        raise MalformedEventError("a span without its sampling decision")
    return SpanRef(_text(trace_id, "trace id"), _text(span_id, "span id"), sampled)


def _opening(value: object) -> Opening:
    agent_type, metadata, trace_context = _row(value, 3, "opening")
    return Opening(
        _text(agent_type, "agent type"),
        _optional(_object, metadata, "metadata"),
        _optional(_carrier, trace_context, "trace context"),
    )


def _outcome(value: object) -> Outcome:
    error_type, reason, input_tokens, output_tokens, requests = _row(value, 5, "outcome")
    return Outcome(
        _optional(_text, error_type, "error type"),
        _optional(_text, reason, "reason"),
        _optional(_integer, input_tokens, "input tokens"),
        _optional(_integer, output_tokens, "output tokens"),
        _optional(_integer, requests, "requests"),
    )


def _row(value: object, length: int, what: str) -> list[object]:
    if not isinstance(value, list) or len(cast("list[object]", value)) < length:
        raise MalformedEventError(f"a malformed {what}")
    return cast("list[object]", value)[:length]


def _optional(read: Callable[[object, str], _T], value: object, what: str) -> _T | None:
    return None if value is None else read(value, what)


_HEX32 = re.compile(r"[0-9a-f]{32}", re.ASCII).fullmatch


def _uuid(value: object) -> UUID:
    if not isinstance(value, str) or _HEX32(value) is None:
        raise MalformedEventError("an id that is not a UUID")
    return UUID(int=int(value, 16))


_statuses: dict[object, Status] = {status.value: status for status in Status}


def _status(value: object) -> Status:
    status = _statuses.get(value) if isinstance(value, str) else None
    if status is None:
        raise MalformedEventError("an unknown status")
    return status


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise MalformedEventError(f"{what} is not a text")
    return value


def _integer(value: object, what: str) -> int:
    # JSON's true is an int to Python, and no database column holds more than 64 bits.
    if type(value) is not int or not -_INT64 <= value <= _INT64:
        raise MalformedEventError(f"{what} is not a 64 bit integer")
    return value


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MalformedEventError(f"{what} is not an object")
    return cast("dict[str, Any]", value)


def _carrier(value: object, what: str) -> dict[str, str]:
    return {key: _text(entry, what) for key, entry in _object(value, what).items()}
