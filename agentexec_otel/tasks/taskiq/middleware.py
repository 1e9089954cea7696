"""taskiq tasks as activities: one middleware on the broker."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from collections.abc import Callable, Coroutine, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import wraps
from typing import Any, Final, cast
from uuid import UUID, uuid4
from weakref import WeakValueDictionary

from taskiq import (
    AsyncBroker,
    AsyncResultBackend,
    BrokerMessage,
    NoResultError,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
)
from taskiq.decor import AsyncTaskiqDecoratedTask

from agentexec_otel._config import CONF
from agentexec_otel._errors import guarded
from agentexec_otel._model.codec import decode, encode
from agentexec_otel._model.event import ActivityEvent, Status
from agentexec_otel._model.ids import parse_agent_id
from agentexec_otel._model.text import describe
from agentexec_otel.tasks import _activities, _sdk
from agentexec_otel.tasks._activities import (
    AGENT_ID,
    ATTEMPT,
    HANDED_BACK,
    PATIENCE,
    RefusedMessageError,
    TaskRun,
    agent_id_of,
)
from agentexec_otel.tasks._definition import call_in_thread
from agentexec_otel.tasks.taskiq.brokers import keep_result
from agentexec_otel.tasks.taskiq.receiver import Delivery, current_delivery, refuse

_logger = logging.getLogger("agentexec_otel.tasks")

OPENING: Final = "agentexec_opening"

_Kick = Callable[[BrokerMessage], Coroutine[Any, Any, None]]

_MARK: Final = "_agentexec_tracked"


class NotRunError(NoResultError):
    """The task did not run, or was stopped: its activity was canceled, or another worker runs it."""

    __template__ = "The activity of this task was canceled, or another worker runs it"


class ActivityMiddleware(TaskiqMiddleware):
    """Makes every task of a taskiq broker an activity.

    ::

        broker.add_middlewares(ActivityMiddleware())

    The activity is QUEUED before the message is sent, RUNNING while the task runs, and ends as the task ends. Its
    ``agent_id`` is the task's id if that is a UUID, and its type is the task's name. If the activity is canceled, its
    task does not start, or is canceled while it runs. A message that is delivered twice runs once. A retry by taskiq's
    retry middlewares is the next attempt of the same activity.

    Args:
        strict: Tasks wait for the database. A task is sent after its activity is stored, and starts after the database
            has confirmed that no other worker runs it. If False, for an application's own broker, no hook waits for
            the database longer than two seconds.
    """

    def __init__(self, *, strict: bool = False) -> None:
        super().__init__()
        self._strict = strict

    def set_broker(self, broker: AsyncBroker) -> None:
        """Called by taskiq when the middleware is added."""
        super().set_broker(broker)
        _sdk.replace(broker, "kick", _ending_unsent(broker.kick))  # No hook reports a message that is not sent.

    # -- where tasks are sent -------------------------------------------------------------------------------

    async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        """Create the activity, or open its next attempt."""
        if AGENT_ID not in message.labels:
            with self._guard("creating the activity of a task"):
                await self._create(message)
        elif _sdk.RETRIES in message.labels:
            with guarded("opening the next attempt of a task"):
                await _retry(message)
        return message

    async def _create(self, message: TaskiqMessage) -> None:
        agent_id = agent_id_of(message.task_id) or uuid4()
        if self._strict:
            await _activities.create_async(message.task_name, agent_id=agent_id)
            message.labels.update(labels_of(agent_id))
        else:
            created = _activities.create(message.task_name, agent_id)
            message.labels.update(labels_of(agent_id))
            await _activities.stored_within(PATIENCE, created)

    def _guard(self, what: str) -> AbstractContextManager[None, bool | None]:
        return nullcontext() if self._strict else guarded(what)

    # -- where they run -------------------------------------------------------------------------------------

    async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        """Start the activity, unless another worker has started it."""
        current_delivery.set(None)
        task = self.broker.find_task(message.task_name)
        if task is None or not (self._strict or AGENT_ID in message.labels):
            return message
        with self._guard("starting the activity of a task"):
            _track(task)
            try:
                await self._start(message)
            except RefusedMessageError as exc:
                if not self._strict:
                    raise  # The application's own task runs without an activity.
                current_delivery.set(Delivery(message, None))
                _refuse(message, exc)
        return message

    async def _start(self, message: TaskiqMessage) -> None:
        agent_id = _agent_id_in(message)
        run = await self._claim(message, agent_id)
        if run is None:
            text = "task %s is not run here: its activity %s was canceled, or another worker has it"
            _logger.info(text, describe(message.task_name), agent_id)
        delivery = Delivery(message, run)
        current_delivery.set(delivery)
        if run is not None:
            delivery.enter()
            _end_with_result(self.broker.result_backend, self._strict)

    async def _claim(self, message: TaskiqMessage, agent_id: UUID) -> TaskRun | None:
        attempt, patience = _attempt_of(message), None if self._strict else PATIENCE
        # One delivery at a time: a broker may deliver the message again while the first delivery still waits for the
        # database. The second one must not acknowledge the message before the first one has started the task.
        turn = _turns.setdefault(agent_id, asyncio.Lock())
        with _returnable():
            async with turn:
                return await _activities.claim(agent_id, attempt, patience, _opened_by(message, agent_id))

    async def on_error(self, message: TaskiqMessage, result: TaskiqResult[Any], exception: BaseException) -> None:
        """Note the task's exception. Whether the task is retried is known later."""
        delivery = current_delivery.get()
        if delivery is not None and delivery.refused is None:
            delivery.left_by = exception

    async def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        """End the activity of a task that has no result. That of another one ends when its result is kept."""
        delivery = current_delivery.get()
        if delivery is None or delivery.run is None:
            return
        left_by = delivery.left_by
        again = isinstance(result.error, NoResultError) and not isinstance(left_by, NoResultError)
        if delivery.run.canceled:
            delivery.end(asyncio.CancelledError())
        elif delivery.refused is not None:
            delivery.end(left_by)
            _refuse(message, delivery.refused)
        elif left_by is not None and again and not delivery.retried:
            delivery.leave()
            with guarded("ending the attempt of a task"):
                delivery.run.end_attempt(left_by)  # A scheduler will send the message again.
        elif result.error is not None:
            delivery.end(None if isinstance(left_by, NoResultError) else left_by)


_turns: Final[WeakValueDictionary[UUID, asyncio.Lock]] = WeakValueDictionary()
"""The locks of activities that are being started."""
_returnables: Final[set[asyncio.Task[Any]]] = set()


@contextmanager
def _returnable() -> Generator[None]:
    """Let `return_messages` cancel the code in this block."""
    receiving = cast("asyncio.Task[Any]", asyncio.current_task())
    _returnables.add(receiving)
    try:
        yield
    finally:
        _returnables.discard(receiving)


def return_messages() -> None:
    """Return the messages of tasks that wait for an unreachable database. The broker redelivers them."""
    if _activities.active().in_trouble is not None:
        for receiving in _returnables:
            receiving.cancel(HANDED_BACK)


def labels_of(agent_id: UUID) -> dict[str, str]:
    """Labels for the message of a task whose activity this process has just created."""
    labels = {AGENT_ID: str(agent_id), ATTEMPT: "1"}
    live = _activities.active().known(agent_id)
    if live is not None and live.opening_event is not None:
        labels[OPENING] = encode(live.opening_event).decode()
    return labels


def _opened_by(message: TaskiqMessage, agent_id: UUID) -> ActivityEvent | None:
    with suppress(KeyError, ValueError):
        event = decode(str(message.labels[OPENING]).encode())
        if event.agent_id == agent_id and event.opening is not None and event.status is Status.QUEUED:
            return event
    return None


def _agent_id_in(message: TaskiqMessage) -> UUID:
    try:
        return parse_agent_id(message.labels.get(AGENT_ID, ""))
    except ValueError:
        raise RefusedMessageError(f"its label {AGENT_ID} is no UUID, or is missing") from None


def _attempt_of(message: TaskiqMessage) -> int:
    return _count_in(message, ATTEMPT, 1) + _count_in(message, _sdk.RETRIES, 0)


def _count_in(message: TaskiqMessage, label: str, least: int) -> int:
    """The number in a label; `least` if there is none."""
    with suppress(TypeError, ValueError):
        count = int(message.labels.get(label, least))
        if count >= least:
            return count
    raise RefusedMessageError(f"its label {label} is no number from {least}")


def _refuse(message: TaskiqMessage, exc: RefusedMessageError) -> None:
    refuse(json.dumps(message.model_dump(), default=str).encode(), exc)


async def _retry(message: TaskiqMessage) -> None:
    delivery = current_delivery.get()
    if delivery is not None and delivery.message.task_id == message.task_id:
        # Called by taskiq's retry middleware: the failed attempt is still open.
        if delivery.run is None:
            return
        delivery.retried = True
        if not delivery.run.failed:
            delivery.run.end_attempt(_why(delivery))
            return
        delivery.run.end(delivery.left_by)
    # Sent by a scheduler, of which the worker may not have known; or the attempt was ended by `error()`.
    with suppress(TimeoutError):
        await _activities.reopen_failed(parse_agent_id(message.labels[AGENT_ID]), _attempt_of(message), PATIENCE)


def _why(delivery: Delivery) -> BaseException | None:
    """The reason for a retry. taskiq reports a timeout only after it has sent the retry."""
    left_by = delivery.left_by
    if "timeout" in delivery.message.labels and (left_by is None or isinstance(left_by, asyncio.CancelledError)):
        return TimeoutError()
    return left_by


def _ending_unsent(kick: _Kick) -> _Kick:
    """Wrap the broker's `kick`: if it cannot send a message, end its activity."""

    async def send(message: BrokerMessage) -> None:
        try:
            await kick(message)
        except BaseException as exc:
            agent_id = agent_id_of(message.labels.get(AGENT_ID, ""))
            if agent_id is not None:
                await end_unsent(agent_id, exc)
            raise

    return send


async def end_unsent(agent_id: UUID, exc: BaseException) -> None:
    """End the activity of a task that was not sent. Waits for the commit, for at most `PATIENCE`."""
    with guarded("ending the activity of a task that was not sent"):
        ended = _activities.end_elsewhere(agent_id, "enqueue", exc, of_current=False)
        await _activities.stored_within(min(PATIENCE, CONF.terminal_timeout), ended)


def _end_with_result(backend: AsyncResultBackend[Any], strict: bool) -> None:
    """End activities once the backend has kept the result: no hook of taskiq reports that it could not."""
    keep = backend.set_result
    if hasattr(keep, _MARK):
        return

    @wraps(keep)
    async def keep_and_end(task_id: str, result: TaskiqResult[Any]) -> None:
        delivery = current_delivery.get()
        if delivery is None or delivery.run is None or result.is_err or delivery.message.task_id != task_id:
            await keep(task_id, result)
            return
        try:
            await (keep_result(keep, task_id, result) if strict else keep(task_id, result))
        except Exception as exc:
            delivery.end(exc if strict else None)
            raise
        delivery.end(None)

    setattr(keep_and_end, _MARK, True)
    _sdk.replace(backend, "set_result", keep_and_end)


# -- the task's function ----------------------------------------------------------------------------------------


def _track(task: AsyncTaskiqDecoratedTask[Any, Any]) -> None:
    """Run the task's function in the block that its delivery has started."""
    function = task.original_func
    if not hasattr(function, _MARK):
        wrapper = _tracked(function) if inspect.iscoroutinefunction(function) else _tracked_sync(function)
        setattr(wrapper, _MARK, True)
        task.original_func = wrapper


def _tracked(function: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Coroutine[Any, Any, Any]]:
    @wraps(function)
    async def run_tracked(*args: Any, **kwargs: Any) -> Any:
        delivery = current_delivery.get()
        if delivery is None:
            return await function(*args, **kwargs)
        run = _run_of(delivery)
        try:
            value, left = await run.call(_contained(function, *args, **kwargs))
            if left is not None:
                raise left
            return value
        except RefusedMessageError as exc:
            raise _not_run(delivery, exc) from exc
        except BaseException as exc:
            delivery.left_by = exc
            if run.canceled:
                raise NotRunError from exc  # An error while it cleans up is no reason to retry.
            raise

    return run_tracked


async def _contained(
    function: Callable[..., Coroutine[Any, Any, Any]], *args: Any, **kwargs: Any
) -> tuple[Any, SystemExit | None]:
    """Call the function, and return a SystemExit, which would otherwise end the event loop and all other tasks."""
    try:
        return await function(*args, **kwargs), None
    except SystemExit as exc:
        return None, exc


def _tracked_sync(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def run_tracked(*args: Any, **kwargs: Any) -> Any:
        delivery = current_delivery.get()
        if delivery is None:
            return function(*args, **kwargs)
        with _run_of(delivery):
            try:
                return call_in_thread(function, *args, **kwargs)
            except RefusedMessageError as exc:
                raise _not_run(delivery, exc) from exc
            except BaseException as exc:
                delivery.left_by = exc
                raise

    return run_tracked


def _not_run(delivery: Delivery, refused: RefusedMessageError) -> NotRunError:
    delivery.refused, delivery.left_by = refused, refused.__cause__ or refused
    return NotRunError()


def _run_of(delivery: Delivery) -> TaskRun:
    if delivery.run is None:
        raise NotRunError
    return delivery.run
