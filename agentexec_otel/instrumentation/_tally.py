"""Token totals of all runs in one block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol
from weakref import WeakKeyDictionary

from agentexec_otel.activity import ActivityRun


class Usage(Protocol):
    """A usage object of an agent framework, which adds to it while the run goes on."""

    @property
    def input_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...
    @property
    def requests(self) -> int: ...


class Tokens(NamedTuple):
    """Input tokens, output tokens and model calls."""

    input: int = 0
    output: int = 0
    requests: int = 0

    @classmethod
    def of(cls, usage: Usage) -> Tokens:
        """What `usage` stands at now."""
        return cls(usage.input_tokens, usage.output_tokens, usage.requests)

    def plus(self, other: Tokens) -> Tokens:
        """The sums."""
        return Tokens(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def minus(self, other: Tokens) -> Tokens:
        """The differences."""
        return Tokens(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))


@dataclass(slots=True)
class _Meter:
    """A usage object, and where it stood when the first run began to use it."""

    usage: Usage
    before: Tokens
    holders: int = 0

    @property
    def counted(self) -> Tokens:
        return Tokens.of(self.usage).minus(self.before)


class Tally:
    """The tokens of all runs in one block. Nested runs share one usage object, which counts once."""

    def __init__(self) -> None:
        self._done = Tokens()
        self._meters: dict[int, _Meter] = {}

    def hold(self, usage: Usage) -> None:
        """Count what is added to `usage` from now on, until each holder has released it."""
        meter = self._meters.setdefault(id(usage), _Meter(usage, Tokens.of(usage)))
        meter.holders += 1

    def release(self, usage: Usage) -> None:
        """Keep what `usage` has counted, but not the object: a block may have many runs."""
        meter = self._meters[id(usage)]
        meter.holders -= 1
        if not meter.holders:
            del self._meters[id(usage)]
            self.add(meter.counted)

    def add(self, tokens: Tokens) -> None:
        """Count what was spent elsewhere."""
        self._done = self._done.plus(tokens)

    def record(self, block: ActivityRun) -> None:
        """Put the totals so far on the activity, even if they are 0."""
        total = self._done
        for meter in self._meters.values():
            total = total.plus(meter.counted)
        block.record_usage(*total)


_tallies: Final[WeakKeyDictionary[ActivityRun, Tally]] = WeakKeyDictionary()


def tally_of(block: ActivityRun) -> Tally:
    """The tally of this block, which all runs in it share."""
    return _tallies.setdefault(block, Tally())
