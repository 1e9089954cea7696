"""Draws the pictures of the command line, docs/images/cli-*.svg: python docs/images/make_cli.py [FOLDER]

The commands are the real ones. The clock stands still, so that each run draws the same.
"""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, Final, Self
from unittest.mock import patch
from uuid import UUID

os.environ |= {"COLUMNS": "80", "LINES": "30", "TERM": "xterm-256color", "COLORTERM": "truecolor", "TZ": "UTC"}
os.environ.pop("NO_COLOR", None)
time.tzset()

from rich.text import Text  # noqa: E402
from sqlalchemy import create_engine  # noqa: E402
from sqlalchemy.orm import Session  # noqa: E402

import agentexec_otel as ax  # noqa: E402
from agentexec_otel.activity import Activity, ActivityLog, Status  # noqa: E402
from agentexec_otel.cli import main  # noqa: E402
from agentexec_otel.cli._output import console  # noqa: E402

PICTURES: Final = {
    "list": ("list",),
    "watch": ("list", "--watch", "--status", "running"),
    "show": ("show", "9f6c1c1e"),
    "tail": ("tail", "--since", "45s"),
    "stats": ("stats", "--bucket", "1h"),
}
NOW: Final = datetime(2026, 3, 2, 14, 30, tzinfo=UTC)
FONTS: Final = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
ENDS: Final = {
    Status.COMPLETE: "Task completed successfully.",
    Status.ERROR: "Task failed: the model did not answer in 30 s",
    Status.CANCELED: "Task canceled.",
}
# Type, status, percentage, age and run time in seconds, reason, latest log.
RUNS: Final = (
    ("research_company", Status.RUNNING, 55, 42, 40, None, "Analyzing competitors..."),
    ("research_company", Status.RUNNING, 20, 75, 73, None, "Reading the annual report of 2025"),
    ("write_summary", Status.QUEUED, None, 80, None, None, "Waiting to start."),
    ("check_facts.sources.newspapers", Status.RUNNING, 90, 190, 185, None, "Comparing 14 articles with the draft"),
    ("research_company", Status.COMPLETE, 100, 610, 412, None, None),
    ("check_facts.sources.newspapers", Status.ERROR, 35, 1_500, 31, "timeout", None),
    ("write_summary", Status.COMPLETE, 100, 2_900, 96, None, None),
    ("write_summary", Status.CANCELED, 10, 5_000, 12, "canceled", None),
    ("research_company", Status.COMPLETE, 100, 9_000, 377, None, None),
    ("research_company", Status.COMPLETE, 100, 12_500, 405, None, None),
)
STEPS: Final = (
    (2, None, "Task started."),
    (9, 10, "Searching for the company's filings"),
    (17, 20, "Reading the annual report of 2025, and the two before it, for what they say about markets and prices"),
    (29, 40, "Found 5 articles on competitors"),
    (41, 55, "Analyzing competitors..."),
)


class StoppedClock(datetime):
    """It is always NOW."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        """The moment of the pictures."""
        return cls.fromtimestamp(NOW.timestamp(), tz)


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Yes."""
        return True


def fill(url: str) -> None:
    """Some activities, the newest of which has a history."""
    engine = create_engine(url)
    ax.Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        for number, run in enumerate(RUNS):
            session.add(_activity(number, *run))
    engine.dispose()


def _activity(
    number: int, agent_type: str, status: Status, percentage: int | None, age: int, seconds: int | None,
    reason: str | None, latest: str | None,
) -> Activity:  # fmt: skip
    created_at = NOW - timedelta(seconds=age)
    started_at = None if seconds is None else created_at + timedelta(seconds=2)
    ended_at = started_at + timedelta(seconds=seconds) if started_at and seconds and status.terminal else None
    agent_id = UUID(int=0x9F6C1C1E_5A7B_4C3D_8E2F_1A2B3C4D5E6F * (number + 1) % (1 << 128))
    logs: list[tuple[int, Status, int | None, str]] = [(0, Status.QUEUED, None, "Waiting to start.")]
    if number == 0:
        logs += [(at, Status.RUNNING, done, text) for at, done, text in STEPS]
    elif status is not Status.QUEUED:
        logs.append((2 + (seconds or 0), status, percentage, latest or ENDS[status]))
    return Activity(
        agent_id=agent_id, agent_type=agent_type, status=status, latest_percentage=percentage, reason=reason,
        created_at=created_at, updated_at=ended_at or NOW, started_at=started_at, ended_at=ended_at,
        error_type="TimeoutError" if status is Status.ERROR else None,
        metadata_={"tenant": "acme", "order": 17}, worker_id="worker-2:4711", attempt=1, last_seq=len(logs),
        input_tokens=12_450 if started_at else None, output_tokens=1_830 if started_at else None,
        logs=[
            ActivityLog(
                seq=seq, attempt=1, late=False, status=log_status, percentage=done, message=text,
                created_at=created_at + timedelta(seconds=at),
            )
            for seq, (at, log_status, done, text) in enumerate(logs, 1)
        ],
    )  # fmt: skip


def draw(name: str, arguments: Sequence[str], url: str) -> str:
    """Run a command until it waits, and return what it shows as SVG."""

    def interrupt(_seconds: float) -> None:
        screen.record = False  # What is drawn at the end would be drawn twice.
        raise KeyboardInterrupt

    screen = console()
    with redirect_stdout(Screen()), redirect_stderr(Screen()), patch("time.sleep", interrupt):
        screen.record = True
        screen.print(Text.assemble(("$ ", "dim"), ("agentexec-otel " + " ".join(arguments), "bold")))
        sys.argv = ["agentexec-otel", *arguments, "--database", url]
        with suppress(SystemExit):
            main()
        screen.record = True
        drawn = screen.export_svg(title="agentexec-otel", unique_id=f"cli-{name}")
    # Fonts of the reader's machine, and none from the network.
    return re.sub(r"\s*@font-face \{.*?\}", "", drawn, flags=re.DOTALL).replace("Fira Code, monospace", FONTS)


@contextmanager
def stopped_clock() -> Iterator[None]:
    """What computes durations asks the clock of its module."""
    modules = ("activity.schemas", "cli._format", "cli._logs", "cli._options", "cli._stats", "cli._act")
    patches: list[Any] = [patch(f"agentexec_otel.{name}.datetime", StoppedClock) for name in modules]
    for one in patches:
        one.start()
    yield
    for one in patches:
        one.stop()


def draw_all(folder: Path) -> None:
    """Draw each picture into the folder."""
    with redirect_stdout(Screen()):
        console()  # With the colors of a terminal.
    with tempfile.TemporaryDirectory() as temporary, stopped_clock():
        url = f"sqlite:///{temporary}/agents.db"
        fill(url)
        for name, arguments in PICTURES.items():
            (folder / f"cli-{name}.svg").write_text(draw(name, arguments, url), encoding="utf-8")


if __name__ == "__main__":
    draw_all(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
