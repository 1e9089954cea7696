"""How much is done at once: within a timeout, and in one statement."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final, TypeVar

_T = TypeVar("_T")

_CHUNK: Final = 500


def countdown(timeout: float) -> Callable[[], float]:
    """Seconds that are left of `timeout`, 0 at least."""
    deadline = time.monotonic() + timeout
    return lambda: max(0.0, deadline - time.monotonic())


def chunks(values: Iterable[_T]) -> Iterator[list[_T]]:
    """As many values as one statement is for, again and again."""
    left = iter(values)
    while chunk := list(islice(left, _CHUNK)):
        yield chunk
