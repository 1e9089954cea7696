"""Time-ordered UUIDs for events, and the agent ids of callers."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from itertools import accumulate, count
from time import time_ns
from typing import Final, cast
from uuid import UUID, SafeUUID

from agentexec_otel._model.text import describe, read_foreign
from agentexec_otel._syscalls import random_48

_HEX_ID: Final = re.compile(
    r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}|[0-9a-fA-F]{32}"
)


def new_clock(first: int) -> tuple[Callable[[int], None], Iterator[tuple[int, int]]]:
    """Return what takes clock readings, and what returns the highest one so far with the next number."""
    # One `next()` on this chain of C iterators is atomic for threads, signal handlers and forks, so no lock is needed,
    # which one of them could find locked.
    readings: deque[int] = deque()
    return readings.append, zip(accumulate(iter(readings.pop, None), max), count(first), strict=False)


_read, _stamps = new_clock(random_48() >> 24)

_VERSION_AND_VARIANT: Final = 0x7 << 76 | 0b10 << 62
# Looking these names up takes a fifth of the whole time.
_new = object.__new__
_UNKNOWN: Final = SafeUUID.unknown
# Sets the slots of an immutable class: `UUID(int=...)` takes four times as long.
_set_int: Final[Callable[[UUID, int], None]] = UUID.__dict__["int"].__set__
_set_is_safe: Final[Callable[[UUID, SafeUUID], None]] = UUID.__dict__["is_safe"].__set__


def uuid7(now_ns: int | None = None) -> UUID:
    """Return a new RFC 9562 version 7 UUID, which sorts after all earlier ones of this process.

    It has 48 bits of Unix milliseconds, a 26-bit counter of this process, and 48 new bits from the operating system. So
    a fork or a resumed snapshot repeats no id.

    Args:
        now_ns: Nanoseconds since the epoch, if the caller has read the clock already. If a later time was seen before,
            that one is used, so a clock that is set back does not change the order.
    """
    _read(time_ns() if now_ns is None else now_ns)
    seen_ns, number = next(_stamps)
    new = _new(UUID)
    # An overflow of the counter is added to the milliseconds, one for each 67 million ids.
    _set_int(
        new,
        (seen_ns // 1_000_000 + (number >> 26)) << 80
        | (number & 0x3FFC000) << 50
        | (number & 0x3FFF) << 48
        | _VERSION_AND_VARIANT
        | random_48(),
    )
    _set_is_safe(new, _UNKNOWN)
    return new


def parse_agent_id(value: UUID | str) -> UUID:
    """Return the agent id as a plain `UUID`.

    Args:
        value: A UUID, or its text: 32 hexadecimal digits in any case, with all four dashes or none.

    Raises:
        ValueError: Anything else, such as braces, a ``urn:uuid:`` prefix or another type.
    """
    kind = type(value)
    if kind is UUID:
        return cast(UUID, value)
    if issubclass(kind, str) and _HEX_ID.fullmatch(cast(str, value)):
        return UUID(str.__str__(cast(str, value)))
    if issubclass(kind, UUID):  # drivers such as asyncpg return subclasses of their own
        return read_foreign("agent_id", lambda: UUID(int=cast(UUID, value).int))
    raise ValueError(
        "agent_id must be a UUID or its text form, 32 hexadecimal digits with or without dashes, "
        f"not {describe(value)}: pass the id that activity.create() returned"
    )
