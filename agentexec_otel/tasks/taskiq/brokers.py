"""A taskiq broker and a result backend from a URL."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Mapping
from importlib import import_module
from typing import Any, Final, cast

from taskiq import AsyncBroker, AsyncResultBackend, InMemoryBroker, TaskiqResult

from agentexec_otel._errors import ConfigurationError, MissingExtraError, TaskResultError
from agentexec_otel._model.text import describe_url
from agentexec_otel.tasks import _sdk
from agentexec_otel.tasks.taskiq.receiver import ActivityReceiver

_MAX_RESULTS: Final = 10_000
_MAX_THREADS: Final = 32
_KEEP_SECONDS: Final = 10.0
"""How long a worker tries to keep a result."""
_KEEP_PAUSE: Final = 0.5


class InProcessBroker(InMemoryBroker):
    """taskiq's in-memory broker, but it can be started again after a shutdown: upstream never renews its threads."""

    def __init__(self, threads: int) -> None:
        super().__init__(sync_tasks_pool_size=threads, max_stored_results=_MAX_RESULTS)
        self._threads = threads

    async def shutdown(self) -> None:
        """Wait for the tasks in threads, and prepare the next start."""
        await super().shutdown()
        _sdk.renew_threads(self, self._threads)


_BROKERS: Final = {"redis": "redis", "rediss": "redis", "amqp": "rabbitmq", "amqps": "rabbitmq", "nats": "nats"}
"""The module of this package, and the extra, for each scheme."""
_RESULTS: Final = {scheme: module for scheme, module in _BROKERS.items() if module != "rabbitmq"}
_PACKAGES: Final = {"redis": "taskiq_redis", "rabbitmq": "taskiq_aio_pika", "nats": "taskiq_nats"}
_CLIENTS: Final = ("redis", "nats", "aio_pika")


def make_broker(
    broker: str | AsyncBroker | None, results: str | AsyncResultBackend[Any] | None, queue: str, concurrency: int
) -> AsyncBroker:
    """Return the given broker, or make one from a URL. None makes one that runs tasks in this process.

    Args:
        queue: Name of the queue, stream or subject, and prefix of everything else that is created on the server.
        concurrency: The number of messages that a worker process handles at once.

    Raises:
        ConfigurationError: The URL's scheme is not supported.
        MissingExtraError: The package for that scheme is not installed.
        ValueError: The server does not accept a queue of that name.
    """
    if isinstance(broker, str):
        made: AsyncBroker = _module_for(broker, "broker", _BROKERS).broker(broker, queue, concurrency)
        if results is None and _scheme_of(broker) in _RESULTS:
            results = broker
    else:
        made = broker or InProcessBroker(min(concurrency, _MAX_THREADS))
    if isinstance(made, InMemoryBroker):
        _sdk.replace(made, "receiver", ActivityReceiver.instead_of(made.receiver))
    if isinstance(results, str):
        results = cast("AsyncResultBackend[Any]", _module_for(results, "results", _RESULTS).results(results, queue))
    return made if results is None else made.with_result_backend(results)


def _scheme_of(url: str) -> str:
    scheme, found, _ = url.partition("://")
    return scheme.lower() if found else ""


def _module_for(url: str, argument: str, modules: Mapping[str, str]) -> Any:
    scheme = _scheme_of(url)
    module = modules.get(scheme)
    if module is None:
        known = ", ".join(f"{name}://" for name in sorted(modules))
        raise ConfigurationError(
            f"{argument}={describe_url(url)} is not supported: use one of {known}, or a taskiq object"
        )
    try:
        return import_module(f"agentexec_otel.tasks.taskiq.{module}")
    except ModuleNotFoundError as exc:
        package = _PACKAGES[module]
        if exc.name != package and exc.name not in _CLIENTS:
            raise
        raise MissingExtraError(f"{argument}={scheme}://…", package.replace("_", "-"), module) from None


async def keep_result(
    keep: Callable[[str, TaskiqResult[Any]], Coroutine[Any, Any, None]], task_id: str, result: TaskiqResult[Any]
) -> None:
    """Keep a task's result with a backend's `set_result`. Tries again while the backend is away, for `_KEEP_SECONDS`.

    Raises:
        TaskResultError: The result is not kept.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _KEEP_SECONDS
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                return await keep(task_id, result)
        except Exception as exc:  # Each backend has its own exceptions.
            if loop.time() + _KEEP_PAUSE >= deadline:
                name = type(exc).__name__
                raise TaskResultError(f"the result could not be kept ({name}): check where results are kept") from exc
        await asyncio.sleep(_KEEP_PAUSE)


def check_queue(queue: str, server: str, allowed: re.Pattern[str], said: str) -> None:
    """Raise ValueError for a name that the server refuses. A worker would retry it endlessly."""
    if not allowed.fullmatch(queue):
        raise ValueError(f"queue={queue!r} is no name for {server}: use {said}")


def raise_if_canceled() -> None:
    """Raise a cancellation that a client has suppressed: `asyncio.wait_for` of Python 3.11 may lose one."""
    waiter = asyncio.current_task()
    if waiter is not None and waiter.cancelling():
        raise asyncio.CancelledError
