"""Identifiers: time-ordered UUIDs for events, and the agent ids that callers hand in."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from itertools import accumulate, count
from os import urandom
from time import time_ns
from typing import Final, cast
from uuid import UUID, SafeUUID

from agentexec_otel._model.text import describe

_HEX_ID: Final = re.compile(
    r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}|[0-9a-fA-F]{32}"
)

# One `next()` on this chain of C iterators takes the highest clock reading so far together with the next number,
# and no thread, signal handler or fork gets in between: the order needs no lock that one of them could find taken.
_readings: Final[deque[int]] = deque()
_stamps: Final = zip(accumulate(iter(_readings.pop, None), max), count(int.from_bytes(urandom(3), "big")), strict=False)
_read = _readings.append

_VERSION_AND_VARIANT: Final = 0x7 << 76 | 0b10 << 62
# Names looked up once: these few nanoseconds are a fifth of the whole.
_new = object.__new__
_from_bytes = int.from_bytes
_UNKNOWN: Final = SafeUUID.unknown
# The slots of an immutable class: `UUID(int=...)` takes four times as long.
_set_int: Final[Callable[[UUID, int], None]] = UUID.__dict__["int"].__set__
_set_is_safe: Final[Callable[[UUID, SafeUUID], None]] = UUID.__dict__["is_safe"].__set__


def uuid7(now_ns: int | None = None) -> UUID:
    """A new RFC 9562 version 7 UUID: sorts after every id that this process was given before.

    48 bits of Unix milliseconds, a 26-bit counter of this process, and 48 bits fresh from the operating system for
    each id: processes share no state that a fork or a resumed snapshot could repeat.

    Args:
        now_ns: Nanoseconds since the epoch, where the caller has read the clock already. Once a later time
            was seen, that one is kept: a clock that steps back breaks no order.
    """
    _read(time_ns() if now_ns is None else now_ns)
    seen_ns, number = next(_stamps)
    new = _new(UUID)
    # What the counter outgrows goes into the milliseconds, one for each 67 million ids.
    _set_int(
        new,
        (seen_ns // 1_000_000 + (number >> 26)) << 80
        | (number & 0x3FFC000) << 50
        | (number & 0x3FFF) << 48
        | _VERSION_AND_VARIANT
        | _from_bytes(urandom(6), "big"),
    )
    _set_is_safe(new, _UNKNOWN)
    return new


def parse_agent_id(value: UUID | str) -> UUID:
    """The agent id as a plain `UUID`.

    Args:
        value: A UUID, or its text: 32 hexadecimal digits in any case, all four dashes in place or none.

    Raises:
        ValueError: For anything else, such as braces, a ``urn:uuid:`` prefix or another type.
    """
    kind = type(value)
    if kind is UUID:
        return cast(UUID, value)
    if issubclass(kind, str) and _HEX_ID.fullmatch(cast(str, value)):
        return UUID(str.__str__(cast(str, value)))
    if issubclass(kind, UUID):  # drivers such as asyncpg return subclasses of their own
        return UUID(int=cast(UUID, value).int)
    raise ValueError(
        "agent_id must be a UUID or its text form, 32 hexadecimal digits with or without dashes, "
        f"not {describe(value)}: pass the id that activity.create() returned"
    )
