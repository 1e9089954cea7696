"""An exporter as a third party may write one, for tests of what is done around it."""

from collections import deque
from collections.abc import Callable, Sequence
from threading import Event
from typing import Any

from agentexec_otel.export import Ack, ActivityEvent, ExportResult


class Recorder:
    """Keeps what it is given, and does before that what it is told.

    Attributes:
        batches: What was stored, batch by batch; `replays` says of each call whether it was told to be a replay.
        raises: Raised one after the other, by one call each, before anything is stored.
        answer: Answers instead of an `Ack` for each event.
        gate: Each call waits for it; `entered` is set meanwhile.
    """

    identity = None

    def __init__(
        self,
        *raises: BaseException,
        answer: Callable[[Sequence[ActivityEvent]], Any] | None = None,
        gate: Event | None = None,
    ) -> None:
        self.batches: list[list[ActivityEvent]] = []
        self.replays: list[bool] = []
        self.raises = deque(raises)
        self.answer = answer
        self.gate = gate
        self.entered = Event()
        self.flushes: list[float] = []
        self.shutdowns: list[float] = []

    @property
    def events(self) -> list[ActivityEvent]:
        """Everything that was stored, in order."""
        return [event for batch in self.batches for event in batch]

    @property
    def messages(self) -> list[str]:
        """The messages of what was stored."""
        return [event.message for event in self.events]

    def export(self, events: Sequence[ActivityEvent], *, replay: bool = False) -> Sequence[ExportResult]:
        """See `ActivityExporter.export`."""
        self.replays.append(replay)
        self.entered.set()
        if self.gate is not None:
            self.gate.wait(30)
        if self.raises:
            raise self.raises.popleft()
        if self.answer is not None:
            answer: Sequence[ExportResult] = self.answer(events)
            return answer
        self.batches.append(list(events))
        return [Ack(event.status) for event in events]

    def force_flush(self, timeout: float) -> bool:
        """See `ActivityExporter.force_flush`."""
        self.flushes.append(timeout)
        return True

    def shutdown(self, timeout: float) -> None:
        """See `ActivityExporter.shutdown`."""
        self.shutdowns.append(timeout)
