"""A pool's worker processes and clients, on a real broker and a real database."""

import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID, uuid4

from sqlalchemy import select
from sqlalchemy.orm import Session

from agentexec_otel.activity.models import Activity
from tests.brokers import URLS, need, results_for
from tests.chaos.processes import environment_with
from tests.databases import Database
from tests.e2e import task_process
from tests.e2e.forked import Forked


class System:
    """A broker, a database, a queue of this test's own, and worker processes."""

    def __init__(self, database: Database, folder: Path, broker: str, **settings: str) -> None:
        results = results_for(broker)
        self.database = database
        self.folder = folder
        self.environment = environment_with(
            {
                "TASKS_DATABASE": database.url,
                "TASKS_BROKER": URLS[broker],
                "TASKS_QUEUE": f"test_{uuid4().hex}",
                "TASKS_FOLDER": str(folder),
                "XDG_STATE_HOME": str(folder / "state"),
                **({"TASKS_RESULTS": results} if results else {}),
                **settings,
            }
        )
        self.started: list[Forked | subprocess.Popen[bytes]] = []
        self.clients = 0

    def workers(self, number: int, app: str = "task_app") -> Forked:
        """Start that many, through the command."""
        log = self.folder / "worker.log"
        command = ["command", "worker", f"tests.e2e.{app}:pool", "--workers", str(number)]
        started = Forked(task_process, self.environment, log, log, *command)
        self.started.append(started)
        return started

    def client(self, body: str) -> list[str]:
        """Run statements in another process, within `async with pool`; what they print, line by line."""
        self.clients += 1
        out, err = (self.folder / f"client{self.clients}.{name}" for name in ("out", "err"))
        code = Forked(task_process, self.environment, out, err, "client", body).wait(120)
        errors = err.read_text()
        assert (code, errors) == (0, ""), errors
        return out.read_text().splitlines()

    def starts(self) -> Counter[UUID]:
        """How often each task was started."""
        path = self.folder / "starts.txt"
        return Counter(UUID(line.split()[0]) for line in path.read_text().splitlines()) if path.exists() else Counter()

    def pids(self) -> list[int]:
        """The worker processes, by what they have started."""
        return list(
            dict.fromkeys(int(line.split()[1]) for line in (self.folder / "starts.txt").read_text().splitlines())
        )

    def log(self) -> str:
        return (self.folder / "worker.log").read_text()

    def stop(self) -> None:
        for one in self.started:
            with suppress(ProcessLookupError):
                os.killpg(one.pid, signal.SIGKILL)
            one.wait()

    def worker_pids(self) -> list[int]:
        """The living worker processes of the first manager that was started."""
        pid = self.started[0].pid
        children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return [child for child in children if not _is_dead(child)]

    def dead_letters(self) -> list[dict[str, str]]:
        """What all processes have set aside. A line that is being written is left out."""
        texts = [path.read_text() for path in (self.folder / "state").rglob("dead-letters.jsonl")]
        return [json.loads(line) for text in texts for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _is_dead(pid: int) -> bool:
    """Whether a process has ended, also if its parent has not noticed it yet."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True


Start = Callable[..., System]


@contextmanager
def starting(database: Database, folder: Path) -> Generator[Start]:
    """Make a system on a broker; everything of it is stopped at the end."""
    systems: list[System] = []

    def make(broker: str, **settings: str) -> System:
        need(broker, "redis")
        system = System(database, folder, broker, **settings)
        systems.append(system)
        return system

    yield make
    for system in systems:
        system.stop()


def statuses(database: Database) -> Mapping[str, int]:
    """How many activities have each status."""
    with Session(database.engine) as session:
        return Counter(str(status) for status in session.scalars(select(Activity.status)))
