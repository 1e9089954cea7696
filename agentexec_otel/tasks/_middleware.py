"""taskiq tasks as activities: one middleware on the broker."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final, cast
from uuid import UUID, uuid4

from taskiq import AsyncBroker, BrokerMessage, NoResultError, TaskiqMessage, TaskiqMiddleware, TaskiqResult
from taskiq.decor import AsyncTaskiqDecoratedTask

from agentexec_otel import activity
from agentexec_otel._config import CONF
from agentexec_otel._errors import guarded
from agentexec_otel._model.codec import decode, encode
from agentexec_otel._model.event import ActivityEvent, Outcome, Status
from agentexec_otel._model.ids import parse_agent_id
from agentexec_otel._model.outcome import qualified_name
from agentexec_otel._runtime import process as _runtime
from agentexec_otel.activity._lifecycle import create_async, create_later, error_message, submit_end
from agentexec_otel.tasks._definition import call_in_thread
from agentexec_otel.tasks._run import (
    AGENT_ID,
    ATTEMPT,
    HANDED_BACK,
    PATIENCE,
    TaskRun,
    agent_id_of,
    claim,
    stored_within,
)

_logger = logging.getLogger("agentexec_otel.tasks")

OPENING: Final = "agentexec_opening"
_RETRIES: Final = "_retries"  # taskiq's own, set by its retry middlewares

_Kick = Callable[[BrokerMessage], Coroutine[Any, Any, None]]

_MARK: Final = "_agentexec_tracked"


class NotRunError(NoResultError):
    """The task was not run, or was stopped: its activity was canceled, or another worker has it."""

    __template__ = "The activity of this task was canceled, or another worker runs it"


@dataclass(slots=True)
class _Delivery:
    """A message at work in this asyncio task."""

    message: TaskiqMessage
    run: TaskRun | None
    left_by: BaseException | None = None
    retried: bool = False

    def dropped(self, receiving: asyncio.Task[Any]) -> None:
        """End what taskiq has let go of without a word to us: its ack, or another middleware, has raised."""
        if self.run is not None and self.run.owner:
            raised = asyncio.CancelledError() if receiving.cancelled() else receiving.exception()
            with guarded("ending the activity of a task that was dropped"):
                self.run.end(self.left_by or raised)


_delivery: ContextVar[_Delivery | None] = ContextVar("agentexec_otel.tasks.delivery", default=None)


class ActivityMiddleware(TaskiqMiddleware):
    """Makes every task of a taskiq broker an activity.

    ::

        broker.add_middlewares(ActivityMiddleware())

    The activity is QUEUED before the message is sent, RUNNING while the task works, and ends as it ends. Its
    ``agent_id`` is the task's id where that is a UUID, its type the task's name. A task whose activity was canceled
    does not start, and is canceled where it runs; a message that is delivered twice runs once. A retry of taskiq's
    retry middlewares is the next attempt of the same activity.

    Args:
        strict: A task waits for the database: it is sent once its activity is stored, and starts once that is known
            to be for this worker alone. False, for tasks that are only watched: a database that is away holds nothing
            up for more than two seconds.
    """

    def __init__(self, *, strict: bool = False) -> None:
        super().__init__()
        self._strict = strict

    def set_broker(self, broker: AsyncBroker) -> None:
        """Called by taskiq when the middleware is added."""
        super().set_broker(broker)
        # taskiq tells nobody of a message that it could not send.
        setattr(broker, "kick", _telling(broker.kick))  # noqa: B010  # checkers take a method for its own type

    # -- where tasks are sent -------------------------------------------------------------------------------

    async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        """Create the activity, or open its next attempt."""
        if AGENT_ID not in message.labels:
            if self._strict:
                agent_id = await create_async(message.task_name, agent_id=agent_id_of(message.task_id) or uuid4())
                message.labels.update(labels_of(agent_id))
            else:
                with guarded("creating the activity of a task"):
                    await _create(message)
        elif _RETRIES in message.labels:
            with guarded("opening the next attempt of a task"):
                await _retry(message)
        return message

    # -- where they run -------------------------------------------------------------------------------------

    async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        """Start the activity, unless somebody else has."""
        _delivery.set(None)
        task = self.broker.find_task(message.task_name)
        if AGENT_ID in message.labels and task is not None:
            if self._strict:
                await self._start(message, task)
            else:
                with guarded("starting the activity of a task"):
                    await self._start(message, task)
        return message

    async def _start(self, message: TaskiqMessage, task: AsyncTaskiqDecoratedTask[Any, Any]) -> None:
        agent_id = parse_agent_id(message.labels[AGENT_ID])
        patience = None if self._strict else PATIENCE
        with _waiting():
            run = await claim(agent_id, _attempt_of(message), patience, _opened_by(message, agent_id))
        if run is None:
            text = "task %s is not run here: its activity %s was canceled, or another worker has it"
            _logger.info(text, message.task_name, agent_id)
        delivery = _Delivery(message, run)
        _delivery.set(delivery)
        _track(task)
        receiving = asyncio.current_task()
        if run is not None and receiving is not None:
            receiving.add_done_callback(delivery.dropped)

    async def on_error(self, message: TaskiqMessage, result: TaskiqResult[Any], exception: BaseException) -> None:
        """Note what the task has raised; whether it is tried again is known later."""
        delivery = _delivery.get()
        if delivery is not None:
            delivery.left_by = exception

    async def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        """End the activity as the task has ended."""
        delivery = _delivery.get()
        run = delivery.run if delivery is not None else None
        if delivery is None or run is None:
            return
        receiving = asyncio.current_task()
        if receiving is not None:  # An in-place broker's is the caller's own task, which may live for long.
            receiving.remove_done_callback(delivery.dropped)
        with guarded("ending the activity of a task"):
            left_by = delivery.left_by
            again = isinstance(result.error, NoResultError) and not isinstance(left_by, NoResultError)
            if run.canceled:
                run.end(asyncio.CancelledError())
            elif left_by is not None and again and not delivery.retried:
                run.end_attempt(left_by)  # It will be sent by a scheduler.
            else:
                run.end(None if isinstance(left_by, NoResultError) else left_by)


_waits: Final[set[asyncio.Task[Any]]] = set()


@contextmanager
def _waiting() -> Generator[None]:
    """What happens in here may be handed back."""
    receiving = cast("asyncio.Task[Any]", asyncio.current_task())
    _waits.add(receiving)
    try:
        yield
    finally:
        _waits.discard(receiving)


def hand_back() -> None:
    """Where the database is away, let go of the tasks that wait for it. Unacknowledged, their messages come again."""
    if _runtime.active().primary.last_error is not None:
        for receiving in _waits:
            receiving.cancel(HANDED_BACK)


async def _create(message: TaskiqMessage) -> None:
    agent_id = agent_id_of(message.task_id) or uuid4()
    created = create_later(message.task_name, agent_id=agent_id)
    message.labels.update(labels_of(agent_id))
    await stored_within(PATIENCE, created)


def labels_of(agent_id: UUID) -> dict[str, str]:
    """What the message of a task says of its activity, which this process has just created."""
    labels = {AGENT_ID: str(agent_id), ATTEMPT: "1"}
    live = _runtime.active().spans.known(agent_id)
    if live is not None and live.history:
        labels[OPENING] = encode(live.history[0]).decode()
    return labels


def _opened_by(message: TaskiqMessage, agent_id: UUID) -> ActivityEvent | None:
    with suppress(KeyError, ValueError):
        event = decode(str(message.labels[OPENING]).encode())
        if event.agent_id == agent_id and event.opening is not None and event.status is Status.QUEUED:
            return event
    return None


def _attempt_of(message: TaskiqMessage) -> int:
    return int(message.labels.get(ATTEMPT, 1)) + int(message.labels.get(_RETRIES, 0))


async def _retry(message: TaskiqMessage) -> None:
    delivery = _delivery.get()
    if delivery is not None and delivery.message.task_id == message.task_id:
        # Inside of taskiq's retry middleware: the attempt that has just failed is still open.
        if delivery.run is None:
            return
        delivery.retried = True
        if not delivery.run.failed:
            delivery.run.end_attempt(_why(delivery))
            return
        delivery.run.end(delivery.left_by)
    # From a scheduler, whose worker could not always know that a retry would follow; or ended by `error()`.
    agent_id = parse_agent_id(message.labels[AGENT_ID])
    runtime = _runtime.active()
    if runtime.lookups is not None:
        stored = await asyncio.wrap_future(runtime.lookups.soon(agent_id))
        if stored is not None and stored.status is Status.ERROR and stored.attempt < _attempt_of(message):
            await activity.aio.retry(agent_id)


def _why(delivery: _Delivery) -> BaseException | None:
    """What to say of a task that is tried again; of one that has taken too long, taskiq tells us only later."""
    left_by = delivery.left_by
    if "timeout" in delivery.message.labels and (left_by is None or isinstance(left_by, asyncio.CancelledError)):
        return TimeoutError()
    return left_by


def _telling(kick: _Kick) -> _Kick:
    """The broker's `kick`, with an ending for the activities of messages that it cannot send."""

    async def send(message: BrokerMessage) -> None:
        try:
            await kick(message)
        except BaseException as exc:
            if AGENT_ID in message.labels:
                await end_unsent(parse_agent_id(message.labels[AGENT_ID]), exc)
            raise

    return send


async def end_unsent(agent_id: UUID, exc: BaseException) -> None:
    """End the activity of a task that could not be sent, and wait a bounded time for the commit."""
    with guarded("ending the activity of a task that was not sent"):
        runtime = _runtime.active()
        outcome = Outcome(qualified_name(type(exc)), "enqueue")
        ended = submit_end(runtime, runtime.find(agent_id), Status.ERROR, error_message(exc), None, outcome)
        await stored_within(CONF.terminal_timeout, ended)


# -- the task's function ----------------------------------------------------------------------------------------


def _track(task: AsyncTaskiqDecoratedTask[Any, Any]) -> None:
    """Have the task's function run in the block that its delivery has started."""
    function = task.original_func
    if not hasattr(function, _MARK):
        wrapper = _tracked(function) if inspect.iscoroutinefunction(function) else _tracked_sync(function)
        setattr(wrapper, _MARK, True)
        task.original_func = wrapper


def _tracked(function: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Coroutine[Any, Any, Any]]:
    @wraps(function)
    async def run_tracked(*args: Any, **kwargs: Any) -> Any:
        delivery = _delivery.get()
        if delivery is None:
            return await function(*args, **kwargs)
        run = _run_of(delivery)
        with run:
            # A task of its own, so that nothing but the function is canceled.
            work = asyncio.create_task(_contained(function, *args, **kwargs))
            run.when_canceled(work)
            try:
                value, left = await work
                if left is not None:
                    raise left
                return value
            except BaseException as exc:
                delivery.left_by = exc
                if run.canceled:
                    raise NotRunError from exc  # What is raised in going is no reason to try again.
                raise

    return run_tracked


async def _contained(
    function: Callable[..., Coroutine[Any, Any, Any]], *args: Any, **kwargs: Any
) -> tuple[Any, SystemExit | None]:
    """What it returns. `sys.exit()` that leaves a task of its own would end the event loop, and all tasks with it."""
    try:
        return await function(*args, **kwargs), None
    except SystemExit as exc:
        return None, exc


def _tracked_sync(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def run_tracked(*args: Any, **kwargs: Any) -> Any:
        delivery = _delivery.get()
        if delivery is None:
            return function(*args, **kwargs)
        with _run_of(delivery):
            try:
                return call_in_thread(function, *args, **kwargs)
            except BaseException as exc:
                delivery.left_by = exc
                raise

    return run_tracked


def _run_of(delivery: _Delivery) -> TaskRun:
    if delivery.run is None:
        raise NotRunError
    return delivery.run
