"""A message in the hands of taskiq, as the receiver and the middleware share it."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from taskiq import TaskiqMessage

from agentexec_otel._errors import guarded
from agentexec_otel.tasks._activities import RefusedMessageError, TaskRun


@dataclass(slots=True)
class Delivery:
    """A message whose task runs in this asyncio task.

    Attributes:
        run: The block of the task; None if the task must not run here.
        left_by: The exception that the task has raised.
        retried: A retry middleware has sent the message again.
        refused: The message's arguments are not those of its task.
    """

    message: TaskiqMessage
    run: TaskRun | None
    left_by: BaseException | None = None
    retried: bool = False
    refused: RefusedMessageError | None = None

    def end(self, left_by: BaseException | None) -> None:
        """End the activity as its task has ended."""
        self.leave()
        if self.run is not None:
            with guarded("ending the activity of a task"):
                self.run.end(left_by)

    def enter(self) -> None:
        """From now on, the activity ends at the latest with the asyncio task."""
        receiving = asyncio.current_task()
        if receiving is not None:
            receiving.add_done_callback(self._end_dropped)

    def leave(self) -> None:
        """The asyncio task may now run on: with an in-place broker it is the caller's."""
        receiving = asyncio.current_task()
        if receiving is not None:
            receiving.remove_done_callback(self._end_dropped)

    def drop(self, raised: BaseException | None) -> None:
        """End the activity of a message that taskiq has dropped because its ack, or another middleware, raised."""
        if self.run is not None and self.run.owner:
            self.end(self.left_by or raised)

    def _end_dropped(self, receiving: asyncio.Task[Any]) -> None:
        self.drop(asyncio.CancelledError() if receiving.cancelled() else receiving.exception())


current_delivery: Final[ContextVar[Delivery | None]] = ContextVar("agentexec_otel.tasks.delivery", default=None)
