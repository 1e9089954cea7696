"""The demo's second process: it follows the runs through the database, and knows nothing else of them."""

from __future__ import annotations

import statistics
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from uuid import UUID

from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
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
LATE_EXPLAINED: Final = (
    "(late): reported after the run had ended. Its agent had not noticed yet that it was canceled. The history keeps "
    "the log; status and progress stay as they were."
)


class StatusBar(ProgressColumn):
    """A bar in the color of its run's status. Those of rich are red until they are full."""

    def render(self, task: Task) -> ProgressBar:
        """As far as the run has got."""
        style = STYLES[task.fields["status"]]
        return ProgressBar(
            total=task.total, completed=task.completed, width=30, complete_style=style, finished_style=style
        )


class Watcher:
    """Shows each log as it comes and, on a terminal, a bar for each run."""

    def __init__(self, url: str) -> None:
        self.engine = create_engine(url)
        self.console = Console(highlight=False)
        columns = (
            TextColumn("{task.description:<15}"),
            StatusBar(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[status]}"),
        )
        self.progress = Progress(*columns, console=self.console, disable=not self.console.is_interactive)
        self.bars: dict[UUID, TaskID] = {}
        self.seen: dict[UUID, int] = {}
        self.delays_ms: list[float] = []
        self.started_at = datetime.now(UTC)
        self.began_at: datetime | None = None
        self.late = False

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
        """The logs of all runs since the last poll, in the order in which they were reported."""
        found = [
            (item, line)
            for item in items
            for line in ax.activity.logs(session, item.agent_id, after_seq=self.seen.get(item.agent_id, 0))
        ]
        return sorted(found, key=lambda each: each[1].created_at)

    def show(self, item: ActivityListItemSchema, line: ActivityLogSchema) -> None:
        """Print one log of a run's history, and move the run's bar."""
        self.seen[item.agent_id] = line.seq
        self.began_at = self.began_at or line.created_at
        self.late = self.late or line.late
        if line.created_at > self.started_at:
            self.delays_ms.append((datetime.now(UTC) - line.created_at).total_seconds() * 1000)
        if item.agent_id not in self.bars:
            self.bars[item.agent_id] = self.progress.add_task(item.agent_type, total=100, status=line.status)
        completed = None if line.late else line.percentage
        self.progress.update(self.bars[item.agent_id], completed=completed, status=line.status)
        self.console.print(row(item.agent_type, line, self.began_at))

    def summary(self) -> str:
        """How long a log took from the call that reported it until it was shown here."""
        delays = self.delays_ms or [float("nan")]
        median, longest = statistics.median(delays), max(delays)
        figures = (
            f"{len(self.delays_ms)} logs seen live, with a poll every {POLL_SECONDS * 1000:.0f} ms.\n"
            f"From the call until shown here: median {median:.0f} ms, longest {longest:.0f} ms."
        )
        return f"{LATE_EXPLAINED}\n\n{figures}" if self.late else figures


def row(task: str, line: ActivityLogSchema, began_at: datetime) -> Table:
    """One log in columns, which wraps between words. What agents report is text and never markup."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    for width in (8, 15, 13):
        grid.add_column(width=width, no_wrap=True)
    grid.add_column()
    percentage = "" if line.percentage is None else f"{line.percentage}%"
    status = Text(f"{line.status:<8}", STYLES[line.status]).append(f" {percentage:>4}", "default")
    message = Text(line.message).append(" (late)" if line.late else "", "dim")
    grid.add_row(elapsed(began_at, line.created_at), task, status, message)
    return grid


def elapsed(began_at: datetime, moment: datetime) -> str:
    """Seconds from one moment to another."""
    return f"{(moment - began_at).total_seconds():6.2f} s"


def watch(url: str, ready: Path, runs: int, patience: dict[str, int]) -> int:
    """Make the file `ready`, then watch until all runs have ended. The exit code of the process."""
    ax.configure(url)
    watcher = Watcher(url)
    ready.touch()
    done = watcher.watch(runs, patience)
    watcher.console.print(f"\n{watcher.summary()}")
    return 0 if done else 1
