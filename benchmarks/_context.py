"""What every benchmark is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Protocol, TypeVar

from benchmarks._databases import Database

_T = TypeVar("_T")


class Scale(IntEnum):
    """How long the benchmarks may take: a second, a minute, ten, an hour."""

    SMOKE = 0
    QUICK = 1
    FULL = 2
    MILLION = 3


class Track(Protocol):
    """Shows how far a long piece of work is."""

    def __call__(self, title: str, total: int, /) -> Callable[[str], None]:
        """Announce `total` steps; call the result with a few words at the beginning of each."""
        ...


@dataclass(frozen=True, slots=True)
class Context:
    """Where and how long to measure.

    Attributes:
        folder: For files; on the disk that the results are about.
        agentexec: A Python interpreter that has agentexec installed, to be compared with.
    """

    databases: Sequence[Database]
    scale: Scale
    folder: Path
    track: Track
    agentexec: str | None = None

    @property
    def runs(self) -> int:
        """Rounds of an interleaved measurement."""
        return self.pick({Scale.SMOKE: 1, Scale.QUICK: 5})

    def pick(self, sizes: Mapping[Scale, _T]) -> _T:
        """The entry for the present scale, or for the next smaller one that has an entry."""
        return sizes[max(scale for scale in sizes if scale <= self.scale)]
