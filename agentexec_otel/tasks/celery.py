"""Celery tasks as activities, with ``track()``.

::

    from agentexec_otel.tasks.celery import track

    track()

It connects to Celery's signals. Call it in each process that publishes tasks, and in the workers.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import wraps
from typing import Any, Final, cast
from uuid import UUID, uuid4

from agentexec_otel._errors import MissingExtraError, guarded
from agentexec_otel._model.outcome import replace_text
from agentexec_otel._model.reasons import reason_of
from agentexec_otel.tasks import _activities, _sdk
from agentexec_otel.tasks._activities import AGENT_ID, ATTEMPT, TaskRun, agent_id_of

try:
    from celery import exceptions as celery_exceptions  # pyright: ignore[reportMissingTypeStubs]
    from celery import signals as celery_signals  # pyright: ignore[reportMissingTypeStubs]
except ModuleNotFoundError as exc:
    if exc.name != "celery":
        raise
    raise MissingExtraError("agentexec_otel.tasks.celery", "celery", "celery") from None

__all__ = ["track", "untrack"]

_logger = logging.getLogger("agentexec_otel.tasks")
_errors: Final[Any] = celery_exceptions
_signals: Final[Any] = celery_signals

_METADATA: Final = "agentexec_metadata"
_MARK: Final = "_agentexec_tracked"
_CELERYS_OWN: Final = "celery."

# Exceptions that a worker's main process reports for a process that has died.
_LOST: Final = frozenset({"WorkerLostError", "TimeLimitExceeded"})


@dataclass(frozen=True, slots=True)
class _Delivery:
    """A task that runs in this thread."""

    task_id: str
    request: Any
    run: TaskRun
    outer: _Delivery | None


_delivery: ContextVar[_Delivery | None] = ContextVar("agentexec_otel.tasks.celery.delivery", default=None)
_patterns: tuple[str, ...] = ()
_LAST: Final = "agentexec_otel.task_postrun.last"
_is_last = False


def track(*names: str) -> None:
    """Make Celery tasks activities. Call it in the module of the Celery app, which publishers and workers import.

    An activity is QUEUED before its message is sent, RUNNING while the task runs, and ends as the task ends. Its
    ``agent_id`` is the task's id if that is a UUID, as Celery's own are; its type is the task's name. ``self.retry()``
    and ``autoretry_for`` make further attempts of it. Inside the task, `ax.activity.current()` is the activity's block.
    A task whose activity was canceled does not start, and its Celery result is "revoked". A revoked task ends as
    CANCELED.

    If the database is away, no hook waits longer than two seconds. Calling `track` again replaces the names. Call it
    after other libraries that trace Celery: their span is then the parent and the link of an activity's span.

    Args:
        names: Names of the tasks, such as ``"agents.research"``, or patterns, such as ``"agents.*"``. Default: all but
            Celery's own.
    """
    global _patterns, _is_last  # Celery's signals are global, too.
    untrack()  # A library that was connected meanwhile then comes first.
    _patterns, _is_last = names, False
    for name, receiver in _RECEIVERS.items():
        getattr(_signals, name).connect(receiver, weak=False, dispatch_uid=f"agentexec_otel.{name}")


def untrack() -> None:
    """Undo `track` in this process, such as at the end of a test."""
    for name in _RECEIVERS:
        getattr(_signals, name).disconnect(dispatch_uid=f"agentexec_otel.{name}")
    _signals.task_postrun.disconnect(dispatch_uid=_LAST)


def _tracks(name: str) -> bool:
    if _patterns:
        return any(fnmatchcase(name, pattern) for pattern in _patterns)
    return not name.startswith(_CELERYS_OWN)


# -- where tasks are published ----------------------------------------------------------------------------------


def _before_publish(sender: str, headers: dict[str, Any], body: Any, **_: Any) -> None:
    with guarded("creating the activity of a Celery task"):
        if not _tracks(sender):
            return
        # A message of Celery's first protocol has all of it in its body.
        about: Mapping[str, Any] = headers if "id" in headers else cast("Mapping[str, Any]", body)
        task_id, retries = str(about["id"]), int(about["retries"] or 0)
        running = _find(task_id)
        if running is not None and retries > int(running.request.retries or 0):
            # Called by `retry()`: the attempt is still open, and `task_postrun` reports why it has failed.
            headers.update({AGENT_ID: str(running.run.agent_id), ATTEMPT: running.run.attempt + 1})
        elif AGENT_ID in headers and retries and running is None:
            # The worker's main process retries a task whose process has died.
            headers[ATTEMPT] = _attempt_in(headers.get(ATTEMPT)) + 1
            agent_id = agent_id_of(headers[AGENT_ID]) or agent_id_of(task_id)
            if agent_id is not None:
                _activities.open_attempt(agent_id, headers[ATTEMPT])
        else:
            # A replacement of the running task has the same task id, but is another activity.
            new_id = (agent_id_of(task_id) if running is None else None) or uuid4()
            headers.update({AGENT_ID: str(new_id), ATTEMPT: 1})
            _create(sender, new_id, headers.get(_METADATA))


def _create(task_name: str, agent_id: UUID, metadata: Mapping[str, Any] | None) -> None:
    """Create the activity. Its row is committed now if the database answers in time, else later."""
    created = _activities.create(task_name, agent_id, metadata)
    with suppress(TimeoutError):
        created.result(_activities.patience())


# -- where they run ---------------------------------------------------------------------------------------------


def _prerun(task: Any, task_id: str, **_: Any) -> None:
    with guarded("starting the activity of a Celery task"):
        if not _tracks(task.name):
            return
        request = task.request
        agent_id = _agent_id_of(request)
        if agent_id is None:
            # The task runs eagerly, or its publisher has not called `track()`.
            agent_id = agent_id_of(task_id) or uuid4()
            _create(task.name, agent_id, _sdk.header(request, _METADATA))
            if request.is_eager:
                _sdk.add_header(request, AGENT_ID, str(agent_id))
        attempt = max(_attempt_in(_sdk.header(request, ATTEMPT)), int(request.retries or 0) + 1)
        delivery_info: dict[str, Any] = request.delivery_info or {}
        run = _activities.start(agent_id, attempt, redelivered=bool(delivery_info.get("redelivered")))
        if run is not None:
            _be_last()
            run.__enter__()
            _delivery.set(_Delivery(task_id, request, run, _delivery.get()))


def _be_last() -> None:
    """Move our receiver of `task_postrun` to the end: other libraries restore the context unconditionally."""
    global _is_last  # noqa: PLW0603
    if not _is_last:
        _is_last = True
        _signals.task_postrun.connect(_postrun, weak=False, dispatch_uid=_LAST)
        _signals.task_postrun.disconnect(dispatch_uid="agentexec_otel.task_postrun")


def _postrun(task: Any, task_id: str, retval: Any, state: str | None, **_: Any) -> None:
    with guarded("ending the activity of a Celery task"):
        delivery = _delivery.get()
        if delivery is None or delivery.task_id != task_id or delivery.request is not task.request:
            return
        _delivery.set(delivery.outer)
        delivery.run.detach()
        if delivery.run.canceled:
            delivery.run.end(asyncio.CancelledError())
        elif state == "RETRY":
            delivery.run.end_attempt(retval.exc or retval)
        elif state == "REJECTED":
            _end_rejected(delivery.run, retval)
        elif state is not None:
            delivery.run.end(retval if state == "FAILURE" else None)
        elif not isinstance(sys.exc_info()[1], SystemExit | KeyboardInterrupt):
            delivery.run.end(sys.exc_info()[1])
        # Otherwise this process is being stopped: its main process, or the expiry of the lease, ends the activity.


def _end_rejected(run: TaskRun, rejected: Any) -> None:
    reason = rejected.reason
    raised: BaseException = reason if isinstance(reason, BaseException) else rejected
    if raised is rejected:
        replace_text(rejected, str(reason or "it has rejected its message"))  # Its text is that of a tuple.
    if rejected.requeue:
        run.end_attempt(raised)
    else:
        run.end(raised)


def _find(task_id: str) -> _Delivery | None:
    delivery = _delivery.get()
    while delivery is not None and delivery.task_id != task_id:
        delivery = delivery.outer
    return delivery


def _agent_id_of(request: Any) -> UUID | None:
    """The activity's id in a message; the task's id if it is malformed."""
    found = _sdk.header(request, AGENT_ID)
    return None if found is None else agent_id_of(found) or agent_id_of(request.id)


def _attempt_in(header: Any) -> int:
    """The attempt in a message; 1 if it is missing or malformed. One that cannot be is refused when it is stored."""
    with suppress(TypeError, ValueError):
        return max(1, int(header))
    return 1


# -- a canceled task does not start -----------------------------------------------------------------------------


def _worker_init(sender: Any, **_: Any) -> None:
    with guarded("preparing Celery tasks"):
        for task in sender.app.tasks.values():
            if _tracks(task.name):
                _prepare(type(task))


def _prepare(task_class: Any) -> None:
    """Check in the class's `before_start` whether the task may run: no signal can prevent that."""
    original: Callable[..., Any] = task_class.before_start
    if hasattr(original, _MARK):
        return

    @wraps(original)
    def before_start(task: Any, task_id: str, args: Any, kwargs: Any) -> Any:
        delivery = _find(task_id)
        if delivery is not None and delivery.run.is_late and delivery.run.canceled:
            _refuse(task, task_id, delivery.run.agent_id)
        return original(task, task_id, args, kwargs)

    setattr(before_start, _MARK, True)
    task_class.before_start = before_start


def _refuse(task: Any, task_id: str, agent_id: UUID) -> None:
    _logger.info("task %s is not run: its activity %s was canceled", task.name, agent_id)
    with guarded("marking a canceled Celery task as revoked"):
        _sdk.mark_revoked(task, task_id)
    raise _errors.Ignore


# -- reports of a worker's main process -------------------------------------------------------------------------


def _revoked(sender: Any, request: Any, expired: bool = False, **_: Any) -> None:
    with guarded("ending the activity of a revoked Celery task"):
        agent_id = _agent_id_of(request)
        if agent_id is not None:
            _activities.end_elsewhere(agent_id, "timeout" if expired else "canceled")


def _unknown(message: Any, name: str, **_: Any) -> None:
    with guarded("ending the activity of an unknown Celery task"):
        agent_id = agent_id_of(message.headers.get(AGENT_ID, ""))
        if agent_id is not None:
            missing: BaseException = _errors.NotRegistered(name)
            replace_text(missing, f"the worker has no task {name!r}: have it import the module that defines it")
            _activities.end_elsewhere(agent_id, "other", missing)


def _failed(sender: Any, task_id: str, exception: BaseException, **_: Any) -> None:
    """End the activity of a task whose process has died. A living process does so itself."""
    if type(exception).__name__ not in _LOST or _find(task_id) is not None:
        return
    with guarded("ending the activity of a lost Celery task"):
        request = sender.request
        # Some signals have no request. Without it, an activity whose task id is not a UUID ends with its lease.
        agent_id = _agent_id_of(request) if request.id == task_id else agent_id_of(task_id)
        if agent_id is not None and _tracks(sender.name):
            _activities.end_elsewhere(agent_id, reason_of(exception), exception)


def _process_shutdown(**_: Any) -> None:
    """Store pending events: billiard's processes end without `atexit`."""
    with guarded("storing what a Celery process has reported"):
        _activities.shutdown()


_RECEIVERS: Final[dict[str, Callable[..., None]]] = {
    "before_task_publish": _before_publish,
    "task_prerun": _prerun,
    "task_postrun": _postrun,
    "task_revoked": _revoked,
    "task_unknown": _unknown,
    "task_failure": _failed,
    "worker_init": _worker_init,
    "worker_process_shutdown": _process_shutdown,
}
