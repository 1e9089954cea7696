"""`Pool` and `enqueue`: named tasks on a taskiq broker, each an activity."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar
from uuid import UUID

from pydantic import ValidationError
from taskiq import AsyncBroker, AsyncResultBackend, InMemoryBroker, SendTaskError, TaskiqEvents, TaskiqState
from taskiq.decor import AsyncTaskiqDecoratedTask

from agentexec_otel._config import CONF
from agentexec_otel._errors import ActivityStateError, ConfigurationError, TaskNotSentError, UnknownTaskError
from agentexec_otel._model.ids import parse_agent_id
from agentexec_otel._model.text import as_text, describe
from agentexec_otel.activity import aio, current
from agentexec_otel.tasks import _activities, _agentexec, _sdk
from agentexec_otel.tasks._activities import AGENT_ID, ATTEMPT, RefusedMessageError
from agentexec_otel.tasks._contexts import keep_context, kept_context
from agentexec_otel.tasks._definition import Definition, TaskFunction
from agentexec_otel.tasks._task import Task
from agentexec_otel.tasks.taskiq.brokers import make_broker
from agentexec_otel.tasks.taskiq.middleware import ActivityMiddleware, end_unsent, labels_of

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

_Function = TypeVar("_Function", bound=TaskFunction)

_pools: Final[list[weakref.ref[Pool]]] = []


class Pool:
    """Named tasks, and the broker that carries them to workers.

    ::

        pool = ax.Pool("postgresql+psycopg://app@db/app", broker="redis://localhost")

        @pool.task("research")
        async def research(agent_id: UUID, context: ResearchContext) -> Report: ...

        task = await ax.enqueue("research", ResearchContext(company="Acme"))
        report = await task.result(timeout=60)

    Args:
        engine_or_url: Passed to `ax.configure`. Default: the existing configuration, else `AGENTEXEC_DATABASE_URL`,
            else a local SQLite file.
        engine, database_url: The same, as agentexec names it. Without `broker`, the pool then uses the Redis server of
            ``AGENTEXEC_REDIS_URL`` or ``REDIS_URL``, if one of them is set.
        broker: ``redis://``, ``amqp://`` (RabbitMQ) or ``nats://`` (JetStream), or a taskiq broker. None runs tasks in
            the process that enqueues them, on its event loop.
        results: Where results are kept: ``redis://``, ``nats://`` or a taskiq result backend. Default: in the broker.
            RabbitMQ keeps no results.
        queue: Name of the broker's queue. Give each application on one broker its own.
        concurrency: The number of tasks that a worker process runs at once.
        keep_contexts: Keep the context of each task where results are kept, for as long as a result, so that `retry`
            can send the task again.
        create_tables: See `ax.configure`.

    Raises:
        ConfigurationError: The URL's scheme is not supported, or there is no place to keep contexts.
        MissingExtraError: The package for that scheme is not installed.
        ValueError: The broker does not accept a queue of that name, `concurrency` is below 1, or several databases are
            given.
    """

    def __init__(
        self,
        engine_or_url: str | URL | Engine | AsyncEngine | None = None,
        broker: str | AsyncBroker | None = None,
        *,
        engine: Engine | AsyncEngine | None = None,
        database_url: str | URL | None = None,
        results: str | AsyncResultBackend[Any] | None = None,
        queue: str = "agentexec",
        concurrency: int = 100,
        keep_contexts: bool = False,
        create_tables: bool | None = None,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency!r}: a worker process runs at least one task at once")
        database = _agentexec.one_database(engine_or_url, engine, database_url)
        if broker is None and database is not None and engine_or_url is None:
            broker = _agentexec.redis_url()
        self.broker: Final = make_broker(broker, results, queue, concurrency)
        self.concurrency: Final = concurrency
        if keep_contexts and _sdk.keeps_no_results(self.broker):
            raise ConfigurationError(
                "keep_contexts=True needs a place where results are kept, which this broker has not: give the pool one,"
                " such as ax.Pool(results='redis://…')"
            )
        self._keeps_contexts: Final = keep_contexts
        self._tasks: dict[str, tuple[Definition, AsyncTaskiqDecoratedTask[Any, Any]]] = {}
        self._starting = asyncio.Lock()
        self._started_on: asyncio.AbstractEventLoop | None = None
        self.broker.add_middlewares(ActivityMiddleware(strict=True))
        # First: a task that another middleware refuses to start has ended then, too.
        self.broker.middlewares.insert(0, self.broker.middlewares.pop())
        self.broker.add_event_handler(TaskiqEvents.WORKER_STARTUP, self._note_started)
        _fail_unknown_tasks(self.broker, self._tasks)
        if database is not None or not _activities.is_configured():
            _activities.configure(database, create_tables=create_tables)
        _pools.append(weakref.ref(self))

    # -- tasks ----------------------------------------------------------------------------------------------

    def task(self, name: str, **labels: Any) -> Callable[[_Function], _Function]:
        """Register a function as a task. The function itself is not changed.

        It takes ``(agent_id: UUID, context: Model)``. If it is not asynchronous, it runs in a thread. Its result must
        be expressible in JSON.

        Args:
            labels: Labels of taskiq, such as ``timeout=60``, or ``retry_on_error=True`` for its retry middlewares.

        Raises:
            TypeError: The function has another signature, or no name is given.
            ValueError: The name is taken, or empty.
        """
        _check_name(name)

        def register(function: _Function) -> _Function:
            self.add_task(name, function, **labels)
            return function

        return register

    def add_task(
        self, name: str, func: TaskFunction, *, context_type: Any = None, result_type: Any = None, **labels: Any
    ) -> None:
        """As `task`, without a decorator.

        Args:
            context_type, result_type: Types of the context and of the result. Default: the function's annotations.

        Raises:
            TypeError, ValueError: As `task`.
        """
        _check_name(name)
        _agentexec.check_labels(labels)
        definition = Definition.of(name, func, context_type, result_type)
        taken = self._tasks.get(name)
        if taken is not None and not _is_reloaded(taken[0].function, func):
            raise ValueError(f"this pool has a task {name!r} already: give the second one another name")
        # No other worker may run a task that has started, so its message is not needed any more.
        settings = {"ack_type": "when_received", **labels}
        self._tasks[name] = definition, self.broker.register_task(_adapted(definition), name, **settings)

    @property
    def tasks(self) -> frozenset[str]:
        """The names of the registered tasks."""
        return frozenset(self._tasks)

    @property
    def modules(self) -> frozenset[str]:
        """The modules that define the tasks' functions."""
        return frozenset(definition.function.__module__ for definition, _ in self._tasks.values())

    async def enqueue(
        self,
        task_name: str,
        context: object,
        metadata: Mapping[str, Any] | None = None,
        *,
        agent_id: UUID | str | None = None,
        message: str | None = None,
    ) -> Task:
        """Create an activity, QUEUED, and send its task to the broker.

        Args:
            context: The task's context, validated before anything is stored or sent.
            metadata, agent_id, message: See `ax.activity.create`.

        Raises:
            UnknownTaskError: This pool has no such task.
            pydantic.ValidationError: The context does not fit the task's type.
            ActivityNotStoredError: The activity could not be stored. Nothing was sent.
            TaskNotSentError: The broker or a middleware did not accept the task. The activity has ended as ERROR, with
                the reason ``enqueue``.
        """
        task_name = as_text(task_name)
        definition, _ = self._registered(task_name)
        packed = definition.pack(context)
        new_id = await _activities.create_async(task_name, message, agent_id, metadata=metadata)
        await self._send(task_name, new_id, labels_of(new_id), packed)
        return Task(new_id, task_name, definition.unpack(packed), definition, self.broker)

    async def retry(self, agent_id: UUID | str, message: str | None = None) -> Task:
        """Re-open an activity that has ended, as its next attempt, and send its task again with the context kept.

        Args:
            message: First log of the new attempt.

        Raises:
            ActivityStateError: The activity has not ended; or its context is not kept, or does not fit the task's type
                any more. The activity is not re-opened.
            UnknownTaskError: This pool has no such task. The activity is not re-opened.
            ActivityNotFoundError, ActivityNotStoredError, ValueError: See `ax.activity.retry`.
            TaskResultError: The place where contexts are kept does not answer. The activity is not re-opened.
            TaskNotSentError: See `enqueue`.
        """
        parsed = parse_agent_id(agent_id)
        task_name, packed = await kept_context(self.broker.result_backend, parsed, self.startup)
        definition, _ = self._registered(task_name)
        try:
            context = definition.unpack(packed)
        except ValidationError as exc:
            raise ActivityStateError(
                f"the activity {parsed} cannot be retried, because the context kept does not fit the task"
                f" {task_name!r} any more ({exc.error_count()} errors)"
            ) from None
        attempt = await aio.retry(parsed, message)
        await self._send(task_name, parsed, {AGENT_ID: str(parsed), ATTEMPT: str(attempt)}, packed)
        return Task(parsed, task_name, context, definition, self.broker, attempt)

    def _registered(self, task_name: str) -> tuple[Definition, AsyncTaskiqDecoratedTask[Any, Any]]:
        if task_name not in self._tasks:
            raise UnknownTaskError(task_name, self._tasks)
        return self._tasks[task_name]

    async def _send(self, task_name: str, agent_id: UUID, labels: Mapping[str, str], packed: Any) -> None:
        """Send a task whose activity is stored. If that fails, the activity ends."""
        kicker = self._tasks[task_name][1].kicker().with_task_id(str(agent_id)).with_labels(**labels)
        try:
            async with asyncio.timeout(CONF.create_timeout):
                await self.startup()
                if self._keeps_contexts:
                    await keep_context(self.broker.result_backend, agent_id, task_name, packed)
                await kicker.kiq(agent_id=str(agent_id), context=packed)
        except BaseException as exc:
            cause = exc.__cause__ or exc if isinstance(exc, SendTaskError) else exc
            live = _activities.active().known(agent_id)
            if live is None or not live.status.terminal:  # If the broker was at fault, its `kick` has ended it.
                await end_unsent(agent_id, cause)
            if isinstance(exc, ConfigurationError) or not isinstance(exc, Exception):
                raise
            raise TaskNotSentError(task_name, agent_id, type(cause).__name__) from cause

    # -- the broker -----------------------------------------------------------------------------------------

    async def startup(self) -> None:
        """Connect to the broker. `enqueue` does so at its first call.

        Raises:
            ConfigurationError: The pool is connected on another event loop.
        """
        running = asyncio.get_running_loop()
        if self._started_on is not None and self._started_on is not running:
            if not isinstance(self.broker, InMemoryBroker):
                raise ConfigurationError(
                    "this pool is connected on another event loop: stay on one, or write `async with pool:` around what"
                    " each of them does"
                )
            self._starting, self._started_on = asyncio.Lock(), running
        async with self._starting:
            if self._started_on is None:
                await self.broker.startup()
                self._started_on = running

    async def shutdown(self, timeout: float | None = None) -> None:
        """Wait for the tasks of the in-process broker, and close the connections. Worker processes are not affected.

        Args:
            timeout: Seconds until tasks that still run are canceled. Default: ``AGENTEXEC_SHUTDOWN_TIMEOUT``.
        """
        if isinstance(self.broker, InMemoryBroker):
            await _sdk.finish(self.broker, CONF.shutdown_timeout if timeout is None else timeout)
        if self._started_on is not None and not self.broker.is_worker_process:
            self._starting, self._started_on = asyncio.Lock(), None
            await self.broker.shutdown()

    async def __aenter__(self) -> Self:
        await self.startup()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.shutdown()

    def run(self, workers: int = 2) -> None:
        """Run tasks in worker processes until SIGINT or SIGTERM, then finish the tasks that run.

        The pool must be a variable of a module, which each process imports. The command
        ``agentexec-otel worker module:pool`` does the same.

        Raises:
            ConfigurationError: This pool runs tasks in the process that enqueues them, or no module contains it.
        """
        from agentexec_otel.tasks.worker import run_workers

        run_workers(self, workers)

    async def _note_started(self, state: TaskiqState) -> None:
        self._started_on = asyncio.get_running_loop()


async def enqueue(
    task_name: str,
    context: object,
    metadata: Mapping[str, Any] | None = None,
    *,
    agent_id: UUID | str | None = None,
    message: str | None = None,
) -> Task:
    """`Pool.enqueue` on the pool that has the task; on the newest one if several pools have a task of that name."""
    task_name = as_text(task_name)
    pools = [pool for reference in _pools if (pool := reference()) is not None]
    for pool in reversed(pools):
        if task_name in pool.tasks:
            return await pool.enqueue(task_name, context, metadata, agent_id=agent_id, message=message)
    raise UnknownTaskError(task_name, {name for pool in pools for name in pool.tasks})


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f'the name of a task is {describe(name)}: write @pool.task("research") above the function')
    if not name.strip():
        raise ValueError(f"{name!r} is no name for a task: use a non-empty string")


def _is_reloaded(one: TaskFunction, other: TaskFunction) -> bool:
    """Whether both are the same function, whose module or notebook cell was run again."""
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


def _adapted(definition: Definition) -> Callable[..., Any]:
    """The function as taskiq calls it: plain values in, plain values out."""

    async def run(*args: Any, **kwargs: Any) -> Any:
        value = await definition.function(**_arguments(definition, args, kwargs))
        return definition.pack_result(value, CONF.result_limit)

    def run_sync(*args: Any, **kwargs: Any) -> Any:
        value = definition.function(**_arguments(definition, args, kwargs))
        return definition.pack_result(value, CONF.result_limit)

    return run if definition.is_async else run_sync


def _arguments(definition: Definition, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The function's arguments from those of the message. Raises RefusedMessageError if they do not fit."""
    run = current()
    try:
        if args or kwargs.keys() != {"agent_id", "context"}:
            raise TypeError("a task takes agent_id and context, by name")
        agent_id = parse_agent_id(kwargs["agent_id"])
        if run is None or run.agent_id != agent_id:
            raise ValueError("the agent_id is not that of the activity")
        return {"agent_id": agent_id, "context": definition.unpack(kwargs["context"])}
    except (TypeError, ValueError) as exc:
        raise RefusedMessageError("its arguments are not those of its task") from exc


def _fail_unknown_tasks(broker: AsyncBroker, known: Collection[str]) -> None:
    """Fail the activity of a message whose task is not registered here. taskiq only logs and drops the message."""
    find = broker.find_task

    @lru_cache(maxsize=64)  # The middleware and taskiq have to get the same object.
    def unknown_task(task_name: str) -> AsyncTaskiqDecoratedTask[Any, Any]:
        async def unknown(*args: Any, **kwargs: Any) -> None:
            raise RefusedMessageError("its task is not registered here") from UnknownTaskError(task_name, known)

        return _sdk.unregistered_task(broker, task_name, unknown)

    def find_task(task_name: str) -> AsyncTaskiqDecoratedTask[Any, Any]:
        return find(task_name) or unknown_task(task_name)

    _sdk.replace(broker, "find_task", find_task)
