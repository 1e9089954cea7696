"""The oracle: what a producer was promised, written down by itself, and what the database has."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from uuid import UUID

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from agentexec_otel.activity.models import Activity, ActivityLog


class Journal:
    """A file of a producer's own. Once `accepted` has returned the line is there, also when the process is killed."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def accepted(self, agent_id: UUID, text: str) -> None:
        """To be called after the call that took the event has returned."""
        os.write(self._fd, f"{agent_id} {text}\n".encode())


def promised(paths: Iterable[Path]) -> dict[UUID, list[str]]:
    """The texts that were accepted, in order, by activity."""
    found: dict[UUID, list[str]] = {}
    for path in paths:
        for line in path.read_text().splitlines() if path.exists() else ():
            agent_id, _, text = line.partition(" ")
            found.setdefault(UUID(agent_id), []).append(text)
    return found


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the comparison found.

    Attributes:
        accepted: Events whose call returned.
        lost: Those of them that the database has not.
        duplicated: Lines that it has more than once.
        disordered: Neighbours of one producer that stand the wrong way round.
        gaps: Activities whose `seq` is not 1, 2, 3, …
    """

    accepted: int
    lost: int
    duplicated: int
    disordered: int
    gaps: int

    @property
    def sound(self) -> bool:
        """Nothing lost, nothing twice, order kept, no holes."""
        return (self.lost, self.duplicated, self.disordered, self.gaps) == (0, 0, 0, 0)


def compare(engine: Engine, paths: Iterable[Path]) -> Verdict:
    """Every journal with the database. Texts are `NAME NUMBER`, the number growing within an activity and name."""
    wanted = promised(paths)
    found = history(engine)
    lost = duplicated = disordered = gaps = 0
    for agent_id, texts in wanted.items():
        lines = found.get(agent_id, [])
        stored = Counter(text for _, text in lines)
        lost += sum(stored[text] == 0 for text in set(texts))
        duplicated += sum(count - 1 for text, count in stored.items() if _numbered(text) is not None)
        disordered += _disordered([text for _, text in lines])
        gaps += [seq for seq, _ in lines] != list(range(1, len(lines) + 1))
    return Verdict(sum(map(len, wanted.values())), lost, duplicated, disordered, gaps)


def history(engine: Engine) -> dict[UUID, list[tuple[int, str]]]:
    """Place and text of all lines, by activity."""
    lines: dict[UUID, list[tuple[int, str]]] = {}
    with Session(engine) as session:
        found = session.execute(
            select(Activity.agent_id, ActivityLog.seq, ActivityLog.message)
            .join(ActivityLog, ActivityLog.activity_id == Activity.id)
            .order_by(Activity.agent_id, ActivityLog.seq)
        )
        for agent_id, seq, message in found:
            lines.setdefault(agent_id, []).append((seq, message))
    return lines


def _disordered(texts: list[str]) -> int:
    by_name: dict[str, list[int]] = {}
    for text in texts:
        numbered = _numbered(text)
        if numbered is not None:
            by_name.setdefault(numbered[0], []).append(numbered[1])
    return sum(before > after for numbers in by_name.values() for before, after in pairwise(numbers))


def _numbered(text: str) -> tuple[str, int] | None:
    name, _, number = text.rpartition(" ")
    return (name, int(number)) if number.isdigit() else None
