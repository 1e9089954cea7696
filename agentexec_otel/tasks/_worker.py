"""Worker processes of a pool, through taskiq's own worker."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from taskiq import InMemoryBroker, TaskiqEvents, TaskiqState
from taskiq.cli.worker.args import WorkerArgs
from taskiq.cli.worker.process_manager import ProcessManager
from taskiq.cli.worker.run import start_listen

from agentexec_otel._errors import AgentExecError, ConfigurationError
from agentexec_otel._runtime import process as _runtime
from agentexec_otel.tasks._middleware import hand_back

if TYPE_CHECKING:
    from agentexec_otel.tasks._pool import Pool

_logger = logging.getLogger("agentexec_otel.tasks")

_PAUSE: Final = 3.0
_LOOK: Final = 0.5
_STOPS: Final = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
_FORMAT: Final = "%(asctime)s %(levelname)s %(processName)s %(name)s: %(message)s"


def load_pool(place: str) -> Pool:
    """The pool at ``module:variable``, the module found from the working directory, too.

    Raises:
        ConfigurationError: there is none.
    """
    from agentexec_otel.tasks._pool import Pool

    module, found, variable = place.partition(":")
    if not (module and found and variable):
        raise ConfigurationError(f"{place!r} names no pool: write module:variable, such as app.tasks:pool")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    pool = getattr(_imported(module, here), variable, None)
    if not isinstance(pool, Pool):
        raise ConfigurationError(f"{place!r} is no ax.Pool: name the variable that holds it")
    return pool


def _imported(module: str, here: str) -> ModuleType:
    try:
        return import_module(module)
    except AgentExecError:
        raise
    except ModuleNotFoundError as exc:
        if exc.name is not None and f"{module}.".startswith(f"{exc.name}."):
            raise ConfigurationError(f"there is no module {exc.name!r} in {here} or on the path") from None
        raise _failed(module, exc) from exc
    except Exception as exc:
        raise _failed(module, exc) from exc


def _failed(module: str, exc: Exception) -> ConfigurationError:
    at = traceback.extract_tb(exc.__traceback__)[-1]
    # A SyntaxError says itself where it is.
    where = "" if isinstance(exc, SyntaxError) else f" ({Path(at.filename).name}, line {at.lineno})"
    return ConfigurationError(f"importing {module!r} failed: {type(exc).__name__}: {exc}{where}")


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
    args = WorkerArgs(
        broker=where,
        modules=[],
        workers=workers,
        max_async_tasks=pool.concurrency,
        max_threadpool_threads=pool.concurrency,  # A task that waited for a thread would count as started.
        configure_logging=False,
    )
    logging.basicConfig(level=logging.WARNING, format=_FORMAT)
    logging.getLogger("taskiq.process-manager").setLevel(logging.INFO)
    logging.getLogger("agentexec_otel").setLevel(logging.INFO)
    _logger.info(
        "%d worker %s for the tasks %s; stop with Ctrl-C",
        workers,
        "process" if workers == 1 else "processes",
        ", ".join(sorted(pool.tasks)) or "(none)",
    )
    ProcessManager(args=args, worker_function=partial(_work, where)).start()
    for process in multiprocessing.active_children():
        process.join()


def _work(place: str, args: WorkerArgs) -> None:
    logging.basicConfig(level=logging.WARNING, format=_FORMAT)
    pool = load_pool(place)
    _runtime.active().primary.start()  # A worker with nothing to do still ends what the one before it has lost.
    pool.broker.add_event_handler(TaskiqEvents.WORKER_STARTUP, _wake_on_signals)
    work: Callable[[Any], None] = start_listen
    args.broker = pool.broker  # type: ignore[assignment]  # which taskiq takes as well
    try:
        work(args)
    except Exception as exc:  # each broker has its own exceptions
        _logger.error(
            "the broker is away, or refuses us (%s): the worker tries again in %g s", type(exc).__name__, _PAUSE
        )
        _logger.debug("how it went away", exc_info=True)
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_DFL)
        time.sleep(_PAUSE)
        sys.exit(1)  # The main process starts another one.


async def _wake_on_signals(state: TaskiqState) -> None:
    """taskiq's signal handlers set an event, but an event loop that sleeps would not notice."""
    loop = asyncio.get_running_loop()
    woken, waker = socket.socketpair()
    for end in (woken, waker):
        end.setblocking(False)

    def wake() -> None:
        if _STOPS.intersection(woken.recv(64)):
            _stop_waiting(loop)

    loop.add_reader(woken, wake)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    state.waker = waker  # Kept as long as the process.


def _stop_waiting(loop: asyncio.AbstractEventLoop) -> None:
    """taskiq lets all tasks end that it has taken; those that wait for a database that is away would not."""
    hand_back()
    loop.call_later(_LOOK, _stop_waiting, loop)


def _place_of(pool: Pool) -> str:
    """Where a process that imports the application finds this pool."""
    modules = [sys.modules[name] for name in ("__main__", *sorted(pool.modules)) if name in sys.modules]
    for module in modules:
        for name, value in vars(module).items():
            if value is pool:
                return f"{module.__name__}:{name}"
    raise ConfigurationError(
        "no module has this pool as a variable, so worker processes cannot find it: make it at the top of a module"
    )
