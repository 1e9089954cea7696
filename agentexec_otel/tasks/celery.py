"""Celery tasks as activities: ``track()``, and nothing else.

::

    from agentexec_otel.tasks.celery import track

    track()

By Celery's signals, so in every process that imports it: where tasks are published, and in the workers.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import wraps
from typing import Any, Final, cast
from uuid import UUID, uuid4

from agentexec_otel._config import CONF
from agentexec_otel._errors import MissingExtraError, guarded
from agentexec_otel._model.event import Outcome, Status
from agentexec_otel._model.ids import parse_agent_id
from agentexec_otel._model.outcome import qualified_name, replace_text
from agentexec_otel._runtime import process as _runtime
from agentexec_otel.activity._lifecycle import error_message
from agentexec_otel.tasks import _watched
from agentexec_otel.tasks._run import AGENT_ID, ATTEMPT, TaskRun, agent_id_of

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

# What the main process of a worker tells of a process that could not tell it itself.
_LOST: Final = {"WorkerLostError": "lost", "TimeLimitExceeded": "timeout"}


@dataclass(frozen=True, slots=True)
class _Delivery:
    """A task at work in this thread."""

    task_id: str
    request: Any
    run: TaskRun
    outer: _Delivery | None


_delivery: ContextVar[_Delivery | None] = ContextVar("agentexec_otel.tasks.celery.delivery", default=None)
_patterns: tuple[str, ...] = ()
_LAST: Final = "agentexec_otel.task_postrun.last"
_is_last = False


def track(*names: str) -> None:
    """Make Celery tasks activities; call it where the Celery app is defined, which publishers and workers import.

    An activity is QUEUED before its message is sent, RUNNING while the task works, and ends as the task ends. Its
    ``agent_id`` is the task's id where that is a UUID, as Celery's own are, its type the task's name. ``self.retry()``
    and ``autoretry_for`` are further attempts of it. Inside the task, `ax.activity.current()` is the activity's block.
    A task whose activity was canceled does not start, and its Celery result says that it was revoked; one that is
    revoked ends as CANCELED.

    A database that is away holds nothing up for more than two seconds. Calling it again replaces the names. Call it
    behind other libraries that trace Celery: an activity's span then has theirs as parent and as link.

    Args:
        names: Names of the tasks, such as ``"agents.research"``, or patterns, such as ``"agents.*"``. Default: all but
            Celery's own.
    """
    global _patterns, _is_last  # signals are global, too
    untrack()  # A library that was connected meanwhile comes before us then.
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
            # Inside of `retry()`: the attempt is still open, `task_postrun` is told how it has failed.
            headers.update({AGENT_ID: str(running.run.agent_id), ATTEMPT: running.run.attempt + 1})
        elif AGENT_ID in headers and retries and running is None:
            # The worker's main process tries a task again whose process is gone.
            headers[ATTEMPT] = int(headers.get(ATTEMPT, 1)) + 1
            _watched.announce(parse_agent_id(headers[AGENT_ID]), headers[ATTEMPT])
        else:
            # What replaces the task at work has its id, and is another activity.
            agent_id = (agent_id_of(task_id) if running is None else None) or uuid4()
            headers.update({AGENT_ID: str(agent_id), ATTEMPT: 1})
            _watched.create(sender, agent_id, headers.get(_METADATA))


# -- where they run ---------------------------------------------------------------------------------------------


def _prerun(task: Any, task_id: str, **_: Any) -> None:
    with guarded("starting the activity of a Celery task"):
        if not _tracks(task.name):
            return
        request = task.request
        agent_id = _agent_id_of(request)
        if agent_id is None:
            # Run eagerly, or published by somebody who does not track.
            agent_id = agent_id_of(task_id) or uuid4()
            _watched.create(task.name, agent_id, _header(request, _METADATA))
            if request.is_eager:
                request.headers = {**(request.headers or {}), AGENT_ID: str(agent_id)}
        attempt = max(int(_header(request, ATTEMPT) or 1), int(request.retries or 0) + 1)
        delivery_info: dict[str, Any] = request.delivery_info or {}
        run = _watched.start(agent_id, attempt, redelivered=bool(delivery_info.get("redelivered")))
        if run is not None:
            _be_last()
            run.__enter__()
            _delivery.set(_Delivery(task_id, request, run, _delivery.get()))


def _be_last() -> None:
    """Have other libraries undo what they have made current before we do: we can tell, and they do not look."""
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
        delivery.run.__exit__(None, None, None)
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
        # Else this process is made to go, and its main process, or the lease, tells what that means for the task.


def _end_rejected(run: TaskRun, rejected: Any) -> None:
    reason = rejected.reason
    raised: BaseException = reason if isinstance(reason, BaseException) else rejected
    if raised is rejected:
        replace_text(rejected, str(reason or "it has rejected its message"))  # Its own text is that of a tuple.
    if rejected.requeue:
        run.end_attempt(raised)
    else:
        run.end(raised)


def _find(task_id: str) -> _Delivery | None:
    delivery = _delivery.get()
    while delivery is not None and delivery.task_id != task_id:
        delivery = delivery.outer
    return delivery


def _header(request: Any, name: str) -> Any:
    """A header of the task's message; Celery keeps those that are not its own as attributes, too."""
    custom: dict[str, Any] = request.headers or {}
    return getattr(request, name, None) or custom.get(name)


def _agent_id_of(request: Any) -> UUID | None:
    found = _header(request, AGENT_ID)
    return None if found is None else parse_agent_id(found)


# -- a canceled task does not start -----------------------------------------------------------------------------


def _worker_init(sender: Any, **_: Any) -> None:
    with guarded("preparing Celery tasks"):
        for task in sender.app.tasks.values():
            if _tracks(task.name):
                _prepare(type(task))


def _prepare(task_class: Any) -> None:
    """Have the task's class ask us before it starts: no signal can keep a task from running, this can."""
    original: Callable[..., Any] = task_class.before_start
    if hasattr(original, _MARK):
        return

    @wraps(original)
    def before_start(task: Any, task_id: str, args: Any, kwargs: Any) -> Any:
        delivery = _find(task_id)
        if delivery is not None and isinstance(delivery.run, _watched.Bystander) and delivery.run.refused:
            _refuse(task, task_id, delivery.run.agent_id)
        return original(task, task_id, args, kwargs)

    setattr(before_start, _MARK, True)
    task_class.before_start = before_start


def _refuse(task: Any, task_id: str, agent_id: UUID) -> None:
    _logger.info("task %s is not run: its activity %s was canceled", task.name, agent_id)
    with guarded("marking a canceled Celery task as revoked"):
        stored = not task.ignore_result or task.store_errors_even_if_ignored
        task.backend.mark_as_revoked(task_id, "canceled", request=task.request, store_result=stored)
    raise _errors.Ignore


# -- what a worker's main process tells -------------------------------------------------------------------------


def _revoked(sender: Any, request: Any, expired: bool = False, **_: Any) -> None:
    with guarded("ending the activity of a revoked Celery task"):
        agent_id = _agent_id_of(request)
        if agent_id is not None:
            outcome = Outcome(reason="expired" if expired else "cancelled")
            _watched.end(agent_id, Status.CANCELED, CONF.activity_message_cancel, outcome)


def _unknown(message: Any, name: str, **_: Any) -> None:
    with guarded("ending the activity of an unknown Celery task"):
        agent_id = message.headers.get(AGENT_ID)
        if agent_id is not None:
            missing: BaseException = _errors.NotRegistered(name)
            replace_text(missing, f"the worker has no task {name!r}: have it import the module that defines it")
            outcome = Outcome(qualified_name(type(missing)), "other")
            _watched.end(parse_agent_id(agent_id), Status.ERROR, error_message(missing), outcome)


def _failed(sender: Any, task_id: str, exception: BaseException, **_: Any) -> None:
    """A task fails in its own process, which ends the activity; except where that process is gone."""
    reason = _LOST.get(type(exception).__name__)
    if reason is None or _find(task_id) is not None:
        return
    with guarded("ending the activity of a lost Celery task"):
        request = sender.request
        # Not each of these comes with the request; without, the activity of an id that is no UUID waits for its lease.
        agent_id = _agent_id_of(request) if request.id == task_id else agent_id_of(task_id)
        if agent_id is not None and _tracks(sender.name):
            outcome = Outcome(qualified_name(type(exception)), reason)
            _watched.end(agent_id, Status.ERROR, error_message(exception), outcome)


def _process_shutdown(**_: Any) -> None:
    """billiard's processes end without `atexit`."""
    with guarded("storing what a Celery process has reported"):
        _runtime.shutdown()


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
