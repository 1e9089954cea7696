"""Exceptions raised to the application.

::

    AgentExecError
    ├── ActivityNotFoundError (LookupError)   no activity has this agent_id; also a ValueError
    ├── ActivityNotStoredError                create() or retry() could not commit in time
    ├── ActivityCanceledError                 somebody else has canceled the activity that runs here
    ├── ActivityStateError                    the call does not fit the activity's status
    ├── SpanNotExportedError                  replayed spans did not reach their destination
    ├── UnknownTaskError (LookupError)        no task of this name is registered
    ├── TaskNotSentError                      the broker did not take a task; its activity has ended as ERROR
    ├── TaskFailedError                       the task whose result was asked for has ended as ERROR
    ├── TaskResultError                       a result cannot be handed over, or is not there any more
    ├── ConfigurationError                    set-up is missing or contradicts itself
    │   └── MissingExtraError (ImportError)   a feature needs a package that is not installed
    └── ExportError                           raised by exporters, handled by the processor
        ├── TransientExportError              will pass: retried for ever
        ├── MisconfiguredExportError          will not pass by itself: kept, retried slowly, reported loudly
        └── PoisonExportError                 this batch can never be stored as it is: bisected

Bad arguments raise `ValueError` at the call. Once an activity is created, telemetry never raises into
the application.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from types import TracebackType
from uuid import UUID


class AgentExecError(Exception):
    """Base of every exception that agentexec-otel raises on purpose."""


class ActivityNotFoundError(AgentExecError, LookupError, ValueError):
    """No activity with this ``agent_id`` exists. A ValueError, too, which agentexec raises then."""

    def __init__(self, agent_id: UUID) -> None:
        super().__init__(f"no activity has the agent_id {agent_id}: create it with ax.activity.create() first")
        self.agent_id = agent_id


class ActivityNotStoredError(AgentExecError):
    """The row of a new activity (or attempt) could not be committed in time, and nothing will be stored later."""


class ActivityCanceledError(AgentExecError):
    """The activity was canceled from elsewhere; a run that this exception leaves ends CANCELED."""

    def __init__(self, agent_id: UUID) -> None:
        super().__init__(f"the activity {agent_id} was canceled")
        self.agent_id = agent_id


class ActivityStateError(AgentExecError):
    """The call does not fit the activity's present status, such as a retry of one that has not ended."""


class SpanNotExportedError(AgentExecError):
    """The exporter of replayed spans has reported a failure. Those that were replayed before stay replayed."""


class UnknownTaskError(AgentExecError, LookupError):
    """No task of this name is registered in a pool of this process."""

    def __init__(self, task_name: str, known: Iterable[str]) -> None:
        names = ", ".join(repr(name) for name in sorted(known)) or "none"
        super().__init__(
            f"no task is named {task_name!r} (registered here: {names}): import the module with its @pool.task function"
        )
        self.task_name = task_name


class TaskNotSentError(AgentExecError):
    """A task could not be handed to the broker. Its activity has ended as ERROR with the reason ``enqueue``."""

    def __init__(self, task_name: str, agent_id: UUID, why: str) -> None:
        super().__init__(
            f"the task {task_name!r} could not be sent ({why}), and its activity {agent_id} has ended as ERROR: check"
            " that the broker runs and takes messages of that size, and enqueue it again"
        )
        self.agent_id = agent_id


class TaskFailedError(AgentExecError):
    """The task has ended as ERROR. ``error_type`` and ``reason`` are those of its activity.

    Attributes:
        error: Message of the log that ended it. Empty if the database could not be asked.
        attempts: How many attempts there were.
    """

    def __init__(
        self,
        task_name: str,
        agent_id: UUID,
        error_type: str | None,
        reason: str | None,
        error: str = "",
        attempts: int = 1,
    ) -> None:
        known = ", ".join(part for part in (error_type, reason) if part)
        what = f" ({known})" if known else ""
        super().__init__(f"the task {task_name!r} has failed{what}: see the lines of its activity {agent_id}")
        self.task_name = task_name
        self.agent_id = agent_id
        self.error_type = error_type
        self.reason = reason
        self.error = error
        self.attempts = attempts


class TaskResultError(AgentExecError):
    """A task's result cannot be handed over: too large, no JSON, not kept, or not kept any longer."""


class ConfigurationError(AgentExecError):
    """The set-up is missing or contradicts itself; the message says what to change."""


class MissingExtraError(ConfigurationError, ImportError):
    """A feature needs an optional package; the message names it and the pip command."""

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs the package {package}, which is not installed: pip install 'agentexec-otel[{extra}]'"
        )


class ExportError(AgentExecError):
    """Raised by an `ActivityExporter` to tell the processor what kind of failure a batch met.

    Args:
        remedy: What to change, if that is known. It is appended to the text.
    """

    def __init__(self, text: str = "", *, remedy: str | None = None) -> None:
        super().__init__(text if remedy is None else f"{text}: {remedy}")
        self.text = text
        self.remedy = remedy


class TransientExportError(ExportError):
    """The destination is away or busy. The same batch is tried again, for ever, with backoff.

    Args:
        after: Seconds that the destination has asked to wait before the next try.

    Attributes:
        sent: False where nothing has left for the destination, so that it cannot have stored any of the batch.
    """

    sent: bool = True

    def __init__(self, text: str = "", *, remedy: str | None = None, after: float = 0.0) -> None:
        super().__init__(text, remedy=remedy)
        self.after = after


class MisconfiguredExportError(ExportError):
    """The destination refuses us: no table, no permission, wrong password. Kept and retried slowly."""


class PoisonExportError(ExportError):
    """Some event of this batch can never be stored. The batch is halved until that event is alone."""


# -- failures of telemetry itself -----------------------------------------------------------------------------

_logger = logging.getLogger("agentexec_otel")
_reported: set[str] = set()


class guarded:  # noqa: N801  # used as a function; a generator would cost four times as much
    """Keep a failure of telemetry from reaching the run: log it, with its traceback the first time only.

    Not the traceback of an `ExportError`, whose causes may quote rows.
    """

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        """Nothing to set up."""

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if not isinstance(exc, Exception):
            return False
        first = self._what not in _reported
        _reported.add(self._what)
        _logger.warning(
            "%s failed and was skipped: %s",
            self._what,
            type(exc).__name__,
            exc_info=exc if first and not isinstance(exc, ExportError) else None,
        )
        return True
