"""Programs in forks of a process that has imported what they need, since importing takes longer than most tests."""

import os
import signal
from pathlib import Path
from types import ModuleType

from tests.chaos.processes import await_that, zygote


class Forked:
    """A program as a process and a session of its own; the interface is that of `Popen`.

    Args:
        program: A module whose `start` is called with the arguments, once the modules that it names in `PRELOADED` are
            imported.
    """

    def __init__(
        self, program: ModuleType, environment: dict[str, str], stdout: Path, stderr: Path, *arguments: str
    ) -> None:
        self._zygote = zygote(*program.PRELOADED)
        self.pid = self._zygote.start(
            module=program.__name__,
            arguments=arguments,
            environment=environment,
            stdin=os.devnull,
            stdout=str(stdout),
            stderr=str(stderr),
            session=True,
        )

    def send_signal(self, number: signal.Signals) -> None:
        """As `os.kill`."""
        os.kill(self.pid, number)

    def wait(self, timeout: float = 30) -> int:
        """Its exit code."""
        await_that(lambda: self.pid in self._zygote.codes, timeout, "the end of a process")
        return self._zygote.codes[self.pid]
