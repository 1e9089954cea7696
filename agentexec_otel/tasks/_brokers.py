"""A taskiq broker, and where its results are kept, from a URL."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

from taskiq import AsyncBroker, AsyncResultBackend, InMemoryBroker

from agentexec_otel._errors import ConfigurationError, MissingExtraError
from agentexec_otel._model.text import describe_url

_MOST_RESULTS: Final = 10_000


class InProcessBroker(InMemoryBroker):
    """taskiq's, but it can be started again once it was shut down."""

    def __init__(self, *, max_stored_results: int, sync_tasks_pool_size: int) -> None:
        super().__init__(sync_tasks_pool_size, max_stored_results)
        self._threads = sync_tasks_pool_size

    async def shutdown(self) -> None:
        """Wait for what runs in threads, and have new ones for the next start."""
        await super().shutdown()
        self.executor = self.receiver.executor = ThreadPoolExecutor(self._threads)


@dataclass(frozen=True, slots=True)
class _Kind:
    """Our module for a broker, and the package and extra that it needs."""

    module: str
    package: str
    extra: str


_REDIS: Final = _Kind("_redis", "taskiq_redis", "redis")
_RABBITMQ: Final = _Kind("_rabbitmq", "taskiq_aio_pika", "rabbitmq")
_NATS: Final = _Kind("_nats", "taskiq_nats", "nats")
_BROKERS: Final = {"redis": _REDIS, "rediss": _REDIS, "amqp": _RABBITMQ, "amqps": _RABBITMQ, "nats": _NATS}
_RESULTS: Final = {scheme: kind for scheme, kind in _BROKERS.items() if kind is not _RABBITMQ}


def broker_of(
    broker: str | AsyncBroker | None, results: str | AsyncResultBackend[Any] | None, queue: str, concurrency: int
) -> AsyncBroker:
    """The broker as it is, or made from a URL; None is the one that runs tasks in this process.

    Args:
        queue: Name of the queue, stream or subject, and of whatever else is made there.
        concurrency: How many messages a worker process works at.

    Raises:
        ConfigurationError: a URL of no known kind.
        MissingExtraError: its package is not installed.
    """
    if isinstance(broker, str):
        made: AsyncBroker = _module_for(broker, "broker", _BROKERS).broker(broker, queue, concurrency)
        if results is None and _scheme_of(broker) in _RESULTS:
            results = broker
    else:
        made = broker or InProcessBroker(max_stored_results=_MOST_RESULTS, sync_tasks_pool_size=min(concurrency, 32))
    if isinstance(results, str):
        results = _results_at(results, queue)
    return made if results is None else made.with_result_backend(results)


def _results_at(url: str, queue: str) -> AsyncResultBackend[Any]:
    made: AsyncResultBackend[Any] = _module_for(url, "results", _RESULTS).results(url, queue)
    return made


def _scheme_of(url: str) -> str:
    scheme, found, _ = url.partition("://")
    return scheme.lower() if found else ""


def _module_for(url: str, argument: str, kinds: Mapping[str, _Kind]) -> Any:
    scheme = _scheme_of(url)
    kind = kinds.get(scheme)
    if kind is None:
        known = ", ".join(f"{name}://" for name in sorted(kinds))
        raise ConfigurationError(
            f"{argument}={describe_url(url)} is not supported: use one of {known}, or a taskiq object"
        )
    try:
        return import_module(f"agentexec_otel.tasks.{kind.module}")
    except ModuleNotFoundError as exc:
        if exc.name != kind.package and exc.name not in _CLIENTS:
            raise
        raise MissingExtraError(f"{argument}={scheme}://…", kind.package.replace("_", "-"), kind.extra) from None


_CLIENTS: Final = ("redis", "nats", "aio_pika")
