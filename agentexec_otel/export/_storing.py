"""An event whose producer waits until it is stored, and takes it back where that lasts too long."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

from agentexec_otel._errors import ActivityNotStoredError, MisconfiguredExportError
from agentexec_otel._model.event import ActivityEvent
from agentexec_otel._model.results import Ack, ExportResult
from agentexec_otel.export._delivery import Entry, describe, given_up


class Storing:
    """The producer's side of an `Entry`.

    Args:
        emit: Takes the event that ends an activity whose row was committed after its producer had gone.

    Attributes:
        future: How the event was settled; a `MisconfiguredExportError` as soon as the destination refuses us.
        trouble: What the last try met, for the producer to be told.
    """

    def __init__(self, event: ActivityEvent, emit: Callable[[ActivityEvent], object]) -> None:
        self.future: Future[ExportResult] = Future()
        self.entry = Entry(event, self._settled, self._troubled)
        self.trouble: str | None = None
        self._emit = emit

    def withdraw(self) -> ExportResult | None:
        """Wait no longer. The result, where it has come at the last moment; else the event is not to be stored."""
        if not self.future.cancel() and self.future.exception() is None:
            return self.future.result()
        self.entry.withdrawn = True
        return None

    def abandon(self) -> None:
        """Nobody will know of it: where it is stored already, it is ended."""
        if isinstance(self.withdraw(), Ack):
            self._emit(given_up(self.entry.event))

    def failure(self, timeout: float, outage: str | None) -> ActivityNotStoredError:
        """What to tell the producer.

        Args:
            outage: What the exporter's present trouble is about, if it has any.
        """
        why = self.trouble or f"no commit within {timeout:g} s"
        if outage is not None and outage not in why:
            why = f"{why}: {outage}"
        return ActivityNotStoredError(f"the activity {self.entry.event.agent_id} could not be stored: {why}")

    def _settled(self, result: ExportResult) -> None:
        if not self.entry.withdrawn and self.future.set_running_or_notify_cancel():
            self.future.set_result(result)
        elif isinstance(result, Ack):
            self._emit(given_up(self.entry.event))

    def _troubled(self, exc: BaseException) -> None:
        self.trouble = describe(exc)
        waited_for = not self.entry.withdrawn and isinstance(exc, MisconfiguredExportError)
        if waited_for and self.future.set_running_or_notify_cancel():
            self.entry.withdrawn = True
            self.future.set_exception(exc)
