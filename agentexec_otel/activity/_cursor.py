"""Keyset cursors: where a page of `list` ended."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, TypeAlias, get_args
from uuid import UUID

from agentexec_otel._model.text import describe, plain_str

Order: TypeAlias = Literal["newest", "oldest"]

_ORDERS: Final[tuple[Order, ...]] = get_args(Order)
_TEXT: Final = re.compile(r"[A-Za-z0-9_-]{34}")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last activity of a page, by what pages are ordered by."""

    order: Order
    created_at: datetime
    id: UUID

    def __str__(self) -> str:
        """Text that is safe in URLs."""
        microseconds = (self.created_at - _EPOCH) // timedelta(microseconds=1)
        place = microseconds.to_bytes(8, "big", signed=True)
        return urlsafe_b64encode(bytes([_ORDERS.index(self.order)]) + place + self.id.bytes).decode().rstrip("=")

    @classmethod
    def parse(cls, text: object, order: Order) -> Cursor | None:
        """Return the cursor. None for an empty text, which is where the first page starts.

        Raises:
            ValueError: It is no cursor, or one of another order.
        """
        plain = plain_str(text)
        if plain == "":
            return None
        try:
            found = cls._decoded(plain)
        except (OverflowError, IndexError, ValueError):
            raise ValueError(f"cursor is {describe(text)}: pass the next_cursor of an earlier page") from None
        if found.order != order:
            raise ValueError(f"cursor is one of order={found.order!r}: pass the same order as for its page")
        return found

    @classmethod
    def _decoded(cls, text: str | None) -> Cursor:
        if text is None or not _TEXT.fullmatch(text):
            raise ValueError
        order, *rest = urlsafe_b64decode(f"{text}==")
        created_at = _EPOCH + timedelta(microseconds=int.from_bytes(rest[:8], "big", signed=True))
        return cls(_ORDERS[order], created_at, UUID(bytes=bytes(rest[8:])))


def checked_order(order: object) -> Order:
    """Return the order. Raises `ValueError` for anything else."""
    for known in _ORDERS:
        if plain_str(order) == known:
            return known
    raise ValueError(f"order is {describe(order)}: use {' or '.join(_ORDERS)}")
