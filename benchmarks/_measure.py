"""Figures that can be compared: interleaved runs, told with their spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Target:
    """What was promised of a row: of its ratio to the baseline, or of the value itself."""

    limit: float
    of: Literal["ratio", "value"] = "ratio"
    at_least: bool = False

    def met(self, value: float) -> bool:
        """Whether a median keeps the promise."""
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}{'x' if self.of == 'ratio' else ''}"


@dataclass(frozen=True, slots=True)
class Row:
    """One thing measured: one value per run, and the baseline's value of the same run beside each."""

    label: str
    unit: str
    values: Sequence[float]
    baseline: Sequence[float] | None = None
    target: Target | None = None

    @property
    def ratios(self) -> list[float]:
        """Value by baseline, run by run: what loads the machine for a while loads both."""
        return [value / base for value, base in zip(self.values, self.baseline or (), strict=False)]

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.target is None:
            return None
        judged = self.ratios if self.target.of == "ratio" else self.values
        return self.target.met(statistics.median(judged))


@dataclass(frozen=True, slots=True)
class Table:
    """Rows that share a named baseline."""

    title: str
    baseline: str
    rows: Sequence[Row]
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Listing:
    """Text that belongs to the figures: query plans, a profile."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Section:
    """What one benchmark has to say."""

    name: str
    title: str
    blocks: Sequence[Table | Listing]

    @property
    def tables(self) -> list[Table]:
        """The blocks that hold figures."""
        return [block for block in self.blocks if isinstance(block, Table)]


def interleaved(
    cases: Mapping[str, Callable[[], _T]], runs: int, step: Callable[[str], None] = lambda _: None
) -> dict[str, list[_T]]:
    """Run every case once per round, in turning order, so that a busy machine treats them alike."""
    found: dict[str, list[_T]] = {name: [] for name in cases}
    for number in range(runs):
        order = list(cases) if number % 2 == 0 else list(reversed(list(cases)))
        for name in order:
            step(name)
            found[name].append(cases[name]())
    return found


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - began) / 1e9


def best_of(work: Callable[[], object], times: int) -> float:
    """The shortest wall time of several calls, in seconds: for what lasts a few milliseconds at most."""
    return min(seconds(work) for _ in range(times))


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which that share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
