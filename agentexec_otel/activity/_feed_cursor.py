"""Cursors of the feed: the ids that a reader has passed, and those that may still appear behind it. No I/O."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import Final, TypeAlias

from agentexec_otel._model.text import describe, plain_str

MOST_GAPS: Final = 1_000
"""Gaps that a cursor has room for."""

_Range: TypeAlias = tuple[int, int]
_ID: Final = "[0-9a-f]{1,15}"  # less than 63 bits
_GAP: Final = f"{_ID}(?:-{_ID})?"
_WRITER: Final = "(?:t[0-9]{1,15}|[0-9-]{1,32})"
_GAPS: Final = f"{_GAP}(?:_{_GAP}){{0,{MOST_GAPS - 1}}}"
_TEXT: Final = re.compile(
    rf"(?P<last>{_ID})(?:\.g(?P<gaps>{_GAPS}))?(?:\.w(?P<fence>{_ID})(?P<writers>(?:_{_WRITER})*))?"
)


@dataclass(frozen=True, slots=True)
class Fence:
    """Decides when gaps can no longer be filled.

    Attributes:
        last: The highest id when the fence was made.
        writers: Transactions of that time that may still commit an id up to `last`.
    """

    last: int
    writers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FeedCursor:
    """A place in the feed.

    Attributes:
        last: Each id up to here is passed, or is in one of the gaps.
        gaps: First and last ids of the gaps, in order: a transaction that commits late may still fill them.
        fence: Made for the gaps, or for some of them.
    """

    last: int = 0
    gaps: tuple[_Range, ...] = ()
    fence: Fence | None = None

    @property
    def settled(self) -> int:
        """Up to this id, what a new snapshot does not show will never appear."""
        return 0 if self.fence is None or self.fence.writers else self.fence.last

    def __str__(self) -> str:
        """Text that is safe in URLs."""
        return f"{self.last:x}{self.suffix}"

    @property
    def suffix(self) -> str:
        """Everything of the text but `last`."""
        gaps = "" if not self.gaps else f".g{'_'.join(_texts(self.gaps))}"
        fence = "" if self.fence is None else "_".join((f".w{self.fence.last:x}", *self.fence.writers))
        return gaps + fence

    @classmethod
    def parse(cls, text: object) -> FeedCursor:
        """Return the cursor. None and an empty text mean the beginning.

        Raises:
            ValueError: It is no cursor of the feed.
        """
        plain = "" if text is None else plain_str(text)
        if plain == "":
            return cls()
        match = None if plain is None else _TEXT.fullmatch(plain)
        if match is not None:
            last, gaps = int(match["last"], 16), tuple(_parsed(match["gaps"] or ""))
            if all(high < low - 1 for (_, high), (low, _) in pairwise(((0, -1), *gaps, (last + 2, 0)))):
                fence = match["fence"] and Fence(int(match["fence"], 16), tuple(match["writers"].split("_")[1:]))
                return cls(last, gaps, fence or None)
        raise ValueError(f'after is {describe(text)}: pass the cursor of a log, the next_cursor of a page, "" or "now"')


def _texts(gaps: Iterable[_Range]) -> Iterator[str]:
    """Each gap by its distance from the one before, and its further length if it is of several ids."""
    before = 0
    for low, high in gaps:
        yield f"{low - before:x}" if low == high else f"{low - before:x}-{high - low:x}"
        before = high


def _parsed(text: str) -> Iterator[_Range]:
    before = 0
    for gap in filter(None, text.split("_")):
        distance, _, more = gap.partition("-")
        low = before + int(distance, 16)
        before = low + int(more or "0", 16)
        yield low, before


class Walk:
    """Moves a cursor over ids in ascending order: first those of its gaps, then those behind it.

    Args:
        settled: New gaps up to this id are not kept.
    """

    def __init__(self, cursor: FeedCursor, settled: int) -> None:
        self._settled = settled
        self._last = cursor.last
        self._gaps = list(cursor.gaps)
        self._fence = cursor.fence
        self._suffix = cursor.suffix

    def pass_id(self, number: int) -> bool:
        """Move over an id. False if the cursor has no room for another gap: it then stays where it was."""
        if number > self._last:
            first = max(self._last, self._settled) + 1
            if first < number and not self._replace(len(self._gaps), [(first, number - 1)], removed=0):
                return False
            self._last = number
            return True
        at = bisect_right(self._gaps, number, key=itemgetter(0)) - 1
        low, high = self._gaps[at]
        return self._replace(at, _ranges([(low, number - 1), (number + 1, high)]), removed=1)

    def _replace(self, at: int, gaps: Iterable[_Range], removed: int) -> bool:
        changed = self._gaps[:at] + list(gaps) + self._gaps[at + removed :]
        if len(changed) > max(MOST_GAPS, len(self._gaps)):
            return False
        self._gaps = changed
        self._suffix = self.cursor.suffix
        return True

    @property
    def text(self) -> str:
        """The cursor's text. Made for each log, so its parts are kept."""
        return f"{self._last:x}{self._suffix}"

    @property
    def cursor(self) -> FeedCursor:
        """Where it is now."""
        return FeedCursor(self._last, tuple(self._gaps), self._fence)


def without_settled(cursor: FeedCursor, settled: int) -> FeedCursor:
    """Close the gaps up to an id, and drop the fence if it serves no more."""
    gaps = tuple(_ranges((max(low, settled + 1), high) for low, high in cursor.gaps))
    fence = cursor.fence
    if fence is not None and fence.last <= settled and fence.last <= cursor.last:
        fence = None
    return FeedCursor(cursor.last, gaps, fence)


def _ranges(given: Iterable[_Range]) -> Iterator[_Range]:
    return ((low, high) for low, high in given if low <= high)
