"""Token totals of all runs in one block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol
from weakref import WeakKeyDictionary

from agentexec_otel.activity import ActivityRun


class InputDetails(Protocol):
    """What the input tokens consist of."""

    @property
    def cached_tokens(self) -> int: ...


class OutputDetails(Protocol):
    """What the output tokens consist of."""

    @property
    def reasoning_tokens(self) -> int: ...


class Usage(Protocol):
    """A usage object of an agent framework, which updates it during the run."""

    @property
    def input_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...
    @property
    def requests(self) -> int: ...
    @property
    def input_tokens_details(self) -> InputDetails: ...
    @property
    def output_tokens_details(self) -> OutputDetails: ...


class Tokens(NamedTuple):
    """Input tokens, output tokens, model calls, and how many of the tokens were cached or reasoning."""

    input: int = 0
    output: int = 0
    requests: int = 0
    cached: int = 0
    reasoning: int = 0

    @classmethod
    def of(cls, usage: Usage) -> Tokens:
        """The current counts of `usage`."""
        cached, reasoning = usage.input_tokens_details.cached_tokens, usage.output_tokens_details.reasoning_tokens
        return cls(usage.input_tokens, usage.output_tokens, usage.requests, cached, reasoning)

    def plus(self, other: Tokens, times: int = 1) -> Tokens:
        """The sums; with ``times=-1`` the differences."""
        return Tokens(*(mine + times * theirs for mine, theirs in zip(self, other, strict=True)))


@dataclass(slots=True)
class _Meter:
    """A usage object, and how many runs use it."""

    usage: Usage
    holders: int = 0


class Tally:
    """The tokens of all runs in one block. Nested runs share one usage object, which counts once."""

    def __init__(self) -> None:
        self._done = Tokens()  # without the counts that each meter's usage had before
        self._meters: dict[int, _Meter] = {}
        self.model: str | None = None  # the one that was called last

    def hold(self, usage: Usage) -> None:
        """Count what is added to `usage` from now on, until each holder has released it."""
        if id(usage) not in self._meters:
            self._meters[id(usage)] = _Meter(usage)
            self.add(Tokens.of(usage), -1)
        self._meters[id(usage)].holders += 1

    def release(self, usage: Usage) -> None:
        """Keep what `usage` has counted, but not the object: a block may have many runs."""
        meter = self._meters[id(usage)]
        meter.holders -= 1
        if not meter.holders:
            del self._meters[id(usage)]
            self.add(Tokens.of(usage))

    def add(self, tokens: Tokens, times: int = 1) -> None:
        """Count tokens that no meter counts."""
        self._done = self._done.plus(tokens, times)

    def record(self, block: ActivityRun) -> None:
        """Put the totals so far on the activity, even if they are 0."""
        total = self._done
        for meter in self._meters.values():
            total = total.plus(Tokens.of(meter.usage))
        block.record_usage(*total, model=self.model)


_tallies: Final[WeakKeyDictionary[ActivityRun, Tally]] = WeakKeyDictionary()


def tally_of(block: ActivityRun) -> Tally:
    """The tally of this block, which all runs in it share."""
    return _tallies.setdefault(block, Tally())
