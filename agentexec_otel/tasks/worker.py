"""Worker processes of a pool, through taskiq's own worker."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Final

from taskiq import InMemoryBroker, TaskiqEvents, TaskiqState

from agentexec_otel._errors import AgentExecError, ConfigurationError
from agentexec_otel.tasks import _activities, _sdk
from agentexec_otel.tasks.taskiq.middleware import return_messages

if TYPE_CHECKING:
    from taskiq.cli.worker.args import WorkerArgs

    from agentexec_otel.tasks._pool import Pool

_logger = logging.getLogger("agentexec_otel.tasks")

_RESTART_SECONDS: Final = 3.0
_POLL_SECONDS: Final = 0.5
_STOP_SIGNALS: Final = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
_FORMAT: Final = "%(asctime)s %(levelname)s %(processName)s %(name)s: %(message)s"


def load_pool(place: str) -> Pool:
    """Import the pool at ``module:variable``. The module may be in the working directory.

    Raises:
        ConfigurationError: There is no pool.
    """
    from agentexec_otel.tasks._pool import Pool

    module, found, variable = place.partition(":")
    if not (module and found and variable):
        raise ConfigurationError(f"{place!r} names no pool: write module:variable, such as app.tasks:pool")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    pool = getattr(_import(module, here), variable, None)
    if not isinstance(pool, Pool):
        raise ConfigurationError(f"{place!r} is no ax.Pool: name the variable that holds it")
    return pool


def _import(module: str, here: str) -> ModuleType:
    try:
        return import_module(module)
    except AgentExecError:
        raise
    except Exception as exc:
        missing = exc.name if isinstance(exc, ModuleNotFoundError) else None
        if missing is not None and f"{module}.".startswith(f"{missing}."):
            raise ConfigurationError(f"there is no module {missing!r} in {here} or on the path") from None
        at = traceback.extract_tb(exc.__traceback__)[-1]
        # The text of a SyntaxError names the place.
        where = "" if isinstance(exc, SyntaxError) else f" ({Path(at.filename).name}, line {at.lineno})"
        raise ConfigurationError(f"importing {module!r} failed: {type(exc).__name__}: {exc}{where}") from exc


def run_workers(pool: Pool, workers: int, place: str | None = None) -> None:
    """See `Pool.run`."""
    if workers < 1:
        raise ValueError(f"workers is {workers!r}: start at least one process")
    if isinstance(pool.broker, InMemoryBroker):
        raise ConfigurationError(
            "this pool runs its tasks where they are enqueued: for worker processes give it a broker, such as"
            " ax.Pool(broker='redis://localhost')"
        )
    where = place or _place_of(pool)
    logging.basicConfig(level=logging.WARNING, format=_FORMAT)
    logging.getLogger("taskiq.process-manager").setLevel(logging.INFO)
    logging.getLogger("agentexec_otel").setLevel(logging.INFO)
    _logger.info(
        "%d worker %s for the tasks %s; stop with Ctrl-C",
        workers,
        "process" if workers == 1 else "processes",
        ", ".join(sorted(pool.tasks)) or "(none)",
    )
    _sdk.run_processes(partial(_work, where), where, workers, pool.concurrency)
    for process in multiprocessing.active_children():
        process.join()


def _work(place: str, args: WorkerArgs) -> None:
    logging.basicConfig(level=logging.WARNING, format=_FORMAT)
    pool = load_pool(place)
    _activities.active().start_writer()  # An idle worker, too, ends the tasks of a dead worker.
    pool.broker.add_event_handler(TaskiqEvents.WORKER_STARTUP, _wake_on_signals)
    try:
        _sdk.listen(pool.broker, args)
    except Exception as exc:  # Each broker has its own exceptions.
        text = "the broker is away, or refuses us (%s): the worker tries again in %g s"
        _logger.error(text, type(exc).__name__, _RESTART_SECONDS)
        _logger.debug("the exception of the broker", exc_info=True)
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_DFL)
        time.sleep(_RESTART_SECONDS)
        sys.exit(1)  # The main process starts a new one.


async def _wake_on_signals(state: TaskiqState) -> None:
    """Wake the event loop on a signal: taskiq's handlers set an event, which a sleeping loop does not notice.

    `add_signal_handler` would replace the handlers, and the wakeup descriptor that the application may have set.
    """
    loop = asyncio.get_running_loop()
    for signum in _STOP_SIGNALS:
        handler = signal.getsignal(signum)
        if callable(handler):
            signal.signal(signum, partial(_wake, loop, handler))


def _wake(
    loop: asyncio.AbstractEventLoop,
    handler: Callable[[int, FrameType | None], object],
    signum: int,
    frame: FrameType | None,
) -> None:
    with suppress(RuntimeError):  # The loop is closed.
        loop.call_soon_threadsafe(_stop_waiting, loop)
    handler(signum, frame)


def _stop_waiting(loop: asyncio.AbstractEventLoop) -> None:
    """Stop the tasks that wait for an unreachable database. taskiq waits for every task that it has received."""
    return_messages()
    loop.call_later(_POLL_SECONDS, _stop_waiting, loop)


def _place_of(pool: Pool) -> str:
    """The place from which a process can import this pool, as ``module:variable``."""
    modules = [sys.modules[name] for name in ("__main__", *sorted(pool.modules)) if name in sys.modules]
    for module in modules:
        for name, value in vars(module).items():
            if value is pool:
                return f"{module.__name__}:{name}"
    raise ConfigurationError(
        "no module has this pool as a variable, so worker processes cannot find it: make it at the top of a module"
    )
