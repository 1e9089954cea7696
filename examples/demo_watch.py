"""The demo's second process: it follows the runs through the database, and knows nothing else of them."""

from __future__ import annotations

import statistics
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from uuid import UUID

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.text import Text
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import agentexec_otel as ax
from agentexec_otel.activity import ActivityListItemSchema, ActivityLogSchema
from agentexec_otel.activity.models import Status

STYLES: Final = {
    Status.QUEUED: "dim",
    Status.RUNNING: "cyan",
    Status.COMPLETE: "green",
    Status.ERROR: "red",
    Status.CANCELED: "yellow",
}
ENDED: Final = (Status.COMPLETE, Status.ERROR, Status.CANCELED)
POLL_SECONDS: Final = 0.02


class Watcher:
    """Shows each line as it comes and, on a terminal, a bar for each run."""

    def __init__(self, url: str) -> None:
        self.engine = create_engine(url)
        self.console = Console(highlight=False)
        columns = (
            TextColumn("{task.description:<16}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[status]}"),
        )
        self.progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.bars: dict[UUID, TaskID] = {}
        self.seen: dict[UUID, int] = {}
        self.delays_ms: list[float] = []
        self.started_at = datetime.now(UTC)

    def watch(self, runs: int, patience: dict[str, int], timeout: float = 60.0) -> bool:
        """Follow that many runs to their ends; False if they have not all ended within `timeout` seconds.

        Args:
            patience: Runs to cancel, by task name, and the percentage at which to do it.
        """
        deadline = time.monotonic() + timeout
        with self.progress:
            while time.monotonic() < deadline:
                with Session(self.engine) as session:
                    items = ax.activity.list(session).items
                    for item, line in self.news(session, items):
                        self.show(item, line)
                        if (line.percentage or 0) >= patience.get(item.agent_type, 101):
                            del patience[item.agent_type]
                            ax.activity.cancel(item.agent_id, "Canceled by the process that watches.")
                if len(items) == runs and all(item.status in ENDED for item in items):
                    return True
                time.sleep(POLL_SECONDS)
        return False

    def news(
        self, session: Session, items: list[ActivityListItemSchema]
    ) -> list[tuple[ActivityListItemSchema, ActivityLogSchema]]:
        """The lines of all runs since the last look, in the order in which they were said."""
        found = [
            (item, line)
            for item in items
            for line in ax.activity.logs(session, item.agent_id, after_seq=self.seen.get(item.agent_id, 0))
        ]
        return sorted(found, key=lambda each: each[1].created_at)

    def show(self, item: ActivityListItemSchema, line: ActivityLogSchema) -> None:
        """One line of a run's history; what agents report is text and never markup."""
        self.seen[item.agent_id] = line.seq
        if line.created_at > self.started_at:
            self.delays_ms.append((datetime.now(UTC) - line.created_at).total_seconds() * 1000)
        if item.agent_id not in self.bars:
            self.bars[item.agent_id] = self.progress.add_task(item.agent_type, total=100, status="")
        status = Text(f"{line.status:<9}", STYLES[line.status])
        self.progress.update(
            self.bars[item.agent_id],
            completed=None if line.late else line.percentage,
            status=f"[{STYLES[line.status]}]{line.status}",
        )
        percentage = "" if line.percentage is None else f"{line.percentage}%"
        late = "  (late: it had ended)" if line.late else ""
        prefix = f"{line.created_at:%H:%M:%S.%f}"[:-3] + f"  {item.agent_type:<16}"
        self.console.print(prefix, status, f"{percentage:>4}", Text(line.message + late), soft_wrap=True)

    def summary(self) -> str:
        """How long lines took from the agent's call in the other process to the eye of this one."""
        delays = self.delays_ms or [float("nan")]
        return (
            f"{len(self.delays_ms)} lines seen live, a look every {POLL_SECONDS * 1000:.0f} ms.\nFrom the agent's call "
            f"until seen here: median {statistics.median(delays):.0f} ms, longest {max(delays):.0f} ms."
        )


def watch(url: str, ready: Path, runs: int, patience: dict[str, int]) -> int:
    """Make the file `ready`, then watch until all runs have ended. The exit code of the process."""
    ax.configure(url)
    watcher = Watcher(url)
    ready.touch()
    done = watcher.watch(runs, patience)
    watcher.console.print(f"\n{watcher.summary()}", soft_wrap=True)
    return 0 if done else 1
