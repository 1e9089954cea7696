"""What this package uses of taskiq and Celery beyond their documented API.

A new release that moves one of these attributes fails `tests/unit/test_tasks_sdk.py`. Libraries are imported in the
functions that need them: a user of Celery has no taskiq, and the reverse.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from taskiq import AsyncBroker, InMemoryBroker
    from taskiq.cli.worker.args import WorkerArgs
    from taskiq.decor import AsyncTaskiqDecoratedTask

RETRIES: Final = "_retries"
"""The label in which taskiq's retry middlewares count."""

TASK_LOGGERS: Final = ("taskiq.receiver.receiver", "taskiq.receiver.params_parser", "taskiq.dependencies.ctx")
"""Where taskiq logs the exceptions and arguments of tasks."""

SKIPPED: Final = "Task %s with id %s skipped setting result."
"""What taskiq logs of a task that was not run."""


def replace(owner: object, name: str, value: object) -> None:
    """Replace a method of an instance, or an attribute that its library declares as final."""
    setattr(owner, name, value)


# -- taskiq -----------------------------------------------------------------------------------------------------


async def finish(broker: InMemoryBroker, timeout: float) -> None:
    """Wait for the tasks of an in-memory broker; cancel those that still run after `timeout` seconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    running: set[asyncio.Task[Any]] = broker._running_tasks  # pyright: ignore[reportPrivateUsage]
    while running:  # A running task may enqueue another one.
        _, late = await asyncio.wait(set(running), timeout=max(0.0, deadline - loop.time()))
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)


def renew_threads(broker: InMemoryBroker, threads: int) -> None:
    """Give an in-memory broker that was shut down new threads, so that it can be started again."""
    broker.executor = broker.receiver.executor = ThreadPoolExecutor(threads)


def unregistered_task(
    broker: AsyncBroker, name: str, function: Callable[..., Awaitable[Any]]
) -> AsyncTaskiqDecoratedTask[Any, Any]:
    """A task that the broker's registry does not list."""
    from taskiq.decor import AsyncTaskiqDecoratedTask

    return AsyncTaskiqDecoratedTask(broker, name, function, {})


def keeps_no_results(broker: AsyncBroker) -> bool:
    """Whether the broker has only taskiq's placeholder for a result backend."""
    from taskiq.result_backends.dummy import DummyResultBackend

    return isinstance(broker.result_backend, DummyResultBackend)


def run_processes(work: Callable[[WorkerArgs], None], place: str, processes: int, tasks: int) -> None:
    """Run taskiq's process manager until a signal stops it. It replaces a process that has died.

    Args:
        work: Called in each process, with the settings to pass to `listen`.
        tasks: The number of tasks that a process runs at once. It gets as many threads, since a task that waits for a
            thread counts as started.
    """
    from taskiq.cli.worker.args import WorkerArgs
    from taskiq.cli.worker.process_manager import ProcessManager

    args = WorkerArgs(
        broker=place,
        modules=[],
        workers=processes,
        max_async_tasks=tasks,
        max_threadpool_threads=tasks,
        configure_logging=False,
        receiver="agentexec_otel.tasks.taskiq.receiver:ActivityReceiver",
    )
    ProcessManager(args=args, worker_function=work).start()


def listen(broker: AsyncBroker, args: WorkerArgs) -> None:
    """Run the broker's messages in this process until SIGINT or SIGTERM."""
    from taskiq.cli.worker import run

    args.broker = broker  # type: ignore[assignment]  # declared as a string, used as either
    start_listen: Callable[[Any], None] = run.start_listen
    start_listen(args)


# -- Celery -----------------------------------------------------------------------------------------------------


def mark_revoked(task: Any, task_id: str) -> None:
    """Store "revoked" as the result of a Celery task, if it stores results."""
    stored = not task.ignore_result or task.store_errors_even_if_ignored
    task.backend.mark_as_revoked(task_id, "canceled", request=task.request, store_result=stored)


def header(request: Any, name: str) -> Any:
    """A header of the message of a Celery task. Celery copies custom headers to attributes of the request."""
    custom: dict[str, Any] = request.headers or {}
    return getattr(request, name, None) or custom.get(name)


def add_header(request: Any, name: str, value: str) -> None:
    """Add a header to a task that runs in place, which has no message."""
    request.headers = {**(request.headers or {}), name: value}
