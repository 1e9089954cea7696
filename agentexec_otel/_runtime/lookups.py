"""Rows read by the writer for those who must not wait for it: many at once in one query."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar
from uuid import UUID

from agentexec_otel.export import ActivityProcessor

_T = TypeVar("_T")

_CHUNK = 500


class Lookups(Generic[_T]):
    """Collects the ids that are asked for while the writer is busy, and reads them together.

    Args:
        processor: On whose thread the reading is done.
        read: Reads up to 500 of them; those that do not exist are left out.
    """

    def __init__(self, processor: ActivityProcessor, read: Callable[[Sequence[UUID]], Mapping[UUID, _T]]) -> None:
        self._processor = processor
        self._read = read
        self._wanted: deque[tuple[UUID, Future[_T | None]]] = deque()

    def soon(self, agent_id: UUID) -> Future[_T | None]:
        """What is read of this activity: None where there is none, an `ExportError` where it cannot be read.

        A TimeoutError where the writer has been shut down.
        """
        future: Future[_T | None] = Future()
        self._wanted.append((agent_id, future))
        self._processor.call_soon(self._answer, self._give_up)  # The first of them answers all.
        return future

    def _taken(self) -> Iterator[tuple[UUID, Future[_T | None]]]:
        while self._wanted:
            agent_id, future = self._wanted.popleft()
            if future.set_running_or_notify_cancel():  # Whoever waited may have been canceled.
                yield agent_id, future

    def _answer(self) -> None:
        wanted = list(self._taken())
        for start in range(0, len(wanted), _CHUNK):
            chunk = wanted[start : start + _CHUNK]
            try:
                found = self._read(sorted({agent_id for agent_id, _ in chunk}))
            except BaseException as exc:  # noqa: BLE001  # passed on to those who wait
                for _, future in chunk:
                    future.set_exception(exc)
            else:
                for agent_id, future in chunk:
                    future.set_result(found.get(agent_id))

    def _give_up(self) -> None:
        for _, future in self._taken():
            future.set_exception(TimeoutError("the writer has been shut down"))
